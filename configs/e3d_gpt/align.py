"""E3D-GPT's first stage: alignment of the encoder with the language model (arXiv 2410.14200).

    python run.py prepare folder --source SCANS --units HU --recipe e3d --out data/ct --table TABLE
    python run.py train configs/e3d_gpt/mae.py
    python run.py train configs/e3d_gpt/align.py
    python run.py train configs/e3d_gpt/instruct.py                      # the second stage

The recipe is that of configs/m3d/align.py with another encoder, other crops and another projector.
The encoder is the ViT-B of configs/e3d_gpt/mae.py on crops of 112 x 224 x 224 voxels. The projector
is a convolution with kernel and stride 2 x 2 x 2, which reduces 2,744 tokens to 343. E3D-GPT's code
and language model are not public: the projector is that of its author's later code, and the
language model is M3D's. The config has not been trained here, and no figure is claimed.
"""

import dataclasses

from configs.e3d_gpt import mae
from configs.m3d import align
from data_pipelines import Data, Source
from m3djax import Experiment
from m3djax.models import Projector

MAE = mae.get_config()
TASK = dataclasses.replace(
    align.TASK,
    vision=MAE.task.vision,  # type: ignore[attr-defined]
    projector=Projector(4096, merge="concat", num_layers=1),
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return align.experiment("e3d_gpt_align", TASK, data(), "runs/e3d_gpt_mae", MAE.inputs)


def data() -> Data:
    """Returns reports and questions about crops at the volumes' own resolution."""
    found = align.data(TASK, 128, size=(112, 224, 224), units="HU")
    return dataclasses.replace(found, sources=(Source("data/ct"),))
