"""The options of the verb `ask`; `command` does the work.

JAX is not imported here, so that help is shown at once.
"""

from __future__ import annotations

import dataclasses

import tyro

from data_pipelines.captions import templates
from data_pipelines.volume import Units
from m3djax.generate.options import AutoDtype
from m3djax.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class AskOptions:
    """Asks a model about a scan.

    Without questions it reads them from the terminal. Boxes in answers are given in voxels of the
    file (first:past-the-last, along its own axes) and in RAS+ millimetres, and drawn. Nothing that
    it says is for clinical use.

    Attributes:
      run: a run of the task VisionLanguage, or a folder of the verb `convert`.
      scan: a volume file, or a folder of DICOM files or of image slices.
      questions: one text each.
      also: further scans of the same prompt, behind the first. Boxes are then not placed, as
        answers do not say which scan they mean.
      at: what is looked at where training cut crops: around the "centre" of the scan, a voxel of
        the file ("30,200,180"), or RAS+ millimetres ("-12,40,1310mm"; write --at=-12,...).
        "whole" resamples the whole scan to the size of the crop, as training did not.
      zoom: of the crop, see `Crop`; None is the one that training cut most often.
      units: of files that cannot tell: "HU" for CT.
      series: the number of a series in a DICOM folder with several.
      recipe: preprocessing of the training data, such as "m3d", where that is not at hand.
      picture: the PNG to draw; None draws nothing.
      report: a file for a draft of the findings; None writes none.
      report_prompt: what is asked for it.
      sampling: how answers are chosen.
      dtype: what is computed in; "auto" is float32 on CPUs and bfloat16 elsewhere.
    """

    run: tyro.conf.Positional[str]
    scan: tyro.conf.Positional[str]
    questions: tyro.conf.Positional[tuple[str, ...]] = ()
    also: tuple[str, ...] = ()
    at: str = "centre"
    zoom: float | None = None
    units: Units | None = None
    series: str | None = None
    recipe: str | None = None
    picture: str | None = "ask.png"
    report: str | None = None
    report_prompt: str = templates.REPORT[0]
    sampling: Sampling = Sampling()
    dtype: AutoDtype = "auto"
