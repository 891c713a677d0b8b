"""Training with several processes: start, agreement and a common end.

Arrays go through XLA's collectives. Messages between hosts (the step to restore, the failure of a
process) go through the key-value store that `jax.distributed` runs in process 0. So no process
waits inside a collective while another one reads files.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import ConfigError
from m3djax.mesh.peer_failure import CURE, LastWords, Watch

log = logging.getLogger(__name__)
T = TypeVar("T")

ADDRESS, COUNT, NUMBER = PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"
# In effect no limit: if a process is lost, JAX's heartbeat ends the processes that wait for it.
_PIECE = 1 << 28  # bytes that a process sends at once: every process holds one of each
_DAY_MS = 24 * 3600 * 1000
_turns = itertools.count()


class Agreed(Exception):
    """Error that every process raises at the same step, so that no message to others is needed."""


def start() -> None:
    """Joins the other processes of the run, if there are any; call it before any computation.

    Three environment variables take precedence: the address of process 0, the number of processes
    and the number of this process. Without them, `jax.distributed` recognises TPU pods, Slurm,
    Kubernetes and MPI.

    Raises:
      ConfigError: the variables are incomplete or wrong, or the other processes cannot be reached.
    """
    plain = plain_settings(os.environ)
    if plain and plain["num_processes"] == 1:
        return
    seconds = _seconds("M3DJAX_START_SECONDS", 300)
    # JAX ends a process that does not find the others; it raises no error that could be caught.
    last_words = LastWords(
        f"The processes did not connect within {seconds} seconds. Cure: start all of them within "
        f"M3DJAX_START_SECONDS, open the port of process 0 to all of them, or set {COUNT}=1 to "
        "train with this process alone."
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of clusters that it does not recognise
            jax.distributed.initialize(
                **plain,
                cluster_detection_method="deactivate" if plain else None,
                initialization_timeout=seconds,
                heartbeat_timeout_seconds=_seconds("M3DJAX_HEARTBEAT_SECONDS", 100),
            )
    except ValueError as error:
        if plain or "coordinator_address should be defined" not in str(error):
            raise ConfigError(f"the processes cannot start together: {error}") from error
        _refuse_to_be_one_of_many(os.environ)
        return  # no cluster: this process is alone
    except RuntimeError as error:
        if not plain and "must be called before" in str(error):
            return  # JAX has computed already, as in a notebook: this process is alone, too
        raise ConfigError(
            f"the processes cannot start together: {error} Cure: remove the cause, or set "
            f"{COUNT}=1 to train with this process alone."
        ) from error
    finally:
        last_words.cancel()
    if not is_first():
        logging.getLogger().setLevel(logging.ERROR)


def plain_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns arguments of `jax.distributed.initialize` from three variables; {} without them.

    Raises:
      ConfigError: only some of the variables are set, or a value is impossible.
    """
    given = {name: environment[name] for name in PLAIN if environment.get(name)}
    if given.get(COUNT) == "1":
        return {"num_processes": 1}
    # JAX itself reads an address that is set alone: it overrides the address of the cluster.
    if not given or given.keys() == {ADDRESS}:
        return {}
    if missing := [name for name in PLAIN if name not in given]:
        raise ConfigError(
            f"{', '.join(given)} set, but not {', '.join(missing)}. Cure: set all of "
            f"{', '.join(PLAIN)} on every host, or none."
        )
    for name in (COUNT, NUMBER):
        if not given[name].isdecimal():
            raise ConfigError(f"{name}={given[name]!r} is not a number. Cure: 0, 1, 2 ...")
    count, number = int(given[COUNT]), int(given[NUMBER])
    if number >= count:
        raise ConfigError(
            f"{NUMBER}={number} is too large for {COUNT}={count}. Cure: number the processes "
            f"from 0 to {COUNT} - 1."
        )
    if not given[ADDRESS].rpartition(":")[2].isdecimal() or ":" not in given[ADDRESS]:
        raise ConfigError(f"{ADDRESS}={given[ADDRESS]!r} has no port. Cure: HOST:PORT.")
    return {"coordinator_address": given[ADDRESS], "num_processes": count, "process_id": number}


