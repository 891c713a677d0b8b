"""The options of the verb `inspect`; `inspect_scan` does the work.

Nothing that reads scans is imported here, so that help is shown at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from data_pipelines.volume import Units


@dataclass(frozen=True)
class InspectOptions:
    """Tells what a scan is and whether its numbers can be what they are said to be.

    Nothing is printed or drawn of names, dates and other tags in the file. The exit status is 3
    when the values do not agree with the units, so that `prepare` would put the scan aside.

    Attributes:
      path: A volume file, a folder of DICOM files or of image slices, or a folder of scans.
      mask: A label map, a folder with a file per structure, a DICOM SEG or an RTSTRUCT.
      units: Of files that cannot tell: "HU" for CT.
      series: The number of a series in a DICOM folder with several.
      structures: Names of the structures in the mask that are wanted, for the labels 1, 2, ...
      picture: The PNG to draw; None draws nothing.
      window: Of the picture of a scan in HU: -1000..1000, -160..240 or -450..1050.
      json: Print the facts as JSON and nothing else.
    """

    path: tyro.conf.Positional[str]
    mask: str | None = None
    units: Units | None = None
    series: str | None = None
    structures: tuple[str, ...] = ()
    picture: str | None = "inspect.png"
    window: Literal["full", "soft", "bone"] = "full"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
