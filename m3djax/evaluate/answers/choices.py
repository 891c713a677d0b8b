"""Parsers of answers to multiple-choice and yes-no questions; ambiguous answers give None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Choices = Mapping[str, str]
"""Letter -> text, as in the prompt."""

_OPEN, _CLOSE = r"[\s(\[*\"'`]*", r"[)\]*\"'`]*"
_LEAD = re.compile(
    r"^\W*(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:(?:correct|right|best|final)\s+)?"
    r"(?:answer|option|choice)(?:\s+(?:is|would\s+be))?\s*[:=]?\s*",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|cannot|without|except|\w+n't)\b", re.IGNORECASE)


def read_choice(answer: str, choices: Choices) -> str | None:
    """Returns the letter of the one choice that an answer names; None if it names none or several.

    An answer names a choice by its letter ("B", "(b)", "B. liver", "The answer is B") or by its
    text, as whole words. A letter and a text of different choices name two. An answer with a
    negation ("not B") names none, because the choice would be a guess.

    Args:
      answer: the answer of the model.
      choices: the choices of the question.
    """
    rest, named = _without_texts(answer, choices)
    if _NEGATED.search(rest):
        return None
    named |= _letters(rest, "".join(choices), bare=not named)
    return named.pop() if len(named) == 1 else None


def is_right_released(answer: str, letter: str) -> bool:
    """Returns whether an answer is right by M3D's rule: it has the letter with a full stop.

    The letter may be anywhere and its case counts. So "Hepatitis A." is right for A, and "CT of
    the aorta." is not. Source: Bench/eval/eval_vqa.py of BAAI-DCAI/M3D.
    """
    return f"{letter}." in answer


def read_yes_no(answer: str) -> Literal["yes", "no"] | None:
    """Returns "yes" or "no" if an answer says one of them; None if it says neither or both.

    The word must come first, or after "the answer is". The "no" of "there is no fluid" does not
    count.
    """
    said = re.match(r"\W*(yes|no)\b(.*)", _LEAD.sub("", answer), re.IGNORECASE | re.DOTALL)
    if not said:
        return None
    yes = said[1].lower() == "yes"
    both = rf"\W*(?:(?:and|or|but)\b\W*)?{'no' if yes else 'yes'}\b(?!\s+\w)"
    if re.match(both, said[2], re.IGNORECASE):
        return None
    return "yes" if yes else "no"


def _without_texts(answer: str, choices: Choices) -> tuple[str, set[str]]:
    """Returns the answer without the texts of choices, and the choices whose texts it had.

    Longer texts are matched first, so "left kidney cyst" does not name "left kidney".
    """
    named = set()
    for letter, text in sorted(choices.items(), key=lambda item: -len(item[1])):
        words = re.findall(r"[^\W_]+|[^\w\s-]", text.rstrip(" ."))
        if not words or (len(words) == 1 and len(words[0]) == 1 and words[0].isalpha()):
            continue  # a text that looks like a letter of the choices
        pattern = r"(?<!\w)" + r"[\s\-_]*".join(map(re.escape, words)) + r"(?!\w)"
        answer, count = re.subn(pattern, " \N{BULLET} ", answer, flags=re.IGNORECASE)
        if count:
            named.add(letter)
    return answer, named


def _letters(answer: str, letters: str, *, bare: bool) -> set[str]:
    """Returns the choices that an answer names by letter."""
    kind = f"([{letters}{letters.lower()}])"
    patterns = [
        rf"\(\s*{kind}\s*\)",  # (b) anywhere
        # "B. liver", "b) liver": where a sentence starts
        rf"(?:^|[\n.!?;]\s*){_OPEN}{kind}(?=\s*[.):](?!\w))",
    ]
    found = {letter for pattern in patterns for letter in re.findall(pattern, answer)}
    led = _LEAD.sub("", answer)
    # "A" may be an article: as a letter it needs an end, a mark or a reason after it.
    end = rf"{_CLOSE}\s*(?:$|[.,;:\n\N{{BULLET}}]|(?:because|since|as)\b)"
    if led != answer or re.fullmatch(rf"{_OPEN}{kind}{_CLOSE}[^\w\N{{BULLET}}]*", answer):
        found |= set(re.findall(rf"^{_OPEN}{kind}{end}", led))
    elif not bare:  # "B liver"; "a liver" is an article
        found |= set(re.findall(rf"^{_OPEN}(?![aA]){kind}\s+\N{{BULLET}}", answer))
    return {letter.upper() for letter in found}
