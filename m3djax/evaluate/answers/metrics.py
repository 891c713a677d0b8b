"""Metrics of answers by kind of question: a number per row and metric."""

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
"""Metric -> a number per row; NaN if a row has none."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """The presentation of a metric.

    Attributes:
      name: its name in tables.
      percent: whether it is printed in percent.
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
"""Metrics in tables; further metrics are in results.json and in the tables of samples."""
GUESSES = {"chance": "chance", "iou_whole": "the whole volume"}
"""Guesses without a model, by the main metric: name -> title in tables."""


def choice(rows: Sequence[Row]) -> Values:
    """Scores multiple-choice questions; an answer with no choice, or with several, is wrong."""
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
    """Returns the letter of the right choice: the start of the right answer, as in "B. liver".

    Raises:
      EvaluationError: the right answer does not start with the letter of a choice.
    """
    letter = row.truth.partition(".")[0]
    if letter not in row.choices:
        raise EvaluationError(
            f"{row.question!r}: the right answer {row.truth!r} does not start with the letter of a "
            "choice. Cure: leave the question out of the dataset."
        )
    return letter


def yes_no(rows: Sequence[Row]) -> Values:
    """Scores yes-no questions; an answer that says neither, or both, is wrong.

    Raises:
      EvaluationError: a right answer says neither, or both.
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
    """Scores questions for a place; see `box_scores`."""
    return _columns(box_scores(row.said, row.truth) for row in rows)


def masks(rows: Sequence[Row]) -> Values:
    """Scores questions for a mask: right if both answer and truth have [SEG], or neither has."""
    return _columns({"accuracy": (SEGMENT in row.said) == (SEGMENT in row.truth)} for row in rows)


def texts(rows: Sequence[Row], bert_score: BertScore | None = None) -> Values:
    """Scores free text by every text metric; CIDEr takes word frequencies from these rows.

    Args:
      rows: all rows of one kind.
      bert_score: the encoder of BERTScore; None: no BERTScore.
    """
    # Imported late: they import nltk, which takes seconds, and configs import this module.
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
    """Returns the accuracy of the most frequent right answer, given to every question."""
    return max(Counter(meaning(row) for row in rows).values()) / len(rows)


def meaning(row: Row) -> str:
    """Returns the right answer without its letter, because letters differ between questions."""
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
"""Kind of question -> its scorer; all other kinds are free text.

A package may add a kind: its scorer here, its main metric to `numbers.MAIN`, and the title of a new
metric to `METRICS`.
"""


def score(kind: str, rows: Sequence[Row], bert_score: BertScore | None = None) -> Values:
    """Returns the scores of all rows of one kind."""
    scorer = SCORERS.get(kind)
    return texts(rows, bert_score) if scorer is None else scorer(rows)
