"""The command `prepare`: turns scans into a checked dataset for training."""

import functools
import os
from dataclasses import dataclass

from etils import epath

from data_pipelines import files, preprocess
from data_pipelines.datasets import leaks, runners
from data_pipelines.datasets.assemble import QUARANTINE, Result, Runner, assemble
from data_pipelines.datasets.folder import folder
from data_pipelines.datasets.index import read_entries
from data_pipelines.datasets.m3d_cap import m3d_cap
from data_pipelines.datasets.m3d_seg import m3d_seg
from data_pipelines.datasets.reading import read_metadata
from data_pipelines.datasets.salt import read_salt, salted, write_key
from data_pipelines.datasets.sample_ct import sample_ct
from data_pipelines.datasets.study import Collection
from data_pipelines.errors import DataError
from data_pipelines.prepare_options import PrepareOptions
from data_pipelines.program import program

_CONFIGS = {  # a config for each dataset, and the dataset's index among the config's sources
    "sample_ct": ("configs/quickstart.py", 0),
    "folder": ("configs/own_scans.py", 0),
    "m3d_cap": ("configs/m3d/clip.py", 0),
    "m3d_vqa": ("configs/m3d/align.py", 0),
    "m3d_seg": ("configs/m3d/instruct.py", 1),
}
_RECIPES = {
    "sample_ct": "ct",
    "folder": "ct",
    "m3d_cap": "m3d_slices",
    "m3d_vqa": "m3d_slices",
    "m3d_seg": "as_is",
}
QUARANTINED = 3
"""Exit status when the dataset is complete except for scans in quarantine."""
LEAKS = 4
"""Exit status when a patient or a scan is in two splits or datasets."""


@dataclass(frozen=True)
class Prepare(PrepareOptions):
    """The command `prepare` with its options."""

    def run(self) -> int:
        """Prepares the dataset, prints a summary and the next command, returns the exit status.

        Raises:
          DataError: See `prepare`.
        """
        for other in self.against:
            read_metadata(other)  # reports a wrong path now, not after hours of work
        result = self.prepare()
        _report(result, *_CONFIGS[self.dataset])
        if (self.check_leaks or self.against) and _report_leaks(result.path, self.against):
            return LEAKS
        return QUARANTINED if result.quarantined else 0

    def prepare(self) -> Result:
        """Prepares the dataset without printing the summary.

        Raises:
          DataError: A folder or a table is unusable, or all scans are.
        """
        collection = self.collection()
        out = files.absolute(self.out or f"data/{collection.name}")
        unsalted = collection
        if self.salt is not None:
            collection = salted(collection, read_salt(self.salt))
        result = assemble(collection, out, self._runner(), overwrite=self.overwrite)
        if self.salt is not None:  # last, so that a call that fails does not replace the old key
            write_key(out.parent / f"{out.name}.key.csv", unsalted, collection)
        return result

    def collection(self) -> Collection:
        """Returns the studies that these options describe.

        Raises:
          DataError: The options do not fit together, or the source is unusable.
        """
        name = self.recipe or _RECIPES[self.dataset]
        recipe = preprocess.RECIPES[name]
        if name in ("ct", "mr"):
            recipe = getattr(preprocess, name)(self.spacing)
        if self.dataset == "sample_ct":
            return sample_ct(recipe, self.source)
        if self.source is None:
            cure = f"name the folder of your scans: prepare {self.dataset} --source FOLDER"
            raise DataError("--source", "it is not given", cure)
        if self.dataset == "m3d_cap":
            return m3d_cap(self.source, recipe, same=self.same, units=self.units)
        if self.dataset == "m3d_vqa":
            if self.table is None:
                cure = "name the folder of M3D-VQA's tables: prepare m3d_vqa --table M3D_VQA"
                raise DataError("--table", "it is not given", cure)
            return m3d_cap(
                self.source, recipe, same=self.same, units=self.units, questions=self.table
            )
        if self.dataset == "m3d_seg":
            return m3d_seg(self.source, recipe, info=self.table, units=self.units)
        return folder(
            self.source,
            recipe,
            table=self.table,
            overrides=self.overrides,
            masks=self.masks,
            structures=self.structures,
            units=self.units,
            test_fraction=self.test_fraction,
        )

    def _runner(self) -> Runner:
        if self.beam is not None:
            return functools.partial(runners.on_beam, options=self.beam)
        count = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        return functools.partial(runners.in_processes, workers=count)


def _report(result: Result, config: str, source: int) -> None:
    path = result.path
    shown = files.shown(path)
    counts = ", ".join(f"{count} {split}" for split, count in result.splits.items())
    done = "Wrote" if result.fresh else "Nothing to do: already there, complete and up to date:"
    print(f"{done} {sum(result.splits.values())} studies ({counts}) in {shown}")
    print(f"Card:  {shown}/card.md")
    if result.quarantined:
        print(f"Put aside: {result.quarantined} studies or rows, see {shown}/{QUARANTINE}")
    print(f"Next:  {program()} train {config} --data.sources.{source}.path {shown}")


def _report_leaks(path: epath.Path, against: tuple[str, ...]) -> bool:
    """Prints leaks, writes them to leaks.csv; returns whether any is not just a duplicate."""
    entries = [entry for folder in (path, *against) for entry in read_entries(folder)]
    found = leaks.find_leaks(entries)
    print(leaks.report(found))
    leaks.write(found, path / "leaks.csv")
    return any(leak.kind != "duplicate" for leak in found)
