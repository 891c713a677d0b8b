"""Runs the work on shards: in this process, in worker processes, or on Apache Beam."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from data_pipelines.datasets import shards
from data_pipelines.datasets.shards import Shard
from data_pipelines.errors import DataError


def in_processes(todo: Sequence[Shard], done: Callable[[Shard], None], *, workers: int) -> None:
    """Makes the shards in worker processes.

    A scan may kill its worker (a codec crash, no memory left). The others still finish: the shards
    that were in progress are then made one at a time until the scan is known.

    Args:
      todo: shards to make.
      done: called in this process after each shard.
      workers: number of processes; 0 uses this process.

    Raises:
      DataError: see `shards.make`.
    """
    waiting = {shard.folder: shard for shard in todo}

    def finish(shard: Shard) -> None:
        done(waiting.pop(shard.folder))

    while waiting and workers > 0:
        _in_pool(list(waiting.values()), workers, finish)
        while suspects := [shard for shard in waiting.values() if shard.attempts.exists()]:
            _in_pool(suspects, 1, finish)
    for shard in list(waiting.values()):
        shards.make(shard)
        finish(shard)


def _in_pool(waiting: Sequence[Shard], workers: int, finish: Callable[[Shard], None]) -> None:
    """Makes the shards until all are done or a worker died."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        _check_start(pool)
        futures = {pool.submit(shards.make, shard): shard for shard in waiting}
        for future in as_completed(futures):
            try:
                future.result()
            except BrokenProcessPool:
                continue
            finish(futures[future])
    finally:
        pool.shutdown(cancel_futures=True)


def _check_start(pool: ProcessPoolExecutor) -> None:
    """Raises RuntimeError if workers cannot start, for example if they cannot import the script.

    Without this check every scan would count as broken.
    """
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        message = "worker processes do not start: call this below `if __name__ == '__main__':`"
        raise RuntimeError(f"{message}, or with workers=0") from error


def _follow_parent() -> None:
    """Makes a worker ignore Ctrl-C, which the parent handles, and end when the parent ends.

    If a worker is stopped, for example by the pool after a crash of another worker, its current
    scan is not counted as the cause.
    """

    def end(*_: object) -> None:
        shards.forgive()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True).start()


def on_beam(
    todo: Sequence[Shard], done: Callable[[Shard], None], *, options: Sequence[str]
) -> None:
    """Makes the shards with Apache Beam; see docs/data.md for Dataflow, Spark and Flink.

    Every shard is one element, so that a runner can distribute, retry and restart single shards.
    Workers write their results to the folders of the shards and do not send them back.

    Args:
      todo: shards to make; all workers must be able to reach their folders.
      done: called in this process for every shard when the pipeline has ended.
      options: Beam's pipeline options, each "name=value".

    Raises:
      DataError: Apache Beam is not installed, or does not accept the options.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        cure = "pip install apache-beam (with [gcp] for Dataflow), or leave out --beam"
        raise DataError("--beam", "Apache Beam is not installed", cure) from error
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    try:
        flags = [f"--{option.removeprefix('--')}" for option in options]
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
    except ValueError as error:
        cure = "give NAME=VALUE pairs that Apache Beam knows, such as runner=DirectRunner"
        raise DataError("--beam", str(error), cure) from error
    with pipeline:
        created = pipeline | "Shards" >> beam.Create(list(todo))
        spread = created | "Spread" >> beam.Reshuffle()
        spread | "Make" >> beam.Map(shards.make)
    for shard in todo:
        done(shard)
