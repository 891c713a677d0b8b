"""BERTScore against the package bert-score, real weights (kind `bert_score`); and in float64."""

from __future__ import annotations

import json
import math
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from data_pipelines.errors import ConfigError, DataError
from m3djax.convert.bert_files import read_bert
from m3djax.evaluate.text.bert_score import BertScore, first_layers, match
from tests.parity.goldens import Golden, golden_dirs
from tests.parity.test_bert import as_checkpoint

_gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))


@pytest.mark.parametrize("folder", golden_dirs("bert_score"), ids=lambda path: path.name)
def test_agrees_with_the_package(folder: pathlib.Path, sample_text_encoder: epath.Path) -> None:
    layer = json.loads((folder / "config.json").read_text())["layer"]
    golden = json.loads((folder / "scores.json").read_text())
    score = BertScore.read(str(sample_text_encoder), layer=layer, batch_size=4)
    ours = score(golden["candidates"], golden["references"])
    np.testing.assert_allclose(ours, golden["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_agrees_with_float64(kind: str, tmp_path: pathlib.Path) -> None:
    golden = Golden.read(golden_dirs(kind)[0])
    checkpoint = read_bert(as_checkpoint(golden.folder, tmp_path))
    layer = checkpoint.model.transformer.num_layers - 1
    rng = np.random.default_rng(0)
    width, words = min(checkpoint.model.embeddings.max_length, 9), golden.config["vocab_size"]
    texts, vectors = [], []
    for lengths in ((width, 5, 3, width), (4, width, 2, width)):
        ids = rng.integers(3, words, (4, width))
        there = np.arange(width) < np.array(lengths)[:, None]
        ids = np.where(there, ids, golden.config["pad_token_id"])
        word = there.copy()
        word[:, 0] = word[np.arange(4), np.array(lengths) - 1] = False
        texts.append({"ids": ids, "there": there, "word": word})
        vectors.append([features(golden, kind, row[:n], layer)
                        for row, n in zip(ids, lengths, strict=True)])  # fmt: skip
    expected = []
    for row in range(4):
        similarity = vectors[0][row] @ vectors[1][row].T
        with np.errstate(invalid="ignore"):
            precision = similarity.max(1)[1:-1].mean() if len(similarity) > 2 else 0.0
            recall = similarity.max(0)[1:-1].mean() if similarity.shape[1] > 2 else 0.0
        f = 2 * precision * recall / (precision + recall) if precision and recall else 0.0
        expected.append([precision, recall, f] if f else [0.0, 0.0, 0.0])
    assert expected[2] == [0.0, 0.0, 0.0]  # nothing but special tokens
    model, params = first_layers(checkpoint.model, checkpoint.params["text"], layer)
    ours = match(model, params, *jax.tree.map(np.asarray, texts))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def features(golden: Golden, kind: str, ids: np.ndarray, layer: int) -> np.ndarray:
    """Unit vectors of one text after a layer, by the published formulas in float64."""
    weights = {name.removeprefix(f"{kind}."): np.float64(w) for name, w in golden.weights.items()}
    eps, heads = golden.config["layer_norm_eps"], golden.config["num_attention_heads"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    first = golden.config["pad_token_id"] + 1 if kind == "roberta" else 0
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(layer):
        at = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{part}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        seen = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(
            x + linear(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        wide = _gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_layers_that_are_not_there(sample_text_encoder: epath.Path) -> None:
    with pytest.raises(ConfigError, match="layers 1 to 6"):
        BertScore.read(str(sample_text_encoder), layer=7)
    with pytest.raises(ConfigError, match="6 layers.*name the layer"):
        BertScore.read(str(sample_text_encoder))


def test_another_vocabulary(sample_text_encoder: epath.Path, tmp_path: pathlib.Path) -> None:
    as_checkpoint(golden_dirs("bert")[0], tmp_path)
    (tmp_path / "vocab.txt").write_text((sample_text_encoder / "vocab.txt").read_text())
    with pytest.raises(DataError, match="30522 words"):
        BertScore.read(str(tmp_path), layer=1)
