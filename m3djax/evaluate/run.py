"""The verb `evaluate`: evaluates a run and writes the results into its folder."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

from etils import epath
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from data_pipelines.files import write_whole
from m3djax.evaluate import loop
from m3djax.mesh import distributed
from m3djax.runs import report, run_folder
from m3djax.runs.model import Model
from m3djax.runs.results import FOLDER, REPORT, RESULTS, Results
from m3djax.runs.weights import newest_readable


def evaluate(folder: epath.PathLike, console: Console | None = None) -> Results:
    """Evaluates the newest readable checkpoint of a run with the evaluators of its config.

    Each evaluator writes into `evaluation/NAME` of the run's folder. `evaluation/results.json` and
    `report.html` are written at the end, atomically. With several processes, all of them must call
    this: each predicts for its samples, and process 0 writes.

    Args:
      folder: the run's folder.
      console: console for the tables; by default the screen.

    Raises:
      RunError: the folder is not a run, or its config has no evaluator.
      CheckpointError: it has no readable checkpoint.
      EvaluationError: an evaluator does not fit the run or the data.
      DataError: a dataset cannot be read.
    """
    folder, console = epath.Path(folder), console or Console(quiet=not distributed.is_first())
    experiment = run_folder.read_experiment(folder)
    if not experiment.evaluators:
        raise run_folder.RunError(
            f"{folder}: its config has no evaluators. Cure: add some, as configs/quickstart.py "
            "does, and call train again. It updates the config of a finished run without training."
        )
    # Another process may not see the newest checkpoint as whole yet.
    step = distributed.from_first(lambda: newest_readable(folder))

    @functools.lru_cache(maxsize=1)
    def model(mesh: Mesh) -> Model:
        return Model.open(folder, mesh, step=step)

    found = {}
    for name, evaluator in experiment.evaluators.items():
        start = time.perf_counter()
        console.print(f"evaluating: {name} ...", style="dim")
        mesh = loop.own_mesh(evaluator)
        subject = loop.subject_of(model(mesh), mesh, folder, name)
        found[name] = loop.measure(evaluator, subject)
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        show(found[name], console)
    results = Results(folder, step, found, folder / REPORT)
    if distributed.is_first():
        page = {"step": step, "passed": results.passed, "found": found}
        write_whole(folder / FOLDER / RESULTS, json.dumps(page, indent=1, allow_nan=False) + "\n")
        report.write(folder)
    console.print(f"results: {folder / FOLDER / RESULTS}\nreport:  {results.report}")
    return results


def show(findings: dict[str, Any], console: Console) -> None:
    """Prints the tables, sentences and caveats of one evaluator."""
    report = findings["report"]
    console.rule(report["title"])
    for table in report["tables"]:
        grid = Table(
            *table["columns"], title=table["title"], box=box.SIMPLE_HEAD, caption=table["note"]
        )
        for row in table["rows"]:
            grid.add_row(*row)
        console.print(grid)
    for sentence in report["sentences"]:
        console.print(f"- {sentence}", markup=False)
    for caveat in report["caveats"]:
        console.print(f"! {caveat}", style="dim", markup=False)
