"""All metrics that compare the words of one answer with those of the right answer."""

from __future__ import annotations

from m3djax.evaluate.text import bleu, coco, meteor, rouge


def scores(said: str, meant: str) -> dict[str, float]:
    """Scores one answer: metric -> score; CIDEr and BERTScore need all answers at once."""
    overlap = rouge.rouge(said, meant)
    return {
        **{f"bleu{order}": bleu.bleu(said, meant, order) for order in range(1, 5)},
        **{kind: overlap[kind].f for kind in ("rouge1", "rouge2", "rougeL")},
        "meteor": meteor.meteor(said, meant),
        **{f"coco_bleu{n}": value for n, value in enumerate(coco.bleu(said, meant), 1)},
        "coco_rougeL": coco.rouge_l(said, meant),
        "exact": coco.tokens(said) == coco.tokens(meant),
    }
