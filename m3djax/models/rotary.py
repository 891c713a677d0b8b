"""Rotary positions (arXiv 2104.09864) in the half-split convention, and their scalings.

Names and meanings follow `rope_parameters` in Hugging Face's configs.
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
    """Linear scaling: all positions are divided by `factor`.

    Attributes:
      factor: ratio of the new context length to the trained one.
    """

    factor: float

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """Returns the scaled frequencies.

        Args:
          plain: frequencies without scaling, float64.
          theta: base of the wavelengths.
          length: positions of the whole text.
        """
        return plain / self.factor


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Dynamic scaling: the base grows with the length of texts beyond the trained context.

    Attributes:
      factor: ratio of the new context length to the trained one.
      trained: positions of the trained context.
    """

    factor: float
    trained: int

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """Returns the scaled frequencies.

        Args:
          plain: frequencies without scaling, float64.
          theta: base of the wavelengths.
          length: positions of the whole text.
        """
        dim = 2 * len(plain)
        stretch = self.factor * max(length, self.trained) / self.trained - (self.factor - 1)
        return _plain(theta * stretch ** (dim / (dim - 2)), dim)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high frequencies are kept.

    Frequencies between them are interpolated.

    Attributes:
      factor: divisor of the low frequencies.
      low_freq_factor: wavelengths above `trained / low_freq_factor` have a low frequency.
      high_freq_factor: wavelengths below `trained / high_freq_factor` have a high frequency.
      trained: positions of the trained context.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained: int

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """Returns the scaled frequencies.

        Args:
          plain: frequencies without scaling, float64.
          theta: base of the wavelengths.
          length: positions of the whole text.
        """
        turns = self.trained * plain / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(ramp, 0, 1)
        return kept * plain + (1 - kept) * plain / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN's scaling (arXiv 2309.00071).

    Low frequencies are divided by `factor`, and high frequencies are kept. Frequencies between them
    are interpolated. A factor on cosines and sines changes the temperature of the softmax.

    Attributes:
      factor: ratio of the new context length to the trained one.
      trained: positions of the trained context.
      beta_fast: dimensions with more turns over the trained context are kept.
      beta_slow: dimensions with fewer turns over the trained context are divided by `factor`.
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
        """Returns the scaled frequencies.

        Args:
          plain: frequencies without scaling, float64.
          theta: base of the wavelengths.
          length: positions of the whole text.
        """
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
    """LongRoPE scaling (Phi-3): one divisor per dimension, with separate sets for long texts.

    Attributes:
      short_factor: divisors for texts of at most `trained` positions, one per pair of channels.
      long_factor: divisors for longer texts, one per pair of channels.
      trained: positions of the trained context.
      amplitude: factor on cosines and sines.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    trained: int
    amplitude: float = 1.0

    def __call__(self, plain: np.ndarray, theta: float, length: int) -> np.ndarray:
        """Returns the scaled frequencies.

        Args:
          plain: frequencies without scaling, float64.
          theta: base of the wavelengths.
          length: positions of the whole text.
        """
        return plain / np.asarray(self.long_factor if length > self.trained else self.short_factor)


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions: the rotation angle of each position and pair of channels.

    Attributes:
      theta: base of the wavelengths.
      fraction: share of a head's channels to rotate, starting at the first channel.
      scaling: method that extended the trained context; None for none.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def frequencies(self, head_dim: int, length: int) -> np.ndarray:
        """Returns the radians per position, float64, one per rotated pair of channels.

        Args:
          head_dim: channels of a head.
          length: positions of the whole text; two of the scalings depend on it.
        """
        plain = _plain(self.theta, int(head_dim * self.fraction))
        return self.scaling(plain, self.theta, length) if self.scaling else plain

    def __call__(self, positions: Int[Array, "b n"], head_dim: int, length: int) -> Rotation:
        """Returns cosines and sines of `positions`; see `frequencies` for the other arguments."""
        frequencies = jnp.asarray(self.frequencies(head_dim, length), jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        amplitude = getattr(self.scaling, "amplitude", 1.0)
        return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def rotate(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Rotates channel i together with channel i + r / 2, for the first r channels, in float32.

    r is twice the last axis of the rotation. The other channels stay unchanged.
    """
    cos, sin = (part[:, :, None] for part in rotation)
    half = cos.shape[-1]
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def _plain(theta: float, dim: int) -> np.ndarray:
    return theta ** (-np.arange(0, dim, 2) / dim)
