"""Which choice an answer names, and whether it says yes or no: for certain, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Choices = Mapping[str, str]
"""Letter -> text, as they were put to the model."""

_OPEN, _CLOSE = r"[\s(\[*\"'`]*", r"[)\]*\"'`]*"
_LEAD = re.compile(
    r"^\W*(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:(?:correct|right|best|final)\s+)?"
    r"(?:answer|option|choice)(?:\s+(?:is|would\s+be))?\s*[:=]?\s*",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|cannot|without|except|\w+n't)\b", re.IGNORECASE)


def read_choice(answer: str, choices: Choices) -> str | None:
    """The letter of the one choice that an answer names; None if it names none, or several.

    A choice is named by its letter ("B", "(b)", "B. liver", "The answer is B") or by its own text,
    as whole words. A letter and a text that disagree name two. An answer that denies something
    ("not B") names none: what it leaves would be a guess.

    Args:
      answer: what was said.
      choices: what could be chosen.
    """
    rest, named = _without_texts(answer, choices)
    if _NEGATED.search(rest):
        return None
    named |= _letters(rest, "".join(choices), bare=not named)
    return named.pop() if len(named) == 1 else None


def is_right_released(answer: str, letter: str) -> bool:
    """M3D's rule: whether the letter with a full stop is anywhere in the answer.

    "CT of the aorta." is right for "a." of no choice, but "Hepatitis A." is for A. Source:
    Bench/eval/eval_vqa.py of BAAI-DCAI/M3D.
    """
    return f"{letter}." in answer


def read_yes_no(answer: str) -> Literal["yes", "no"] | None:
    """Whether an answer says yes or no; None if it says neither, or both.

    It must say so in its first word, or after "the answer is": the "no" of "there is no fluid"
    answers another question.
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
    """The answer without the choices' own texts, and the choices whose texts were there.

    Longer texts go first: "left kidney cyst" does not name "left kidney".
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
    """The letters that an answer names as letters."""
    kind = f"([{letters}{letters.lower()}])"
    patterns = [
        rf"\(\s*{kind}\s*\)",  # (b) anywhere
        # "B. liver", "b) liver": where a sentence starts
        rf"(?:^|[\n.!?;]\s*){_OPEN}{kind}(?=\s*[.):](?!\w))",
    ]
    found = {letter for pattern in patterns for letter in re.findall(pattern, answer)}
    led = _LEAD.sub("", answer)
    # "A" may be an article: alone it needs an end, a mark or a reason behind it.
    end = rf"{_CLOSE}\s*(?:$|[.,;:\n\N{{BULLET}}]|(?:because|since|as)\b)"
    if led != answer or re.fullmatch(rf"{_OPEN}{kind}{_CLOSE}[^\w\N{{BULLET}}]*", answer):
        found |= set(re.findall(rf"^{_OPEN}{kind}{end}", led))
    elif not bare:  # "B liver"; "a liver" is an article
        found |= set(re.findall(rf"^{_OPEN}(?![aA]){kind}\s+\N{{BULLET}}", answer))
    return {letter.upper() for letter in found}
