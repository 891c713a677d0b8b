"""DICOM SEG and RTSTRUCT files for tests, made of masks on the grid of DICOM slices."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import contourpy
import highdicom
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage


def write_seg(
    path: pathlib.Path,
    slices: Sequence[pydicom.Dataset],
    pixels: np.ndarray,
    names: Sequence[str],
    kind: str = "BINARY",
    numbers: Sequence[int] = (),
    **fields: Any,
) -> pathlib.Path:
    """A SEG of (slices, rows, columns) labels 1.., or of the fractions of one structure.

    Args:
      path: the file.
      slices: of the image, from foot to head.
      pixels: their voxels.
      names: one for each label.
      kind: BINARY, FRACTIONAL or LABELMAP.
      numbers: the values of a label map; 1, 2, ... by default.
      **fields: tags to change in the file.
    """
    segments = [
        highdicom.seg.SegmentDescription(
            number, name, codes.cid7150.Tissue, codes.cid7166.ConnectiveTissue, "MANUAL"
        )
        for number, name in zip(numbers or range(1, len(names) + 1), names, strict=True)
    ]
    uid = highdicom.UID()
    dataset = highdicom.seg.Segmentation(
        slices, pixels, kind, segments, uid, 1, uid, 1, "maker", "model", "1", "7"
    )
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def write_rtstruct(
    path: pathlib.Path,
    slices: Sequence[pydicom.Dataset],
    masks: Mapping[str, np.ndarray],
    **contour: Any,
) -> pathlib.Path:
    """An RTSTRUCT with the outlines of (slices, rows, columns) masks; axial slices.

    Args:
      path: the file.
      slices: of the image, from foot to head.
      masks: {name: mask}.
      **contour: tags to change in every contour.
    """
    outlines = {name: _outlines(slices, mask) for name, mask in masks.items()}
    return write_contours(path, slices[0].FrameOfReferenceUID, outlines, **contour)


def write_contours(
    path: pathlib.Path, frame: str, outlines: Mapping[str, list[np.ndarray]], **contour: Any
) -> pathlib.Path:
    """An RTSTRUCT with contours (n, 3) in LPS mm: {name of a structure: its contours}."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, "1.2.9"
    dataset.Modality, dataset.PatientName, dataset.PatientID = "RTSTRUCT", "Doe^Jane", "4711"
    dataset.StructureSetROISequence = [
        _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)
        for number, name in enumerate(outlines, 1)
    ]
    dataset.ROIContourSequence = [
        _item(
            ReferencedROINumber=number,
            ContourSequence=[_contour(points, contour) for points in contours],
        )
        for number, contours in enumerate(outlines.values(), 1)
    ]
    dataset.save_as(path, enforce_file_format=True)
    return path


def _contour(points: np.ndarray, changed: Mapping[str, Any]) -> pydicom.Dataset:
    values = {
        "ContourGeometricType": "CLOSED_PLANAR",
        "NumberOfContourPoints": len(points),
        "ContourData": [round(float(x), 3) for x in points.ravel()],
    }
    return _item(**{**values, **changed})


def _outlines(slices: Sequence[pydicom.Dataset], mask: np.ndarray) -> list[np.ndarray]:
    found = []
    for dataset, plane in zip(slices, mask, strict=True):
        x, y, z = map(float, dataset.ImagePositionPatient)
        row_mm, column_mm = map(float, dataset.PixelSpacing)
        for line in contourpy.contour_generator(z=plane.astype(float)).lines(0.5):
            assert isinstance(line, np.ndarray)
            if len(line) > 3:
                corner = np.full(len(line), z)
                points = [x + line[:, 0] * column_mm, y + line[:, 1] * row_mm, corner]
                found.append(np.stack(points, axis=1))
    return found


def _item(**tags: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(item, tag, value)
    return item
