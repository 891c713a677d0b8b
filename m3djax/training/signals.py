"""An orderly end of training after SIGTERM or ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

# Called once per step with the step's number. Returns the name of the received signal, or "".
Stop = Callable[[int], str]


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catches the first SIGTERM or SIGINT and reports it to the loop; a second one kills as usual.

    With several processes, JAX handles SIGTERM: it tells the other processes, and chooses one step
    at which all of them stop. Ctrl-C in one process counts as SIGTERM.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: ""  # only the main thread may handle signals
        return
    agreed = jax.distributed.is_initialized()
    handled = (signal.SIGINT,) if agreed else (signal.SIGTERM, signal.SIGINT)
    old = {int(number): signal.getsignal(number) for number in handled}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, old[number])
        if agreed:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(step: int) -> str:
        if agreed:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""
        return signal.Signals(received[0]).name if received else ""

    for number in old:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
