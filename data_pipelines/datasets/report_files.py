"""Reports in text files, as M3D-Cap has them: headings, and findings below one of them."""

from __future__ import annotations

import re

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.text.reports import clean_report, says_nothing

_HEADINGS = re.compile("study_findings:|discussion:")
"""Parts of the report; what stands before them are the title and the patient's presentation."""
_LEAST = 5
"""Characters, without spaces, that M3D takes for a report (m3d_cap_data_prepare.py)."""
_MOST = 1 << 20
"""Bytes; the longest report of a radiologist has some thousand."""


def read_report(path: epath.PathLike) -> str:
    """Reads the report of a text file.

    It is what follows "study_findings:" and "discussion:", or all of the text where there is
    nothing after either, nearly as in M3D's preparation: that leaves the second heading and
    fillers in the text, and puts all on one line. Files that it has prepared come out as they are.

    Args:
      path: UTF-8 text.

    Raises:
      DataError: The file is missing, is not UTF-8, or holds no report: nothing, fewer than 5
        characters, or a filler such as "NaN".
    """
    with content.open_file(path) as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise DataError(path, f"a report of more than {_MOST:,} bytes", "give the text alone")
    text = clean_report(data, path)
    before, *sections = _HEADINGS.split(text)
    for parts in (sections, [before]):
        if report := "\n\n".join(_tidy(part) for part in parts if _tells(part)):
            return report
    raise DataError(path, "holds no report", "write the findings there, or leave the case out")


def _tells(text: str) -> bool:
    return len("".join(text.split())) >= _LEAST and not says_nothing(text)


def _tidy(text: str) -> str:
    """The lines without blanks at their ends, at most one empty line between two."""
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub("\n{3,}", "\n\n", lines).strip()
