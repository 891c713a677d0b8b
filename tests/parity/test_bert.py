"""Text encoders and masked-language heads against transformers' torch models.

Golden kinds `bert` and `roberta`; and the language tower of M3D-CLIP (kind `m3d_clip`).
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from m3djax.convert import bert, name_map
from m3djax.convert.bert_files import TextCheckpoint, expected_shapes, read_bert, write_bert
from m3djax.params import flatten, unflatten
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 1e-5
FOLDERS = [*golden_dirs("bert"), *golden_dirs("roberta")]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def checkpoint(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> TextCheckpoint:
    return read_bert(as_checkpoint(golden.folder, tmp_path_factory.mktemp("checkpoint")))


def as_checkpoint(golden: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The golden's folder under the names of a published checkpoint."""
    (folder / "config.json").write_bytes((golden / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((golden / "weights.safetensors").read_bytes())
    return folder


def test_features_loss_and_gradients(golden: Golden, checkpoint: TextCheckpoint) -> None:
    ids, mask, types, labels = (
        jnp.asarray(golden.given(name))
        for name in ("input_ids", "attention_mask", "token_type_ids", "labels")
    )

    def loss(params: dict) -> tuple[jax.Array, tuple]:
        text = {"params": params["text"]}
        features = checkpoint.model.apply(text, ids, mask, types, hidden=True)
        words = params["text"]["embeddings"]["words"]["table"]
        logits, _ = checkpoint.head.apply({"params": params["mlm_head"]}, features.tokens, words)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        asked = labels >= 0
        value = (entropy * asked).sum() / asked.sum()
        return value + jnp.square(features.pooled).sum(), (features, logits, value)

    params = jax.tree.map(jnp.asarray, checkpoint.params)
    grads, (features, logits, value) = jax.jit(jax.grad(loss, has_aux=True))(params)
    golden.compare("embeddings", features.embeddings, TOLERANCE)
    for layer, hidden in enumerate(features.hidden):
        golden.compare(f"hidden{layer}", hidden, TOLERANCE)
    np.testing.assert_array_equal(features.tokens, features.hidden[-1])
    golden.compare("pooled", features.pooled, TOLERANCE)
    golden.compare("logits", logits, TOLERANCE)
    golden.compare("loss", value, TOLERANCE)
    golden.compare_gradient_norms(name_map.save(flatten(grads), rules(golden)))
    golden.used.update(key for key in golden.io if key.startswith("gradnorm/"))
    golden.finish()


def test_the_embedding_layer_alone(golden: Golden, checkpoint: TextCheckpoint) -> None:
    params = {"params": checkpoint.params["text"]["embeddings"]}
    embed = jax.jit(checkpoint.model.embeddings.apply)
    golden.compare(
        "embeddings", embed(params, golden.io["input_ids"], golden.io["token_type_ids"]), TOLERANCE
    )


def test_padding_is_found_by_its_id(golden: Golden, checkpoint: TextCheckpoint) -> None:
    ids, mask = golden.io["input_ids"], golden.io["attention_mask"].astype(bool)
    variables = {"params": checkpoint.params["text"]}
    apply = jax.jit(checkpoint.model.apply)
    features = apply(variables, ids)
    np.testing.assert_array_equal(features.mask, mask)
    # What stands where nothing is changes no token.
    changed = apply(variables, np.where(mask, ids, ids[:1, :1]), mask)
    given = apply(variables, ids, mask)
    np.testing.assert_allclose(
        np.asarray(changed.tokens)[mask], np.asarray(given.tokens)[mask], atol=1e-5
    )


def rules(golden: Golden) -> tuple[name_map.Rule, ...]:
    kind = golden.config["model_type"]
    return (*bert.encoder(f"{kind}.", pooler=True), *bert.masked_language_head(kind))


def test_export_is_bit_equal(
    golden: Golden, checkpoint: TextCheckpoint, tmp_path: pathlib.Path
) -> None:
    write_bert(tmp_path, checkpoint)
    theirs = load_file(tmp_path / "model.safetensors")
    assert set(golden.weights) - set(theirs) <= {
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, golden.weights[name], err_msg=name)
    again = read_bert(tmp_path)
    assert again.model == checkpoint.model and again.head == checkpoint.head
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)


@pytest.mark.parametrize("folder", golden_dirs("m3d_clip"), ids=lambda path: path.name)
def test_language_tower_of_m3d_clip(folder: pathlib.Path) -> None:
    golden = Golden.read(folder)
    model = bert.model_of(golden.config["bert"] | {"model_type": "bert"}, folder)
    prefix = "language_encoder."
    weights = {k: v for k, v in golden.weights.items() if k.startswith(prefix)}
    flat = name_map.load(weights, bert.encoder(prefix), expected_shapes(model))
    ids, mask = golden.given("input_ids"), golden.given("attention_mask")
    features = jax.jit(model.apply)({"params": unflatten(flat)["text"]}, ids, mask)
    golden.compare("bert_embeddings", features.embeddings, TOLERANCE)
    golden.compare("bert_last_hidden", features.tokens, TOLERANCE)
