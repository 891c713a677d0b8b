"""What an evaluator is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

from etils import epath
from jax.sharding import Mesh

from data_pipelines.pipeline import Data
from m3djax.models.patches import Size
from m3djax.params import Params


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Frozen dataclasses implement this; it may write pictures and tables into its folder.

    Attributes:
      dataset: folder that `run.py prepare` wrote; "" is that of the run.
      size: voxels along (D, H, W) of a crop; zeros are those of the run.
      every: steps between two evaluations during training; 0 evaluates only when asked.
    """

    dataset: str = ""
    size: Size = (0, 0, 0)
    every: int = 0

    def for_data(self, data: Data) -> Self:
        """This evaluator with what it leaves open taken from the data of a run."""
        dataset, size = self.dataset or data.sources[0].path, self.size
        return dataclasses.replace(self, dataset=dataset, size=size if any(size) else data.size)

    def mesh_alone(self) -> Mesh | None:
        """Devices that parameters are read onto outside of training; None: this process's first."""
        return None

    @abc.abstractmethod
    def check(self) -> None:
        """Opens what it will read, so that a missing dataset is found before hours of training.

        Raises:
          DataError: a dataset or a split is not there.
        """

    @abc.abstractmethod
    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """Measures.

        Args:
          task: the run's task.
          params: one entry per component, on the mesh of training or on `mesh_alone`.
          folder: exists; whatever is written there shows up in the report.

        Returns:
          Numbers by name (JSON-able), intervals as `[low, high]`.
        """
