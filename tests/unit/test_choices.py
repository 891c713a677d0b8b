"""Parsers of choices in answers."""

from __future__ import annotations

import pytest

from m3djax.evaluate.answers.choices import is_right_released, read_choice, read_yes_no

CHOICES = {"A": "Spleen", "B": "Liver", "C": "Left kidney", "D": "Left kidney cyst"}


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b", "(b)", "B.", "B)", "[B]", "**B**", "B\n", "B,"),
        *("B. liver", "B) Liver", "B: liver", "b. the liver", "B liver", "B - liver"),
        *("The answer is B", "the answer is (b).", "Answer: B", "answer: b because of its size"),
        *("Liver", "the liver.", "It is the liver", "A large liver", "I think (B)", "Option B"),
        *("So the best answer is: B. Liver", "Answer is B.\nExplanation: the right side."),
        *("The answer is **B. Liver**", "The answer is B liver"),
    ],
)
def test_the_second(answer: str) -> None:
    assert read_choice(answer, CHOICES) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("", "E", "E. pancreas", "something else", "A lesion", "The answer is A lesion"),
        *("A or B", "A, B", "A/B", "A. B.", "(A) or (B)", "The answer is B or C", "Both"),
        *("B. spleen", "spleen and liver", "A. Spleen B. Liver C. Left kidney"),
        *("not B", "It isn't the liver", "The option is B, not C", "Hepatitis B."),
    ],
)
def test_nothing_or_several_are_not_guessed(answer: str) -> None:
    assert read_choice(answer, CHOICES) is None


def test_the_longer_text_wins() -> None:
    assert read_choice("a left kidney cyst", CHOICES) == "D"
    assert read_choice("the left kidney", CHOICES) == "C"


def test_an_article_is_no_choice() -> None:
    assert read_choice("A", CHOICES) == read_choice("The answer is A.", CHOICES) == "A"
    assert read_choice("The answer is A because it is so", CHOICES) == "A"
    assert read_choice("A mass is seen", CHOICES) is None


def test_texts_with_marks_numbers_and_denials() -> None:
    choices = {"A": "No contrast.", "B": "T1-weighted (axial)", "C": "3", "D": "Not visible"}
    assert read_choice("no contrast", choices) == "A"
    assert read_choice("It is T1 weighted (axial).", choices) == "B"
    assert read_choice("3", choices) == "C"
    assert read_choice("13", choices) is None
    assert read_choice("D. Not visible", choices) == "D"


def test_the_released_rule() -> None:
    assert is_right_released("B. Liver", "B") and is_right_released("Hepatitis B.", "B")
    assert not is_right_released("B", "B") and not is_right_released("(B) Liver", "B")


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        *(("Yes", "yes"), ("no", "no"), ("Yes.", "yes"), ("**No**", "no")),
        *(("No, there is none", "no"), ("Yes, no fluid is seen", "yes")),
        *(("The answer is yes", "yes"), ("Answer: No.", "no")),
        *(("Yes and no", None), ("Yes or no", None), ("yes/no", None), ("No. Yes.", None)),
        *(("There is no fluid", None), ("Nothing", None), ("", None), ("Not sure", None)),
    ],
)
def test_yes_and_no(answer: str, read: str | None) -> None:
    assert read_yes_no(answer) == read
