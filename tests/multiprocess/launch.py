"""Starts processes that train together on this machine, and always ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.compiling import XLA_FLAGS

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Group:
    """Processes, and the files that they print into."""

    home: Path
    processes: list[subprocess.Popen]
    outputs: list[Path]
    errors: list[Path]

    def wait(self, seconds: float) -> list[int]:
        """Their exit statuses; an error if they are not all there within so many seconds."""
        end = time.monotonic() + seconds
        return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

    def finish(self, seconds: float = 300) -> list[dict]:
        """Returns the report of each process after all have ended without an error."""
        statuses = self.wait(seconds)
        assert statuses == [0] * len(statuses), self.said()
        return [json.loads(output.read_text().splitlines()[0]) for output in self.outputs]

    def said(self) -> list[str]:
        return [error.read_text() for error in self.errors]

    def until(self, condition, seconds: float = 300) -> None:
        """Waits for something that the processes bring about."""
        end = time.monotonic() + seconds
        while not condition():
            assert all(p.poll() is None for p in self.processes), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)


def plain(number: int, count: int, port: int) -> dict[str, str]:
    """Returns the variables that a user sets on plain hosts."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


def slurm(number: int, count: int, port: int) -> dict[str, str]:
    """Returns the variables that srun sets."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


@contextlib.contextmanager
def together(
    home: Path, count: int, orders: dict, variables=plain, **environment: str
) -> Iterator[Group]:
    """`count` processes of one run in `home`, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = Group(home, [], [], [])
    try:
        for number in range(count):
            start(group, number, orders, environment | variables(number, count, port))
        yield group
    finally:
        for process in group.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(group: Group, number: int, orders: dict, environment: dict[str, str]) -> None:
    stamp = f"{time.time_ns()}-{number}"
    group.outputs.append(group.home / f"{stamp}.out")
    group.errors.append(group.home / f"{stamp}.err")
    with group.outputs[-1].open("w") as out, group.errors[-1].open("w") as err:
        group.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.multiprocess.child", json.dumps(orders)],
                cwd=group.home,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=os.environ
                | {
                    "PYTHONPATH": str(ROOT),
                    "XLA_FLAGS": XLA_FLAGS,
                    "M3DJAX_HEARTBEAT_SECONDS": "10",
                }
                | environment,
            )
        )
