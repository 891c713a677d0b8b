"""The quickstart's two towers, trained on your own scans and reports.

    python run.py prepare folder --source SCANS --table scans.csv --units HU --out data/mine
    python run.py train configs/own_reports.py
    python run.py evaluate runs/own_reports

The table has a column "report"; data_pipelines/datasets/table.py describes the others. The
evaluation uses the patients that `prepare` put into the split "test". Training cuts random crops
out of whole scans, so a report may mention findings that a crop does not show. Larger crops
(`--data.size`) or zooms (`--data.crops`) help.
"""

import dataclasses

from configs import quickstart_clip
from data_pipelines import Crop, Image, Report, ReportTokens, Source, Text
from m3djax import Experiment
from m3djax.evaluate import Retrieval


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    config = quickstart_clip.get_config()
    return dataclasses.replace(
        config,
        name="own_reports",
        data=dataclasses.replace(
            config.data,
            sources=(Source("data/mine"),),
            size=(32, 64, 64),
            crops=(Crop(2.0),),
            fields={
                "image": Image(),
                "text": Text(ReportTokens("all-MiniLM-L6-v2", 128), Report()),
            },
        ),
        init_from={},
        evaluators={"retrieval": Retrieval()},
        steps=1000,
        save_every=200,
    )
