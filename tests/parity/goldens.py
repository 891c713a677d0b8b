"""Reading goldens: weights, inputs and outputs made by the original PyTorch code.

Every folder in tests/golden is run, and every folder named in $M3DJAX_GOLDEN (separated by colons;
each entry is one golden folder). Its kind is the longest known kind that its name starts with.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

# Kinds with a parity test. A folder of any other kind is an error, so that nothing passes unseen.
KINDS = ("m3d_clip", "m3d_preproc", "mae3d")


def golden_dirs(kind: str) -> list[Path]:
    """All golden folders of one kind.

    Raises:
      ValueError: if a folder does not exist, or is of a kind that has no parity test.
    """
    named = [Path(entry) for entry in os.environ.get("M3DJAX_GOLDEN", "").split(":") if entry]
    shipped = sorted(p for p in (Path(__file__).parents[1] / "golden").iterdir() if p.is_dir())
    return [folder for folder in (*shipped, *named) if kind_of(folder) == kind]


def kind_of(folder: Path) -> str:
    """The kind of a golden folder; see `golden_dirs` for errors."""
    kinds = [kind for kind in KINDS if folder.name.startswith(kind)]
    if not folder.is_dir() or not kinds:
        raise ValueError(f"{folder}: not a golden folder of a kind with a parity test: {KINDS}")
    return max(kinds, key=len)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One golden folder, read.

    Attributes:
      config: sizes.
      weights: tensors under their published names; empty if the golden has none.
      io: inputs, intermediates and outputs.
    """

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    io: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Golden:
        """Reads config.json, weights.safetensors (if there) and io.safetensors."""
        weights = folder / "weights.safetensors"
        return cls(
            json.loads((folder / "config.json").read_text()),
            load_file(weights) if weights.exists() else {},
            load_file(folder / "io.safetensors"),
        )

    def compare(self, name: str, ours: Any, tolerance: float) -> None:
        """Asserts that a tensor agrees; a name that the golden lacks is a KeyError."""
        theirs = self.io[name]
        assert np.shape(ours) == theirs.shape, f"{name}: {np.shape(ours)} against {theirs.shape}"
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), theirs.astype(np.float64), 0, tolerance, err_msg=name
        )

    def compare_gradient_norms(
        self, ours: dict[str, Any], *, elsewhere: tuple[str, ...] = ()
    ) -> None:
        """Asserts every gradnorm/* and grad/* that is given.

        Args:
          ours: gradients in the published layout.
          elsewhere: prefixes of parameters that the caller does not differentiate.
        """
        compared = 0
        for key, theirs in self.io.items():
            kind, _, name = key.partition("/")
            if kind not in ("grad", "gradnorm") or name.startswith(elsewhere or ("\0",)):
                continue
            value = np.linalg.norm(ours[name]) if kind == "gradnorm" else np.asarray(ours[name])
            scale = float(np.max(np.abs(theirs)))
            np.testing.assert_allclose(value, theirs, 1e-4, 1e-4 * scale, err_msg=key)
            compared += 1
        assert compared, "the golden gives no gradient to compare"


jax.config.update("jax_default_matmul_precision", "highest")
