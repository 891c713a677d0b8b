"""The vision tower of M3D-CLIP against BAAI-DCAI/M3D (golden kind `m3d_clip`).

The text side enters as the golden's own text embeddings, so the loss and the gradients of the
vision side are the original's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3djax.convert import name_map, vit
from m3djax.models.patches import patchify
from m3djax.models.positions import LearnedPositions
from m3djax.models.transformer import Attention, Block, Mlp, Transformer
from m3djax.models.vit import ViT3D
from m3djax.params import flatten, unflatten
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 1e-5
VISION = "vision_encoder."


def tower(golden: Golden) -> ViT3D:
    """The tower that the golden describes."""
    c = golden.config
    patch = tuple(c["patch_size"])
    block = Block(Attention(c["num_heads"], qkv_bias=False), Mlp(c["mlp_dim"]), norm_eps=1e-5)
    return ViT3D(
        patch_size=patch,
        hidden_size=c["hidden_size"],
        transformer=Transformer(c["num_layers"], block),
        positions=LearnedPositions(
            tuple(s // p for s, p in zip(c["image_size"], patch, strict=True))
        ),
        cls_token=True,
        norm_eps=1e-5,
    )


@pytest.fixture(scope="module", params=golden_dirs("m3d_clip"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def images(golden: Golden) -> jax.Array:
    return jnp.moveaxis(golden.io["images"], 1, -1)


@pytest.fixture(scope="module")
def params(golden: Golden, images: jax.Array) -> dict:
    shapes = jax.eval_shape(tower(golden).init, jax.random.key(0), images)["params"]
    expected = {path: leaf.shape for path, leaf in flatten({"vision": shapes}).items()}
    weights = {k: v for k, v in golden.weights.items() if k.startswith(VISION)}
    flat = name_map.load(weights, vit.monai_vit(VISION), expected)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def embed(golden: Golden, params: dict, head: dict, images: jax.Array) -> jax.Array:
    features = tower(golden).apply({"params": params["vision"]}, images)
    tokens = jnp.concatenate([features.cls[:, None], features.tokens], axis=1)
    tokens = tokens @ head["mm_vision_proj.weight"].T + head["mm_vision_proj.bias"]
    return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)


def test_tower(golden: Golden, params: dict, images: jax.Array) -> None:
    model = tower(golden)
    features = model.apply({"params": params["vision"]}, images, hidden=True)
    tokens = jnp.concatenate([features.cls[:, None], features.tokens], axis=1)
    golden.compare("vit_final_norm", tokens, TOLERANCE)
    for layer in range(golden.config["num_layers"]):
        golden.compare(f"vit_block{layer}", features.hidden[layer], TOLERANCE)
    linear, table = params["vision"]["patch_embed"], params["vision"]["positions"]["table"]
    embedded = patchify(images, model.patch_size) @ linear["kernel"] + linear["bias"] + table
    golden.compare("vit_patch_embedding", embedded, TOLERANCE)


def test_loss_and_vision_gradients(golden: Golden, params: dict, images: jax.Array) -> None:
    head = {
        name: jnp.asarray(golden.weights[name])
        for name in ("mm_vision_proj.weight", "mm_vision_proj.bias", "logit_scale")
    }

    def loss(params: dict, head: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        tokens = embed(golden, params, head, images)
        logits = head["logit_scale"] * tokens[:, 0] @ golden.io["text_embed"].T
        entropy = optax.softmax_cross_entropy_with_integer_labels
        labels = golden.io["labels"]
        value = (entropy(logits, labels).mean() + entropy(logits.T, labels).mean()) / 2
        return value, (tokens, logits)

    (value, (tokens, logits)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        params, head
    )
    golden.compare("image_feats_all", tokens, TOLERANCE)
    golden.compare("image_embed", tokens[:, 0], TOLERANCE)
    golden.compare("logits_per_image", logits, TOLERANCE)
    golden.compare("loss", value, TOLERANCE)
    theirs = name_map.save(flatten(grads[0]), vit.monai_vit(VISION)) | grads[1]
    text = ("language_encoder.", "mm_language_proj.")
    golden.compare_gradient_norms(theirs, elsewhere=text)


def test_export_is_bit_equal(golden: Golden, params: dict) -> None:
    theirs = name_map.save(flatten(params), vit.monai_vit(VISION))
    assert {k for k in golden.weights if k.startswith(VISION)} == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, golden.weights[name], err_msg=name)
