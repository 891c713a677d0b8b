"""Environment variables that describe other processes."""

from __future__ import annotations

import concurrent.futures
import threading

import jax
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.mesh import distributed
from m3djax.mesh.distributed import ADDRESS, COUNT, NUMBER, plain_settings

ALL = {ADDRESS: "host:1234", COUNT: "4", NUMBER: "3"}


def test_three_variables_are_enough() -> None:
    expected = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
    assert plain_settings(ALL | {"OTHER": "1"}) == expected
    assert plain_settings({}) == {}
    assert plain_settings({ADDRESS: "host:1234"}) == {}  # overrides that of a cluster
    assert plain_settings({COUNT: "1"}) == {"num_processes": 1}


@pytest.mark.parametrize("missing", [{ADDRESS}, {NUMBER}, {COUNT}, {ADDRESS, NUMBER}])
def test_half_given_variables_are_named(missing: set[str]) -> None:
    given = {name: value for name, value in ALL.items() if name not in missing}
    with pytest.raises(ConfigError, match="set, but not " + ", ".join(sorted(missing))):
        plain_settings(given)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({COUNT: "four"}, "JAX_NUM_PROCESSES='four' is not a number"),
        ({NUMBER: "-1"}, "JAX_PROCESS_ID='-1' is not a number"),
        ({NUMBER: "4"}, "JAX_PROCESS_ID=4 is too large for JAX_NUM_PROCESSES=4"),
        ({COUNT: "0"}, "too large"),
        ({ADDRESS: "host"}, "JAX_COORDINATOR_ADDRESS='host' has no port"),
    ],
)
def test_wrong_variables_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*Cure: "):
        plain_settings(ALL | changes)


def test_one_pod_of_many_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    with pytest.raises(ConfigError, match="one pod of a job.*Cure: set JAX_COORDINATOR_ADDRESS"):
        distributed._refuse_to_be_one_of_many({"JOB_COMPLETION_INDEX": "2"})
    monkeypatch.setenv(COUNT, "1")
    distributed.start()  # whoever says so may


def test_one_process_needs_nobody() -> None:
    with distributed.together():
        assert distributed.is_first()
        assert distributed.from_first(lambda: {"step": 3}) == {"step": 3}
        distributed.barrier()


def test_seconds_must_be_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3DJAX_HEARTBEAT_SECONDS", "soon")
    with pytest.raises(ConfigError, match="M3DJAX_HEARTBEAT_SECONDS='soon' is not a number"):
        distributed._seconds("M3DJAX_HEARTBEAT_SECONDS", 100)


@pytest.mark.parametrize("sizes", [(0, 0), (3, 0), (4, 8), (1, 30), (13, 12)])
def test_values_of_any_size_are_gathered(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of 4 bytes, by two processes whose collective is played by threads."""
    rows: dict[int, np.ndarray] = {}
    meet = threading.Barrier(2)
    own = threading.local()

    def all_rows(row: np.ndarray) -> np.ndarray:
        rows[own.process] = row
        meet.wait(60)
        stacked = np.stack([rows[0], rows[1]])  # fails if the processes send unequal shapes
        meet.wait(60)
        return stacked

    def process(number: int) -> list[bytes]:
        own.process = number
        return distributed.gather(values[number])

    monkeypatch.setattr(distributed, "_PIECE", 4)
    monkeypatch.setattr(distributed, "_all_rows", all_rows)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    values = [bytes(range(start, start + size)) for start, size in zip((1, 50), sizes, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(process, (0, 1))) == [values, values]
