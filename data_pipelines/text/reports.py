"""What counts as the text of a report, before it is tokenised."""

from __future__ import annotations

from data_pipelines.errors import DataError

# What tables and their readers write where there is no text.
_NOTHING = frozenset(
    ("nan", "na", "n/a", "none", "null", "nil", "<na>", "not given", "not available", "unknown")
)


def says_nothing(text: str) -> bool:
    """Whether a text has no letter or number, or is a filler such as "NaN" or "Not given."."""
    words = " ".join(text.split()).casefold().strip(" .")
    return words in _NOTHING or not any(map(str.isalnum, words))


def clean_report(text: object, source: object = "report") -> str:
    """The text, checked.

    Args:
      text: str, or bytes in UTF-8.
      source: named in errors; never holds the text itself.

    Raises:
      DataError: it is not text (NaN, None), not UTF-8, or has no words.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start})"
            raise DataError(source, problem, "save the file as UTF-8") from None
    cure = "leave the report empty in the table, or the study out, where there is none"
    if not isinstance(text, str):
        raise DataError(source, f"is {text!r:.40} where a text is needed", cure)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(source, "was not UTF-8 when it was read", "save the file as UTF-8")
    if says_nothing(text):
        raise DataError(source, "has no words", cure)
    return text.removeprefix("\ufeff").replace("\x00", " ")
