"""The verb `prepare`: scans in, a checked dataset for training out."""

import functools
import os
from dataclasses import dataclass
from typing import Literal

import tyro
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
from data_pipelines.program import program
from data_pipelines.volume import Units

_CONFIGS = {  # and which of its sources the dataset is
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
"""Exit status when the dataset is complete but for scans that were put aside."""
LEAKS = 4
"""Exit status when a patient or a scan is in two splits or datasets."""


@dataclass(frozen=True)
class Prepare:
    """Turns scans into a dataset that training reads.

    A call that was killed goes on where it was. Scans that cannot be read are put aside
    (quarantine.csv names the reason and the cure of each), and the exit status is then 3; it is
    4 if leaks were looked for and found.

    Attributes:
      dataset: "sample_ct", five public CT studies that are downloaded, or "folder", scans of your
        own: NIfTI, NRRD, MetaImage, npy and npz files, DICOM folders, folders of PNG slices; or
        "m3d_cap", the folder M3D_Cap (or M3D_Cap_npy) of M3D with its splits repaired; "m3d_vqa",
        the same with the questions of M3D-VQA; "m3d_seg", the folder M3D_Seg_npy with masks.
      source: The folder of scans. With sample_ct: an unpacked copy instead of the download.
      table: With folder: a CSV file about the scans. Column "image" is a path below the folder;
        patient_id, study_id, report, mask, split and series are optional; any other is a 0/1
        label. With m3d_vqa: the folder of M3D-VQA's tables, M3D_VQA_train.csv and so on. With
        m3d_seg: the file dataset_info.json, if it is not in the folder.
      overrides: With folder: a CSV file like CT-RATE's metadata (VolumeName, RescaleSlope,
        RescaleIntercept, XYSpacing, ZSpacing) that overrules what headers say.
      masks: With folder: name of the mask, a file or a folder with one file per structure, that
        lies beside each image.
      structures: With folder: names of the labels 1, 2, ... of the masks; they choose among the
        files of mask folders, the segments of a DICOM SEG and the contours of an RTSTRUCT.
      out: The dataset folder; default data/NAME.
      same: With m3d_cap and m3d_vqa: the leaks.csv of an earlier call with check_leaks; cases that
        it found to hold the same scan are put into one split.
      recipe: Preprocessing: "ct" (whole CT in HU at one spacing), "mr" (robust 0..1), "as_is" (done
        before), "e3d", "m3d", "m3d_slices" (M3D's size for slices without an affine), ... By
        default "m3d_slices" with m3d_cap and m3d_vqa, "as_is" with m3d_seg, else "ct".
      spacing: With recipe ct and mr: voxel size in mm along depth, height, width.
      units: Of files that cannot tell: "HU" for CT; None takes them as unknown.
      test_fraction: With folder: share of the patients in the split "test", unless the table
        has a column for it.
      salt: A file with a secret (made if it is not there): ids become salted hashes, and file
        names stay out of the dataset. Who is who is then told by OUT.key.csv alone.
      check_leaks: Look for patients and near-identical scans across splits.
      against: Prepared datasets to look for them in, too; means check_leaks.
      workers: Processes; default one per core. 0 works in this process.
      beam: Make the records with Apache Beam instead of processes of this machine; its pipeline
        options as NAME=VALUE, for example runner=DataflowRunner project=P. None at all: on this
        machine, by the DirectRunner.
      overwrite: Replace a dataset made with another recipe or from other files.
    """

    dataset: tyro.conf.Positional[
        Literal["sample_ct", "folder", "m3d_cap", "m3d_vqa", "m3d_seg"]
    ] = "sample_ct"
    source: str | None = None
    table: str | None = None
    overrides: str | None = None
    masks: str | None = None
    structures: tuple[str, ...] = ()
    same: str | None = None
    out: str | None = None
    recipe: (
        Literal["ct", "mr", "as_is", "e3d", "m3d", "m3d_slices", "m3d_cap", "m3d_seg", "m3d_refseg"]
        | None
    ) = None
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    units: Units | None = None
    test_fraction: float = 0.1
    salt: str | None = None
    check_leaks: bool = False
    against: tuple[str, ...] = ()
    workers: int | None = None
    beam: tuple[str, ...] | None = None
    overwrite: bool = False

    def run(self) -> int:
        """Prepares, prints what was written and what comes next; returns the exit status.

        Raises:
          DataError: See `prepare`.
        """
        for other in self.against:
            read_metadata(other)  # a wrong path is told now, not after hours of work
        result = self.prepare()
        _report(result, *_CONFIGS[self.dataset])
        if (self.check_leaks or self.against) and _report_leaks(result.path, self.against):
            return LEAKS
        return QUARANTINED if result.quarantined else 0

    def prepare(self) -> Result:
        """Prepares without printing the summary.

        Raises:
          DataError: A folder, a table or every scan is unusable; it says which, why and the cure.
        """
        collection = self.collection()
        out = files.absolute(self.out or f"data/{collection.name}")
        unsalted = collection
        if self.salt is not None:
            collection = salted(collection, read_salt(self.salt))
        result = assemble(collection, out, self._runner(), overwrite=self.overwrite)
        if self.salt is not None:  # not before: a refused call must not cost the key of the last
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
    """Prints what leaks were found, and writes them to leaks.csv; returns whether there are."""
    entries = [entry for folder in (path, *against) for entry in read_entries(folder)]
    found = leaks.find_leaks(entries)
    print(leaks.report(found))
    leaks.write(found, path / "leaks.csv")
    return any(leak.kind != "duplicate" for leak in found)
