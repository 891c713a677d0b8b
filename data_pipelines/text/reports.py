"""What counts as the text of a report, before it is tokenised."""

from __future__ import annotations

from collections.abc import Callable

from data_pipelines.errors import TextError

# What tables and their readers write where there is no text.
_NOTHING = frozenset(
    ("nan", "na", "n/a", "none", "null", "nil", "<na>", "not given", "not available", "unknown")
)

_NO_VALUE = frozenset(("", "nan", "na", "n/a", "null", "<na>"))
"""What tables write where a cell is empty; "none" may be an answer."""


def is_missing(text: object) -> bool:
    """Whether a cell of a table, or a text made of one, holds no value: "NA", NaN, nothing."""
    return not isinstance(text, str) or text.strip().casefold() in _NO_VALUE


def says_nothing(text: str) -> bool:
    """Whether a text has no letter or number, or is a filler such as "NaN" or "Not given."."""
    words = " ".join(text.split()).casefold().strip(" .")
    return words in _NOTHING or not any(map(str.isalnum, words))


def clean_report(
    text: object,
    source: object = "report",
    *,
    empty: Callable[[str], bool] = says_nothing,
) -> str:
    """The text, checked.

    Args:
      text: str, or bytes in UTF-8.
      source: named in errors; never holds the text itself.
      empty: what counts as no text; of a report more than of an answer, which may be "None".

    Raises:
      TextError: it is not text (NaN, None), not UTF-8, or has no words.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start})"
            raise TextError(source, problem, "save the file as UTF-8") from None
    cure = "leave the report empty in the table, or the study out, where there is none"
    if not isinstance(text, str):
        raise TextError(source, f"is {text!r:.40} where a text is needed", cure)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise TextError(source, "was not UTF-8 when it was read", "save the file as UTF-8")
    if empty(text):
        raise TextError(source, "has no words", cure)
    return text.removeprefix("\ufeff").replace("\x00", " ")
