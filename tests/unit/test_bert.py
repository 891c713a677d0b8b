"""The text encoder, and errors for checkpoints that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import ConfigError, DataError
from m3djax.convert.bert import config_of, model_of
from m3djax.convert.bert_files import TextCheckpoint, expected_shapes, read_bert, write_bert
from m3djax.models.bert import Bert, MaskedLanguageHead, PostNormBlock, TextEmbeddings, TextFeatures
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Transformer
from m3djax.params import unflatten

IDS = np.array([[2, 5, 6, 7, 3, 0], [2, 9, 3, 0, 0, 0]])


def bert(**changes: Any) -> Bert:
    transformer = Transformer(2, PostNormBlock(Attention(2), Mlp(12)))
    embeddings = TextEmbeddings(vocab_size=20, hidden_size=8, max_length=6)
    return Bert(embeddings, transformer, pooler=True).clone(**changes)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(bert().init)(jax.random.key(0), IDS)


def forward(model: Bert, params: dict, ids: np.ndarray = IDS, **kwargs: Any) -> TextFeatures:
    return jax.jit(lambda p, i: model.apply(p, i, **kwargs))(params, ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT checkpoint with a head, as transformers would write it."""
    head = MaskedLanguageHead(20)
    rng = np.random.default_rng(0)
    shapes = expected_shapes(bert(), head)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    write_bert(tmp_path, TextCheckpoint(bert(), unflatten(flat), head))
    return tmp_path


def rewrite(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def test_features_keep_the_contract(params: dict) -> None:
    features = forward(bert(), params, hidden=True)
    assert features.tokens.shape == (2, 6, 8) and features.hidden.shape == (2, 2, 6, 8)
    assert features.pooled.shape == (2, 8)
    np.testing.assert_array_equal(features.cls, features.tokens[:, 0])
    np.testing.assert_allclose(features.mean[1], features.tokens[1, :3].mean(0), atol=1e-6)
    assert forward(bert(pooler=False), params).pooled is None


def test_padding_changes_nothing(params: dict) -> None:
    short, long = forward(bert(), params, IDS[1:, :3]), forward(bert(), params, IDS[1:])
    np.testing.assert_allclose(short.tokens, long.tokens[:, :3], atol=1e-5)


def test_bfloat16_is_close_and_parameters_stay_float32(params: dict) -> None:
    features = forward(bert(dtype="bfloat16"), params)
    assert features.tokens.dtype == features.embeddings.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        features.tokens.astype(np.float32), forward(bert(), params).tokens, atol=0.1
    )
    fresh = jax.eval_shape(bert(dtype="bfloat16").init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_ids_beyond_the_vocabulary_spoil_their_text_and_no_other(params: dict) -> None:
    ids = IDS.copy()
    ids[0, 1] = 20
    tokens = forward(bert(), params, ids).tokens
    assert np.isnan(tokens[0]).all() and np.isfinite(tokens[1]).all()


def test_texts_that_are_too_long_are_an_error(params: dict) -> None:
    with pytest.raises(ConfigError, match="texts of 7 tokens do not fit max_length=6"):
        bert().apply(params, np.ones((1, 7), int))


def test_a_head_may_have_a_table_of_its_own() -> None:
    head, tokens = MaskedLanguageHead(20), jnp.ones((2, 3, 8))
    own = jax.eval_shape(head.init, jax.random.key(0), tokens)["params"]
    tied = jax.eval_shape(head.init, jax.random.key(0), tokens, jnp.ones((20, 8)))["params"]
    assert set(own) - set(tied) == {"decoder"}
    logits, transformed = jax.eval_shape(head.apply, {"params": own}, tokens)
    assert logits.shape == (2, 3, 20) and transformed.shape == (2, 3, 8)


def test_fields_are_flags() -> None:
    flags = ["--transformer.block.mlp.mlp-dim", "24", "--embeddings.positions", "roberta"]
    changed = tyro.cli(Bert, default=bert(), args=flags)
    assert isinstance(changed.transformer.block, PostNormBlock)
    assert changed.transformer.block.mlp.mlp_dim == 24 and changed.embeddings.positions == "roberta"


@pytest.mark.parametrize("positions", ["bert", "roberta"])
def test_config_round_trip(positions: str) -> None:
    model = bert(embeddings=bert().embeddings.clone(positions=positions, pad_token_id=1))
    assert model_of(config_of(model), "config.json", pooler=True) == model


def test_old_names_and_halves_are_read(folder: Path) -> None:
    expected = read_bert(folder)
    tensors = load_file(folder / "model.safetensors")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in tensors.items()
    }
    old |= {
        "bert.embeddings.position_ids": np.arange(6)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }
    save_file(old, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read_bert(folder).params, expected.params)
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, folder / "model.safetensors")
    half = read_bert(folder).params["text"]["pooler"]["kernel"]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, expected.params["text"]["pooler"]["kernel"], rtol=1e-3)


def test_a_named_prefix_takes_one_tower_of_several(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tower = {
        k.replace("bert.", "language_encoder."): v for k, v in tensors.items() if k[:5] == "bert."
    }
    save_file(tower | {"vision.cls": np.zeros(3, np.float32)}, folder / "model.safetensors")
    found = read_bert(folder, prefix="language_encoder.", pooler=False)
    assert found.head is None and "pooler" not in found.params["text"]
    with pytest.raises(DataError, match=r"unknown tensor: vision.cls \(3,\)"):
        read_bert(folder)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"model_type": "distilbert"}, "model_type is 'distilbert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None, which is not of type float"),
        ({"hidden_size": "8"}, "hidden_size is '8', which is not of type int"),
        ({"vocab_size": 21}, r"words/table: the file has \(20, 8\), the model \(21, 8\)"),
        ({"num_hidden_layers": 3}, r"fc1/bias: the file has \(2, 12\), the model \(3, 12\)"),
    ],
)
def test_a_config_of_another_model_is_an_error(folder: Path, change: dict, problem: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=f"(?s){problem}.*Cure: take"):
        read_bert(folder)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"bert.encoder.layer.0.output.dense.bias": None}, "layers of bert.encoder.* are not 0..0"),
        ({"cls.predictions.decoder.weight": np.ones((20, 8), "f4")}, "the head is not tied"),
        ({"bert.extra": np.ones(3, "f4")}, r"unknown tensor: bert.extra \(3,\)"),
        ({"bert.embeddings.word_embeddings.weight": None}, "has 0 tensors that end with"),
        ({"x.embeddings.word_embeddings.weight": np.ones(3, "f4")}, "has 2 tensors that end with"),
    ],
)
def test_tensors_of_another_model_are_an_error(folder: Path, change: dict, problem: str) -> None:
    rewrite(folder, change)
    with pytest.raises(DataError, match=f"(?s){problem}.*Cure: take"):
        read_bert(folder)


def test_files_that_are_missing_or_broken_are_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(DataError, match="is not a whole safetensors file"):
        read_bert(folder)
    weights.unlink()
    with pytest.raises(
        DataError, match="model.safetensors: there is no such file.*save_pretrained"
    ):
        read_bert(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="is not readable JSON"):
        read_bert(folder)
    with pytest.raises(DataError, match="nowhere/config.json: there is no such file"):
        read_bert(folder / "nowhere")
