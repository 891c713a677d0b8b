"""Makes the record of one study from its files, or a row of the quarantine with the reason."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from etils import epath

from data_pipelines import plausible
from data_pipelines.datasets import card, leaks
from data_pipelines.datasets.records import Record, encode
from data_pipelines.datasets.report_files import read_report
from data_pipelines.datasets.study import Broken, Collection, Study
from data_pipelines.errors import DataError, printable
from data_pipelines.files import leads_out, no_space
from data_pipelines.readers.image import read_image
from data_pipelines.readers.masks import find_mask, read_mask, structures_in
from data_pipelines.text.reports import says_nothing
from data_pipelines.volume import Volume

_LabelValues = tuple[int, ...] | None


@dataclass(frozen=True)
class Prepared:
    """A record with the facts for the dataset card and the search for leaks.

    Attributes:
      record: the record.
      facts: JSON values; see `card.study_facts`.
    """

    record: Record
    facts: dict[str, object]


def make(collection: Collection, study: Study) -> Prepared | Broken:
    """Makes the record of a study, or a row of the quarantine if the study cannot be used.

    Raises:
      OSError: the disk is full, so that the scan is not the cause.
    """
    try:
        scan, annotated = _read(collection, study)
        # Errors of the recipe name the file. After it, `source` is the name in records.
        volume = dataclasses.replace(collection.recipe(scan), source=collection.source(study))
        record = encode(
            volume,
            annotated=annotated,
            report=_report(study),
            qa=study.qa,
            points=study.points,
            labels=study.labels,
            label_names=collection.label_names,
            eight_bit=scan.array.dtype == np.uint8,
        )
        facts = card.study_facts(volume, record, study.labels, leaks.signature(volume))
        return Prepared(record, {**facts, "also_in": study.also_in})
    except DataError as error:
        return broken(collection, study, error.problem, error.cure, error.path)
    except OSError as error:
        if no_space(error):
            raise
        cure = "check its permissions, and its disk or network"
        return broken(collection, study, f"it cannot be read ({type(error).__name__})", cure)
    except Exception as error:  # an unexpected error in one file must not stop the others
        # The text of such an error may quote the content of the file, such as patient tags.
        reason = f"a library failed on it with {type(error).__name__}"
        cure = "open it in another program and export it again as NIfTI"
        return broken(collection, study, reason, cure)


def broken(collection: Collection, study: Study, reason: str, cure: str, file: str = "") -> Broken:
    """Returns the row of the quarantine for a study.

    Args:
      collection: the collection of the study.
      study: the study.
      reason: the problem.
      cure: what the user can do.
      file: path of the file with the problem; "": the image.
    """
    name = collection.source(study)
    if file and study.study_id not in collection.names:
        path = epath.Path(file)
        if path.is_relative_to(collection.root):
            name = collection.below_root(path)
    # A reason may name another file of the study. With salted ids no file name may be shown.
    if study.study_id in collection.names:
        reason = reason.replace(collection.below_root(study.image), name)
    return Broken(name, printable(study.study_id), printable(reason), printable(cure))


def _read(collection: Collection, study: Study) -> tuple[Volume, _LabelValues]:
    for path in (study.image, *study.files()):
        if leads_out(path, collection.root):
            problem = "a link in its path leads out of the folder of scans"
            raise DataError(path, problem, "copy the file there, or prepare the folder it is in")
    volume = read_image(
        study.image,
        units=collection.units,
        series=study.series,
        rescale=study.rescale,
        spacing=study.spacing,
    )
    _check_values(volume, study)
    volume, annotated = _mask(study, volume, collection.structures)
    volume = dataclasses.replace(
        volume,
        patient_id=printable(study.patient_id),
        study_id=printable(study.study_id),
    )
    return volume, annotated


def _check_values(volume: Volume, study: Study) -> None:
    try:
        plausible.check_values(volume)
    except DataError as error:
        if study.rescale is None:
            raise
        # CT-RATE publishes files in HU (`_fixed`) and files that need the table.
        cure = f"{error.cure}; if the files are in HU already, leave out the table (--overrides)"
        problem = f"{error.problem}, after the slope and intercept of the metadata table"
        raise DataError(error.path, problem, cure) from None


def _report(study: Study) -> str | None:
    if isinstance(study.report, epath.Path):
        return read_report(study.report)
    if study.report and says_nothing(study.report):
        problem = "its report has no words, or is a filler such as NaN"
        raise DataError(study.image, problem, "leave the cell of the table empty, or correct it")
    return study.report


def _mask(study: Study, volume: Volume, structures: tuple[str, ...]) -> tuple[Volume, _LabelValues]:
    """Adds the mask; also returns the labels for which it was drawn (None: all of them)."""
    if study.mask is None:
        return volume, study.annotated
    if isinstance(study.mask, Mapping):
        mask, annotated = _merged(study.mask, volume), study.annotated
    elif (found := find_mask(study.mask)).form == "labels" and not (structures and found.values):
        mask, annotated = read_mask(study.mask, volume), study.annotated
    else:
        held = structures_in(study.mask, structures)
        if structures and not held:
            cure = "correct the names of the structures, or remove the mask of this scan"
            raise DataError(study.mask, "the mask holds none of the structures", cure)
        values = np.array([0, *(structures.index(name) + 1 for name in held)], np.uint8)
        mask, annotated = values[read_mask(study.mask, volume, held)], tuple(values[1:].tolist())
    return dataclasses.replace(volume, mask=mask), annotated


def _merged(masks: Mapping[int, epath.Path], volume: Volume) -> np.ndarray:
    """Merges binary masks; if two overlap, the later one wins."""
    merged = np.zeros(volume.shape, np.uint8)
    for value, path in masks.items():
        merged[read_mask(path, volume) > 0] = value
    return merged
