"""The input of a dataset: studies, each of one patient, and a recipe for all of them."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from etils import epath

from data_pipelines.datasets.points import PointList
from data_pipelines.errors import DataError, printable
from data_pipelines.files import below
from data_pipelines.preprocess import Recipe
from data_pipelines.volume import Units

_VERSION = 2
"""Version of the content of records. Increase it to prepare all data again."""


@dataclass(frozen=True)
class Broken:
    """A row of `quarantine.csv`: a study, or a row of a table, that could not be used.

    Attributes:
      file: relative path of the file with the problem.
      study_id: id of the study; "" for a row of a table.
      reason: the problem.
      cure: what the user can do.
    """

    file: str
    study_id: str
    reason: str
    cure: str


@dataclass(frozen=True)
class Study:
    """One scan with all its data.

    Attributes:
      study_id: id, unique in the dataset.
      patient_id: id of the patient; all studies of a patient are in the same split.
      split: "train", "test" or another name.
      image: a volume file, or the folder of a DICOM series or of image slices.
      series: number or SeriesInstanceUID, needed if a DICOM folder has several series.
      rescale: (slope, intercept) that replace those of the file.
      spacing: mm along the axes of the file; replaces the spacing of the file.
      mask: a label map on the grid of the image, a DICOM SEG or RTSTRUCT, or
        {label value: binary mask file}.
      report: the radiology report, or a text file with it; see `read_report`.
      qa: questions and answers, see `qa.to_text`; "" for none.
      points: points such as candidate centres, see `points`.
      labels: {label name: 1 present, 0 absent}; labels that are not known are left out.
      annotated: label values for which the mask was drawn; None means all of them. If a value is
        not in this tuple, its absence from the mask does not mean that the structure is absent.
      also_in: names of other splits with this study. These splits may overlap and share patients,
        so that they can reproduce released splits.
    """

    study_id: str
    patient_id: str
    split: str
    image: epath.Path
    series: str | None = None
    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    mask: epath.Path | Mapping[int, epath.Path] | None = None
    report: str | epath.Path | None = None
    qa: str = ""
    points: tuple[PointList, ...] = ()
    labels: Mapping[str, float] = field(default_factory=dict)
    annotated: tuple[int, ...] | None = None
    also_in: tuple[str, ...] = ()

    def files(self) -> Iterator[epath.Path]:
        """Yields every file of the record; raises DataError if a folder cannot be opened."""
        masks = self.mask.values() if isinstance(self.mask, Mapping) else [self.mask]
        report = self.report if isinstance(self.report, epath.Path) else None
        for path in (self.image, *masks, report):
            if path is not None and path.is_dir():
                yield from below(path)
            elif path is not None:
                yield path


@dataclass(frozen=True)
class Collection:
    """A dataset before it is prepared.

    Attributes:
      name: short name, used in file names.
      root: folder with the files. Records name their source relative to it, unless the ids are
        `salted`.
      studies: the studies, in the order of the records of each split.
      recipe: preprocessing of every study.
      label_names: names of the labels in the order of the records.
      mask_names: {label value: name}.
      notes: sentences for the dataset card: the origin of the data, and cautions.
      units: units of the voxels in files without units: "HU", "unit" or "raw".
      structures: structures of DICOM SEG and RTSTRUCT files for the labels 1, 2, ...
      names: {study_id: name of its source for records and the quarantine}. Other studies are named
        by their path below the root.
      aside: studies or rows that were put aside before any scan was read.
    """

    name: str
    root: epath.Path
    studies: tuple[Study, ...]
    recipe: Recipe
    label_names: tuple[str, ...] = ()
    mask_names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: Units | None = None
    structures: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[Broken, ...] = ()

    def fingerprint(self, study: Study) -> str:
        """Returns a hash of all inputs of the record of this study.

        Files enter with their size and modification time: to hash the content of hundreds of
        thousands of scans at every call would take hours.
        """
        try:
            files = [(self.below_root(path), *_size_and_time(path)) for path in study.files()]
        except DataError:
            files = []  # its reader reports the error and puts it aside
        # A report in a file is in `files`.
        report = study.report if isinstance(study.report, str) else None
        told = (study.patient_id, report, sorted(study.labels.items()), study.annotated)
        facts = [
            _VERSION,
            self.recipe.fingerprint(),
            self.label_names,
            self.units,
            self.structures,
            study.study_id,
            (study.series, study.rescale, study.spacing),
            (told, study.also_in),
        ]
        if study.qa:
            facts.append(study.qa)
        if study.points:
            facts.append([(one.name, one.space, one.places) for one in study.points])
        values = sorted(study.mask) if isinstance(study.mask, Mapping) else None
        text = json.dumps([*facts, files, values])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def source(self, study: Study) -> str:
        """Returns the name of the image of a study in records and in the quarantine."""
        return self.names.get(study.study_id) or self.below_root(study.image)

    def below_root(self, path: epath.Path) -> str:
        """Returns the path relative to the root: absolute paths can have private names."""
        return printable(path.relative_to(self.root).as_posix())


def _size_and_time(path: epath.Path) -> tuple[int, float]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0.0  # its reader reports the error and puts it aside
    return stat.length, float(stat.mtime)


def split_by_hash(patient_id: str, test_fraction: float) -> str:
    """Returns "test" for about this fraction of the patients, always for the same patients."""
    return "test" if _hash(patient_id) < test_fraction * 2**64 else "train"


def hold_one_out(studies: tuple[Study, ...]) -> tuple[Study, ...]:
    """Moves the patient with the lowest hash to "test" if "test" is empty by chance.

    Small datasets need this. A larger test fraction would also take this patient first.
    """
    patients = {study.patient_id for study in studies}
    if len(patients) < 2 or any(study.split == "test" for study in studies):
        return studies
    held_out = min(patients, key=_hash)
    return tuple(
        replace(study, split="test") if study.patient_id == held_out else study for study in studies
    )


def _hash(patient_id: str) -> int:
    return int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big")


def check_studies(studies: Iterable[Study], where: epath.PathLike) -> dict[str, int]:
    """Checks that each patient is in one split, study ids are unique and names of splits are valid.

    Args:
      studies: all studies of a dataset.
      where: folder for the error message.

    Returns:
      {split: number of patients}.

    Raises:
      DataError: a check fails. The error names the patient or the study.
    """
    studies = list(studies)
    splits: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        splits[study.patient_id].add(study.split)
        for name in (study.split, *study.also_in):
            if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "all":
                problem = f"{name!r} cannot be the name of a split"
                cure = "use letters, digits and _, such as train, val, test"
                raise DataError(where, problem, cure)
    if taken := {study.split for study in studies} & {n for s in studies for n in s.also_in}:
        problem = f"{min(taken)!r} names both a split and one that overlaps others"
        raise DataError(where, problem, "rename one of them")
    for patient, names in splits.items():
        if len(names) > 1:
            problem = f"patient {patient} is in the splits {' and '.join(sorted(names))}"
            raise DataError(where, problem, "put all studies of a patient into one split")
    for study_id, count in Counter(study.study_id for study in studies).items():
        if count > 1:
            problem = f"{count} studies have the id {study_id}"
            raise DataError(where, problem, "give every study an id of its own")
    return dict(Counter(next(iter(names)) for names in splits.values()))
