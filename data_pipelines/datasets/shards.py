"""Makes shards, the units of work of a preparation: some studies become one file of records.

One process makes a whole shard, on this machine or on a Beam worker. The shard appears when it is
complete, or not at all. Its name has a fingerprint of all its inputs, so that a later call knows
which shards it can keep.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from etils import epath

from data_pipelines import files
from data_pipelines.datasets import job
from data_pipelines.datasets.job import Broken
from data_pipelines.datasets.reading import STUDIES
from data_pipelines.datasets.storage import FinishedShard, ShardWriter
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError

_DONE = "shard.json"
"""File that is written last: number of records and sizes of files of a complete shard."""
_MOST = 64
"""Maximum studies per shard: about 0.5 GB of whole-body CT. A kill loses minutes of work."""
_SHARDS = 256
"""Shards of small datasets, at most. Small shards keep all workers busy, and kills cost little."""
_TRIES = 3
"""Number of processes that may die during a study before the study is put aside."""


@dataclass(frozen=True)
class Shard:
    """Studies of one split.

    Attributes:
      collection: their collection, without its studies, because shards are sent to workers.
      split: the split.
      studies: the studies.
      folder: folder of the finished shard.
    """

    collection: Collection
    split: str
    studies: tuple[Study, ...]
    folder: epath.Path

    @property
    def attempts(self) -> epath.Path:
        """Returns the file with the number of processes that died, by study."""
        return self.folder.parent / f"{self.folder.name}.attempts"

    def is_done(self) -> bool:
        """Returns True if the shard is there and complete; removes a damaged shard."""
        if not self.folder.exists():
            return False
        try:
            sizes = self._head()["files"]
            if files.sizes(self.folder, sizes) == sizes:
                return True
        except (OSError, ValueError, KeyError):
            pass
        self.folder.rmtree()
        return False

    def part(self) -> FinishedShard:
        """Returns a finished shard for `storage.publish`."""
        head = self._head()
        return FinishedShard(self.folder, head["count"], sum(head["files"].values()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the lines of a finished shard's index."""
        with (self.folder / STUDIES).open() as file:
            yield from map(json.loads, file)

    def _head(self) -> dict[str, Any]:
        return json.loads((self.folder / _DONE).read_text())


def plan(collection: Collection, stage: epath.Path) -> list[Shard]:
    """Returns the shards of a dataset, in order.

    Args:
      collection: the studies.
      stage: the folder for the shards.
    """
    size = min(_MOST, -(-len(collection.studies) // _SHARDS))
    splits: dict[str, list[Study]] = {}
    for study in collection.studies:
        splits.setdefault(study.split, []).append(study)
    return [
        _shard(collection, split, number, studies[start : start + size], stage)
        for split, studies in splits.items()
        for number, start in enumerate(range(0, len(studies), size))
    ]


def _shard(
    collection: Collection, split: str, number: int, studies: Sequence[Study], stage: epath.Path
) -> Shard:
    parts = [collection.fingerprint(study) for study in studies]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    ids = {study.study_id for study in studies}
    names = {key: name for key, name in collection.names.items() if key in ids}
    alone = dataclasses.replace(collection, studies=(), notes=(), names=names)
    folder = stage / f"{split}-{number:05d}-{fingerprint}"
    return Shard(alone, split, tuple(studies), folder)


def make(shard: Shard) -> None:
    """Makes a shard if it is not done.

    Raises:
      DataError: it cannot be written because the disk is full.
    """
    if shard.is_done():
        return
    with ExitStack() as stack:
        folder = files.working_folder(shard.folder.parent)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            rows: list[dict[str, Any]] = []
            with ShardWriter(folder, len(shard.collection.label_names)) as writer:
                for result in _results(shard):
                    if isinstance(result, Broken):
                        rows.append({"broken": dataclasses.asdict(result)})
                    else:
                        writer.write(result.record)
                        rows.append({"split": shard.split, **result.facts})
            (folder / STUDIES).write_text("".join(json.dumps(row) + "\n" for row in rows))
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            head = {"count": writer.count, "files": sizes}
            (folder / _DONE).write_text(json.dumps(head))
            files.move_folder(folder, shard.folder, _DONE)
        except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
            if isinstance(error, OSError) and not files.no_space(error):
                raise
            problem = "it cannot be written: the disk is full, or a quota is used up"
            cure = "make room and call it again: finished shards are kept"
            raise DataError(shard.folder.parent, problem, cure) from error
        shard.attempts.unlink(missing_ok=True)


def _results(shard: Shard) -> Iterator[job.Prepared | Broken]:
    deaths = _deaths(shard)
    for number, study in enumerate(shard.studies):
        deaths[number] = deaths.get(number, 0) + 1
        if deaths[number] > _TRIES:
            cure = "check the file with another program; if it is large, give more memory"
            yield job.broken(shard.collection, study, "reading it kills the process", cure)
            continue
        # Written before the work begins: after a crash of a codec it is too late.
        _write_deaths(shard, deaths)
        before = {**deaths, number: deaths[number] - 1}
        with _forgiving(functools.partial(_write_deaths, shard, before)):
            result = job.make(shard.collection, study)
        del deaths[number]
        yield result


def forgive() -> None:
    """Takes back the count of the current study: it is not the reason why the process ends."""
    for take_back in _CHARGES:
        take_back()


_CHARGES: list[Callable[[], None]] = []


@contextmanager
def _forgiving(take_back: Callable[[], None]) -> Iterator[None]:
    _CHARGES.append(take_back)
    try:
        yield
    except BaseException:  # ctrl-C, or a full disk
        take_back()
        raise
    finally:
        _CHARGES.remove(take_back)


def _write_deaths(shard: Shard, deaths: Mapping[int, int]) -> None:
    if counts := [(number, count) for number, count in deaths.items() if count]:
        files.write_whole(shard.attempts, json.dumps(counts))
    else:
        shard.attempts.unlink(missing_ok=True)


def _deaths(shard: Shard) -> dict[int, int]:
    if not shard.attempts.exists():
        return {}
    return {number: count for number, count in json.loads(shard.attempts.read_text())}
