"""Key layout of M3D-LaMed (BAAI-DCAI/M3D; GoodBaiBai88/M3D-LaMed-* on Hugging Face)."""

from __future__ import annotations

from data_pipelines.errors import ConfigError
from m3djax.convert import llm, vit
from m3djax.convert.name_map import Linear, PatchConv, Rule, Transform
from m3djax.models.projectors import Projector
from m3djax.tasks.vision_language import VisionLanguage

VISION = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
SEGMENTATION = ("model.seg_projector.", "model.seg_module.")
"""Prefixes of the mask decoder's tensors; `VisionLanguage` has no mask decoder."""


def m3d_lamed(task: VisionLanguage) -> tuple[Rule, ...]:
    """Returns the map of vision tower, projector and language model."""
    return (
        *llm.rules(task.llm),
        *vit.monai_vit(task.vision, VISION),
        *projector(task.projector),
    )


def projector(module: Projector, prefix: str = PROJECTOR) -> tuple[Rule, ...]:
    """Returns the map of the projector.

    Three layouts are published: a sequence of layers, M3D's "linear" (one layer without a name of
    its own), and a strided convolution (later code of E3D-GPT's author).

    Args:
      module: the projector.
      prefix: start of the published names.

    Raises:
      ConfigError: no layout is published for this projector.
    """
    if module.merge == "concat":
        if module.num_layers != 1:
            raise ConfigError(
                'merge="concat": projectors are published with num_layers=1 only. Cure: '
                "num_layers=1, or --layout m3djax."
            )
        return _layer(f"{prefix}conv", 0, PatchConv(module.size))
    if (module.merge, module.num_layers) == ("none", 1):
        return _layer(prefix.removesuffix("."), 0, Linear())
    # torch.nn.Sequential numbers the activations, too.
    step = 2 if module.activation else 1
    return tuple(
        rule
        for number in range(module.num_layers)
        for rule in _layer(f"{prefix}projector.{number * step}", number, Linear())
    )


def _layer(theirs: str, number: int, via: Transform) -> tuple[Rule, Rule]:
    ours = f"projector/linear_{number}"
    return Rule(f"{theirs}.weight", f"{ours}/kernel", via), Rule(f"{theirs}.bias", f"{ours}/bias")
