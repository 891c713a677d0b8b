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

It has neither been planned nor trained here: no figure is claimed.
"""

import dataclasses

from configs.m3d import align
from data_pipelines.instructions import Describe, Mixture, Stored
from data_pipelines.pipeline import Data, Source
from data_pipelines.questions import MaskQuestions
from m3djax.experiment import Experiment
from m3djax.lora import LoRA
from m3djax.optim import AdamW
from m3djax.tasks.vision_language import VisionLanguage

SOURCES = (Source("data/m3d_cap", weight=0.9), Source("data/m3d_seg", weight=0.1))
TRAINABLE = r"vision/|projector/|llm/(token_embed|head)/|.*/lora_[ab]$"


def asked(*, released: bool = False) -> Mixture:
    """Everything that M3D asks; `released` makes boxes as M3D does.

    Records with masks have no other questions, and those without pass over "boxes".
    """
    return Mixture(
        {
            "reports": Describe(),
            "questions": Stored(),
            "boxes": MaskQuestions(yes_no=0, choice=0, absent=0.1, released=released),
        },
        {"reports": 0.12, "questions": 1.02, "boxes": 100.0},
    )


def get_config() -> Experiment:
    """See the module's docstring."""
    data = align.data(align.TASK, 128, size=(32, 256, 256), asked=asked())
    data = dataclasses.replace(data, sources=SOURCES)
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
