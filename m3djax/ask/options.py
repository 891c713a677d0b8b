"""The options of the verb `ask`, which the module `command` implements.

This module does not import JAX, so that help appears at once.
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

    Without questions, it reads them from the terminal. Boxes in answers are printed in voxels of
    the file (first:past-the-last, along its own axes) and in RAS+ millimetres, and drawn. No answer
    is for clinical use.

    Attributes:
      run: a run of the task VisionLanguage, or a folder of the verb `convert`.
      scan: a volume file, or a folder of DICOM files or of image slices.
      questions: the questions, each one argument.
      also: further scans of the same prompt, after the first. Then boxes are not placed, because
        answers do not say which scan they mean.
      at: centre of the crop: the "centre" of the scan, a voxel of the file ("30,200,180"), or RAS+
        millimetres ("-12,40,1310mm"; write --at=-12,...). "whole": the whole scan is resampled to
        the size of a crop, unlike in training.
      zoom: zoom of the crop, see `Crop`; None: that of the most frequent crop in training.
      units: units of files that do not store them: "HU" for CT.
      series: number of a series in a DICOM folder with several.
      recipe: preprocessing of the training data, such as "m3d", if the data are absent.
      picture: path of the PNG; None: no picture.
      report: path of a draft of the findings; None: no draft.
      report_prompt: the question that asks for the draft.
      sampling: options of sampling for the answers.
      dtype: dtype of the computation; "auto": float32 on CPUs and bfloat16 elsewhere.
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
