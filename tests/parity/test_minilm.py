"""The real all-MiniLM-L6-v2 against transformers' torch model (golden kind `minilm`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from m3djax.convert.bert_files import read_bert
from tests.parity.goldens import Golden, golden_dirs


@pytest.mark.parametrize("folder", golden_dirs("minilm"), ids=lambda path: path.name)
def test_real_weights(folder: epath.Path, sample_text_encoder: epath.Path) -> None:
    golden = Golden.read(folder)
    checkpoint = read_bert(sample_text_encoder)
    assert checkpoint.head is None and checkpoint.model.pooler
    ids, mask = golden.given("input_ids"), golden.given("attention_mask")
    params = {"params": checkpoint.params["text"]}
    features = jax.jit(checkpoint.model.apply)(params, ids, mask)
    golden.compare("last", features.tokens, 1e-5)
    embed = features.mean / jnp.linalg.norm(features.mean, axis=-1, keepdims=True)
    golden.compare("embed", embed, 1e-5)
    golden.compare("similarity", embed @ embed.T, 1e-5)
    golden.finish()


@pytest.mark.parametrize("folder", golden_dirs("minilm"), ids=lambda path: path.name)
def test_alike_is_alike(folder: epath.Path) -> None:
    """The golden itself makes sense: each text about lungs and fluid is nearest to its twin."""
    similarity = Golden.read(folder).io["similarity"] - 2 * np.eye(6)
    np.testing.assert_array_equal(similarity[:4].argmax(1), [1, 0, 3, 2])
