"""Makes a dataset folder from a collection of studies, and resumes after a kill.

All files are first written to a hidden folder beside the target, `.NAME.partial`: first the
`shards`, then the whole dataset with metadata and card. The dataset becomes visible in one step: by
a rename, or, on file systems without renames (gs://), by its metadata, which are written last. Then
the hidden folder is removed.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines import files
from data_pipelines.datasets import card, shards
from data_pipelines.datasets.reading import METADATA, STUDIES, SUBSETS, read_metadata
from data_pipelines.datasets.shards import Shard
from data_pipelines.datasets.study import Broken, Collection, check_studies
from data_pipelines.errors import DataError

QUARANTINE = "quarantine.csv"
Runner = Callable[[Sequence[Shard], Callable[[Shard], None]], None]
"""Makes shards; calls its second argument for each finished shard, at once or at the end."""


@dataclass(frozen=True)
class Result:
    """The result of `assemble`.

    Attributes:
      path: the dataset folder.
      splits: {split: number of studies}.
      quarantined: number of studies, and rows of tables, that were put aside.
      fresh: False if the dataset was already there, complete and up to date.
    """

    path: epath.Path
    splits: Mapping[str, int]
    quarantined: int
    fresh: bool


def assemble(
    collection: Collection, out: epath.PathLike, run: Runner, *, overwrite: bool = False
) -> Result:
    """Prepares a dataset; keeps the finished shards of an earlier call that was killed.

    Args:
      collection: the studies and their recipe.
      out: the dataset folder; it must not exist, be empty, or have a dataset.
      run: makes the shards; see `runners`.
      overwrite: whether to replace a dataset made with another recipe or from other files.

    Raises:
      DataError: a patient is in two splits, the folder has other files, another process prepares
        the same folder, the disk is full, or no study could be prepared.
    """
    out = files.absolute(out)
    check_studies(collection.studies, collection.root)
    stage = out.parent / f".{out.name}.partial"
    planned = shards.plan(collection, stage)
    fingerprint = _fingerprint(planned)
    if not overwrite and (metadata := _existing(out, collection, fingerprint)):
        _remove(stage)
        return _result(out, metadata, fresh=False)
    if overwrite and _taken(out) and not _is_ours(out):
        raise _not_ours(out)
    stage.mkdir(parents=True, exist_ok=True)
    with _locked(stage):
        broken = _make(planned, run)
        if not any(shard.part().count for shard in planned):
            problem = f"no study could be prepared; the first: {broken[0].file}: {broken[0].reason}"
            raise DataError(collection.root, problem, broken[0].cure)
        broken = [*collection.aside, *broken]
        metadata = {"fingerprint": fingerprint, "recipe": collection.recipe.to_json()}
        _publish(collection, planned, broken, metadata, out, stage)
    return _result(out, read_metadata(out), fresh=True)


def _existing(
    out: epath.Path, collection: Collection, fingerprint: str
) -> Mapping[str, Any] | None:
    """Returns the metadata of an equal dataset, or None if the folder is free; else raises."""
    if not _taken(out):
        return None
    if not _is_ours(out):
        raise _not_ours(out)
    metadata = read_metadata(out)
    if metadata["fingerprint"] == fingerprint:
        return metadata
    recipe = metadata["recipe"] != collection.recipe.to_json()
    problem = f"it holds a dataset made {'with another recipe' if recipe else 'from other files'}"
    raise DataError(
        out, problem, "choose another folder with --out, or replace it with --overwrite"
    )


def _taken(out: epath.Path) -> bool:
    return out.exists() and any(out.iterdir())


def _is_ours(out: epath.Path) -> bool:
    # A killed copy to gs:// leaves shards without metadata; such a folder is safe to replace.
    return (out / METADATA).exists() or (out / STUDIES).exists()


def _not_ours(out: epath.Path) -> DataError:
    return DataError(out, "the folder holds something else", "choose another folder with --out")


def _fingerprint(planned: Iterable[Shard]) -> str:
    text = json.dumps([shard.folder.name for shard in planned])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make(planned: Sequence[Shard], run: Runner) -> list[Broken]:
    """Makes the shards that are not done, with a progress bar; returns the broken studies."""
    import tensorflow_datasets  # noqa: F401  before the progress bar: both patch imports

    todo = [shard for shard in planned if not shard.is_done()]
    left = sum(len(shard.studies) for shard in todo)
    total = sum(len(shard.studies) for shard in planned)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("Preparing studies", total=total, completed=total - left)

        def done(shard: Shard) -> None:
            for problem in _broken(shard):
                bar.console.print(f"Put aside {problem.file}: {problem.reason}", markup=False)
            bar.advance(task, len(shard.studies))

        run(todo, done)
    return [problem for shard in planned for problem in _broken(shard)]


def _broken(shard: Shard) -> Iterator[Broken]:
    return (Broken(**row["broken"]) for row in shard.rows() if "broken" in row)


def _publish(
    collection: Collection,
    planned: Sequence[Shard],
    broken: Sequence[Broken],
    metadata: Mapping[str, Any],
    out: epath.Path,
    stage: epath.Path,
) -> None:
    """Makes the dataset from its shards and moves it to its final folder."""
    local = files.is_local(out)
    if not local and out.exists():
        (out / METADATA).unlink(missing_ok=True)
        out.rmtree()
    built = epath.Path(files.working_folder(stage)) if local else out
    _write(collection, planned, broken, metadata, built)
    if local:
        if _taken(out):
            out.rename(Path(tempfile.mkdtemp(dir=stage, prefix="old-")) / out.name)
        files.move_folder(Path(built), out, METADATA)
    _remove(stage)


def _write(
    collection: Collection,
    planned: Sequence[Shard],
    broken: Sequence[Broken],
    metadata: Mapping[str, Any],
    folder: epath.Path,
) -> None:
    """Writes shards, index, card, quarantine and, as the last file, the metadata."""
    from data_pipelines.datasets import (
        storage,
    )  # TFDS takes a second to import; not needed without work

    seen = card.Statistics()
    parts: dict[str, list[storage.FinishedShard]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STUDIES).open("w") as index:
        for shard in planned:
            parts.setdefault(shard.split, []).append(shard.part())
            for row in shard.rows():
                if "study_id" in row:
                    seen.add(row)
                    index.write(json.dumps(row) + "\n")
    storage.publish(parts, folder, len(collection.label_names))
    names = sorted(path.name for path in folder.iterdir())
    page = card.facts(collection, seen, sum(files.sizes(folder, names).values()), len(broken))
    patients = {split: sorted(ids) for split, ids in seen.patients.items()}
    (folder / "card.json").write_text(card.to_json(page))
    (folder / "card.md").write_text(card.markdown(page))
    (folder / QUARANTINE).write_text(_table(broken))
    (folder / SUBSETS).write_text(json.dumps(seen.subsets))
    names += ["card.json", "card.md", QUARANTINE, SUBSETS]
    complete = {
        "name": collection.name,
        **metadata,
        "splits": page["splits"],
        "patients": patients,
        # Counted over the written records, not over the plan.
        "patients_in_two_splits": _shared(patients),
        "quarantined": len(broken),
        "label_names": collection.label_names,
        "mask_names": collection.mask_names,
        "files": files.sizes(folder, sorted(names)),
    }
    (folder / METADATA).write_text(json.dumps(complete, indent=1))


def _shared(patients: Mapping[str, Sequence[str]]) -> list[str]:
    everyone = [patient for ids in patients.values() for patient in ids]
    shared = sorted({patient for patient, count in Counter(everyone).items() if count > 1})
    assert not shared, shared
    return shared


def _table(broken: Iterable[Broken]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Broken)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in broken)
    return text.getvalue()


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree(missing_ok=True)


@contextlib.contextmanager
def _locked(stage: epath.Path) -> Iterator[None]:
    """Locks the folder against other processes; the system releases the lock with the process.

    Object stores have no locks. There, two preparations of the same dataset only cost time, because
    each file is written in one piece.
    """
    if not files.is_local(stage):
        yield
        return
    with open(stage / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                stage, "another process prepares this dataset", "wait for it"
            ) from error
        yield


def _result(out: epath.Path, metadata: Mapping[str, Any], *, fresh: bool) -> Result:
    splits = {name: counts["studies"] for name, counts in metadata["splits"].items()}
    return Result(out, splits, metadata["quarantined"], fresh)
