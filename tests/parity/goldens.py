"""Goldens: weights, inputs and outputs made by the original PyTorch code, and how to compare them.

A golden is a folder whose name starts with its kind and which holds config.json, io.safetensors, a
README.md and, if it has weights, weights.safetensors. Besides tests/golden, the folders named in
$M3DJAX_GOLDEN (colon-separated, each entry is one golden folder) are compared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from m3djax.models.encoder import VisionFeatures

KINDS: dict[str, str] = {
    "m3d_clip": "test_m3d_clip.py",
    "m3d_lamed_llama": "test_m3d_lamed.py",
    "m3d_lamed_phi3": "test_m3d_lamed.py",
    "m3d_lamed_seg": "",
    "segvol": "",
    "segvol_text": "",
    "m3d_preproc": "test_m3d_preproc.py",
    "mg3d_swin": "",
    "mg3d": "",
    "psat": "",
    "mae3d": "test_mae3d.py",
    "llm": "test_llm.py",
    "lora": "test_lora.py",
    "text_metrics": "test_text_metrics.py",
    "torch_zip": "test_torch_zip.py",
    "bert": "test_bert.py",
    "roberta": "test_bert.py",
    "minilm": "test_minilm.py",
    "bert_score": "test_bert_score.py",
    "sentencepiece": "test_sentencepiece.py",
}
"""Kind -> the test file in this folder that compares it; "" while there is none."""

_HERE = pathlib.Path(__file__).parent


def kind_of(folder: pathlib.Path) -> str:
    """The longest known kind that the folder's name starts with.

    Raises:
      ValueError: the kind is unknown.
    """
    kind = _starts_with(folder)
    if not kind:
        raise ValueError(f"golden {folder}: unknown kind; known are {', '.join(sorted(KINDS))}")
    return kind


def _starts_with(folder: pathlib.Path) -> str:
    return max((kind for kind in KINDS if folder.name.startswith(kind)), key=len, default="")


def all_dirs() -> list[pathlib.Path]:
    """Every golden folder: those of the project, then those of $M3DJAX_GOLDEN."""
    own = sorted(path for path in (_HERE.parent / "golden").iterdir() if path.is_dir())
    named = os.environ.get("M3DJAX_GOLDEN", "").split(":")
    return own + [pathlib.Path(entry) for entry in named if entry]


def golden_dirs(kind: str) -> list[pathlib.Path]:
    """The golden folders of one kind, of which there must be one.

    Entries of other, also of unknown, kinds are the business of `check_covered`: they fail there
    by name instead of stopping every parity test.
    """
    assert kind in KINDS, kind
    found = [folder for folder in all_dirs() if _starts_with(folder) == kind]
    assert found, f"no golden of kind {kind}: nothing would be compared"
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


@dataclasses.dataclass(frozen=True)
class Golden:
    """One golden folder, read.

    Attributes:
      folder: where it was read from.
      config: sizes.
      weights: tensors under their published names; empty if the golden has none.
      io: inputs, intermediates and outputs.
      used: names in `io` that were taken with `given` or compared.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    io: dict[str, np.ndarray]
    used: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def read(cls, folder: pathlib.Path) -> Golden:
        """Reads config.json, weights.safetensors (if there) and io.safetensors."""
        weights = folder / "weights.safetensors"
        return cls(
            folder,
            json.loads((folder / "config.json").read_text()),
            load_file(weights) if weights.exists() else {},
            load_file(folder / "io.safetensors"),
        )

    def given(self, name: str) -> np.ndarray:
        """A tensor of `io`; counts as used."""
        assert name in self.io, f"golden {self.folder} has no tensor {name}"
        self.used.add(name)
        return self.io[name]

    def compare(self, name: str, ours: Any, tolerance: float, *, relative: float = 0.0) -> None:
        """Asserts that shape and values agree; with a tolerance of 0 they must be equal."""
        theirs = self.given(name)
        assert np.shape(ours) == theirs.shape, f"{name}: {np.shape(ours)} against {theirs.shape}"
        np.testing.assert_allclose(
            np.asarray(ours, np.float64),
            theirs.astype(np.float64),
            relative,
            tolerance,
            err_msg=name,
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

    def finish(self) -> None:
        """Fails if a tensor of `io` was neither given nor compared, or nothing was."""
        assert self.used, f"golden {self.folder}: nothing was compared"
        left = sorted(set(self.io) - self.used)
        assert not left, f"golden {self.folder}: not compared: {left}"


def sequence(features: VisionFeatures) -> jax.Array:
    """Returns tokens behind their class token, as the published code keeps them."""
    assert features.cls is not None
    return jnp.concatenate([features.cls[:, None], features.tokens], axis=1)


jax.config.update("jax_default_matmul_precision", "highest")
