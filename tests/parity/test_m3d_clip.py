"""M3D-CLIP as a whole against BAAI-DCAI/M3D (golden kind `m3d_clip`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.convert import bert, m3d, name_map
from m3djax.losses.contrastive import InfoNCE, pairwise_logits
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.patches import patchify
from m3djax.models.positions import LearnedPositions
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.params import flatten, unflatten
from m3djax.tasks.clip import Clip
from tests.parity.goldens import Golden, golden_dirs, sequence

TOLERANCE = 1e-5


def task_of(golden: Golden) -> Clip:
    """The model that the golden describes, with the released form of everything."""
    c = golden.config
    patch = tuple(c["patch_size"])
    block = Block(Attention(c["num_heads"], qkv_bias=False), Mlp(c["mlp_dim"]), norm_eps=1e-5)
    vision = ViT3D(
        patch_size=patch,
        hidden_size=c["hidden_size"],
        transformer=Transformer(c["num_layers"], block),
        positions=LearnedPositions(
            tuple(s // p for s, p in zip(c["image_size"], patch, strict=True))
        ),
        cls_token=True,
        norm_eps=1e-5,
    )
    text = bert.model_of({"model_type": "bert"} | c["bert"], golden.folder, pooler=True)
    width = len(golden.weights["mm_vision_proj.bias"])
    head = EmbeddingHead(width, "cls")
    objective = InfoNCE(released=True)
    return Clip(vision, text, head, head, objective)


@pytest.fixture(scope="module", params=golden_dirs("m3d_clip"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def batch(golden: Golden) -> dict[str, np.ndarray]:
    return {
        "image": np.moveaxis(golden.given("images"), 1, -1),
        "token_ids": golden.given("input_ids").astype(np.int32),
        "attention_mask": golden.given("attention_mask").astype(bool),
        "text_id": golden.given("labels").astype(np.int32),
    }


@pytest.fixture(scope="module")
def params(golden: Golden, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    task = task_of(golden)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    flat = name_map.load(golden.weights, m3d.m3d_clip(task), expected)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def test_whole(golden: Golden, batch: dict[str, np.ndarray], params: dict[str, Any]) -> None:
    """Towers, projections, logits, loss and all gradients; nothing of the golden is left over."""
    _compare_vision(golden, batch, params)
    _compare_text(golden, batch, params)
    _compare_loss(golden, batch, params)
    golden.finish()


def _compare_vision(golden: Golden, batch: dict[str, np.ndarray], params: dict[str, Any]) -> None:
    model = task_of(golden).vision
    images, own = jnp.asarray(batch["image"]), params["vision"]
    layers = tuple(range(golden.config["num_layers"]))
    features = jax.jit(lambda p, x: model.apply({"params": p}, x, hidden=layers))(own, images)
    tokens = sequence(features)
    golden.compare("vit_final_norm", tokens, TOLERANCE)
    for layer, hidden in enumerate(features.hidden):
        golden.compare(f"vit_block{layer}", sequence(hidden), TOLERANCE)
    linear, table = own["patch_embed"], own["positions"]["table"]
    embedded = patchify(images, model.patch_size) @ linear["kernel"] + linear["bias"] + table
    golden.compare("vit_patch_embedding", embedded, TOLERANCE)
    golden.compare("image_feats_all", _every(tokens, params["vision_head"]), TOLERANCE)


def _compare_text(golden: Golden, batch: dict[str, np.ndarray], params: dict[str, Any]) -> None:
    model = task_of(golden).text
    apply = jax.jit(lambda p, *inputs: model.apply({"params": p}, *inputs))
    features = apply(params["text"], batch["token_ids"], batch["attention_mask"])
    golden.compare("bert_embeddings", features.embeddings, TOLERANCE)
    golden.compare("bert_last_hidden", features.tokens, TOLERANCE)
    golden.compare("text_feats_all", _every(features.tokens, params["text_head"]), TOLERANCE)


def _compare_loss(golden: Golden, batch: dict[str, np.ndarray], params: dict[str, Any]) -> None:
    task = task_of(golden)
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))

    def loss(params: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        image = task.embed_images(params, batch["image"])
        text = task.embed_texts(params, batch["token_ids"], batch["attention_mask"])
        result = task.loss(params, batch, keys, train=False)
        return result.total / result.weight, (image, text)

    (value, (image, text)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    golden.compare("image_embed", image, TOLERANCE)
    golden.compare("text_embed", text, TOLERANCE)
    logits = pairwise_logits(image, text, params["objective"]["scale"])
    golden.compare("logits_per_image", logits, TOLERANCE)
    for suffix in ("", "_no_gather"):  # M3D returns the mean of both directions
        golden.compare(f"logits{suffix}", (logits + logits.T) / 2, TOLERANCE)
        golden.compare(f"loss{suffix}", value, TOLERANCE)
    golden.compare_gradient_norms(name_map.save(flatten(grads), m3d.m3d_clip(task)))
    golden.used.update(name for name in golden.io if name.startswith(("grad/", "gradnorm/")))


def _every(tokens: jax.Array, head: dict[str, Any]) -> jax.Array:
    """M3D projects and normalises every token, and then takes the first."""
    tokens = tokens @ head["projection"]["kernel"] + head["projection"]["bias"]
    return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)


def test_export_is_bit_equal(golden: Golden, params: dict[str, Any]) -> None:
    theirs = name_map.save(flatten(params), m3d.m3d_clip(task_of(golden)))
    unneeded = {name for name in golden.weights if name.endswith("position_ids")}
    assert golden.weights.keys() - unneeded == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, golden.weights[name], err_msg=name)
