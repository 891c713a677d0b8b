"""E3D-GPT's first stage: a masked autoencoder's volumes become words (arXiv 2410.14200).

    python run.py prepare folder --source SCANS --units HU --recipe e3d --out data/ct --table TABLE
    python run.py train configs/e3d_gpt/mae.py
    python run.py train configs/e3d_gpt/align.py
    python run.py train configs/e3d_gpt/instruct.py                      # the second stage

As configs/m3d/align.py, but for encoder, crops and projector: ViT-B of configs/e3d_gpt/mae.py on
112 x 224 x 224, and a convolution whose stride is its kernel, 2 x 2 x 2, which makes 343 tokens of
2,744. Neither code nor language model of E3D-GPT is public: the projector is that of its author's
later code, the language model M3D's. It has not been trained here: no figure is claimed.
"""

import dataclasses

from configs.e3d_gpt import mae
from configs.m3d import align
from data_pipelines.pipeline import Data, Source
from m3djax.experiment import Experiment
from m3djax.models.projectors import Projector

MAE = mae.get_config()
TASK = dataclasses.replace(
    align.TASK,
    vision=MAE.task.vision,  # type: ignore[attr-defined]
    projector=Projector(4096, merge="concat", num_layers=1),
)


def get_config() -> Experiment:
    """See the module's docstring."""
    return align.experiment("e3d_gpt_align", TASK, data(), "runs/e3d_gpt_mae", MAE.inputs)


def data() -> Data:
    """Reports and questions about crops in the volumes' own resolution."""
    found = align.data(TASK, 128, size=(112, 224, 224), units="HU")
    return dataclasses.replace(found, sources=(Source("data/ct"),))
