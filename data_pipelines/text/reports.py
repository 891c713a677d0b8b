"""Checks and cleans the text of a report before it is tokenised."""

from __future__ import annotations

from collections.abc import Callable

from data_pipelines.errors import TextError

# Fillers for a missing text in tables, or from programs that read tables.
_NOTHING = frozenset(
    ("nan", "na", "n/a", "none", "null", "nil", "<na>", "not given", "not available", "unknown")
)

_NO_VALUE = frozenset(("", "nan", "na", "n/a", "null", "<na>"))
"""Fillers for an empty cell of a table. "none" is not among them: it may be an answer."""


def is_missing(text: object) -> bool:
    """Returns True if a cell of a table, or its text, has no value: "NA", NaN, or empty."""
    return not isinstance(text, str) or text.strip().casefold() in _NO_VALUE


def says_nothing(text: str) -> bool:
    """Returns True if a text has no letter or digit, or is a filler such as "NaN"."""
    words = " ".join(text.split()).casefold().strip(" .")
    return words in _NOTHING or not any(map(str.isalnum, words))


def clean_report(
    text: object,
    source: object = "report",
    *,
    empty: Callable[[str], bool] = says_nothing,
) -> str:
    """Returns the text after checks, without a byte order mark and null characters.

    Args:
      text: str, or bytes in UTF-8.
      source: the name in errors, which never show the text itself.
      empty: returns True for a text that counts as missing. More texts count as missing for a
        report than for an answer, which may be "None".

    Raises:
      TextError: the text is not a string (NaN, None), not UTF-8, or has no words.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start})"
            raise TextError(source, problem, "save the file as UTF-8") from None
    cure = "leave the report empty in the table, or leave the study out"
    if not isinstance(text, str):
        raise TextError(source, f"is {text!r:.40} instead of a text", cure)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise TextError(source, "was not UTF-8 when it was read", "save the file as UTF-8")
    if empty(text):
        raise TextError(source, "has no words", cure)
    return text.removeprefix("\ufeff").replace("\x00", " ")
