"""Models from other libraries that several benchmarks use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def m3d_encoder(width: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Returns the tower, M3D's projector to `width` channels, and a function of both.

    The function applies tower, pooling and projector. It maps images (1, 1, 32, 256, 256) to the
    256 tokens of the volume.
    """
    from torch import nn

    tower = m3d_tower()
    del tower.classification_head  # with it, only the class token comes out
    projector = nn.Sequential(nn.Linear(768, width), nn.GELU(), nn.Linear(width, width))

    def encode(images: Any) -> Any:
        patches = tower(images)[0][:, 1:].reshape(1, 4, 2, 8, 2, 8, 2, 768)
        return projector(patches.mean((2, 4, 6)).reshape(1, 256, 768))

    return tower, projector, encode


def m3d_tower() -> Any:
    """Returns M3D's vision tower from MONAI: ViT-B with a class token, 32 x 256 x 256 voxels.

    M3D has no classification head. The caller removes the one of this tower.
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
