"""M3D-LaMed's second stage as published (script/finetune_lora_llama2.sh), without masks.

    python run.py train configs/m3d/align_released.py                    # the first stage
    python run.py train configs/m3d/instruct_released.py
    python run.py evaluate runs/m3d_instruct_released
    C=configs/m3d/instruct_released.py                                   # the published weights:
    python run.py convert M3D-LaMed-Llama-2-7B weights/m3d_lamed_llama2 --config $C

"As published" means:
- Only the projector of the first stage is used. The original assigns the trained input embedding to
  an unused local name. So the input embedding and everything else start from the base models.
- The language model's linear layers have adapters. Encoder, projector, input embedding and output
  layer are trained whole.
- Questions come from the tables for training.
- Boxes end at their last voxel.
- There is no separator between volume and question in requests for reports.
- The batch is 64, 8 on each of the original's 8 GPUs.

The published weights are those of this task with merged adapters. An import puts the tensors of the
mask decoder aside. The config has not been trained here.
"""

import dataclasses

from configs.m3d import align, align_released, instruct
from data_pipelines import Source
from m3djax import Experiment
from m3djax.tasks import VisionLanguage

SOURCES = (
    Source("data/m3d_cap", "released_train", weight=0.9),
    Source("data/m3d_seg", weight=0.1),
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    task, llm = align_released.TASK, "weights/llama2_7b_released"
    return experiment("m3d_instruct_released", task, llm, "runs/m3d_align_released")


def experiment(name: str, task: VisionLanguage, llm: str, start: str) -> Experiment:
    """Returns the same recipe for another language model.

    Args:
      name: name of the run.
      task: the model, without adapters.
      llm: folder of the language model's weights.
      start: the run of the first stage, whose projector is taken.
    """
    asked = instruct.asked(released=True)
    data = align.data(task, 64, size=(32, 256, 256), llm=llm, asked=asked, joined=("report",))
    data = dataclasses.replace(data, sources=SOURCES)
    found = instruct.experiment(name, task, data, start)
    parts = {"vision": "weights/m3d_clip", "projector": start, "llm": llm}
    measured = instruct.measured(data, reports="released_test", released=True)
    return dataclasses.replace(found, init_from=parts, evaluators=measured, steps=71_000)
