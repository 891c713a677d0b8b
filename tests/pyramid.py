"""A user's convolutional encoder, outside of m3djax."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.encoder import Encoder, Level, VisionFeatures
from m3djax.models.patches import Size


class Pyramid(Encoder):
    """Convolutions with stride, of which each makes a level; without a class token.

    Attributes:
      widths: channels of each level.
      stem: voxels along (D, H, W) of a position of the first level; each further level has half
        the positions along each axis.
    """

    widths: tuple[int, ...] = (4, 6, 8, 12)
    stem: Size = (1, 2, 2)

    @property
    def strides(self) -> tuple[Size, ...]:
        """See `Encoder.strides`."""
        d, h, w = self.stem
        return tuple((d * 2**n, h * 2**n, w * 2**n) for n in range(len(self.widths)))

    @nn.compact
    def __call__(
        self, images: Float[Array, "b d h w c"], *, hidden: tuple[int, ...] = ()
    ) -> VisionFeatures:
        """See `Encoder.__call__`; the inner layers are the levels."""
        self.grid(images.shape[1:4])
        x, levels = images.astype(self.dtype), []
        for number, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            kernel = (2, 2, 2) if number else self.stem
            x = nn.Conv(width, kernel, kernel, dtype=self.dtype, name=f"stage_{number}")(x)
            x = nn.gelu(x)
            levels.append(Level(x, stride))
        layers = [VisionFeatures((level,)) for level in levels]
        return VisionFeatures(tuple(levels), hidden=tuple(layers[n] for n in hidden))


register_axes(
    Pyramid,
    {r"stage_\d/kernel": (None, None, None, None, "embed"), r"stage_\d/bias": (None,)},
)
