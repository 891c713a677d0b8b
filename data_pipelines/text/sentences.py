"""Splits radiology reports into sentences; the only sentence splitter of the project.

It uses rules on the text alone. Decimals, dates, abbreviations and remarks in brackets do not end a
sentence. A heading, and the number of a numbered finding, belong to the sentence that follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A full stop after these never ends a sentence.
_ABBREVIATIONS = _words(
    "dr drs prof mr mrs ms st assoc assist dept e.g i.e eg ie vs cf viz incl approx resp aka"
)
# A full stop after these ends a sentence, unless a number or a lower-case letter follows.
_WEAK = _words(
    "no nos nr fig figs vol pp se ser im img ca ref refs sect al etc lab sup inf ant post lat med "
    "max min temp dist prox bilat rt lt abd jan feb apr aug sept oct nov dec"
)
# A single letter after these, or after a number, is a name: "vitamin D. The liver ...".
_LETTERED = _words(
    "vitamin hepatitis type group class grade stage segment zone series category figure image "
    "level part phase option"
)
_TITLES = (
    r"Findings|Impressions?|Conclusions?|Comparison|Technique|Indications?|Recommendations?"
    r"|Clinical (?:[Hh]istory|[Dd]ata|[Ii]nformation|[Ii]ndication)|History|Summary|Results?"
)
_BREAK = re.compile(
    r"(?P<line>\n\s*)"
    r"|(?P<stop>[.!?]+[\"'”\u2019)\]]*)"
    # A heading within a line, or a bullet; some reports have quotation marks for bullets.
    rf"|(?<!linical)[^\S\n](?=(?:(?:[A-Z]{{2,}}[ /&-]){{0,3}}[A-Z]{{5,}}|{_TITLES}):)"
    r"|[^\S\n](?=[•·]|\"[^\S\n]+[A-Z][a-z])"
    r"|(?<=[\w)])\"[^\S\n]+(?=[A-Z][a-z])"
)
_NUMBERING = re.compile(r"[-*•·\s]*\(?(?:\d{1,2}|[a-hA-H]|[ivxIVX]{1,4})[.)]\s*\Z")
_NUMBERED_NEXT = re.compile(r"\(?\d{1,2}[.)]\s+[A-Z]")
_NEW_LINE = re.compile(r"[A-Z]|[-*•·]\s|\(?\d{1,2}[.)]\s")
_WORD = re.compile(r"[\w.]+")
_REMARK = 300  # maximum characters of a remark in brackets
_CONTEXT = 80


def sentence_spans(text: str) -> list[Span]:
    """Returns the sentences of a report as (start, end) offsets in characters.

    They are in order, do not overlap, and only white space lies between them. A piece without any
    letter or number belongs to the sentence before it.
    """
    spans: list[Span] = []
    for start, end in _pieces(text):
        piece = text[start:end]
        start, end = start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        if start >= end:
            continue
        if spans and not any(c.isalnum() for c in piece):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a report; see `sentence_spans`."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _pieces(text: str) -> Iterator[Span]:
    """Yields the spans between accepted breaks."""
    start = 0
    for found in _BREAK.finditer(text):
        if found["line"]:
            accepted = _line_breaks(text, start, found)
        elif found["stop"]:
            accepted = _stop_breaks(text, start, found)
        else:
            accepted = not _is_lead(text, start, found.start())
        if accepted:
            yield start, found.end()
            start = found.end()
    yield start, len(text)


def _is_lead(text: str, start: int, end: int) -> bool:
    """Returns True if the text so far is only a heading or a number before a sentence."""
    if end - start > _CONTEXT:
        return False
    so_far = text[start:end].rstrip()
    return so_far.endswith(":") or bool(_NUMBERING.match(so_far.rpartition(":")[2]))


def _line_breaks(text: str, start: int, found: re.Match[str]) -> bool:
    """Returns True if a line end ends a sentence, such as a blank line but no wrapped line."""
    if _is_lead(text, start, found.start()):
        return False
    if found["line"].count("\n") > 1:
        return True
    line = text[max(start, found.start() - _CONTEXT) : found.start()].rstrip()
    if line.endswith((".", "!", "?")):
        return not _in_brackets(text, start, found.end())
    return not line.endswith((",", "-", "(")) and bool(_NEW_LINE.match(text, found.end()))


def _stop_breaks(text: str, start: int, found: re.Match[str]) -> bool:
    """Returns True if a full stop, question or exclamation mark ends a sentence."""
    stop, end = found["stop"], found.end()
    following = text[end : end + _CONTEXT]
    ahead = following.lstrip(" \t\r\xa0\"'“\u2018([")
    if not ahead or ahead[0] == "\n":
        return False  # the line end decides
    if _is_lead(text, start, end) or _in_brackets(text, start, end):
        return False
    before, word = _last_words(text, start, found.start())
    last = word.rpartition(".")[2]
    if word in _ABBREVIATIONS or last in _ABBREVIATIONS:
        return False
    if not following[0].isspace():
        # "normal.The heart": a missing space. Decimals, dates and file names are no sentence ends.
        glued = stop == "." and len(last) > 2 and last.isalpha() and ahead == following
        return glued and ahead[0].isupper() and ahead[1:2].islower()
    if len(word) == 1 and word.isalpha() and not (before in _LETTERED or before[-1:].isdigit()):
        return False
    if ahead[0].islower():
        ordinal = word[-1:].isdigit() and len(word) < 4  # "the T12. vertebra"
        return stop[0] == "." and stop[:2] != ".." and not (ordinal or word in _WEAK)
    if ahead[0].isdigit():
        number = word.isdigit() and len(word) < 3  # "segment 4. 2 nodules" may be 4.2
        return bool(_NUMBERED_NEXT.match(ahead)) or not (number or word in _WEAK)
    return True


def _last_words(text: str, start: int, end: int) -> tuple[str, str]:
    """Returns the last two words, in lower case; a word may have full stops."""
    words = _WORD.findall(text, max(start, end - _CONTEXT), end)
    if not _WORD.match(text, end - 1):
        words.append("")
    before, last = ("", "", *words)[-2:]
    return before.lower(), last.lower()


def _in_brackets(text: str, start: int, end: int) -> bool:
    """Returns True if a bracket is open here and closes soon after."""
    opened = text.rfind("(", max(start, end - _REMARK), end)
    if opened < 0 or text.find(")", opened, end) >= 0:
        return False
    closed = text.find(")", end, opened + _REMARK)
    between = text[end:closed]
    return closed >= 0 and "\n\n" not in between and "(" not in between
