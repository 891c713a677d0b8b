"""E3D-GPT's second stage: Llama-2-7B answers about CT (arXiv 2410.14200).

    python run.py train configs/e3d_gpt/align.py                         # the first stage
    python run.py train configs/e3d_gpt/instruct.py
    python run.py evaluate runs/e3d_gpt_instruct

As configs/m3d/instruct.py, but for encoder, crops and projector, which are those of
configs/e3d_gpt/align.py; adapters of rank 16, alpha 32, dropout 0.05 and a learning rate of 5e-5
are also what its author's later code has. Measured are the reports of test patients. It has not
been trained here: no figure is claimed.
"""

import dataclasses

from configs.e3d_gpt import align
from configs.m3d import instruct
from data_pipelines.captions.instructions import Describe
from m3djax.experiment import Experiment


def get_config() -> Experiment:
    """See the module's docstring."""
    data = align.data()
    found = instruct.experiment(
        "e3d_gpt_instruct", align.TASK, data, "runs/e3d_gpt_align", align.MAE.inputs
    )
    reports = instruct.answers(data, Describe(), "test", 256)
    return dataclasses.replace(found, evaluators={"reports": reports})
