"""`python run.py prepare`: scans in, a checked dataset for training out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_pipelines import preprocess
from data_pipelines.datasets.assemble import QUARANTINE, Result, assemble
from data_pipelines.datasets.folder import folder
from data_pipelines.datasets.sample_ct import sample_ct
from data_pipelines.datasets.study import Collection
from data_pipelines.errors import DataError
from data_pipelines.volume import Units

_CONFIGS = {"sample_ct": "configs/quickstart.py", "folder": "configs/own_scans.py"}
QUARANTINED = 3
"""Exit status when the dataset is complete but for scans that were put aside."""


@dataclass(frozen=True)
class Prepare:
    """Turns scans into a dataset that training reads.

    A call that was killed goes on where it was. Scans that cannot be read are put aside
    (quarantine.csv names the reason and the cure of each), and the exit status is then 3.

    Attributes:
      dataset: "sample_ct", five public CT studies that are downloaded, or "folder", scans of your
        own: NIfTI files and folders of DICOM files.
      source: The folder of scans. With sample_ct: an unpacked copy instead of the download.
      table: With folder: a CSV file about the scans. Column "image" is a path below the folder;
        patient_id, study_id, report, mask and split are optional; any other is a 0/1 label.
      out: The dataset folder; default data/NAME.
      recipe: Preprocessing: "ct" (whole CT in HU at one spacing), "e3d", "m3d", ...
      spacing: With recipe ct: voxel size in mm along depth, height, width.
      units: Of NIfTI files, which cannot tell: "HU" for CT; None takes them as unknown.
      test_fraction: With folder: share of the patients in the split "test", unless the table
        has a column for it.
      workers: Processes; default one per core. 0 works in this process.
      overwrite: Replace a dataset made with another recipe or from other files.
    """

    dataset: tyro.conf.Positional[Literal["sample_ct", "folder"]] = "sample_ct"
    source: str | None = None
    table: str | None = None
    out: str | None = None
    recipe: Literal["ct", "e3d", "m3d", "m3d_cap", "m3d_seg", "m3d_refseg"] = "ct"
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    units: Units | None = None
    test_fraction: float = 0.1
    workers: int | None = None
    overwrite: bool = False

    def run(self) -> int:
        """Prepares, prints what was written and what comes next; returns the exit status.

        Raises:
          DataError: See `prepare`.
        """
        result = self.prepare()
        _report(result, _CONFIGS[self.dataset])
        return QUARANTINED if result.quarantined else 0

    def prepare(self) -> Result:
        """Prepares without printing the summary.

        Raises:
          DataError: A folder, a table or every scan is unusable; it says which, why and the cure.
        """
        collection = self.collection()
        out = Path(self.out or f"data/{collection.name}")
        count = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        return assemble(collection, out.absolute(), processes=count, overwrite=self.overwrite)

    def collection(self) -> Collection:
        """Returns the studies that these options describe.

        Raises:
          DataError: The options do not fit together, or the source is unusable.
        """
        recipe = preprocess.RECIPES[self.recipe]
        if self.recipe == "ct":
            recipe = preprocess.ct(self.spacing)
        if self.dataset == "sample_ct":
            return sample_ct(recipe, self.source)
        if self.source is None:
            cure = "name the folder of your scans: prepare folder --source FOLDER"
            raise DataError("--source", "it is not given", cure)
        return folder(
            self.source,
            recipe,
            table=self.table,
            units=self.units,
            test_fraction=self.test_fraction,
        )


def _report(result: Result, config: str) -> None:
    path = Path(os.path.relpath(result.path))
    counts = ", ".join(f"{count} {split}" for split, count in result.splits.items())
    done = "Wrote" if result.fresh else "Nothing to do: already there, complete and up to date:"
    print(f"{done} {sum(result.splits.values())} studies ({counts}) in {path}")
    print(f"Card:  {path / 'card.md'}")
    if result.quarantined:
        print(f"Put aside: {result.quarantined} studies, see {path / QUARANTINE}")
    print(f"Next:  python run.py train {config} --data.sources.0.path {path}")