@contextmanager
def together() -> Iterator[None]:
    """Joins the processes of a run, and ends all of them if one fails.

    Otherwise the others would wait for ever. An error of this process alone is sent to the others,
    which print it and end.
    """
    start()
    if jax.process_count() == 1:
        yield
        return
    watch = Watch(_client(), _who(), first=is_first())
    try:
        yield
        barrier()
        watch.close()
    except Agreed:
        barrier()
        watch.close()
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            error.add_note(
                f"{_who()}: failed in a computation that all processes share. If another process "
                f"is gone, its output says why. {CURE}"
            )
        atexit.register(watch.leave, f"{type(error).__name__}: {error}")  # after it is printed
        raise


def is_first() -> bool:
    """Returns whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """Calls `make` in process 0, and returns its result in every process.

    Every process must call this the same number of times, in the same order.

    Args:
      make: a function whose result is JSON-able. Only process 0 calls it; the others wait.
    """
    if jax.process_count() == 1:
        return make()
    key = f"m3djax/turn/{next(_turns)}"
    if is_first():
        value = make()
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, _DAY_MS))


def gather(value: bytes) -> list[bytes]:
    """Returns the bytes of all processes, in the order of the processes.

    Every process must call this the same number of times, in the same order.
    """
    if jax.process_count() == 1:
        return [value]
    barrier()  # a collective may time out before a slower process arrives
    # Two words per size: JAX has no 64-bit integers by default, and values may exceed 2 GiB.
    words = _all_rows(np.array(divmod(len(value), _PIECE), np.int32))
    sizes = [int(pieces) * _PIECE + int(rest) for pieces, rest in words]
    parts: list[list[bytes]] = [[] for _ in sizes]
    for start in range(0, max(sizes), _PIECE):
        padded = np.zeros(min(_PIECE, max(sizes) - start), np.uint8)
        own = np.frombuffer(value[start : start + _PIECE], np.uint8)
        padded[: len(own)] = own
        for part, size, row in zip(parts, sizes, _all_rows(padded), strict=True):
            part.append(row[: max(size - start, 0)].tobytes())
    return [b"".join(part) for part in parts]


def _all_rows(row: np.ndarray) -> np.ndarray:
    """Stacks arrays of the same shape, one from each process."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = jax.sharding.Mesh(np.array(devices).reshape(jax.process_count(), -1), ("process", "own"))
    with jax.set_mesh(mesh):
        split, whole = (NamedSharding(mesh, axes) for axes in (P("process"), P()))
        rows = jax.make_array_from_process_local_data(split, row[None])
        return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(rows).addressable_data(0))


def barrier() -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"m3djax/turn/{next(_turns)}", _DAY_MS)


def _client() -> Any:
    from jax._src import distributed  # the store has no public name; Orbax takes it from here too

    return distributed.global_state.client


def _who() -> str:
    number, count = jax.process_index(), jax.process_count()
    return f"process {number} of {count} ({socket.gethostname()})"


def _refuse_to_be_one_of_many(environment: Mapping[str, str]) -> None:
    """Raises ConfigError in a pod of an indexed Kubernetes job that has no address of process 0.

    Without it every pod would write the same run.
    """
    if _KUBERNETES_INDEX in environment:
        raise ConfigError(
            f"{_KUBERNETES_INDEX} is set, so this is one pod of a job, but the address of process "
            f"0 is not set. Cure: set {', '.join(PLAIN)} as launch/kubernetes.yaml does, or "
            f"{COUNT}=1 to train in each pod alone."
        )


def _seconds(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or not int(value):
        raise ConfigError(f"{name}={value!r} is not a number of seconds. Cure: such as {default}.")
    return int(value)
