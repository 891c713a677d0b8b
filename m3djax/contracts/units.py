"""Independent units: groups of samples that the bootstrap draws as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Int

PATIENTS = "patients"
REGIONS = "regions of one patient"


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The independent unit of every sample.

    Attributes:
      number: (n,) number of the unit of each sample, from 0.
      names: name of each unit, by number.
      kind: kind of unit in the plural, such as "patients".
    """

    number: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    kind: str

    def __len__(self) -> int:
        """Returns the number of units."""
        return len(self.names)

    @classmethod
    def of(cls, names: Sequence[str], kind: str, order: Any = None) -> Self:
        """Makes units from the name of each sample's unit.

        Args:
          names: (n,) name of the unit of each sample.
          kind: kind of unit in the plural.
          order: (n,) or (n, k) values that define the order of the units. Samples of one unit have
            the same value. Default: the names.
        """
        keys = np.asarray(names if order is None else order)
        _, first, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        return cls(number.reshape(-1), tuple(str(names[sample]) for sample in first), kind)

    def take(self, chosen: np.ndarray) -> Self:
        """Returns the units of some samples. `chosen` is a mask or sample numbers.

        Names and numbers of the units stay the same.
        """
        return dataclasses.replace(self, number=self.number[chosen])


def region(place: Int[np.ndarray, "n 3"], size: Sequence[int]) -> Int[np.ndarray, "n 3"]:
    """Returns the region that each place lies in. Regions are a grid with cells of crop size."""
    return (place // np.array(size)).astype(int)


def independent(
    patient: Sequence[str],
    record: Int[np.ndarray, " n"],
    place: Int[np.ndarray, "n 3"],
    size: Sequence[int],
) -> Units:
    """Returns the units of crops: patients, or regions of the scans if there is only one patient.

    Args:
      patient: (n,) patient of each crop.
      record: (n,) number of the record of each crop.
      place: (n, 3) voxel in the middle of each crop, in the record.
      size: voxels along (D, H, W) of a crop.
    """
    if len(set(patient)) > 1:
        return Units.of(patient, PATIENTS)
    places = np.column_stack([record, region(place, size)])
    names = [" ".join(map(str, row)) for row in places]
    return Units.of(names, REGIONS, order=places)
