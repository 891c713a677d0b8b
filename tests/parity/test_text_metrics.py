"""Metrics of texts, retrieval, boxes and masks against the originals' (kind `text_metrics`)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_pipelines import boxes
from data_pipelines.boxes import read_box_released
from m3djax.evaluate import dice
from m3djax.evaluate.retrieval.ranking import ranks_of
from m3djax.evaluate.text import bleu, cider, coco, meteor, rouge
from tests.parity.goldens import golden_dirs


def compare_retrieval(golden: dict[str, Any]) -> None:
    """M3D's calculate_recall: images ask for texts (ir), texts for images (tr)."""
    similarity = np.asarray(golden["similarity"])
    assert list(similarity.shape) == golden["similarity_shape"]
    ids = np.arange(len(similarity))
    for name, matrix in (("ir", similarity), ("tr", similarity.T)):
        rank = ranks_of(matrix, ids, ids)
        expected = dict(golden[name])
        assert np.median(rank) == expected.pop("median_rank"), name
        assert expected, "no recall to compare"
        for key, value in expected.items():
            k = int(key.removeprefix("R@"))
            np.testing.assert_allclose(np.mean(rank <= k), value, atol=1e-6, err_msg=key)


def compare_pairs(golden: list[dict[str, Any]]) -> None:
    """Every text by every metric."""
    for pair in golden:
        said, meant = pair["candidate"], pair["reference"]
        for side, text in (("candidate", said), ("reference", meant)):
            assert bleu.tokens(text) == pair[f"tokens13a_{side}"]
            assert meteor.tokens(text) == pair[f"meteor_tokens_{side}"]
            assert coco.tokens(text) == pair[f"coco_tokens_{side}"]
        for name, value in pair["bleu_evaluate"].items():
            close(bleu.bleu(said, meant, int(name.removeprefix("max_order_"))), value)
        one = bleu.counts([said], [meant], 1)
        close([one.bp, one.precisions[0] / 100], [pair["bleu1_brevity_penalty"],
                                                  pair["bleu1_precision"]])  # fmt: skip
        for name, stemmed in (("rouge", False), ("rouge_stemmed", True)):
            ours = rouge.rouge(said, meant, stemmed=stemmed)
            for kind, values in pair[name].items():
                close(dataclasses.astuple(ours[kind]), values)
        close(meteor.meteor(said, meant), pair["meteor_exact_stem"])
        close(coco.bleu(said, meant), pair["coco_bleu"])
        close(coco.rouge_l(said, meant), pair["coco_rougeL"])
        assert set(pair) <= PAIR
    said, meant = ([pair[side] for pair in golden] for side in ("candidate", "reference"))
    close(cider.cider(said, meant), [pair["coco_cider"] for pair in golden])


PAIR = {
    *("reference", "candidate", "tokens13a_reference", "tokens13a_candidate", "bleu_evaluate"),
    *("bleu1_brevity_penalty", "bleu1_precision", "rouge", "rouge_stemmed"),
    *("meteor_tokens_reference", "meteor_tokens_candidate", "meteor_exact_stem"),
    *("coco_tokens_reference", "coco_tokens_candidate", "coco_bleu", "coco_rougeL", "coco_cider"),
    # By a WordNet that is neither nltk's nor on the package index: not a number to reach.
    "meteor_wordnet31_no_exc",
}


def compare_corpus(golden: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    """What all texts together give."""
    said, meant = ([pair[side] for pair in pairs] for side in ("candidate", "reference"))
    rouges = [rouge.rouge(*texts) for texts in zip(said, meant, strict=True)]
    for name, value in golden.items():
        if name.startswith("bleu_evaluate_max_order_"):
            order = int(name.removeprefix("bleu_evaluate_max_order_"))
            counts = bleu.counts(said, meant, order)
            close(bleu.corpus_bleu(said, meant, order), value.pop("bleu"))
            close(np.divide(counts.precisions, 100), value.pop("precisions"))
            close(counts.bp, value.pop("brevity_penalty"))
            close(counts.sys_len / counts.ref_len, value.pop("length_ratio"))
            lengths = value.pop("translation_length"), value.pop("reference_length")
            assert (counts.sys_len, counts.ref_len) == lengths and not value
        elif name == "mean_rouge_f":
            for kind, mean in value.items():
                close(np.mean([found[kind].f for found in rouges]), mean)
        elif name == "mean_bleu1":
            close(np.mean([bleu.bleu(*texts, 1) for texts in zip(said, meant, strict=True)]), value)
        elif name == "coco_bleu_corpus":
            close(coco.corpus_bleu(said, meant), value)
        elif name == "coco_rougeL_mean":
            close(np.mean([coco.rouge_l(*texts) for texts in zip(said, meant, strict=True)]), value)
        elif name == "coco_cider":
            close(np.mean(cider.cider(said, meant)), value)
        else:
            assert name == "closed_vqa_rule"


def compare_boxes(golden: list[dict[str, Any]]) -> None:
    """The true IoU and M3D's."""
    for pair in golden:
        a, b = np.array(pair["a"], float), np.array(pair["b"], float)
        close(boxes.iou(a, b), pair["iou"])
        close(boxes.iou(a, b, released=True), pair["m3d_calculate_iou_enclosing"])


def compare_box_parsing(golden: list[dict[str, Any]]) -> None:
    """M3D's parser of boxes in text."""
    for entry in golden:
        box = read_box_released(entry["text"])
        assert (None if box is None else box.tolist()) == entry["box"], entry["text"]


def compare_dice(golden: list[dict[str, Any]]) -> None:
    """Dice and IoU of hard masks, and M3D's of probabilities."""
    for entry in golden:
        logits, truth = np.array(entry["logits"]), np.array(entry["target"], bool)
        ours = dice.dice(logits > 0, truth), dice.iou(logits > 0, truth)
        theirs = [entry["hard_dice"], entry["hard_iou"]]
        close(ours, np.array(theirs, float), 1e-6)  # null becomes NaN
        close(dice.soft_dice_released(logits, truth), entry["m3d_BinaryDice_soft"], 1e-6)


def close(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


COMPARE: dict[str, Callable[..., None]] = {
    "retrieval": compare_retrieval,
    "pairs": compare_pairs,
    "corpus": compare_corpus,
    "boxes": compare_boxes,
    "box_parsing": compare_box_parsing,
    "dice": compare_dice,
}
"""What compares an entry of metrics.json."""

FOLDERS = golden_dirs("text_metrics")


def read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("part", COMPARE)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_agrees(folder: pathlib.Path, part: str) -> None:
    golden = read(folder)
    COMPARE[part](*([golden[part], golden["pairs"]] if part == "corpus" else [golden[part]]))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_entry_is_known(folder: pathlib.Path) -> None:
    assert set(read(folder)) <= set(COMPARE)
