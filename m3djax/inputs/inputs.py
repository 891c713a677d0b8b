"""From a batch as stored to what a task takes, inside jit: intensities and augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Spatial
from m3djax.inputs.augment import INTENSITIES, Augment

IMAGE = {"image": Spatial("image", (-4, -3, -2))}
"""The image of a sample, or several images: ([V,] D, H, W, 1)."""


@dataclasses.dataclass(frozen=True)
class ScaleIntensityRange:
    """Clips intensities and scales them linearly, named as MONAI's transform of this name.

    The source units are those of the data set: HU for CT, 0..1 for volumes without HU.

    Attributes:
      a_min: intensity that becomes `b_min`; lower ones too.
      a_max: intensity that becomes `b_max`; higher ones too.
      b_min: lowest value after scaling.
      b_max: highest value after scaling.
      mean: subtracted after scaling.
      std: divided by, after that.
    """

    a_min: float = -1000.0
    a_max: float = 1000.0
    b_min: float = 0.0
    b_max: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.a_min < self.a_max and self.b_min != self.b_max and self.std > 0):
            raise ConfigError(
                f"{self}: a_min must be below a_max, b_min must not be b_max, and std must be "
                "positive."
            )

    def __call__(self, values: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns intensities in network units."""
        unit = (jnp.clip(values, self.a_min, self.a_max) - self.a_min) / (self.a_max - self.a_min)
        scaled = self.b_min + unit * (self.b_max - self.b_min)
        return (scaled - self.mean) / self.std

    def inverse(
        self, images: Float[Array | np.ndarray, " ..."]
    ) -> Float[Array | np.ndarray, " ..."]:
        """Returns intensities of the data set; what was clipped stays clipped."""
        unit = (images * self.std + self.mean - self.b_min) / (self.b_max - self.b_min)
        return self.a_min + unit * (self.a_max - self.a_min)

    @property
    def source_per_unit(self) -> float:
        """Returns how many source units, such as HU, one network unit spans."""
        return self.std * (self.a_max - self.a_min) / (self.b_max - self.b_min)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Turns a stored batch into the batch that tasks take, all fields together.

    Attributes:
      window: from intensities of the data set to network units.
      augment: applied in training only.
    """

    window: ScaleIntensityRange = ScaleIntensityRange()
    augment: Augment = Augment()

    def __call__(
        self,
        batch: Mapping[str, Array],
        keys: Key[Array, " b"] | None = None,
        spatial: Mapping[str, Spatial] = IMAGE,
    ) -> dict[str, Array]:
        """Returns the batch with intensities in network units, in training augmented.

        All images of a sample are augmented alike.

        Args:
          batch: image (B, [V,] D, H, W, 1) integers, if there is one; scale and offset (B,) or
            (B, V), such that image * scale + offset is the intensity in units of the data set;
            further fields; where samples have a text, allowed_flips (B, 3) and allowed_turns (B,),
            which keep the text true.
          keys: one per sample, for augmentation; None augments nothing.
          spatial: how arrays of a sample move, see `Data.spatial`.

        Returns:
          The batch without scale and offset; intensities are float32.

        Raises:
          ConfigError: rotate90, and a plane is not square.
        """
        fields = {name: x for name, x in batch.items() if name not in ("scale", "offset")}
        moving = {name: how for name, how in spatial.items() if name in fields}
        for name, how in moving.items():
            if how.kind in INTENSITIES:
                fields[name] = self.window(_intensities(batch, name))
        if keys is None or not moving:
            return fields

        def augment(key: Array, arrays: dict[str, Array], flips: Any, turns: Any) -> dict:
            return self.augment(key, arrays, moving, flips, turns)

        arrays = {name: jnp.asarray(fields[name]) for name in moving}
        flips, turns = batch.get("allowed_flips"), batch.get("allowed_turns")
        return fields | jax.vmap(augment)(keys, arrays, flips, turns)


def _intensities(batch: Mapping[str, Array], name: str) -> Float[Array, "b ..."]:
    """Returns stored integers as intensities of the data set."""
    values = batch[name].astype(jnp.float32)
    scale, offset = (
        batch[field].reshape(*batch[field].shape, *[1] * (values.ndim - batch[field].ndim))
        for field in ("scale", "offset")
    )
    return values * scale + offset
