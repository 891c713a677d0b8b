"""The unit of work of a preparation: a shard, some studies that become one file of records.

A shard is made by one process from beginning to end, on this machine or on a Beam worker, and
appears whole or not at all. Its name carries a fingerprint of everything it depends on, so that
a later call knows what it can keep.
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
from data_pipelines.datasets.storage import FinishedShard, ShardWriter
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError

STUDIES = "studies.jsonl"
"""A line per study: its facts, or why it is broken."""
_DONE = "shard.json"
"""Written last: what a whole shard must have."""
_MOST = 64
"""Studies per shard: about 0.5 GB of whole-body CT, and minutes of work to lose to a kill."""
_SHARDS = 256
"""Small datasets are cut finely, so that all workers are busy and little is ever redone."""
_TRIES = 3
"""Deaths of a process in the middle of a study that put the study aside."""


@dataclass(frozen=True)
class Shard:
    """Studies of one split.

    Attributes:
      collection: What they belong to, without its studies: shards travel to workers.
      split: The split.
      studies: The studies.
      folder: Where the finished shard will lie.
    """

    collection: Collection
    split: str
    studies: tuple[Study, ...]
    folder: epath.Path

    @property
    def attempts(self) -> epath.Path:
        """The file that tells in the middle of which study processes died."""
        return self.folder.parent / f"{self.folder.name}.attempts"

    def is_done(self) -> bool:
        """Whether the shard is there, and whole; a damaged one is removed."""
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
        """The records of a finished shard, for `storage.publish`."""
        head = self._head()
        return FinishedShard(self.folder, head["count"], sum(head["files"].values()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of a finished shard's index."""
        with (self.folder / STUDIES).open() as file:
            yield from map(json.loads, file)

    def _head(self) -> dict[str, Any]:
        return json.loads((self.folder / _DONE).read_text())


def plan(collection: Collection, stage: epath.Path) -> list[Shard]:
    """Returns the shards of a dataset, in order.

    Args:
      collection: The studies.
      stage: The folder to make them in.
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
    """Makes a shard, unless it is there already.

    Raises:
      DataError: It cannot be written, as the disk is full.
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
        except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
            if isinstance(error, OSError) and not files.no_space(error):
                raise
            problem = "it cannot be written: the disk is full, or a quota is used up"
            cure = "make room and call it again: what is finished is kept"
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
        # On disk before the work begins: a crash of a codec leaves no time to write anything.
        _write_deaths(shard, deaths)
        before = {**deaths, number: deaths[number] - 1}
        with _forgiving(functools.partial(_write_deaths, shard, before)):
            result = job.make(shard.collection, study)
        del deaths[number]
        yield result


def forgive() -> None:
    """Takes back what the study in work is charged with: it is not why its process ends."""
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
