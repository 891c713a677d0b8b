"""What an answer is worth, by kind of question: a number per row and metric."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.text.llm_tokenizer import SEGMENT
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.answers.boxes import box_scores
from m3djax.evaluate.answers.choices import is_right_released, read_choice, read_yes_no
from m3djax.evaluate.answers.table import Row
from m3djax.evaluate.text.bert_score import BertScore

Values = dict[str, Float[np.ndarray, " n"]]
"""Metric -> a number per row, NaN where a row has none."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
      name: in heads of tables.
      percent: whether it is a share.
    """

    name: str
    percent: bool = True


METRICS = {
    "accuracy": Metric("accuracy"),
    "balanced": Metric("mean of yes and no"),
    "unparsed": Metric("unreadable"),
    "accuracy_m3d": Metric("accuracy, M3D's rule"),
    "exact": Metric("same words"),
    "bleu1": Metric("BLEU-1"),
    "bleu2": Metric("BLEU-2"),
    "bleu3": Metric("BLEU-3"),
    "bleu4": Metric("BLEU-4"),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "meteor": Metric("METEOR"),
    "cider": Metric("CIDEr", percent=False),
    "bert_score": Metric("BERTScore"),
    "iou": Metric("IoU", percent=False),
    "acc@0.25": Metric("IoU >= 0.25"),
    "acc@0.5": Metric("IoU >= 0.5"),
    "iou_m3d": Metric("IoU, M3D's formula", percent=False),
    "refused": Metric("rightly no box"),
}
"""What tables show; further metrics are in results.json and in the tables of samples."""
GUESSES = {"chance": "chance", "iou_whole": "the whole volume"}
"""Values by the main metric that need no model, and what tables call them."""


def choice(rows: Sequence[Row]) -> Values:
    """Questions with choices: an answer that names no choice, or several, is wrong."""
    return _columns(_choice(row) for row in rows)


def _choice(row: Row) -> dict[str, float]:
    right, said = right_letter(row), read_choice(row.said, row.choices)
    return {
        "accuracy": said == right,
        "unparsed": said is None,
        "accuracy_m3d": is_right_released(row.said, right),
        "chance": 1 / len(row.choices),
    }


def right_letter(row: Row) -> str:
    """The letter of the right choice, which the right answer starts with: "B. liver".

    Raises:
      EvaluationError: it does not.
    """
    letter = row.truth.partition(".")[0]
    if letter not in row.choices:
        raise EvaluationError(
            f"{row.question!r}: the right answer {row.truth!r} starts with the letter of no choice "
            "of its own. Cure: leave the question out of the dataset."
        )
    return letter


def yes_no(rows: Sequence[Row]) -> Values:
    """Questions for yes or no: an answer that says neither, or both, is wrong.

    Raises:
      EvaluationError: so does a right answer.
    """
    return _columns(_yes_no(row) for row in rows)


def _yes_no(row: Row) -> dict[str, float]:
    right, said = read_yes_no(row.truth), read_yes_no(row.said)
    if right is None:
        raise EvaluationError(
            f"{row.question!r}: the right answer {row.truth!r} says neither yes nor no. "
            "Cure: leave the question out of the dataset."
        )
    return {"accuracy": said == right, "unparsed": said is None, "chance": 0.5}


def boxes(rows: Sequence[Row]) -> Values:
    """Questions for a place: see `box_scores`."""
    return _columns(box_scores(row.said, row.truth) for row in rows)


def masks(rows: Sequence[Row]) -> Values:
    """Questions for a mask: whether one is announced where there is one, and only there."""
    return _columns({"accuracy": (SEGMENT in row.said) == (SEGMENT in row.truth)} for row in rows)


def texts(rows: Sequence[Row], bert_score: BertScore | None = None) -> Values:
    """Questions for free text, by every metric of words; CIDEr counts rarity in these rows.

    Args:
      rows: all texts of one kind.
      bert_score: the encoder, if BERTScore is asked for.
    """
    # They bring nltk, whose import takes seconds: not for those who only read a config.
    from m3djax.evaluate.text import cider, words

    said, meant = [row.said for row in rows], [row.truth for row in rows]
    scores = _columns(words.scores(*pair) for pair in zip(said, meant, strict=True))
    scores["cider"] = np.array(cider.cider(said, meant))
    if bert_score is not None:
        scores["bert_score"] = bert_score(said, meant)[:, 2]
    return scores


def _columns(rows: Iterable[dict[str, float]]) -> Values:
    dicts = list(rows)
    names = dict.fromkeys(name for row in dicts for name in row)
    return {name: np.array([row.get(name, np.nan) for row in dicts], float) for name in names}


def most_frequent(rows: Sequence[Row]) -> float:
    """Accuracy of the one answer that is right most often."""
    return max(Counter(meaning(row) for row in rows).values()) / len(rows)


def meaning(row: Row) -> str:
    """The right answer without its letter, which differs from question to question."""
    text = row.choices[right_letter(row)] if row.choices else row.truth
    return " ".join(text.casefold().split())


SCORERS: dict[str, Callable[[Sequence[Row]], Values]] = {
    "choice": choice,
    "yes_no": yes_no,
    "rec": boxes,
    "rec_described": boxes,
    "seg": masks,
    "seg_described": masks,
}
"""Kind -> its scorer; all other kinds are free text."""


def score(kind: str, rows: Sequence[Row], bert_score: BertScore | None = None) -> Values:
    """The scores of all rows of one kind."""
    scorer = SCORERS.get(kind)
    return texts(rows, bert_score) if scorer is None else scorer(rows)
