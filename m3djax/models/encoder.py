"""The contract of encoders of volumes: what tasks, heads and evaluators may use of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from m3djax.models.patches import Size, patch_grid


@struct.dataclass
class Level:
    """A feature map of an encoder.

    Attributes:
      map: (B, D, H, W, C) features at every position.
      stride: voxels of the input along (D, H, W) between two positions.
    """

    map: Float[Array, "b d h w c"]
    stride: Size = struct.field(pytree_node=False)


@struct.dataclass
class VisionFeatures:
    """Features of volumes, as every encoder returns them.

    Attributes:
      levels: feature maps from fine to coarse; a plain transformer has one.
      cls: (B, C) class token, if the encoder has one.
      hidden: the same of the inner layers that the call asked for, in the order of the request.
    """

    levels: tuple[Level, ...]
    cls: Float[Array, "b c"] | None = None
    hidden: tuple[VisionFeatures, ...] = ()

    @property
    def grid(self) -> Size:
        """Tokens along (D, H, W): positions of the last level."""
        _, depth, height, width, _ = self.levels[-1].map.shape
        return depth, height, width

    @property
    def tokens(self) -> Float[Array, "b n c"]:
        """The last level as a sequence in raster order (D, H, W)."""
        last = self.levels[-1].map
        return last.reshape(last.shape[0], -1, last.shape[-1])


class Encoder(nn.Module, kw_only=True):
    """Base class of encoders of volumes.

    A subclass implements `__call__` and states `strides` and `widths`, each as a property or as a
    field with a default; and `hidden_strides` if its inner layers are not the levels. The fields of
    a subclass become flags of every task that has a field `vision: Encoder`.

    Attributes:
      dtype: what is computed in, here and in everything that consumes the features: "float32", or
        "bfloat16" on accelerators. Parameters, norms' statistics and softmax stay float32.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def strides(self) -> tuple[Size, ...]:
        """Voxels along (D, H, W) between two positions of each level, from fine to coarse."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        raise NotImplementedError

    @property
    def hidden_strides(self) -> tuple[Size, ...]:
        """Voxels along (D, H, W) of one token of each inner layer that `hidden` can ask for."""
        return self.strides

    @property
    def depth(self) -> int:
        """Number of inner layers that `hidden` can ask for."""
        return len(self.hidden_strides)

    @property
    def stride(self) -> Size:
        """Voxels along (D, H, W) of one token, which is one position of the last level."""
        return self.strides[-1]

    @property
    def num_levels(self) -> int:
        """Number of feature maps."""
        return len(self.strides)

    def grid(self, size: Sequence[int]) -> Size:
        """Returns the number of tokens along (D, H, W) of a volume of `size` voxels.

        Raises:
          ConfigError: `stride` does not divide the volume.
        """
        return patch_grid(size, self.stride)

    def __call__(
        self, images: Float[Array, "b d h w c"], *, hidden: tuple[int, ...] = ()
    ) -> VisionFeatures:
        """Encodes volumes.

        Args:
          images: (B, D, H, W, channels), in network units.
          hidden: inner layers to return as well, by index as in a Python list of length `depth`.

        Raises:
          ConfigError: a stride does not divide the volume.
        """
        raise NotImplementedError


@struct.dataclass
class VisibleTokens:
    """Features of some patches of volumes.

    Attributes:
      tokens: (B, K, C) tokens of the patches, in the order of the request.
      grid: patches along (D, H, W) of the whole volume.
      cls: (B, C) class token, if the encoder has one.
    """

    tokens: Float[Array, "b k c"]
    grid: Size = struct.field(pytree_node=False)
    cls: Float[Array, "b c"] | None = None


class TokenEncoder(Encoder, kw_only=True):
    """Base class of encoders that can leave out patches, as masked autoencoders need it.

    A token is made of one patch of `stride` voxels, and of other patches only by attention.
    """

    def encode_visible(
        self, images: Float[Array, "b d h w c"], keep: Int[Array, "b k"]
    ) -> VisibleTokens:
        """Encodes some patches of volumes as if the others did not exist.

        Args:
          images: (B, D, H, W, channels), in network units.
          keep: patches to encode, by number in raster order, for each sample.

        Raises:
          ConfigError: `stride` does not divide the volume.
        """
        raise NotImplementedError
