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
"""Prefixes of what belongs to the mask decoder, of which `VisionLanguage` has nothing."""


def m3d_lamed(task: VisionLanguage) -> tuple[Rule, ...]:
    """Vision tower, projector and language model."""
    return (
        *llm.rules(task.llm),
        *vit.monai_vit(task.vision, VISION),
        *projector(task.projector),
    )


def projector(module: Projector, prefix: str = PROJECTOR) -> tuple[Rule, ...]:
    """The projector: a sequence of layers, M3D's "linear", which is a layer without a name of its
    own, or a convolution with stride (E3D-GPT's lineage).

    Args:
      module: which of them.
      prefix: what the published names start with.

    Raises:
      ConfigError: nobody has published one like this.
    """
    if module.merge == "concat":
        if module.num_layers != 1:
            raise ConfigError('of projectors with merge="concat" only num_layers=1 is published.')
        return _layer(f"{prefix}conv", 0, PatchConv(module.size))
    if (module.merge, module.num_layers) == ("none", 1):
        return _layer(prefix.removesuffix("."), 0, Linear())
    # Activations count as members of torch's sequence.
    step = 2 if module.activation else 1
    return tuple(
        rule
        for number in range(module.num_layers)
        for rule in _layer(f"{prefix}projector.{number * step}", number, Linear())
    )


def _layer(theirs: str, number: int, via: Transform) -> tuple[Rule, Rule]:
    ours = f"projector/linear_{number}"
    return Rule(f"{theirs}.weight", f"{ours}/kernel", via), Rule(f"{theirs}.bias", f"{ours}/bias")
