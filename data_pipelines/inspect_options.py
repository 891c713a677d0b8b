"""The options of the command `inspect`, which `inspect_scan` implements.

This module does not import the readers of scans, so that help is shown at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from data_pipelines.volume import Units


@dataclass(frozen=True)
class InspectOptions:
    """Describes a scan and checks whether its values agree with its units.

    Names, dates and other tags in the file are never printed or drawn. The exit status is 3 if the
    values do not agree with the units; `prepare` would put such a scan into quarantine.

    Attributes:
      path: A volume file, a folder of DICOM files or of image slices, or a folder of scans.
      mask: A label map, a folder with one file per structure, a DICOM SEG or an RTSTRUCT.
      units: Units of files that do not state them: "HU" for CT.
      series: The number of a series in a DICOM folder with several.
      structures: Names of the wanted structures in the mask, for the labels 1, 2, ...
      picture: The PNG to draw; None draws nothing.
      window: Window of the picture of a scan in HU: "full" is -1000..1000, "soft" is -160..240,
        "bone" is -450..1050.
      json: Print only the facts, as JSON.
    """

    path: tyro.conf.Positional[str]
    mask: str | None = None
    units: Units | None = None
    series: str | None = None
    structures: tuple[str, ...] = ()
    picture: str | None = "inspect.png"
    window: Literal["full", "soft", "bone"] = "full"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
