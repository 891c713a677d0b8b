"""Speed between two lines of metrics, by a clock that the test moves."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from m3djax.training import flops, throughput
from m3djax.training.throughput import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throughput, "time", made)
    return made


@pytest.fixture
def measured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Batches of 4, steps of 60 FLOPs, devices of 1000 FLOP/s."""
    monkeypatch.setattr(flops, "model_flops", lambda task, spec, trainable, spatial: 60)
    monkeypatch.setattr(flops, "peak", lambda mesh: 1000.0)
    spec = {"image": jax.ShapeDtypeStruct((4, 8, 8, 8, 1), np.int16)}
    return Meter(None, spec, None)  # type: ignore[arg-type]


def test_the_first_line_has_no_speed(measured: Meter, clock: Clock) -> None:
    """It holds the compilation, which says nothing about a step."""
    clock.now += 50
    assert measured.read(7) == {}
    assert measured.read(7) == {}, "no step has passed"


def test_speed_is_that_of_the_steps_since_the_last_line(measured: Meter, clock: Clock) -> None:
    measured.read(0)
    for steps, seconds in ((5, 2.0), (1, 8.0)):
        clock.now += seconds
        found = measured.read(measured._last + steps)
        assert found["volumes_per_second"] == pytest.approx(steps * 4 / seconds)
        assert found["mfu"] == pytest.approx(steps * 60 / seconds / 1000)
        assert found["data_wait"] == 0


def test_waiting_for_data_is_a_share_of_the_time(measured: Meter, clock: Clock) -> None:
    with measured.waiting():
        clock.now += 30  # before the first line: the pipeline starts
    measured.read(0)
    for _ in range(2):
        with measured.waiting():
            clock.now += 1
        clock.now += 3
    assert measured.read(2)["data_wait"] == pytest.approx(0.25)
    clock.now += 1
    assert measured.read(3)["data_wait"] == 0, "every line counts its own waits"


def test_known_chips_have_the_peak_of_their_data_sheet() -> None:
    """Devices report longer names than data sheets have, and some names begin like others."""
    assert flops.data_sheet("TPU v5 lite") < flops.data_sheet("TPU v5p")
    assert flops.data_sheet("TPU v5") == flops.data_sheet("TPU v5p")
    assert flops.data_sheet("NVIDIA H100 80GB HBM3") == flops.data_sheet("NVIDIA H100")
    with pytest.raises(KeyError):
        flops.data_sheet("cpu")
