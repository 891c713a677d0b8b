"""From a collection of studies to a complete dataset folder, through kills and broken scans.

Everything is made in a hidden folder beside the target, `.NAME.partial`: first a file per study
(`staging`), then the TFDS shards with metadata and card. A single rename puts the result into its
place, so that the target is never half there, and only then the hidden folder is removed.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.datasets import card, staging, workers
from data_pipelines.datasets.reading import METADATA, read_metadata
from data_pipelines.datasets.staging import Broken, Job
from data_pipelines.datasets.study import Collection, check_studies
from data_pipelines.errors import DataError

QUARANTINE = "quarantine.csv"


@dataclass(frozen=True)
class Result:
    """What `assemble` did.

    Attributes:
      path: The dataset folder.
      splits: {split: number of studies}.
      quarantined: Number of studies that were put aside.
      fresh: False when the dataset was already there, complete and up to date.
    """

    path: Path
    splits: Mapping[str, int]
    quarantined: int
    fresh: bool


def assemble(
    collection: Collection, out: Path, *, processes: int, overwrite: bool = False
) -> Result:
    """Prepares a dataset, going on where an earlier, killed call was.

    Args:
      collection: The studies and their recipe.
      out: The dataset folder; it must not exist, be empty, or hold a dataset.
      processes: How many read and resample; 0 works in this one.
      overwrite: Replace a dataset made with another recipe or from other files.

    Raises:
      DataError: A patient is in two splits, the folder is taken, another process is at work on
        it, or no study at all could be prepared.
    """
    check_studies(collection.studies, collection.root)
    stage = out.parent / f".{out.name}.partial"
    jobs = staging.plan(collection, stage)
    fingerprint = _fingerprint(jobs)
    if not overwrite and (metadata := _existing(out, collection, fingerprint)):
        shutil.rmtree(stage, ignore_errors=True)
        return _result(out, metadata, fresh=False)
    if overwrite and out.exists() and any(out.iterdir()) and not _is_ours(out):
        raise _taken(out)
    stage.mkdir(parents=True, exist_ok=True)
    with _locked(stage):
        broken = _make_records(jobs, processes)
        ready = [job for job in jobs if job.target not in broken]
        if not ready:
            first = next(iter(broken.values()))
            problem = f"no study could be prepared; the first: {first.file}: {first.reason}"
            raise DataError(collection.root, problem, first.cure)
        metadata = {"fingerprint": fingerprint, "recipe": collection.recipe.to_json()}
        built = _write(collection, ready, list(broken.values()), metadata, stage)
        _publish(built, out, stage)
    return _result(out, read_metadata(out), fresh=True)


def _existing(out: Path, collection: Collection, fingerprint: str) -> Mapping[str, Any] | None:
    """Returns the metadata of an equal dataset, None when the place is free; else raises."""
    if not out.exists() or not any(out.iterdir()):
        return None
    if not _is_ours(out):
        raise _taken(out)
    metadata = read_metadata(out)
    if metadata["fingerprint"] == fingerprint:
        return metadata
    recipe = metadata["recipe"] != collection.recipe.to_json()
    problem = f"it holds a dataset made {'with another recipe' if recipe else 'from other files'}"
    raise DataError(
        out, problem, "choose another folder with --out, or replace it with --overwrite"
    )


def _is_ours(out: Path) -> bool:
    return (out / METADATA).exists()


def _taken(out: Path) -> DataError:
    return DataError(out, "the folder holds something else", "choose another folder with --out")


def _fingerprint(jobs: Iterable[Job]) -> str:
    text = json.dumps([(job.target.name, job.study.split) for job in jobs])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_records(jobs: Sequence[Job], processes: int) -> dict[Path, Broken]:
    """Runs the jobs that are not done yet, with a progress bar; returns what is broken."""
    broken: dict[Path, Broken] = {}
    todo = [job for job in jobs if not staging.is_done(job)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        task = bar.add_task("Preparing studies", total=len(jobs), completed=len(jobs) - len(todo))

        def done(job: Job, problem: Broken | None) -> None:
            if problem:
                broken[job.target] = problem
                bar.console.print(f"Put aside {problem.file}: {problem.reason}", markup=False)
            bar.advance(task)

        workers.run(todo, processes, done)
    return {job.target: broken[job.target] for job in jobs if job.target in broken}


def _write(
    collection: Collection,
    ready: Sequence[Job],
    broken: Sequence[Broken],
    metadata: Mapping[str, Any],
    stage: Path,
) -> Path:
    """Writes shards, card, quarantine and metadata; returns the folder that holds them."""
    from data_pipelines.datasets import builder  # TFDS takes a second; the workers need none

    splits: dict[str, list[Job]] = {}
    for job in ready:
        splits.setdefault(job.study.split, []).append(job)
    for leftover in stage.glob("build-*"):
        shutil.rmtree(leftover)  # of a run that was killed
    seen = card.Statistics(collection.label_names)
    folder = builder.write(
        {
            split: seen.watch(split, (staging.load(job.target) for job in part))
            for split, part in splits.items()
        },
        len(collection.label_names),
        Path(tempfile.mkdtemp(dir=stage, prefix="build-")),
    )
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    page = card.facts(collection, seen, sum(sizes.values()), len(broken))
    patients = {split: sorted(ids) for split, ids in seen.patients.items()}
    (folder / "card.json").write_text(card.to_json(page))
    (folder / "card.md").write_text(card.markdown(page))
    _write_quarantine(folder / QUARANTINE, broken)
    complete = {
        "name": collection.name,
        **metadata,
        "splits": page["splits"],
        "patients": patients,
        # Counted over the records as written, not over what was planned.
        "patients_in_two_splits": _shared(patients),
        "quarantined": len(broken),
        "label_names": collection.label_names,
        "mask_names": collection.mask_names,
        "files": sizes,
    }
    (folder / METADATA).write_text(json.dumps(complete, indent=1))
    return folder


def _shared(patients: Mapping[str, Sequence[str]]) -> list[str]:
    everyone = [patient for ids in patients.values() for patient in ids]
    shared = sorted({patient for patient in everyone if everyone.count(patient) > 1})
    assert not shared, shared
    return shared


def _write_quarantine(path: Path, broken: Iterable[Broken]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Broken)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in broken)


def _publish(built: Path, out: Path, stage: Path) -> None:
    """Moves the finished folder to its place in one step and removes the hidden one."""
    for path in [*built.iterdir(), built]:
        _flush(path)
    if out.exists() and any(out.iterdir()):
        out.rename(Path(tempfile.mkdtemp(dir=stage, prefix="old-")) / out.name)
    built.rename(out)  # replaces an empty folder
    _flush(out.parent)
    shutil.rmtree(stage)


def _flush(path: Path) -> None:
    """Makes a file or a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(stage: Path) -> Iterator[None]:
    """Keeps a second process out; the lock goes away with its process, however that ends."""
    with (stage / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(stage, "another process prepares this", "wait for it") from error
        yield


def _result(out: Path, metadata: Mapping[str, Any], *, fresh: bool) -> Result:
    splits = {name: counts["studies"] for name, counts in metadata["splits"].items()}
    return Result(out, splits, metadata["quarantined"], fresh)
