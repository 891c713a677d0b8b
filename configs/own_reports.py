"""The quickstart's two towers on scans and reports of your own.

    python run.py prepare folder --source SCANS --table scans.csv --units HU --out data/mine
    python run.py train configs/own_reports.py
    python run.py evaluate runs/own_reports

The table has a column "report" (data_pipelines/datasets/table.py tells the others). Judged on the
patients that `prepare` put into the split "test". Whole scans are cut at random, so that a report
may tell of what a crop does not show: larger crops (`--data.size`) or zooms (`--data.crops`) help.
"""

import dataclasses

from configs import quickstart_clip
from data_pipelines.captions import Report
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Crop, Source
from data_pipelines.text.tokens import ReportTokens
from m3djax.evaluate import Retrieval
from m3djax.experiment import Experiment


def get_config() -> Experiment:
    """See the module's docstring."""
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
