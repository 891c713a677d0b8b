"""Functions that cut volumes into patches, and join patches to volumes."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Float

from data_pipelines.errors import ConfigError

Size = tuple[int, int, int]


def patch_grid(size: Sequence[int], patch_size: Size, *, what: str = "voxels") -> Size:
    """Returns the number of patches along (D, H, W), or of blocks of patches.

    Args:
      size: size of the volume along (D, H, W).
      patch_size: size of a patch along (D, H, W).
      what: unit of both sizes, for the error message.

    Raises:
      ConfigError: a side is not a multiple of the patch. The message names the nearest sizes.
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

    MONAI's "perceptron" patch embedding and strided convolutions have the same order. A published
    kernel of either kind is therefore a matrix for these rows.
    """
    b, *size, c = images.shape
    (gd, gh, gw), (pd, ph, pw) = patch_grid(size, patch_size), patch_size
    x = images.reshape(b, gd, pd, gh, ph, gw, pw, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, gd * gh * gw, pd * ph * pw * c)


def unpatchify(
    patches: Float[Array, "b n p"], grid: Size, patch_size: Size
) -> Float[Array, "b d h w c"]:
    """Joins patches to volumes: the inverse of `patchify`."""
    (gd, gh, gw), (pd, ph, pw) = grid, patch_size
    x = patches.reshape(patches.shape[0], gd, gh, gw, pd, ph, pw, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], gd * pd, gh * ph, gw * pw, -1)
