"""Reads reports from text files in M3D-Cap's format: headings with findings below one of them."""

from __future__ import annotations

import re

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.text.reports import clean_report, says_nothing

_HEADINGS = re.compile("study_findings:|discussion:")
"""Headings of the report. Before them are the title and the patient's presentation."""
_LEAST = 5
"""Minimum characters of a report, without spaces, as in M3D (m3d_cap_data_prepare.py)."""
_MOST = 1 << 20
"""Maximum bytes; the longest reports of radiologists have some thousand."""


def read_report(path: epath.PathLike) -> str:
    """Reads the report of a text file.

    The report is the text after "study_findings:" and "discussion:", or the whole text if there is
    nothing after either heading. M3D's preparation is nearly the same, but it leaves the second
    heading and fillers in the text and puts all on one line. Files that M3D's preparation wrote are
    returned without changes.

    Args:
      path: UTF-8 text.

    Raises:
      DataError: the file is missing, is not UTF-8, or has no report: it is empty, has fewer than 5
        characters, or is a filler such as "NaN".
    """
    with content.open_file(path) as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise DataError(path, f"its report has more than {_MOST:,} bytes", "give the text alone")
    text = clean_report(data, path)
    before, *sections = _HEADINGS.split(text)
    for parts in (sections, [before]):
        if report := "\n\n".join(_tidy(part) for part in parts if _tells(part)):
            return report
    raise DataError(path, "holds no report", "write the findings there, or leave the case out")


def _tells(text: str) -> bool:
    return len("".join(text.split())) >= _LEAST and not says_nothing(text)


def _tidy(text: str) -> str:
    """Returns the lines with single spaces and at most one empty line between two lines."""
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub("\n{3,}", "\n\n", lines).strip()
