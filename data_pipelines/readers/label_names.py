"""Finds the names that a label map gives to its own values.

The names are free text and may contain private data: use them only for comparisons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, nifti, nrrd

_LABEL = re.compile(rb'<Label\s[^>]*?Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]*)')
"""An entry of the XML table that TotalSegmentator stores in an extension of the NIfTI header."""
_LONGEST = 1 << 20


def names_of_values(path: epath.Path) -> dict[int, str]:
    """Returns {value: name} of a label map, without the background; {} if it names no values.

    Three sources are known: the segments of 3D Slicer (.seg.nrrd), the header extension of
    TotalSegmentator's NIfTI files, and the file dataset.json of nnU-Net and of the Medical
    Segmentation Decathlon, in the folder of the label map or in the one above it.

    Raises:
      DataError: the header is damaged, two names have the same value, or dataset.json is no JSON.
    """
    if path.is_dir():
        return {}
    kind = content.file_format(path)
    own = {}
    if kind == "nrrd":
        own = _of_slicer(path)
    elif kind == "nifti":
        own = _of_extension(path)
    return own or _of_dataset(path)


def _of_slicer(path: epath.Path) -> dict[int, str]:
    pairs = nrrd.key_values(path)
    if any(key.endswith("_Layer") and layer != "0" for key, layer in pairs.items()):
        return {}  # overlapping segments, which the reader refuses
    names: dict[int, str] = {}
    for key, name in pairs.items():
        if (segment := re.fullmatch(r"Segment(\d+)_Name", key)) is None:
            continue
        value = pairs.get(f"Segment{segment[1]}_LabelValue", str(int(segment[1]) + 1))
        if not value.isdecimal() or int(value) in names:
            cure = "save the segmentation again with 3D Slicer"
            raise DataError(path, f"segment {segment[1]} has no label value of its own", cure)
        names[int(value)] = name
    return names


def _of_extension(path: epath.Path) -> dict[int, str]:
    extensions = nifti.extensions(path, _LONGEST)
    return {int(key): name.decode("utf-8", "replace") for key, name in _LABEL.findall(extensions)}


def _of_dataset(path: epath.Path) -> dict[int, str]:
    for folder in (path.parent, path.parent.parent):
        file = folder / "dataset.json"
        if file.exists():
            return _labels(file)
    return {}


def _labels(file: epath.Path) -> dict[int, str]:
    """Returns the labels of a dataset.json: {"liver": 1} (nnU-Net) or {"1": "liver"} (Decathlon).

    Regions of several values, as nnU-Net allows them, have no value of their own.
    """
    try:
        labels = json.loads(file.read_text()).get("labels")
    except (ValueError, AttributeError) as error:
        raise DataError(file, "it is not a JSON object", "correct it, or move it away") from error
    pairs = labels.items() if isinstance(labels, Mapping) else ()
    turned = [(v, k) if isinstance(v, int) else (k, v) for k, v in pairs]
    named = [(int(v), str(name)) for v, name in turned if str(v).isdecimal() and int(v) > 0]
    if len(dict(named)) < len(named):
        raise DataError(file, "two labels have the same value", "correct the field 'labels'")
    return dict(named)
