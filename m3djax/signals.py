"""Ending a run in order when the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one kills as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    old = {int(n): signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
