"""The base classes of volume encoders, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from m3djax.models.conditions import NONE, Conditions
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
    """The features of volumes: the output of all encoders.

    Attributes:
      levels: feature maps from fine to coarse; a plain transformer has one.
      cls: (B, C) class token, if the encoder has one.
      hidden: features of the requested inner layers, in the order of the request.
    """

    levels: tuple[Level, ...]
    cls: Float[Array, "b c"] | None = None
    hidden: tuple[VisionFeatures, ...] = ()

    @property
    def grid(self) -> Size:
        """Returns the number of tokens along (D, H, W): positions of the last level."""
        _, depth, height, width, _ = self.levels[-1].map.shape
        return depth, height, width

    @property
    def tokens(self) -> Float[Array, "b n c"]:
        """Returns the last level as a sequence in raster order (D, H, W)."""
        last = self.levels[-1].map
        return last.reshape(last.shape[0], -1, last.shape[-1])


class Encoder(nn.Module, kw_only=True):
    """Base class of encoders of volumes.

    A subclass implements `__call__`, `strides` and `widths`. `strides` and `widths` are properties,
    or fields with a default. If its inner layers are not the levels, it also implements
    `hidden_strides`. The fields of a subclass become flags of all tasks with a field
    `vision: Encoder`.

    Attributes:
      dtype: dtype of the computation, here and in all modules that use the features: "float32", or
        "bfloat16" on accelerators. Parameters, norm statistics and softmax stay float32.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def strides(self) -> tuple[Size, ...]:
        """Returns the voxels along (D, H, W) between two positions of each level, finest first."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Returns the number of channels of each level."""
        raise NotImplementedError

    @property
    def hidden_strides(self) -> tuple[Size, ...]:
        """Returns the voxels along (D, H, W) of one token of each inner layer."""
        return self.strides

    @property
    def depth(self) -> int:
        """Returns the number of inner layers that `__call__` can return on request."""
        return len(self.hidden_strides)

    @property
    def stride(self) -> Size:
        """Returns the voxels along (D, H, W) of one token: one position of the last level."""
        return self.strides[-1]

    @property
    def num_levels(self) -> int:
        """Returns the number of feature maps."""
        return len(self.strides)

    def grid(self, size: Sequence[int]) -> Size:
        """Returns the number of tokens along (D, H, W) of a volume of `size` voxels.

        Raises:
          ConfigError: `stride` does not divide the volume.
        """
        return patch_grid(size, self.stride)

    def __call__(
        self,
        images: Float[Array, "b d h w c"],
        *,
        hidden: tuple[int, ...] = (),
        conditions: Conditions = NONE,
    ) -> VisionFeatures:
        """Encodes volumes.

        Args:
          images: (B, D, H, W, channels), in network units.
          hidden: indices of inner layers to return as well, as in a Python list of length `depth`.
          conditions: further inputs of the blocks, such as a route or a context. Tasks pass the
            argument only if they have some, so an encoder that uses none can leave it out.

        Raises:
          ConfigError: a stride does not divide the volume.
        """
        raise NotImplementedError


@struct.dataclass
class VisibleTokens:
    """The features of the visible patches of volumes.

    Attributes:
      tokens: (B, K, C) tokens of the patches, in the order of the request.
      grid: patches along (D, H, W) of the whole volume.
      cls: (B, C) class token, if the encoder has one.
    """

    tokens: Float[Array, "b k c"]
    grid: Size = struct.field(pytree_node=False)
    cls: Float[Array, "b c"] | None = None


class TokenEncoder(Encoder, kw_only=True):
    """Base class of encoders that can leave out patches, for masked autoencoders.

    A token comes from one patch of `stride` voxels. Other patches reach it only through attention.
    """

    def encode_visible(
        self,
        images: Float[Array, "b d h w c"],
        keep: Int[Array, "b k"],
        conditions: Conditions = NONE,
    ) -> VisibleTokens:
        """Encodes some patches of volumes as if the others did not exist.

        Args:
          images: (B, D, H, W, channels), in network units.
          keep: numbers of the patches to encode, in raster order, for each sample.
          conditions: see `Encoder.__call__`.

        Raises:
          ConfigError: `stride` does not divide the volume.
        """
        raise NotImplementedError
