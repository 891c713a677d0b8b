"""The results of a run's evaluators, as `results.json` stores them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

FOLDER = "evaluation"
RESULTS = "results.json"
REPORT = "report.html"


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of all evaluators of a run.

    Attributes:
      folder: the run's folder.
      step: the step of the evaluated checkpoint.
      found: findings by name of the evaluator, see `Findings.to_json`.
      report: the HTML page.
    """

    folder: epath.Path
    step: int
    found: dict[str, dict[str, Any]]
    report: epath.Path

    @classmethod
    def read(cls, folder: epath.PathLike) -> Results | None:
        """Returns the results of a run; None if it was not evaluated."""
        folder = epath.Path(folder)
        if not (path := folder / FOLDER / RESULTS).exists():
            return None
        page = json.loads(path.read_text())
        return cls(folder, page["step"], page["found"], folder / REPORT)

    @property
    def passed(self) -> bool:
        """Returns False if any evaluator with a test failed it."""
        return all(findings["passed"] is not False for findings in self.found.values())

    def summary(self) -> str:
        """Returns the results as sentences, one per line."""
        parts = [findings["report"]["sentences"] for findings in self.found.values()]
        return "\n".join(sentence for part in parts for sentence in part)
