"""Sentences and tables of the evaluator `Answers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from m3djax.contracts.findings import Findings, Picture, Table
from m3djax.contracts.statistics import against, number_text, verdict
from m3djax.evaluate.answers.metrics import GUESSES, METRICS, SCORERS
from m3djax.evaluate.answers.numbers import TYPES_MEAN, main_of

_TITLES = {
    "choice": "questions with choices",
    "yes_no": "questions for yes or no",
    "open": "open questions",
    "report": "reports",
    "rec": "questions for a place",
    "reg": "questions for what is in a box",
    "seg": "questions for a mask",
    "rec_described": "questions for the place of a described structure",
    "reg_described": "questions for what is in a box and what that is",
    "seg_described": "questions for the mask of a described structure",
}
_GUESSES = {GUESSES["iou_whole"]: "the box of the whole volume"}
_TYPES = 12  # types of questions in a table
_MUTE = 0.05  # smallest share of unreadable answers that a sentence mentions
_METEOR = (
    "METEOR counts equal words and stems but no synonyms, so it is a little below published values."
)
_CIDER = (
    "CIDEr weighs words by their rarity in this pool's answers: do not compare it between pools."
)
_UNREADABLE = (
    "An answer counts as wrong if it is ambiguous, or has no readable choice, yes or no, or box."
)


def present(
    kinds: Mapping[str, Any],
    units: str,
    pictures: tuple[Picture, ...],
    caveats: tuple[str, ...],
) -> Findings:
    """Returns the findings.

    Args:
      kinds: kind of question -> `Kind.numbers`.
      units: independent units of the intervals, such as "patients".
      pictures: slices with answers.
      caveats: sentences about the limits of the numbers.
    """
    curves = {}
    for kind, numbers in kinds.items():
        first = next(iter(numbers["models"].values()))
        for metric, value in first["all"].items():
            curves[f"{kind}_{metric}"] = value["value"]
    notes = []
    if any(kind in SCORERS for kind in kinds):
        notes.append(_UNREADABLE)
    if any(kind not in SCORERS for kind in kinds):
        notes += [_METEOR, _CIDER]
    tables = [table for kind, numbers in kinds.items() for table in _tables(kind, numbers, units)]
    return Findings(
        title="Answers about volumes",
        numbers={**curves, "kinds": dict(kinds)},
        sentences=tuple(_sentence(kind, numbers) for kind, numbers in kinds.items()),
        tables=tuple(tables),
        pictures=pictures,
        caveats=(*notes, *caveats),
    )


def _sentence(kind: str, numbers: Mapping[str, Any]) -> str:
    """Returns a sentence that compares the first model with chance and with the others."""
    model, parts = next(iter(numbers["models"].items()))
    title = _TITLES.get(kind, f"{kind} questions")
    metric = main_of(kind)
    if metric not in parts["all"]:
        return f"{numbers['questions']:,} {title}: no right answer has a box."
    found = parts["all"][metric]
    said = [f"{METRICS[metric].name} {_number(metric, found)}"]
    for guess, values in numbers["guesses"].items():
        if (value := values.get("all")) is not None:
            place = f"{against(found['interval'], value)} {_GUESSES.get(guess, guess)}"
            said.append(f"{place} ({_plain(metric, value)})")
    for other, gain in numbers["gain_over"].items():
        if gain["interval"]:
            difference = _number(metric, gain, signed=True)
            mute = _unread(numbers["models"][other]["all"])
            said.append(f"{verdict(gain['interval'])} {other} (difference {difference}{mute})")
    return f"{numbers['questions']:,} {title}, {model}: {'; '.join(said)}."


def _unread(found: Mapping[str, Any]) -> str:
    """Returns a note on a model with many unreadable answers; "" for other models.

    Such a model is often wrong only for the form of its answers, so a difference to it says little.
    """
    share = found["unparsed"]["value"] if "unparsed" in found else 0.0
    return f"; {share:.0%} of its answers cannot be read" if share >= _MUTE else ""


def _tables(kind: str, numbers: Mapping[str, Any], units: str) -> list[Table]:
    title = _TITLES.get(kind, f"{kind} questions")
    title = f"{title[0].upper()}{title[1:]}: {numbers['questions']:,}"
    note = f"In brackets: 95 % bootstrap over {numbers['units']:,} {units}."
    tables = [_by_metric(title, main_of(kind), numbers, note)]
    if len(numbers["questions_by_type"]) > 1:
        tables.append(_by_type(title, main_of(kind), numbers, note))
    return tables


def _by_metric(title: str, main: str, numbers: Mapping[str, Any], note: str) -> Table:
    """Returns a table with a row per metric and a column per model."""
    models = numbers["models"]
    there = {metric for parts in models.values() for metric in parts["all"]}
    guesses = numbers["guesses"]
    rows = []
    for metric in (metric for metric in METRICS if metric in there):
        cells = (_number(metric, parts["all"].get(metric)) for parts in models.values())
        guessed = (
            _plain(metric, values.get("all")) if metric == main else ""
            for values in guesses.values()
        )
        rows.append((METRICS[metric].name, *cells, *guessed))
    return Table(title, ("", *models, *guesses), tuple(rows), note)


def _by_type(title: str, metric: str, numbers: Mapping[str, Any], note: str) -> Table:
    """Returns a table with a row per type of question and a column per model.

    The last row is the mean over types, as M3D reports it.
    """
    counts = numbers["questions_by_type"]
    shown = sorted(sorted(counts, key=counts.get, reverse=True)[:_TYPES])
    # If all questions of a type have the same answer, that guess is no useful baseline.
    guesses = {
        name: values
        for name, values in numbers["guesses"].items()
        if any(values[part] < 1 for part in counts if part in values)
    }
    means = {name: _mean(values, counts) for name, values in guesses.items()}
    rows = []
    for part in (*shown, TYPES_MEAN):
        head = f"{part} ({counts[part]:,})" if part in counts else part
        cells = (
            _number(metric, parts.get(part, {}).get(metric)) for parts in numbers["models"].values()
        )
        guessed = (
            _plain(metric, values.get(part) if part in counts else means[name])
            for name, values in guesses.items()
        )
        rows.append((head, *cells, *guessed))
    if len(counts) > _TYPES:
        note = f"The {_TYPES} most frequent of {len(counts)} types; all are in results.json. {note}"
    heads = ("type", *numbers["models"], *guesses)
    return Table(f"{title}, {METRICS[metric].name} by type", heads, tuple(rows), note)


def _mean(values: Mapping[str, float], parts: Iterable[str]) -> float:
    there = [values[part] for part in parts if part in values]
    return sum(there) / len(there)


def _plain(metric: str, value: float | None) -> str:
    """Formats a number without an interval; "" for None."""
    return "" if value is None else f"{value:{'.1%' if METRICS[metric].percent else '.3f'}}"


def _number(metric: str, number: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Formats a number with its interval, if it has one; "" for None."""
    if number is None:
        return ""
    style = ("+" if signed else "") + (".1%" if METRICS[metric].percent else ".3f")
    if number["interval"] is None:
        return f"{number['value']:{style}}"
    return number_text(number, style)
