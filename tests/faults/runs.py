"""A run in a child process that reports its phase, so that a kill can hit a chosen phase.

`python -m tests.faults.runs JSON` trains; every change of phase is a line in the run's home.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.compiling import XLA_FLAGS

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 12, 3
SAVING = ("frozen", "copy", "write", "manifest")


@dataclasses.dataclass(frozen=True)
class Orders:
    """The settings of a child process.

    Attributes:
      dataset: prepared folder.
      name: of the run.
      frozen: whether the encoder is frozen, so that it is stored apart.
      devices: simulated ones.
      workers: of the input pipeline.
      steps: where training ends.
      profile: first step that is profiled, and the one after the last.
      notes: where diary and output go, if not into the run's home, whose disk may be full.
      leave: bytes that are left free on the disk once the first checkpoint is whole; -1: as is.
    """

    dataset: str
    name: str = "run"
    frozen: bool = False
    devices: int = 1
    workers: int = 0
    steps: int = STEPS
    profile: tuple[int, int] = (0, 0)
    notes: str = ""
    leave: int = -1

    def note(self, home: Path, kind: str) -> Path:
        """The file that is called `kind`."""
        return Path(self.notes or home) / f"{self.name}.{kind}"


def experiment(orders: Orders):
    """A run whose updates do not blow up rounding: eps is far above a gradient that is zero."""
    from m3djax.optim import AdamW
    from tests import tiny

    made = tiny.experiment(
        orders.dataset,
        name=orders.name,
        steps=orders.steps,
        save_every=SAVE_EVERY,
        profile=tuple(orders.profile),
        optimizer=AdamW(1e-3, eps=1e-2),
        trainable="mae_decoder/" if orders.frozen else ".*",
    )
    return dataclasses.replace(made, data=dataclasses.replace(made.data, workers=orders.workers))


class Diary:
    """Writes when which phase began; one line is one write, so a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.Lock()

    def note(self, phase: str) -> None:
        with self._lock:
            os.write(self._file, f"{time.monotonic()} {phase}\n".encode())

    def around(self, owner: object, name: str, phase: str, after: str = "") -> None:
        """Notes `phase` whenever a function is called, and `after` when it returns."""
        function = getattr(owner, name)

        def noted(*args, **kwargs):
            self.note(phase)
            result = function(*args, **kwargs)
            if after:
                self.note(after)
            return result

        setattr(owner, name, noted)


def fill_after_first_call(owner: object, name: str, leave: int) -> None:
    """Another user's file takes the rest of the disk after the first call of a function."""
    function = getattr(owner, name)

    def filling(*args, **kwargs):
        function(*args, **kwargs)
        filler = Path("filler")
        if not filler.exists():
            free = shutil.disk_usage(".").free
            filler.write_bytes(bytes(max(free - leave - 8192, 0)))
            with contextlib.suppress(OSError), filler.open("ab") as file:
                file.write(bytes(max(8192 - leave, 0)))

    setattr(owner, name, filling)


def read_diary(path: Path) -> list[tuple[float, str]]:
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(float(when), phase) for when, phase in lines]


def phase_at_the_end(diary: list[tuple[float, str]]) -> str:
    """Where a process was. Saves go on beside steps: as long as one does, that is the phase."""
    last, saving = "start", ""
    for _, phase in diary:
        if phase in SAVING:
            saving = phase
        elif phase == "saved":
            saving = ""
        else:
            last = phase
    return f"save:{saving}" if saving else last


def launch(orders: Orders, home: Path) -> subprocess.Popen:
    """Starts a child in a process group of its own; its diary is `home/NAME.diary`."""
    home.mkdir(parents=True, exist_ok=True)
    with orders.note(home, "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.runs", json.dumps(dataclasses.asdict(orders))],
            cwd=home,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS},
        )


def main(orders: Orders) -> None:
    diary = Diary(orders.note(Path(), "diary"))
    diary.note("start")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", orders.devices)
    from m3djax import cli
    from m3djax.runs import checkpoint, manifest
    from m3djax.training import train

    cli.set_up_jax()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    diary.around(train.Loop, "prepare", "prepare")
    diary.around(train.Loop, "run", "compile")
    diary.around(checkpoint.Checkpointer, "_save_frozen", "frozen")
    diary.around(checkpoint.ocp.training.Checkpointer, "save_async", "copy")
    diary.around(manifest, "write", "manifest")
    if orders.leave >= 0:
        fill_after_first_call(manifest, "write", orders.leave)
    diary.around(checkpoint.Checkpointer, "_commit", "write", after="saved")
    diary.around(train.Loop, "_report", "step")
    train.train(experiment(orders))
    diary.note("end")


if __name__ == "__main__":
    from data_pipelines.errors import UserError

    try:
        main(Orders(**json.loads(sys.argv[1])))
    except UserError as error:
        sys.exit(f"run.py train: {error}")
