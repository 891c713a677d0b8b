"""Volumes to rows of patches and back."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Float

from data_pipelines.errors import ConfigError

Size = tuple[int, int, int]


def patch_grid(size: Sequence[int], patch_size: Size, *, what: str = "voxels") -> Size:
    """Number of patches along (D, H, W), or of blocks of them.

    Args:
      size: of the volume.
      patch_size: of a patch.
      what: both are counted in, for the message.

    Raises:
      ValueError: if a side is not a multiple of the patch; names the side and the nearest sizes.
    """
    for axis, side, patch in zip("DHW", size, patch_size, strict=True):
        if side % patch or side < patch:
            lower = max(side // patch, 1) * patch
            raise ConfigError(
                f"side {axis} of the volume has {side} {what}, which the patch side {patch} does "
                f"not divide. Cure: a size of {lower} or {lower + patch}, or another patch_size."
            )
    depth, height, width = (side // p for side, p in zip(size, patch_size, strict=True))
    return depth, height, width


def patchify(images: Float[Array, "b d h w c"], patch_size: Size) -> Float[Array, "b n p"]:
    """Cuts volumes into patches: rows in raster order (D, H, W), voxels as (p_D, p_H, p_W, c).

    This is the order of MONAI's "perceptron" patch embedding and of a strided convolution, so that
    either kind of published kernel is a plain matrix here.
    """
    b, *size, c = images.shape
    (gd, gh, gw), (pd, ph, pw) = patch_grid(size, patch_size), patch_size
    x = images.reshape(b, gd, pd, gh, ph, gw, pw, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, gd * gh * gw, pd * ph * pw * c)


def unpatchify(
    patches: Float[Array, "b n p"], grid: Size, patch_size: Size
) -> Float[Array, "b d h w c"]:
    """The inverse of `patchify`."""
    (gd, gh, gw), (pd, ph, pw) = grid, patch_size
    x = patches.reshape(patches.shape[0], gd, gh, gw, pd, ph, pw, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], gd * pd, gh * ph, gw * pw, -1)
