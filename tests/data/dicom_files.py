"""Small DICOM files for tests, with any tag changed on request."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from etils import epath
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

SHAPE = (6, 5, 4)  # slices, rows, columns
ROW_MM, COLUMN_MM, SLICE_MM = 0.8, 0.7, 2.5
AXIAL = (1.0, 0, 0, 0, 1, 0)
OBLIQUE = (0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, 0.6)


def stored() -> np.ndarray:
    """The stored values of all slices; those of the scan are 1024 lower."""
    return np.random.default_rng(0).integers(0, 4000, SHAPE, np.uint16)


def position(index: int, orientation: Sequence[float] = AXIAL) -> list[float]:
    """Where a slice begins, LPS mm."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [round(float(x), 6) for x in np.array([10.0, -20, 30]) + normal * SLICE_MM * index]


def ct_slice(index: int, orientation: Sequence[float] = AXIAL, **fields: Any) -> pydicom.Dataset:
    """One uncompressed CT slice; `fields` set or, with None, remove a tag."""
    return _dataset(
        index,
        CTImageStorage,
        {
            "InstanceNumber": 100 - index,  # opposite to space: must not matter
            "ImageOrientationPatient": list(orientation),
            "ImagePositionPatient": position(index, orientation),
            "PixelSpacing": [ROW_MM, COLUMN_MM],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "PixelData": stored()[index % SHAPE[0]].tobytes(),
        }
        | fields,
    )


def enhanced(
    order: Sequence[int] = range(SHAPE[0]), slope: float = 1, **fields: Any
) -> pydicom.Dataset:
    """One enhanced CT file whose frames are the slices `order`."""
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [ROW_MM, COLUMN_MM]},
    )
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -1024, "RescaleType": "HU"}
    frames = [
        group(
            PlanePositionSequence={"ImagePositionPatient": position(index)},
            PixelValueTransformationSequence=rescale,
        )
        for index in order
    ]
    values = {
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
        "PixelData": stored()[list(order)].tobytes(),
    }
    return _dataset(0, EnhancedCTImageStorage, values | fields)


def group(**macros: dict[str, Any]) -> pydicom.Dataset:
    """The functional groups of a frame: {name of a sequence: its one item's tags}."""
    item = pydicom.Dataset()
    for name, tags in macros.items():
        macro = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(macro, tag, value)
        setattr(item, name, [macro])
    return item


def write(
    folder: pathlib.Path, datasets: Sequence[pydicom.Dataset], prefix: str = ""
) -> pathlib.Path:
    """Writes files whose names are not in spatial order."""
    folder.mkdir(exist_ok=True)
    for index, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{prefix}{(index * 5 + 3) % 31:02d}", enforce_file_format=True)
    return folder


def real_slices(folder: epath.Path) -> list[pydicom.Dataset]:
    """The slices of the sample series, from foot to head, with UIDs for those blanked in it."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    for dataset in slices:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.3"
    return sorted(slices, key=lambda dataset: float(dataset.ImagePositionPatient[2]))


def _dataset(index: int, kind: str, fields: dict[str, Any]) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(kind)
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.{index + 1}")
    values: dict[str, Any] = {
        "SOPClassUID": kind,
        "SOPInstanceUID": f"1.2.{index + 1}",
        "StudyInstanceUID": "1.2",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "PatientBirthDate": "19700101",
        "PatientSex": "F",
        "AccessionNumber": "4711",
        "StudyID": "4711",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "SeriesInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.2.4",
        "Rows": SHAPE[1],
        "Columns": SHAPE[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    for name, value in (values | fields).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset
