"""What an evaluator is."""

from __future__ import annotations

import abc
from typing import Any

from etils import epath

from m3djax.params import Params


class Evaluator(abc.ABC):
    """Frozen dataclasses implement this; it may write pictures and tables into its folder.

    Attributes:
      every: steps between two evaluations during training; 0 evaluates only when asked.
    """

    every: int = 0

    @abc.abstractmethod
    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """Measures.

        Args:
          task: the run's task.
          params: one entry per component.
          folder: exists; whatever is written there shows up in the report.

        Returns:
          Numbers by name (JSON-able), intervals as `[low, high]`.
        """
