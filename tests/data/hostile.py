"""Shared code of the tables of hostile and odd files: makes, reads and checks each kind."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines import preprocess
from data_pipelines.datasets.folder import folder
from data_pipelines.datasets.study import check_studies
from data_pipelines.errors import DataError, printable
from data_pipelines.plausible import check_values
from data_pipelines.readers import read_image, read_mask
from data_pipelines.volume import Volume

MASK, TABLE = "mask.nii.gz", "table.csv"
RAN = "ran"
"""What a file that runs a program makes."""
SECRETS = ("Doe", "4711", "19700101")
"""What stands in the files' free-text fields, and may stand in no message."""
CT = np.random.default_rng(0).integers(-1024, 2976, (5, 6, 7), np.int16)
"""Voxels in HU that could be a CT's."""
ZEROS = gzip.compress(bytes(1 << 24))
"""16 MiB in 16 kB; several make one file, as gzip allows."""
AFFINE = np.diag([-3.0, -3.0, 3.0, 1.0])

Maker = Callable[[pathlib.Path], pathlib.Path]
Check = Callable[[Volume], None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input that is odd, damaged or made to do harm.

    Attributes:
      name: description; valid as the name of a folder.
      make: writes it into an empty folder, and returns the path to give to `read`.
      outcome: regular expression for the problem in the `DataError`, or a check of the result.
      read: reads the file; some kinds need another reader than `read`.
      bomb: whether a reader without limits would use much memory or wait for ever.
      found: whether a search finds a volume in it.
      passed_over: {ending: number of files} that the search ignores.
      prepared: what becomes of it in a folder of scans, where that differs from `outcome`:
        False when the recipe cannot use it, True when the search finds a volume in it.
    """

    name: str
    make: Maker
    outcome: str | Check
    read: Callable[[pathlib.Path], Any] = read_image
    bomb: bool = False
    found: bool = True
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    prepared: bool | None = None

    def becomes_a_record(self) -> bool:
        """Whether a record is made of it, in a folder of scans in HU."""
        usable = callable(self.outcome) if self.prepared is None else self.prepared
        return self.found and usable


def hounsfield(path: pathlib.Path) -> Volume:
    """Reads an image as HU, and checks its values."""
    volume = read_image(path, units="HU")
    check_values(volume)
    return volume


def masked(path: pathlib.Path) -> Volume:
    """Reads the mask that lies beside an image."""
    image = read_image(path.parent / "scan.nii.gz")
    return dataclasses.replace(image, mask=read_mask(path, image))


def table(path: pathlib.Path) -> object:
    """Reads a table about the scans in its folder."""
    studies = folder(path.parent, preprocess.ct(), table=path).studies
    return check_studies(studies, path)


def file(data: bytes, name: str) -> Maker:
    """Writes one file."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def equals(expected: np.ndarray = CT, dtype: Any = None) -> Check:
    """The voxels are these, in the type that is given or the one that they have here."""

    def check(volume: Volume) -> None:
        np.testing.assert_array_equal(volume.array, expected)
        assert volume.array.dtype == (dtype or expected.dtype)

    return check


def examine(kind: Kind, where: pathlib.Path, on_made: Callable[[], object] = lambda: None) -> None:
    """Makes and reads one kind: it is read right, or refused with its name, a reason and a cure.

    Args:
      kind: the kind.
      where: an empty folder.
      on_made: is called before it is read.
    """
    path = kind.make(where)
    on_made()
    try:
        found = kind.read(path)
    except DataError as error:
        assert isinstance(kind.outcome, str), error
        assert re.search(kind.outcome, error.problem), error
        assert pathlib.Path(error.path).is_relative_to(path.parent), error
        assert error.cure and str(error) == printable(
            f"{error.path}: {error.problem}. Cure: {error.cure}."
        )
        assert not [secret for secret in SECRETS if secret in str(error)], error
    else:
        assert callable(kind.outcome), f"{kind.name}: was read, without a doubt"
        kind.outcome(found)
    assert not (where / RAN).exists()
