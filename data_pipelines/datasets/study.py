"""What a dataset is made of: studies, each of one patient, and the recipe for all of them."""

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
"""Raise it when records hold something else than before: prepared data are then redone."""


@dataclass(frozen=True)
class Broken:
    """A study, or a row of a table, that could not be used: a row of `quarantine.csv`.

    Attributes:
      file: Relative path of the file at fault.
      study_id: The study; "" for a row.
      reason: What is wrong with it.
      cure: What the user can do.
    """

    file: str
    study_id: str
    reason: str
    cure: str


@dataclass(frozen=True)
class Study:
    """One scan with all that is known about it.

    Attributes:
      study_id: Unique in the dataset.
      patient_id: Splits never share one.
      split: "train", "test" or another name.
      image: A volume file, or the folder of a DICOM series or of image slices.
      series: Number or SeriesInstanceUID, needed when a DICOM folder holds several.
      rescale: (slope, intercept) in place of what the file says.
      spacing: mm along the axes of the file, in place of what it says.
      mask: A label map on the grid of the image, a DICOM SEG or RTSTRUCT, or
        {label value: binary mask file}.
      report: The radiology report, or the text file that holds it; see `read_report`.
      qa: Questions and answers, see `qa.to_text`; "" for none.
      points: Points such as candidate centres, see `points`.
      labels: {label name: 1 present, 0 absent}; a label that is not known is left out.
      annotated: Label values that the mask was drawn for; None means all of them.
        Where a value is not in this tuple, its absence from the mask says nothing.
      also_in: Names of further splits that it is part of. They may overlap and share patients:
        they keep what somebody else has divided in another way.
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
        """Yields every file that the record is made from; DataError if a folder is closed."""
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
      name: Short name, used in file names.
      root: Folder that holds the files; records name their source relative to it, unless the
        ids are `salted`.
      studies: In the order of the records of each split.
      recipe: Preprocessing of every study.
      label_names: Order of the labels in the records.
      mask_names: {label value: name}.
      notes: Sentences for the dataset card: where it comes from, what to be careful with.
      units: Of voxels in files that do not say it themselves: "HU", "unit" or "raw".
      structures: Which structures of DICOM SEG and RTSTRUCT files become the labels 1, 2, ...
      names: {study_id: name of its source for records and the quarantine}; a study that is not
        in it is named by the path below the root.
      aside: What was put aside before any scan was read, such as rows of a table.
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
        """Returns a hash of everything that the record of this study depends on.

        Files count by size and modification time: hashing the content of hundreds of
        thousands of scans at every call would take hours.
        """
        try:
            files = [(self.below_root(path), *_size_and_time(path)) for path in study.files()]
        except DataError:
            files = []  # whoever reads it will say that it cannot be opened, and put it aside
        # A report that is a file counts as one of the files.
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
        """Returns what records call the file that a study was read from."""
        return self.names.get(study.study_id) or self.below_root(study.image)

    def below_root(self, path: epath.Path) -> str:
        """Returns the path relative to the root: absolute ones tell about somebody's machine."""
        return printable(path.relative_to(self.root).as_posix())


def _size_and_time(path: epath.Path) -> tuple[int, float]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0.0  # whoever reads it will say that it is missing, and put it aside
    return stat.length, float(stat.mtime)


def split_by_hash(patient_id: str, test_fraction: float) -> str:
    """Returns "test" for about this fraction of the patients, always the same ones."""
    return "test" if _hash(patient_id) < test_fraction * 2**64 else "train"


def hold_one_out(studies: tuple[Study, ...]) -> tuple[Study, ...]:
    """Moves the patient with the lowest hash to "test" if chance put nobody there.

    Small datasets need it; it is the patient that a growing fraction takes first anyway.
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
    """Proves that no patient is in two splits, no study id is used twice and splits have names.

    Args:
      studies: All studies of a dataset.
      where: Named in the error.

    Returns:
      {split: number of patients}.

    Raises:
      DataError: Names the patient or the study.
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
