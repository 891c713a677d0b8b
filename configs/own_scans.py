"""The quickstart's model, trained on your own scans.

    python run.py prepare folder --source SCANS --units HU --out data/mine
    python run.py train configs/own_scans.py
    python run.py evaluate runs/own_scans

The evaluation uses the patients that `prepare` put into the split "test". With hours instead of
minutes of compute, use more steps, larger crops (`--data.size`) and a wider model.
"""

import dataclasses

from configs import quickstart
from data_pipelines import Source
from m3djax import Experiment
from m3djax.evaluate import Reconstruction


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    config = quickstart.get_config()
    return dataclasses.replace(
        config,
        name="own_scans",
        data=dataclasses.replace(config.data, sources=(Source("data/mine"),)),
        evaluators={"reconstruction": Reconstruction()},
    )
