"""The verb `compare`: prints the paired differences of two evaluated runs."""

from __future__ import annotations

from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from data_pipelines.program import program
from m3djax.contracts import scores
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.compare import Difference, compare
from m3djax.runs.results import FOLDER


def show(first: str, second: str, console: Console | None = None) -> None:
    """Prints one table for each evaluator that has scores of both runs.

    Args:
      first: folder of an evaluated run.
      second: folder of another.
      console: console for the tables; by default the screen.

    Raises:
      EvaluationError: a run has no scores, the runs have no evaluator in common, or one was
        measured on other samples than the other.
    """
    console = console or Console()
    ours, theirs = _evaluators(first), _evaluators(second)
    if not ours & theirs:
        raise EvaluationError(
            f"{first} has scores of {', '.join(sorted(ours))}, and {second} of "
            f"{', '.join(sorted(theirs))}. Cure: evaluators of the same name in both configs."
        )
    for name in sorted(ours & theirs):
        console.print(_table(name, compare(first, second, name)))
    console.print(f"first: {first}\nsecond: {second}", markup=False)
    for run, alone in ((first, ours - theirs), (second, theirs - ours)):
        if alone:
            console.print(f"scores of {run} alone: {', '.join(sorted(alone))}", markup=False)


def _evaluators(run: str) -> set[str]:
    """Returns the names of the evaluators whose scores a run has."""
    folder = epath.Path(run) / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    names = {place.name for place in found if (place / scores.FILE).exists()}
    if not names:
        cure = f"Cure: {program()} evaluate {run}."
        raise EvaluationError(f"{folder}: there are no scores. {cure}")
    return names


def _table(evaluator: str, differences: list[Difference]) -> Table:
    """Returns the table of an evaluator: a row for each group and metric."""
    interval = "95 % interval"
    heads = ("group", "metric", "units", "first", "second", "second - first", interval)
    note = "means over samples that both runs have scores for; paired bootstrap over units"
    table = Table(*heads, title=evaluator, box=box.SIMPLE_HEAD, caption=note)
    for one in differences:
        means = [f"{value:.4g}" for value in one.means]
        low, high = one.interval
        bounds = f"[{low:+.4g}, {high:+.4g}]"
        row = (one.group, one.metric, str(one.units), *means, f"{one.value:+.4g}", bounds)
        table.add_row(*map(_plain, row))
    return table


def _plain(cell: str) -> str:
    """Returns a cell in which brackets are no markup."""
    return cell.replace("[", r"\[")
