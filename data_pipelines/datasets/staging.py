"""First stage of a preparation: each study becomes a file that holds its finished record.

The files make a preparation resumable: they appear whole or not at all, and their names carry a
fingerprint of everything they depend on, so that a later run knows what it can keep.
"""

import dataclasses
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath

from data_pipelines.datasets.records import Record, encode
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError
from data_pipelines.preprocess import Recipe
from data_pipelines.readers import read, read_mask
from data_pipelines.volume import Units, Volume


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to make the record of one study.

    Attributes:
      study: The study.
      recipe: Its preprocessing.
      label_names: Labels of the dataset.
      units: Of files that do not tell.
      root: Folder of the sources, which are named relative to it.
      target: The file to write.
    """

    study: Study
    recipe: Recipe
    label_names: tuple[str, ...]
    units: Units | None
    root: epath.Path
    target: Path

    def broken(self, reason: str, cure: str, file: str = "") -> "Broken":
        """Returns the row of the quarantine for this study; `file` is the image by default."""
        path = epath.Path(file) if file else self.study.image
        path = path if path.is_relative_to(self.root) else self.study.image
        name = path.relative_to(self.root).as_posix()
        return Broken(name, self.study.study_id, reason, cure)


@dataclass(frozen=True)
class Broken:
    """A study that could not be prepared: a row of `quarantine.csv`.

    Attributes:
      file: Relative path of the file at fault.
      study_id: The study.
      reason: What is wrong with it.
      cure: What the user can do.
    """

    file: str
    study_id: str
    reason: str
    cure: str


def plan(collection: Collection, folder: Path) -> list[Job]:
    """Returns the job of every study, in order; those with a readable `target` are done."""
    jobs = []
    for study in collection.studies:
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", study.study_id)[:80]
        jobs.append(
            Job(
                study,
                collection.recipe,
                collection.label_names,
                collection.units,
                collection.root,
                folder / f"{slug}-{collection.fingerprint(study)}.npz",
            )
        )
    return jobs


def make(job: Job) -> Broken | None:
    """Makes and stores one record; returns why it could not, if it is the fault of the scan."""
    try:
        record = _record(job)
    except DataError as error:
        return job.broken(error.problem, error.cure, error.path)
    except Exception as error:  # one strange file must not stop a thousand good ones
        # The text of a foreign error may quote what is in the file, patient tags for example.
        reason = f"a library failed on it with {type(error).__name__}"
        cure = "open it in another program and export it again as NIfTI"
        return job.broken(reason, cure)
    save(record, job.target)
    return None


def save(record: Record, target: Path) -> None:
    """Writes a record so that `target` is whole whenever it exists, even after a power cut."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in record.items()})
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)


def load(path: Path) -> Record:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        record = {key: arrays[key] for key in arrays.files}
    return {
        key: value.item() if value.dtype.kind == "U" else value for key, value in record.items()
    }


def is_done(job: Job) -> bool:
    """Whether the job's record is there; a damaged one is removed."""
    try:
        with zipfile.ZipFile(job.target) as file:
            if file.testzip() is None:
                return True
    except FileNotFoundError:
        return False
    except (OSError, zipfile.BadZipFile):
        pass
    job.target.unlink()
    return False


def _record(job: Job) -> Record:
    study = job.study
    volume = read(study.image, units=job.units, series=study.series)
    volume = dataclasses.replace(
        volume,
        mask=_mask(study.mask, volume),
        patient_id=study.patient_id,
        study_id=study.study_id,
        source=study.image.relative_to(job.root).as_posix(),
    )
    return encode(
        job.recipe(volume),
        annotated=study.annotated,
        report=study.report,
        labels=study.labels,
        label_names=job.label_names,
    )


def _mask(mask: epath.Path | Mapping[int, epath.Path] | None, volume: Volume) -> np.ndarray | None:
    """Reads a label map, or merges binary masks (where two overlap the later one wins)."""
    if not isinstance(mask, Mapping):
        return None if mask is None else read_mask(mask, like=volume)
    merged = np.zeros(volume.shape, np.uint8)
    for value, path in mask.items():
        merged[read_mask(path, like=volume) > 0] = value
    return merged
