"""Which golden folders a parity test has to agree with, and how their tensors are compared.

A golden is a folder whose name starts with its kind and which holds config.json, io.safetensors
and a README.md. Besides tests/golden, the folders named in $M3DJAX_GOLDEN (colon-separated, each
entry is one golden folder) are compared, so that new ones need no change here.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import load_file

KINDS: dict[str, str] = {
    "m3d_clip": "",
    "m3d_lamed_llama": "",
    "m3d_lamed_phi3": "",
    "m3d_lamed_seg": "",
    "segvol": "",
    "segvol_text": "",
    "m3d_preproc": "test_m3d_preproc.py",
    "mg3d_swin": "",
    "mg3d": "",
    "psat": "",
    "mae3d": "",
    "lora": "",
    "text_metrics": "",
}
"""Kind -> the test file in this folder that compares it; "" while there is none."""

_HERE = pathlib.Path(__file__).parent


def kind_of(folder: pathlib.Path) -> str:
    """The longest known kind that the folder's name starts with.

    Raises:
      ValueError: the kind is unknown.
    """
    known = [kind for kind in KINDS if folder.name.startswith(kind)]
    if not known:
        raise ValueError(f"golden {folder}: unknown kind; known are {', '.join(sorted(KINDS))}")
    return max(known, key=len)


def all_dirs() -> list[pathlib.Path]:
    """Every golden folder: those of the project, then those of $M3DJAX_GOLDEN."""
    own = sorted(path for path in (_HERE.parent / "golden").iterdir() if path.is_dir())
    named = os.environ.get("M3DJAX_GOLDEN", "").split(":")
    return own + [pathlib.Path(entry) for entry in named if entry]


def golden_dirs(kind: str) -> list[pathlib.Path]:
    """The golden folders of one kind; entries of unknown kind are left to `check_covered`."""
    assert kind in KINDS, kind
    found = []
    for folder in all_dirs():
        try:
            if kind_of(folder) == kind:
                found.append(folder)
        except ValueError:
            continue
    return found


def check_covered(folder: pathlib.Path) -> None:
    """Fails unless the folder exists, is of a known kind, and a test in this folder compares it.

    Raises:
      AssertionError: the golden would go uncompared.
    """
    assert folder.is_dir(), f"golden {folder} is not a folder"
    try:
        kind = kind_of(folder)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    test = KINDS[kind]
    assert test and (_HERE / test).is_file(), f"golden {folder}: no parity test for kind {kind} yet"


class Golden:
    """The contents of a golden folder, which remembers what has been compared.

    Attributes:
      config: config.json.
      tensors: io.safetensors, name -> array.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the folder."""
        self.folder = folder
        self.config: dict[str, Any] = self.json("config.json")
        self.tensors = load_file(folder / "io.safetensors")
        self._used: set[str] = set()

    def json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text())

    def given(self, name: str) -> np.ndarray:
        """An input tensor; counts as used."""
        assert name in self.tensors, f"golden {self.folder} has no tensor {name}"
        self._used.add(name)
        return self.tensors[name]

    def compare(self, name: str, ours: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Fails unless shape and values agree; with no tolerance they must be equal."""
        theirs = self.given(name)
        assert np.shape(ours) == theirs.shape, f"{name}: {np.shape(ours)}, golden {theirs.shape}"
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), theirs.astype(np.float64), rtol, atol, err_msg=name
        )

    def finish(self) -> None:
        """Fails if a tensor was neither an input nor compared, or the golden is empty."""
        assert self._used, f"golden {self.folder}: nothing was compared"
        left = sorted(set(self.tensors) - self._used)
        assert not left, f"golden {self.folder}: not compared: {left}"
