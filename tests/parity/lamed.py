"""The goldens of M3D-LaMed as far as the language model goes: what is before it, in short."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from m3djax.convert import llm_config, vit
from m3djax.models.llm.decoder import Decoder
from m3djax.models.positions import LearnedPositions
from m3djax.models.transformer import Attention, Block, Mlp, Transformer
from m3djax.models.vit import ViT3D
from tests.parity.goldens import Golden

VISION, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector.projector."
TOWER = vit.monai_vit(VISION)


def decoder(golden: Golden) -> Decoder:
    """The language model that the golden describes."""
    config = llm_config.make_config(golden.config["kind"], golden.config, golden.folder)
    return llm_config.decoder(config)


def tower(golden: Golden) -> ViT3D:
    """Its vision tower."""
    c = golden.config
    mlp, attention = Mlp(c["vit_mlp_dim"]), Attention(c["vit_num_heads"], qkv_bias=False)
    return ViT3D(
        tuple(c["patch_size"]),
        c["vit_hidden_size"],
        Transformer(c["vit_num_layers"], Block(attention, mlp, norm_eps=1e-5)),
        LearnedPositions(tuple(c["grid"])),
        cls_token=True,
        norm_eps=1e-5,
    )


def inputs_embeds(
    golden: Golden, tokens: jax.Array, vision: dict[str, Any], projector: dict[str, Any]
) -> jax.Array:
    """Embedded tokens with the image's in place of the placeholders: pooling, then two layers."""
    images = jnp.moveaxis(golden.given("images"), 1, -1)
    features = tower(golden).apply({"params": vision}, images).tokens
    size = golden.config["proj_pooling_size"]
    volume = features.reshape(len(features), *golden.config["grid"], -1)
    pooled = nn.avg_pool(volume, (size,) * 3, (size,) * 3)
    x = pooled.reshape(len(features), -1, features.shape[-1])
    x = x @ projector["0.weight"].T + projector["0.bias"]
    x = nn.gelu(x, approximate=False) @ projector["2.weight"].T + projector["2.bias"]
    return lax.concatenate([tokens[:, :1], x, tokens[:, 1 + x.shape[1] :]], 1)


def projector_of(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The projector's tensors, by their short names."""
    return {
        name.removeprefix(PROJECTOR): value
        for name, value in weights.items()
        if name.startswith(PROJECTOR)
    }
