"""Pictures of scans beside their reconstructions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epath

from data_pipelines.datasets.records import Record
from m3djax.evaluate import pictures
from m3djax.evaluate.tiles import Tiles
from m3djax.inputs.inputs import ScaleIntensityRange


def draw(
    path: epath.Path,
    record: Record,
    tiles: Tiles,
    crops: Mapping[str, np.ndarray],
    window: ScaleIntensityRange,
) -> None:
    """Draws the whole scan, stitched from its crops, in three planes.

    Args:
      path: path of the PNG.
      record: the scan.
      tiles: its crops.
      crops: "truth", "hidden", "model" and "fill_in" of all crops, (T, d, h, w) in network units.
      window: intensity range of the network; its inverse gives values to show.
    """
    volumes = {name: tiles.stitch(part) for name, part in crops.items()}
    truth = np.asarray(window.inverse(volumes["truth"]))
    columns = {
        "original": truth,
        "what the model sees": np.where(volumes["hidden"], np.nan, truth),
        "reconstruction": np.asarray(window.inverse(volumes["model"])),
        "smooth fill-in": np.asarray(window.inverse(volumes["fill_in"])),
    }
    pictures.three_planes(
        path,
        columns,
        spacing=record["spacing"],
        window=(window.a_min, window.a_max),
        at=pictures.centre(truth, air=0.75 * window.a_min + 0.25 * window.a_max),
        units=record["units"],
    )
