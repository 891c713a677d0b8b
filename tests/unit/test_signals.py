"""The first signal ends a run in order; the earlier handlers get the second signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from m3djax.training.signals import stop_signals


@pytest.fixture(autouse=True)
def handled() -> Iterator[list[int]]:
    """Yields the signals that the earlier handlers get."""
    seen: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    old = [signal.signal(number, lambda n, _: seen.append(n)) for number in numbers]
    yield seen
    for number, handler in zip(numbers, old, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_told_at_every_later_step(number: signal.Signals, handled: list[int]) -> None:
    with stop_signals() as stop:
        assert stop(0) == ""
        os.kill(os.getpid(), number)
        assert stop(1) == stop(2) == number.name
    assert handled == []


def test_a_second_signal_does_what_it_did_before(handled: list[int]) -> None:
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(0) == "SIGTERM" and handled == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        assert stop(1) == "SIGTERM", "the first one is the reason"


def test_handlers_are_put_back_whatever_happens(handled: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RuntimeError), stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
        raise RuntimeError
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_another_thread_handles_none(handled: list[int]) -> None:
    """Python lets only the main thread handle signals; a run in another thread ignores them."""
    found: list[object] = []

    def run() -> None:
        with stop_signals() as stop:
            found.append((stop(0), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [("", before)]


@pytest.fixture
def agreed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Several processes, which stop at the last of the returned steps."""
    steps: list[int] = [7]
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(
        "m3djax.training.signals.multihost_utils.reached_preemption_sync_point",
        lambda step: step == steps[-1],
    )
    return steps


def test_several_processes_stop_at_the_step_that_they_agree_on(
    agreed: list[int], handled: list[int]
) -> None:
    """JAX handles SIGTERM then, so its handler stays; ctrl-C in one process counts as SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) is before
        os.kill(os.getpid(), signal.SIGINT)
        assert handled == [signal.SIGTERM]
        assert [stop(step) for step in (6, 7, 8)] == ["", "SIGTERM", ""]
        os.kill(os.getpid(), signal.SIGINT)
        assert handled == [signal.SIGTERM, signal.SIGINT], "the second one is not caught"
