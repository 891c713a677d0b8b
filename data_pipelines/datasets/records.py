"""The record schema of all prepared datasets, and the conversion of a volume to a record."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets import points as points_lib
from data_pipelines.errors import DataError
from data_pipelines.volume import Volume

Record = dict[str, Any]
_BYTE = 255


def feature_spec(num_labels: int) -> dict[str, tuple[tuple[int | None, ...], type]]:
    """Returns {field: (shape, dtype)} of a record; `None` is a size that differs between records.

    `image * scale + offset` is the real value in `units` ("HU", "unit" = 0..1, "raw"). `low` is the
    lowest value of `image`, which is air in a CT. `affine` maps (d, h, w, 1) to RAS+ millimetres.
    `to_source` maps it to the index on the grid of the source file. `annotated[value]` is True if
    the mask was drawn for that label. Where it is False, the absence of the label from the mask
    does not mean that the structure is absent. If a study does not have a field, the field is zeros
    and `<field>_valid` is False. `qa` has questions and answers, see `datasets.qa`. `points` has
    points such as candidate centres, see `datasets.points`. For the two volumes on disk see
    `storage.stored_spec`.

    Args:
      num_labels: length of `labels`: 1 present, 0 absent, NaN not known.
    """
    volume, matrix, scalar = (None, None, None), (4, 4), ()
    return {
        "image": (volume, np.int16),
        "low": (scalar, np.int16),
        "scale": (scalar, np.float32),
        "offset": (scalar, np.float32),
        "units": (scalar, str),
        "affine": (matrix, np.float64),
        "affine_valid": (scalar, np.bool_),
        "spacing": ((3,), np.float32),
        "to_source": (matrix, np.float64),
        "source_shape": ((3,), np.int32),
        "source_affine": (matrix, np.float64),
        "mask": (volume, np.uint8),
        "mask_valid": (scalar, np.bool_),
        "annotated": ((256,), np.bool_),
        "report": (scalar, str),
        "report_valid": (scalar, np.bool_),
        "qa": (scalar, str),
        "qa_valid": (scalar, np.bool_),
        "points": (scalar, str),
        "points_valid": (scalar, np.bool_),
        "labels": ((num_labels,), np.float32),
        "labels_valid": (scalar, np.bool_),
        "patient_id": (scalar, str),
        "study_id": (scalar, str),
        "source": (scalar, str),
    }


def encode(
    volume: Volume,
    *,
    annotated: Collection[int] | None = None,
    report: str | None = None,
    qa: str = "",
    points: Sequence[points_lib.PointList] = (),
    labels: Mapping[str, float] | None = None,
    label_names: tuple[str, ...] = (),
    eight_bit: bool = False,
) -> Record:
    """Makes the record of a preprocessed volume.

    Args:
      volume: the volume after the recipe; its `source` should not be an absolute path.
      annotated: label values for which the mask was drawn; None means all of them.
      report: text of the radiology report; None if there is none.
      qa: questions and answers, see `qa.to_text`.
      points: points of the study; see `datasets.points`.
      labels: known labels by name; the others become NaN.
      label_names: labels of the whole dataset, in the order of the `labels` array.
      eight_bit: whether the file had one byte per voxel; see `quantize`.

    Raises:
      DataError: the image is not finite, the mask has values outside 0..255, or points are in
        millimetres and the volume has no affine.
    """
    image, scale, offset = quantize(volume.array, volume.units, volume.source, eight_bit=eight_bit)
    known = dict(labels or {})
    valid = volume.affine is not None
    return {
        "image": image,
        "low": image.min(),
        "scale": np.float32(scale),
        "offset": np.float32(offset),
        "units": volume.units,
        "affine": _matrix(volume.affine),
        "affine_valid": np.bool_(valid),
        "spacing": np.asarray(volume.spacing or (0, 0, 0), np.float32),
        "to_source": _matrix(volume.to_source),
        "source_shape": np.asarray(volume.source_shape, np.int32),
        "source_affine": _matrix(volume.source_affine),
        "mask": np.zeros_like(image, np.uint8) if volume.mask is None else _mask(volume),
        "mask_valid": np.bool_(volume.mask is not None),
        "annotated": _lookup(
            range(256) if annotated is None else annotated, volume.mask is not None
        ),
        "report": report or "",
        "report_valid": np.bool_(bool(report)),
        "qa": qa,
        "qa_valid": np.bool_(bool(qa)),
        "points": points_lib.to_text(points, volume),
        "points_valid": np.bool_(bool(points)),
        "labels": np.asarray([known.get(name, np.nan) for name in label_names], np.float32),
        "labels_valid": np.bool_(bool(known)),
        "patient_id": volume.patient_id,
        "study_id": volume.study_id,
        "source": volume.source,
    }


def quantize(
    array: np.ndarray, units: str, source: str = "", *, eight_bit: bool = False
) -> tuple[np.ndarray, float, float]:
    """Quantizes real values to int16.

    HU are rounded to whole units, the resolution of CT scanners. 0..1 becomes 0..32767. Raw values
    are kept if they are integers that fit into int16. Otherwise the range of int16 covers all but
    the outermost 0.01 % of the voxels, so that a single hot voxel does not cost precision.

    Values from a file with 8 bits get 256 levels again: 0..1 becomes 0..255, and raw values are
    rounded. Only resampling made the values in between; without them storage needs half the space.

    Args:
      array: (D, H, W) of any real dtype.
      units: "HU", "unit" or "raw".
      source: name for the error message.
      eight_bit: whether values were integers of 0..255 before they were scaled and resampled.

    Returns:
      The int16 array, scale and offset: value = array * scale + offset.

    Raises:
      DataError: some values are not finite.
    """
    if not np.isfinite(array).all():
        cure = "replace NaN and infinite voxels in the file"
        raise DataError(source, "the image has voxels that are not finite", cure)
    limits = np.iinfo(np.int16)
    scale, offset = 1.0, 0.0
    if units == "unit":
        scale = 1 / (_BYTE if eight_bit else limits.max)
    elif units == "raw" and not (eight_bit and _is_byte(array)) and not _fits(array):
        low, high = (float(value) for value in np.percentile(array, (0.01, 99.99)))
        scale, offset = max(high - low, 1e-12) / (limits.max - limits.min), (high + low) / 2
    values = array if scale == 1.0 else (array.astype(np.float64) - offset) / scale
    return np.rint(values).clip(limits.min, limits.max).astype(np.int16), scale, offset


def _is_byte(array: np.ndarray) -> bool:
    return array.min() >= 0 and array.max() <= _BYTE


def _fits(array: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    whole = np.issubdtype(array.dtype, np.integer) or bool((np.rint(array) == array).all())
    return whole and array.min() >= limits.min and array.max() <= limits.max


def _mask(volume: Volume) -> np.ndarray:
    assert volume.mask is not None
    if volume.mask.size and (volume.mask.min() < 0 or volume.mask.max() > 255):
        problem = f"the mask has label {volume.mask.max()}, but only 0..255 can be stored"
        raise DataError(volume.source, problem, "renumber the labels; 255 means not labelled")
    return np.ascontiguousarray(volume.mask, np.uint8)


def _lookup(values: Collection[int], valid: bool) -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[list(values)] = valid
    return table


def _matrix(affine: np.ndarray | None) -> np.ndarray:
    return np.array(np.zeros((4, 4)) if affine is None else affine, np.float64)
