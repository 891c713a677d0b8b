"""Random flips, quarter turns and intensity jitter of samples, inside jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from data_pipelines.fields.base import Spatial
from m3djax.inputs.moves import Moves, move

INTENSITIES = ("image", "slice")
"""The kinds of arrays that hold intensities; see `Spatial`."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random flips, quarter turns and intensity jitter, drawn per sample (M3D: multi_dataset.py).

    Flips and turns move all arrays of a sample together. Jitter changes only intensities.

    Attributes:
      flip: probability of a flip along D, H and W; the three are drawn independently.
      rotate90: probability of one to three quarter turns in the axial plane; needs H = W.
      scale: with probability `jitter`, values are multiplied by 1 + U(-scale, scale).
      shift: with probability `jitter`, U(-shift, shift) is added, in network units.
      jitter: probability of `scale` and of `shift`, drawn independently.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate90: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    jitter: float = 0.5

    def __call__(
        self,
        key: Key[Array, ""],
        arrays: Mapping[str, Array],
        spatial: Mapping[str, Spatial],
        flips: Bool[Array, "3"] | None = None,
        turns: Bool[Array, ""] | None = None,
    ) -> dict[str, Array]:
        """Augments one sample. Use `jax.vmap` for a batch and its keys.

        Args:
          key: the only source of randomness.
          arrays: spatial arrays of the sample by name; intensities are in network units.
          spatial: kind and axes of each array, by name.
          flips: whether the sample's text allows flips along D, H, W; None allows all.
          turns: whether the sample's text allows quarter turns; None allows them.

        Raises:
          ConfigError: rotate90 is set, and a plane is not square.
        """
        keys = jax.random.split(key, 6)
        moves = Moves(
            tuple(self._flip(keys[axis], axis, flips) for axis in range(3)),
            self._turns(keys[5], turns),
        )
        moved = move(moves, arrays, spatial)
        factor = 1.0 + self.scale * self._jitter(keys[3])
        shift = self.shift * self._jitter(keys[4])
        return {
            name: array * factor + shift if spatial[name].kind in INTENSITIES else array
            for name, array in moved.items()
        }

    def _flip(
        self, key: Key[Array, ""], axis: int, allowed: Bool[Array, "3"] | None
    ) -> Bool[Array, ""] | None:
        if not self.flip[axis]:
            return None
        flipped = jax.random.bernoulli(key, self.flip[axis])
        return flipped if allowed is None else flipped & allowed[axis]

    def _turns(self, key: Key[Array, ""], allowed: Bool[Array, ""] | None) -> Int[Array, ""] | None:
        if not self.rotate90:
            return None
        chance, number = jax.random.split(key)
        count = jax.random.randint(number, (), 1, 4)
        chosen = jax.random.bernoulli(chance, self.rotate90)
        return jnp.where(chosen if allowed is None else chosen & allowed, count, 0)

    def _jitter(self, key: Key[Array, ""]) -> Float[Array, ""]:
        amount, chance = jax.random.split(key)
        applied = jax.random.bernoulli(chance, self.jitter)
        return jnp.where(applied, jax.random.uniform(amount, minval=-1.0, maxval=1.0), 0.0)
