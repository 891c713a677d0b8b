"""Rotary positions (arXiv 2104.09864) in the half-split convention, and their scalings.

Names and meanings are those of `rope_parameters` in Hugging Face's configs.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Array, Array]
"""Cosines and sines, both (b, n, d / 2) in float32."""


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All positions divided by `factor`.

    Attributes:
      factor: how much longer the context became.
    """

    factor: float

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """The scaled frequencies."""
        return plain / self.factor


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with the length of the text, beyond the context that was trained.

    Attributes:
      factor: how much longer the context became.
      trained: positions of the context that was trained.
    """

    factor: float
    trained: int

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """The scaled frequencies."""
        dim = 2 * len(plain)
        stretch = self.factor * max(length, self.trained) / self.trained - (self.factor - 1)
        return _plain(theta * stretch ** (dim / (dim - 2)), dim)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Long waves divided by `factor`, short ones kept, a ramp between (Llama 3.1).

    Attributes:
      factor: divisor of the long waves.
      low_freq_factor: waves longer than `trained / low_freq_factor` are long.
      high_freq_factor: waves shorter than `trained / high_freq_factor` are short.
      trained: positions of the context that was trained.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained: int

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """The scaled frequencies."""
        turns = self.trained * plain / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(ramp, 0, 1)
        return kept * plain + (1 - kept) * plain / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolates slow dimensions, keeps fast ones, warms the softmax.

    Attributes:
      factor: how much longer the context became.
      trained: positions of the context that was trained.
      beta_fast: turns over the trained context above which a dimension is kept.
      beta_slow: turns below which it is interpolated in full.
      amplitude: factor on cosines and sines; the paper's is 0.1 ln(factor) + 1.
      truncate: whether the ends of the ramp are rounded to whole dimensions.
    """

    factor: float
    trained: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0
    truncate: bool = True

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """The scaled frequencies."""
        dim = 2 * len(plain)

        def dimension(turns: float) -> float:
            return dim * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = (np.arange(dim // 2) - low) / (high - low if high != low else 1e-3)
        interpolated = np.clip(ramp, 0, 1)
        return interpolated * plain / self.factor + (1 - interpolated) * plain


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """A divisor for every dimension, one set for short texts and one for long ones (Phi-3).

    Attributes:
      short_factor: divisors for texts of at most `trained` positions, one per pair of channels.
      long_factor: divisors for longer texts.
      trained: positions of the context that was trained.
      amplitude: factor on cosines and sines.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    trained: int
    amplitude: float = 1.0

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """The scaled frequencies."""
        return plain / np.asarray(self.long_factor if length > self.trained else self.short_factor)


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Angles of positions.

    Attributes:
      theta: base of the wave lengths.
      fraction: share of a head's channels that is rotated, from the first on.
      scaling: how a trained context was stretched.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def frequencies(self, head_dim: int, length: int) -> np.ndarray:
        """Radians per position, float64, one per rotated pair of channels.

        Args:
          head_dim: channels of a head.
          length: positions of the whole text; two of the scalings depend on it.
        """
        plain = _plain(self.theta, int(head_dim * self.fraction))
        return self.scaling(plain, self.theta, length) if self.scaling else plain

    def __call__(self, positions: Int[Array, "b n"], head_dim: int, length: int) -> Rotation:
        """Cosines and sines of `positions`; see `frequencies` for the rest."""
        frequencies = jnp.asarray(self.frequencies(head_dim, length), jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        amplitude = getattr(self.scaling, "amplitude", 1.0)
        return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def rotate(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Rotates channel i together with channel i + r / 2, for the first r channels, in float32."""
    cos, sin = (part[:, :, None] for part in rotation)
    half = cos.shape[-1]
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def _plain(theta: float, dim: int) -> np.ndarray:
    return theta ** (-np.arange(0, dim, 2) / dim)
