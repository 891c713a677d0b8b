"""What several benchmarks put together from other libraries."""

from __future__ import annotations

from typing import Any


def m3d_tower() -> Any:
    """M3D's vision tower as MONAI has it: ViT-B with a class token, 32 x 256 x 256 voxels.

    Its classification head, which M3D leaves out, is up to the caller.
    """
    from monai.networks.nets import ViT

    return ViT(
        1,
        (32, 256, 256),
        (4, 16, 16),
        768,
        3072,
        12,
        12,
        proj_type="perceptron",
        pos_embed_type="learnable",
        classification=True,
        post_activation="none",
    )
