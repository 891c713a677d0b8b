"""From stored integers to the network's input, inside jit: windows, flips, intensity jitter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from data_pipelines.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Window:
    """Clips HU and scales them linearly.

    Attributes:
      low: HU that becomes `to[0]`; lower values too.
      high: HU that becomes `to[1]`; higher values too.
      to: range after scaling.
      mean: subtracted after scaling.
      std: divided by, after that.
    """

    low: float = -1000.0
    high: float = 1000.0
    to: tuple[float, float] = (0.0, 1.0)
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.std > 0):
            raise ConfigError(f"{self}: low must be below high, and std positive.")

    def __call__(self, values: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """HU to network units."""
        unit = (jnp.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        scaled = self.to[0] + unit * (self.to[1] - self.to[0])
        return (scaled - self.mean) / self.std

    def inverse(
        self, images: Float[Array | np.ndarray, " ..."]
    ) -> Float[Array | np.ndarray, " ..."]:
        """Network units back to HU; what was clipped stays clipped."""
        unit = (images * self.std + self.mean - self.to[0]) / (self.to[1] - self.to[0])
        return self.low + unit * (self.high - self.low)

    @property
    def hu_per_unit(self) -> float:
        """How many HU one network unit spans."""
        return self.std * (self.high - self.low) / (self.to[1] - self.to[0])


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random flips, quarter turns and intensity jitter, drawn per sample (M3D: multi_dataset.py).

    Attributes:
      flip: chance to flip along D, H and W, each on its own.
      rotate90: chance of one to three quarter turns in the axial plane; needs H = W.
      scale: with chance `jitter`, values are multiplied by 1 + U(-scale, scale).
      shift: with chance `jitter`, U(-shift, shift) is added, in network units.
      jitter: chance of each of the two.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate90: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    jitter: float = 0.5

    def __call__(
        self,
        key: Key[Array, ""],
        image: Float[Array, "d h w c"],
        flips: Bool[Array, "3"] | None = None,
        turns: Bool[Array, ""] | None = None,
    ) -> Array:
        """Augments one sample; vmap it over a batch and its keys.

        Args:
          key: decides everything.
          image: in network units.
          flips: along D, H, W that the sample's text allows; None allows all.
          turns: whether it allows quarter turns; None does.
        """
        keys = jax.random.split(key, 6)
        for axis, chance in enumerate(self.flip):
            if chance:
                flipped = jax.random.bernoulli(keys[axis], chance)
                if flips is not None:
                    flipped &= flips[axis]
                image = jnp.where(flipped, jnp.flip(image, axis), image)
        if self.rotate90:
            image = self._rotate(keys[5], image, turns)
        factor = 1.0 + self.scale * self._jitter(keys[3])
        return image * factor + self.shift * self._jitter(keys[4])

    def _rotate(
        self,
        key: Key[Array, ""],
        image: Float[Array, "d h w c"],
        allowed: Bool[Array, ""] | None,
    ) -> Array:
        if image.shape[1] != image.shape[2]:
            raise ConfigError(f"rotate90 needs H = W, and crops are {image.shape[:3]}.")
        chance, turns = jax.random.split(key)
        turned = jnp.stack([jnp.rot90(image, k, axes=(1, 2)) for k in range(4)])
        count = jax.random.randint(turns, (), 1, 4)
        chosen = jax.random.bernoulli(chance, self.rotate90)
        if allowed is not None:
            chosen &= allowed
        return turned[jnp.where(chosen, count, 0)]

    def _jitter(self, key: Key[Array, ""]) -> Float[Array, ""]:
        amount, chance = jax.random.split(key)
        applied = jax.random.bernoulli(chance, self.jitter)
        return jnp.where(applied, jax.random.uniform(amount, minval=-1.0, maxval=1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Turns a stored batch into the network's input.

    Attributes:
      window: in the units of the data set: HU for CT, 0..1 for volumes without HU.
      augment: applied in training only.
    """

    window: Window = Window()
    augment: Augment = Augment()

    def __call__(
        self, batch: Mapping[str, Array], keys: Key[Array, " b"] | None, *, train: bool
    ) -> Float[Array, "b d h w 1"]:
        """Windows (and in training augments) `batch["image"]`.

        Args:
          batch: image (B, D, H, W, 1) integers, scale and offset (B,) to real values; where
            samples have a text, allowed_flips (B, 3) and allowed_turns (B,), which keep it true.
          keys: one per sample; None where nothing is augmented.
          train: whether to augment.
        """
        shape = (-1, 1, 1, 1, 1)
        values = batch["image"].astype(jnp.float32)
        values = values * batch["scale"].reshape(shape) + batch["offset"].reshape(shape)
        images = self.window(values)
        if not train:
            return images
        assert keys is not None
        flips, turns = batch.get("allowed_flips"), batch.get("allowed_turns")
        return jax.vmap(self.augment)(keys, images, flips, turns)
