"""Fingerprints of the parameters and of all other inputs of predictions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, UInt

from data_pipelines.datasets import open_dataset
from data_pipelines.pipeline import LOADING, Data, Source
from m3djax.config import serialize
from m3djax.contracts.evaluator import Subject
from m3djax.params import Params


@jax.jit
def fingerprint(params: Params) -> UInt[Array, ""]:
    """Returns a 32-bit hash of all bits of the parameters; it is the same on every mesh."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(params)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).ravel()
        place = jnp.arange(bits.size, dtype=jnp.uint32) + jnp.uint32(
            number * 0x9E3779B9 & 0xFFFFFFFF
        )
        # The hashed place makes swaps visible; odd factors lose no bit of the value.
        factor = ((place ^ (place >> 15)) * jnp.uint32(0x85EBCA6B)) | 1
        total = total * jnp.uint32(31) + jnp.sum(bits * factor, dtype=jnp.uint32)
    return total


def key(*parts: Any) -> str:
    """Returns a hash of JSON-able parts: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def reading_parts(subject: Subject, data: Data, source: Source, crops: int, seed: int) -> list[Any]:
    """Returns all inputs of predictions for a split's crops except the parameters, as JSON.

    Args:
      subject: the model.
      data: config of crops and texts; its fields for loading are left out.
      source: dataset, split and part.
      crops: crops per record.
      seed: seed of the places of crops.
    """
    free = ("sources", "batch_size", *LOADING)
    reading = {n: v for n, v in serialize.to_json(data).items() if n not in free}
    metadata = open_dataset(source.path, source.split, lazy=True).metadata
    model = serialize.to_json(subject.task), serialize.to_json(subject.inputs.inputs)
    return [*model, reading, metadata, source.split, source.part, crops, seed]


@dataclasses.dataclass(frozen=True)
class PredictionFiles:
    """Names of the files with the predictions of certain parameters.

    Attributes:
      folder: folder of the evaluator.
      stem: start of the name; it describes the predictions.
      weights: fingerprint of the parameters.
      key: fingerprint of all other inputs.
    """

    folder: epath.Path
    stem: str
    weights: str
    key: str

    @classmethod
    def of(cls, folder: epath.Path, stem: str, params: Params, parts: Any) -> PredictionFiles:
        """Makes the names from the parameters and from other, JSON-able, inputs."""
        return cls(folder, stem, f"{int(fingerprint(params)):08x}", key(parts))

    def file(self, suffix: str) -> epath.Path:
        """Returns the path of a file; `suffix` starts with a full stop."""
        return self.folder / f"{self.stem}-{self.weights}-{self.key}{suffix}"

    def files(self) -> list[epath.Path]:
        """Returns all files of these parameters and this key that exist."""
        return sorted(self.folder.glob(f"{self.stem}-{self.weights}-{self.key}.*"))

    def remove_others(self) -> None:
        """Removes the files of other parameters."""
        for old in self.folder.glob(f"{self.stem}-*"):
            if not old.name.startswith(f"{self.stem}-{self.weights}-"):
                old.unlink(missing_ok=True)  # another process may remove it, too
