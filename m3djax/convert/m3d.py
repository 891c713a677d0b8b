"""Key layout of M3D-CLIP (BAAI-DCAI/M3D, CLIP.py; GoodBaiBai88/M3D-CLIP on Hugging Face)."""

from __future__ import annotations

from m3djax.convert import bert, vit
from m3djax.convert.name_map import Linear, Rule
from m3djax.tasks.clip import Clip


def m3d_clip(task: Clip) -> tuple[Rule, ...]:
    """Returns the map of both towers, both projections and the factor on the cosines.

    The factor is stored as the number that multiplies the cosines. The file also holds the pooler
    of BERT, which the model does not use. With `text.pooler` it is kept, so that an export is
    whole; otherwise it is dropped.
    """
    return (
        *vit.monai_vit(task.vision, "vision_encoder."),
        *bert.encoder("language_encoder.", pooler=task.text.pooler),
        *_projection("mm_vision_proj", "vision_head"),
        *_projection("mm_language_proj", "text_head"),
        Rule("logit_scale", "objective/scale"),
    )


def _projection(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.weight", f"{ours}/projection/kernel", Linear()),
        Rule(f"{theirs}.bias", f"{ours}/projection/bias"),
    )
