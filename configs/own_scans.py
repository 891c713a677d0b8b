"""The quickstart's model on scans of your own.

    python run.py prepare folder --source SCANS --units HU --out data/mine
    python run.py train configs/own_scans.py
    python run.py evaluate runs/own_scans

Judged on the patients that `prepare` put into the split "test". With hours instead of minutes, go
on to more steps, larger crops (`--data.size`) and a wider model.
"""

import dataclasses

from configs import quickstart
from data_pipelines.pipeline import Source
from m3djax.evaluate import Reconstruction
from m3djax.experiment import Experiment


def get_config() -> Experiment:
    """See the module's docstring."""
    config = quickstart.get_config()
    return dataclasses.replace(
        config,
        name="own_scans",
        data=dataclasses.replace(config.data, sources=(Source("data/mine"),)),
        evaluators={"reconstruction": Reconstruction()},
    )
