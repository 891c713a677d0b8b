"""The task, parameters and batch of a golden of M3D-LaMed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m3djax.convert import lamed, llm_config, name_map
from m3djax.models.llm.decoder import Decoder
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.positions import LearnedPositions
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.params import Params, flatten, unflatten
from m3djax.tasks.vision_language import VisionLanguage
from tests.parity.goldens import Golden


def task(golden: Golden) -> VisionLanguage:
    """The tiny model that the golden describes."""
    c = golden.config
    return VisionLanguage(
        vision=_tower(c),
        projector=_projector(c),
        llm=decoder(golden),
        image_token_id=c["special"]["im_patch"],
        vision_feature_layer=c["vision_select_layer"],
        logits_chunk=7,
    )


def decoder(golden: Golden) -> Decoder:
    """The language model that the golden describes."""
    config = llm_config.make_config(golden.config["kind"], golden.config, golden.folder)
    return llm_config.decoder(config)


def params(golden: Golden) -> Params:
    """Its parameters; the same rules give its weights back, bit for bit."""
    model = task(golden)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch(golden))
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    rules = lamed.m3d_lamed(model)
    flat = name_map.load(golden.weights, rules, expected)
    back = name_map.save(flat, rules)
    assert back.keys() == golden.weights.keys()
    assert all(np.array_equal(back[name], golden.weights[name]) for name in back)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def images(golden: Golden) -> jax.Array:
    """(B, D, H, W, 1)."""
    return jnp.moveaxis(golden.given("images"), 1, -1)


def batch(golden: Golden) -> dict[str, jax.Array]:
    """The golden's training batch as the task takes it."""
    ids, labels = golden.given("input_ids"), golden.given("labels")
    spans = [[np.flatnonzero(row >= 0)[0], np.flatnonzero(row >= 0)[-1] + 1] for row in labels]
    inside = np.stack([np.isin(np.arange(ids.shape[1]), np.arange(*span)) for span in spans])
    np.testing.assert_array_equal(np.where(inside, ids, -100), labels)
    return {
        "image": images(golden),
        "token_ids": jnp.asarray(ids, jnp.int32),
        "attention_mask": jnp.asarray(golden.given("attention_mask") > 0),
        "spans": jnp.asarray(spans, jnp.int32)[:, None],
    }


def _tower(c: dict[str, Any]) -> ViT3D:
    mlp, attention = Mlp(c["vit_mlp_dim"]), Attention(c["vit_num_heads"], qkv_bias=False)
    return ViT3D(
        tuple(c["patch_size"]),
        c["vit_hidden_size"],
        Transformer(c["vit_num_layers"], Block(attention, mlp, norm_eps=1e-5)),
        LearnedPositions(tuple(c["grid"])),
        cls_token=True,
        norm_eps=1e-5,
    )


def _projector(c: dict[str, Any]) -> Projector:
    if c["mm_projector_type"] == "linear":
        return Projector(c["hidden_size"], "none", num_layers=1)
    assert c["mm_projector_type"] == "spp"
    return Projector(
        c["hidden_size"],
        {"spatial": "mean", "sequence": "sequence"}[c["proj_pooling_type"]],
        (c["proj_pooling_size"],) * 3,
        c["proj_layer_num"],
        activation=c["proj_layer_type"] == "mlp",
    )
