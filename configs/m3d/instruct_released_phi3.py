"""M3D-LaMed's second stage with Phi-3-mini, as published (script/finetune_lora_phi3.sh).

    python run.py train configs/m3d/align_released_phi3.py               # the first stage
    python run.py train configs/m3d/instruct_released_phi3.py
    python run.py evaluate runs/m3d_instruct_released_phi3
    C=configs/m3d/instruct_released_phi3.py                              # the published weights:
    python run.py convert M3D-LaMed-Phi-3-4B weights/m3d_lamed_phi3 --config $C

The config is that of configs/m3d/instruct_released.py with the language model of
configs/m3d/align_released_phi3.py and five epochs. It has not been trained here.
"""

import dataclasses

from configs.m3d import instruct_released
from configs.m3d.align_released_phi3 import TASK
from m3djax import Experiment


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    found = instruct_released.experiment(
        "m3d_instruct_released_phi3", TASK, "weights/phi3_released", "runs/m3d_align_released_phi3"
    )
    return dataclasses.replace(found, steps=89_000)
