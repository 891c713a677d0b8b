"""`python run.py evaluate RUN`: measures a run and writes what was found into its folder."""

from __future__ import annotations

import dataclasses
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
from m3djax import report, run_folder
from m3djax.runs.model import Model
from m3djax.weights import newest_readable

FOLDER = "evaluation"
RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class Results:
    """What all evaluators of a run found.

    Attributes:
      folder: the run's.
      step: of the checkpoint that was measured.
      found: by name of the evaluator, see `Findings.to_json`.
      report: the HTML page.
    """

    folder: epath.Path
    step: int
    found: dict[str, dict[str, Any]]
    report: epath.Path

    @classmethod
    def read(cls, folder: epath.PathLike) -> Results | None:
        """Of a run that was evaluated; None if it was not."""
        folder = epath.Path(folder)
        if not (path := folder / FOLDER / RESULTS).exists():
            return None
        page = json.loads(path.read_text())
        return cls(folder, page["step"], page["found"], folder / report.NAME)

    @property
    def passed(self) -> bool:
        """False if any evaluator with a test says that it failed."""
        return all(findings["passed"] is not False for findings in self.found.values())

    def summary(self) -> str:
        """The result in plain words, a line per sentence."""
        parts = [findings["report"]["sentences"] for findings in self.found.values()]
        return "\n".join(sentence for part in parts for sentence in part)


def evaluate(folder: epath.PathLike, console: Console | None = None) -> Results:
    """Runs a run's evaluators on its newest readable checkpoint.

    Each writes into `evaluation/NAME` of the run's folder; `evaluation/results.json` and
    `report.html` appear at the end, whole or not at all.

    Args:
      folder: the run's folder.
      console: where tables are printed; by default the screen.

    Raises:
      RunError: the folder is not a run, or its config names no evaluator.
      CheckpointError: it has no readable checkpoint.
      EvaluationError: an evaluator does not fit the run or the data.
      DataError: a dataset cannot be read.
    """
    folder, console = epath.Path(folder), console or Console()
    experiment = run_folder.read_experiment(folder)
    if not experiment.evaluators:
        raise run_folder.RunError(
            f"{folder}: its config names no evaluators. Cure: add some, as configs/quickstart.py "
            "does, and call train again: a finished run is not trained again, its config changes."
        )
    step = newest_readable(folder)

    @functools.lru_cache(maxsize=1)
    def model(mesh: Mesh | None) -> Model:
        return Model.open(folder, mesh, step=step)

    found = {}
    for name, evaluator in experiment.evaluators.items():
        place = folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        console.print(f"evaluating: {name} ...", style="dim")
        opened = model(evaluator.mesh_alone())
        bound = evaluator.for_data(experiment.data)
        found[name] = bound.run(opened.task, opened.params, place)
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        show(found[name], console)
    results = Results(folder, step, found, folder / report.NAME)
    page = {"step": step, "passed": results.passed, "found": found}
    write_whole(folder / FOLDER / RESULTS, json.dumps(page, indent=1, allow_nan=False) + "\n")
    report.write(folder)
    console.print(f"results: {folder / FOLDER / RESULTS}\nreport:  {results.report}")
    return results


def show(findings: dict[str, Any], console: Console) -> None:
    """Prints tables, sentences and caveats."""
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
