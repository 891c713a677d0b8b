"""Worker processes for the first stage of a preparation, prepared for everything but good scans."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data_pipelines.datasets.staging import Broken, Job, make


def run(jobs: Iterable[Job], workers: int, done: Callable[[Job, Broken | None], None]) -> None:
    """Makes the records in worker processes.

    A scan that kills its worker (a codec crash, no memory left) does not stop the others: the
    rest is done one at a time, so that the culprit is known and put aside.

    Args:
      jobs: What to do.
      workers: Number of processes; 0 works in this one.
      done: Called here after each job.
    """
    waiting = {job.target: job for job in jobs}
    while waiting and workers > 0:
        if not _in_pool(waiting, workers, done) and workers == 1:
            job = waiting.pop(next(iter(waiting)))  # one worker takes them in order
            cure = "check the file with another program; if it is large, give more memory"
            done(job, job.broken("reading it kills the process", cure))
        workers = 1
    for job in waiting.values():
        done(job, make(job))


def _in_pool(
    waiting: dict[Path, Job], workers: int, done: Callable[[Job, Broken | None], None]
) -> bool:
    """Does the waiting jobs and removes them; returns False when a worker died."""
    alive = True
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        _check_start(pool)
        futures: dict[Future[Broken | None], Job]
        futures = {pool.submit(make, job): job for job in waiting.values()}
        for future in as_completed(futures):
            try:
                broken = future.result()
            except BrokenProcessPool:
                alive = False
                continue
            done(waiting.pop(futures[future].target), broken)
    finally:
        pool.shutdown(cancel_futures=True)
    return alive


def _check_start(pool: ProcessPoolExecutor) -> None:
    """Keeps a script that workers cannot import from looking like a thousand broken scans."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        message = "worker processes do not start: call this below `if __name__ == '__main__':`"
        raise RuntimeError(f"{message}, or with workers=0") from error


def _follow_parent() -> None:
    """Makes a worker leave Ctrl-C to the parent, and end when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
