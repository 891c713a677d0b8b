"""The masked autoencoder against code of E3D-GPT's first author (golden kind `mae3d`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.convert import lamed, name_map, vit
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.patches import patchify
from m3djax.models.positions import LearnedPositions, SinCosPositions, sincos_3d
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.params import flatten, unflatten
from m3djax.tasks.mae import MAE, normalise_patches
from tests.parity.goldens import Golden, golden_dirs, sequence

TOLERANCE = 1e-5


def task(golden: Golden, **changes: bool) -> MAE:
    """The tiny model that the golden describes."""
    c = golden.config
    patch = tuple(c["patch_size"])
    grid = tuple(s // p for s, p in zip(c["img_size"], patch, strict=True))

    def stack(depth: int, heads: int, width: int) -> Transformer:
        mlp = Mlp(int(width * c["mlp_ratio"]))
        return Transformer(depth, Block(Attention(heads), mlp, norm_eps=1e-6))

    return MAE(
        vision=ViT3D(
            patch_size=patch,
            hidden_size=c["embed_dim"],
            transformer=stack(c["depth"], c["num_heads"], c["embed_dim"]),
            positions=LearnedPositions(grid),
            cls_token=True,
            cls_position=True,
        ),
        mae_decoder=MAEDecoder(
            hidden_size=c["dec_dim"],
            transformer=stack(c["dec_depth"], c["dec_heads"], c["dec_dim"]),
            positions=SinCosPositions(released=True),
        ),
        mask_ratio=c["mask_ratio"],
        **changes,
    )


@pytest.fixture(scope="module", params=golden_dirs("mae3d"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def params(golden: Golden) -> dict:
    model = task(golden)
    images = jnp.zeros((1, *golden.config["img_size"], 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"image": images})
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    weights = {k: v for k, v in golden.weights.items() if not k.startswith("mm_projector.")}
    flat = name_map.load(weights, vit.timm_mae(tuple(golden.config["patch_size"])), expected)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def images_of(golden: Golden) -> jax.Array:
    return jnp.moveaxis(golden.io["images"], 1, -1)


def summed_loss(model: MAE, params: dict, golden: Golden) -> jax.Array:
    result = model.reconstruct(params, images_of(golden), golden.io["noise"])
    return jnp.sum(result.error * result.hidden) / jnp.sum(result.hidden)


def test_forward(golden: Golden, params: dict) -> None:
    reconstruct = jax.jit(task(golden).reconstruct)
    result = reconstruct(params, images_of(golden), golden.io["noise"])
    golden.compare("latent", result.latent, TOLERANCE)
    golden.compare("pred", result.prediction, TOLERANCE)
    golden.compare("target_patches", result.target, 0)
    golden.compare("mask", result.hidden, 0)
    for name, model in (("loss", task(golden)), ("loss_norm_pix", task(golden, norm_pix=True))):
        loss = jax.jit(lambda p, model=model: summed_loss(model, p, golden))(params)
        golden.compare(name, loss, TOLERANCE)


def test_masking(golden: Golden) -> None:
    order = jnp.argsort(golden.io["noise"], axis=1)
    kept = golden.io["ids_keep"].shape[1]
    golden.compare("ids_keep", order[:, :kept], 0)
    golden.compare("ids_restore", jnp.argsort(order, axis=1), 0)


def test_tower(golden: Golden, params: dict) -> None:
    # The tower's last norm has another epsilon than the autoencoder's; all tokens are visible.
    tower = task(golden).vision.clone(norm_eps=1e-5)
    features = tower.apply({"params": params["vision"]}, images_of(golden), hidden=(0,))
    golden.compare("tower_features", sequence(features), TOLERANCE)
    golden.compare("tower_block0", sequence(features.hidden[0]), TOLERANCE)
    embed = params["vision"]["patch_embed"]
    patches = patchify(images_of(golden), tower.patch_size)
    golden.compare("patch_embed", patches @ embed["kernel"] + embed["bias"], TOLERANCE)


def test_projector(golden: Golden, params: dict) -> None:
    """The convolution with stride that follows the tower, weights in and out."""
    tower = task(golden).vision.clone(norm_eps=1e-5)
    features = tower.apply({"params": params["vision"]}, images_of(golden))
    weights = {k: v for k, v in golden.weights.items() if k.startswith("mm_projector.")}
    width, _, *size = weights["mm_projector.conv.weight"].shape
    module = Projector(width, "concat", tuple(size), num_layers=1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features)["params"]
    expected = {path: leaf.shape for path, leaf in flatten({"projector": shapes}).items()}
    rules = lamed.projector(module, "mm_projector.")
    ours = name_map.load(weights, rules, expected)
    out = module.apply({"params": unflatten(ours)["projector"]}, features)
    golden.compare("projector_out", out, TOLERANCE)
    assert module.num_tokens(features.grid) == out.shape[1]
    for name, tensor in name_map.save(ours, rules).items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


def test_positions(golden: Golden, params: dict) -> None:
    c = golden.config
    grid = tuple(s // p for s, p in zip(c["img_size"], c["patch_size"], strict=True))
    for name, dim in (("encoder_init", c["embed_dim"]), ("decoder_init", c["dec_dim"])):
        table = np.pad(sincos_3d(grid, dim, released=True), ((1, 0), (0, 0)))
        golden.compare(f"sincos/{name}", table, 1e-7)
        if name == "decoder_init":
            np.testing.assert_allclose(table[None], golden.weights["decoder_pos_embed"], atol=1e-7)


def test_gradients(golden: Golden, params: dict) -> None:
    grads = jax.jit(jax.grad(lambda p: summed_loss(task(golden), p, golden)))(params)
    theirs = name_map.save(flatten(grads), vit.timm_mae(tuple(golden.config["patch_size"])))
    golden.compare_gradient_norms(theirs)


def test_export_is_bit_equal(golden: Golden, params: dict) -> None:
    theirs = name_map.save(flatten(params), vit.timm_mae(tuple(golden.config["patch_size"])))
    kept = set(golden.weights) - {"decoder_pos_embed"}
    assert {k for k in kept if not k.startswith("mm_projector.")} == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, golden.weights[name], err_msg=name)


def test_normalised_patches_are_standard() -> None:
    patches = normalise_patches(jax.random.normal(jax.random.key(0), (2, 3, 50)) * 7 + 3)
    np.testing.assert_allclose(patches.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(patches.std(-1, ddof=1), 1, atol=1e-5)
