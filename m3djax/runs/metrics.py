"""Writers of a run's metrics: lines of JSON, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from m3djax.mesh import distributed

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writer of the metrics of training steps, to use in a `with` block.

    Args:
      folder: the run's folder.
      start: the step at which the run starts or resumes.
      steps: the step at which it ends.
    """

    def __init__(self, folder: epath.Path, start: int, steps: int) -> None:
        self._file = folder / METRICS
        if start and self._file.exists():
            # Steps after the checkpoint are trained again: keep one line for each step.
            kept = [row for row in read_metrics(folder) if row["step"] < start]
            self._file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        elif not start:
            self._file.write_text("")
        # tensorboardX imports torch where it is installed; readers of a run should not wait for it.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        columns = ("{task.description}", BarColumn(), "{task.completed}/{task.total}")
        self._bar = Progress(*columns, TimeElapsedColumn(), "<", TimeRemainingColumn(),
                             TextColumn("{task.fields[text]}"))  # fmt: skip
        self._row = self._bar.add_task("train", total=steps, completed=start, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._board.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self._bar.update(self._row, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; `step` counts from 0."""
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        shown = ("loss", "volumes_per_second", "data_wait")
        text = "  ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics)
        if text:  # a line of evaluators keeps the training numbers on the bar
            self._bar.update(self._row, text=text)


class SilentWriter(MetricsWriter):
    """Writer that writes nothing, for all processes but the first."""

    def __init__(self) -> None:
        """Opens nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, step: int) -> None:
        """Does nothing."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing, as only the first process writes."""


def open_writer(folder: epath.Path, start: int, steps: int) -> MetricsWriter:
    """Returns the writer of this process; only the first process writes, see `MetricsWriter`."""
    first = distributed.is_first()
    return MetricsWriter(folder, start, steps) if first else SilentWriter()


def read_metrics(folder: epath.PathLike) -> list[dict[str, float]]:
    """Reads all lines of a run's metrics; skips a line that an interruption cut short."""
    rows = []
    for line in (epath.Path(folder) / METRICS).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
