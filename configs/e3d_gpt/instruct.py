"""E3D-GPT's second stage: Llama-2-7B answers about CT (arXiv 2410.14200).

    python run.py train configs/e3d_gpt/align.py                         # the first stage
    python run.py train configs/e3d_gpt/instruct.py
    python run.py evaluate runs/e3d_gpt_instruct

The recipe is that of configs/m3d/instruct.py with the encoder, crops and projector of
configs/e3d_gpt/align.py. The later code of E3D-GPT's author has the same adapters (rank 16,
alpha 32, dropout 0.05) and the same learning rate of 5e-5. The evaluation scores the reports of
test patients. The config has not been trained here, and no figure is claimed.
"""

import dataclasses

from configs.e3d_gpt import align
from configs.m3d import instruct
from data_pipelines import Describe
from m3djax import Experiment


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    data = align.data()
    found = instruct.experiment(
        "e3d_gpt_instruct", align.TASK, data, "runs/e3d_gpt_align", align.MAE.inputs
    )
    reports = instruct.answers(data, Describe(), "test", 256)
    return dataclasses.replace(found, evaluators={"reports": reports})
