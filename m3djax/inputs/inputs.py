"""The transform of a stored batch into a task's batch, inside jit: intensities, augmentation."""

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
    """Clip and linear scaling of intensities. Name and fields follow MONAI's transform.

    The source units are those of the dataset: HU for CT, 0..1 for volumes without HU.

    Attributes:
      a_min: intensity that becomes `b_min`; lower intensities are clipped to it.
      a_max: intensity that becomes `b_max`; higher intensities are clipped to it.
      b_min: lowest value after scaling.
      b_max: highest value after scaling.
      mean: subtracted after scaling.
      std: divisor after the subtraction.
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
                f"{self}: a_min must be below a_max, b_min must differ from b_max, and std must be "
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
        """Returns intensities in units of the dataset. Clipped values stay clipped."""
        unit = (images * self.std + self.mean - self.b_min) / (self.b_max - self.b_min)
        return self.a_min + unit * (self.a_max - self.a_min)

    @property
    def source_per_unit(self) -> float:
        """Returns the number of source units, such as HU, per network unit."""
        return self.std * (self.a_max - self.a_min) / (self.b_max - self.b_min)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The transform of a stored batch into the batch that tasks take, for all fields together.

    Attributes:
      window: maps intensities of the dataset to network units.
      augment: augmentation, applied in training only.
    """

    window: ScaleIntensityRange = ScaleIntensityRange()
    augment: Augment = Augment()

    def __call__(
        self,
        batch: Mapping[str, Array],
        keys: Key[Array, " b"] | None,
        spatial: Mapping[str, Spatial],
    ) -> dict[str, Array]:
        """Returns the batch with intensities in network units, augmented if keys are given.

        All images of a sample get the same augmentation.

        Args:
          batch: stored fields. image (B, [V,] D, H, W, 1) integers, if the samples have one.
            scale and offset (B,) or (B, V): image * scale + offset is the intensity in units of the
            dataset. allowed_flips (B, 3) and allowed_turns (B,), if samples have a text: the moves
            that keep the text true. Other fields are passed through.
          keys: one key per sample, for augmentation; None switches augmentation off.
          spatial: kind and axes of each spatial array, by name; see `Data.spatial`. Arrays that
            are not in it stay as stored.

        Returns:
          The batch without scale and offset; intensities are float32.

        Raises:
          ConfigError: rotate90 is set, and a plane is not square; or a slice has no scale.
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

    def bound(self, spatial: Mapping[str, Spatial]) -> FieldInputs:
        """Returns the transform for the fields of one data config; see `Data.spatial`."""
        return FieldInputs(self, tuple(spatial.items()))


@dataclasses.dataclass(frozen=True)
class FieldInputs:
    """The transform of `Inputs`, for the fields of one data config; hashable, so static in jit.

    Attributes:
      inputs: the transform.
      spatial: (name, kind and axes) of each spatial array.
    """

    inputs: Inputs
    spatial: tuple[tuple[str, Spatial], ...]

    def __call__(
        self, batch: Mapping[str, Array], keys: Key[Array, " b"] | None = None
    ) -> dict[str, Array]:
        """Returns the batch that tasks take; see `Inputs.__call__`."""
        return self.inputs(batch, keys, dict(self.spatial))

    @property
    def window(self) -> ScaleIntensityRange:
        """Returns the map of intensities of the dataset to network units."""
        return self.inputs.window


def _intensities(batch: Mapping[str, Array], name: str) -> Float[Array, "b ..."]:
    """Returns the intensities of stored integers, in units of the dataset."""
    if "scale" not in batch:
        raise ConfigError(
            f"{name}: the batch has no scale and offset of its intensities. Cure: the field "
            "Image() in data.fields."
        )
    values = batch[name].astype(jnp.float32)
    scale, offset = (
        batch[field].reshape(*batch[field].shape, *[1] * (values.ndim - batch[field].ndim))
        for field in ("scale", "offset")
    )
    return values * scale + offset
