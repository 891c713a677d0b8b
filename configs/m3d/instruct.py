"""M3D-LaMed's second stage, corrected: Llama-2-7B answers about volumes (arXiv 2404.00578).

    python run.py train configs/m3d/align.py                             # the first stage
    python run.py train configs/m3d/instruct.py
    python run.py plan configs/m3d/instruct.py --topology v5e:4x4

As published: adapters (rank 16, alpha 32, dropout 0.05) beside every linear layer of the language
model's blocks; encoder, projector, input embedding and output layer are trained whole; reports,
questions with and without choices, yes or no, and boxes; four epochs. Corrected, against
configs/m3d/instruct_released.py: all components start from what the first stage left, and boxes
reach the far side of what they enclose. A batch of 128 is 8 volumes on each chip of a v5e:4x4
instead of on each of 8 GPUs; the learning rate is the published one.

It is planned (docs/plans), and has not been trained here: no figure is claimed.
"""

from configs.m3d import align
from data_pipelines.pipeline import Data
from m3djax.experiment import Experiment
from m3djax.lora import LoRA
from m3djax.optim import AdamW
from m3djax.tasks.vision_language import VisionLanguage

TRAINABLE = r"vision/|projector/|llm/(token_embed|head)/|.*/lora_[ab]$"


def get_config() -> Experiment:
    """See the module's docstring."""
    data = align.data(align.TASK, 128, size=(32, 256, 256))
    return experiment("m3d_instruct", align.TASK, data, "runs/m3d_align")


def experiment(name: str, task: VisionLanguage, data: Data, start: str) -> Experiment:
    """The same recipe for another encoder, its crops and its projector.

    Args:
      name: of the run.
      task: the model, without adapters.
      data: its batches.
      start: the run of the first stage.
    """
    return Experiment(
        name=name,
        task=LoRA(task, rank=16, alpha=32.0, dropout=0.05),
        data=data,
        trainable=TRAINABLE,
        init_from=dict.fromkeys(("vision", "projector", "llm"), start),
        optimizer=AdamW(learning_rate=5e-5, warmup=0.03, b2=0.999, weight_decay=0.0),
        steps=35_500,  # four epochs of 120,092 reports and twice 509,755 questions
        mesh=(1, -1, 1),
        log_every=10,
        save_every=500,
    )
