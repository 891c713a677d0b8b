"""DICOM files with a patient in every text tag of the standard, and in private ones."""

from __future__ import annotations

import functools
import gzip
import pathlib
import shutil
from collections.abc import Collection, Sequence

import numpy as np
import pydicom
from pydicom.datadict import DicomDictionary, keyword_for_tag, tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from data_pipelines.readers.dicom_frames import SLICE_TAGS
from data_pipelines.readers.dicom_pixels import PIXEL_TAGS
from tests.data.dicom_files import ct_slice, enhanced
from tests.data.planted import DATE, NAME, SHAPE, TEXT, UID, hounsfield, organ
from tests.data.structure_files import write_rtstruct, write_seg

_VALUES = {"PN": f"{NAME}^Erika", "DA": DATE, "DT": f"{DATE}120000", "UI": f"{UID}.1"}
_VALUES |= dict.fromkeys(("IS", "DS"), DATE)
_VALUES |= dict.fromkeys(("SH", "AE", "CS", "TM", "AS"), NAME)
_VALUES |= dict.fromkeys(("LO", "ST", "LT", "UT", "UC", "UR"), TEXT)
_BYTES = dict.fromkeys(("OB", "UN"), TEXT.ljust(64).encode())
_READ = {*SLICE_TAGS, *PIXEL_TAGS} - {"ImageType"}
"""Tags of an image that must hold what they are for."""
_SPARE = {"ImageType", "SpacingBetweenSlices", "SliceThickness", "SharedFunctionalGroupsSequence"}
"""Tags that a series of single slices does without."""
_SLIDE = {"ImageCenterPointCoordinatesSequence", "ImageOrientationSlide"}
"""Tags that make a microscope's slide of a SEG."""


def write_good(root: pathlib.Path) -> None:
    """A series and a multi-frame file."""
    _write(root / "series", [plant(_ct(index)) for index in range(SHAPE[0])])
    _write(root / "enhanced", [plant(_enhanced())])


def write_masks(root: pathlib.Path) -> None:
    """A SEG and an RTSTRUCT of the series; their structures are an organ and the patient."""
    slices, names = [_ct(index) for index in range(SHAPE[0])], ("liver", NAME)
    parts = [organ(), np.roll(organ(), 4, axis=1) > organ()]
    write_seg(root / "seg", slices, np.stack(parts, -1).astype(np.uint8), names)
    write_rtstruct(root / "contours", slices, dict(zip(names, parts, strict=True)))
    for path in root.iterdir():
        dataset = pydicom.dcmread(path)
        _plant_items(dataset)
        keep = {element.tag for element in dataset if element.VR in ("CS", "SQ", "UI", "IS", "OB")}
        _save(plant(dataset, {keyword_for_tag(tag) for tag in keep} | _READ | _SLIDE), path)


def write_broken(root: pathlib.Path, series: pathlib.Path) -> None:
    """Folders that are errors, some of them damaged copies of the good series."""
    (shutil.copytree(series, root / "gap") / "02").unlink()
    for name, size in {"cut_header": 3000, "cut_pixels": -300}.items():
        file = shutil.copytree(series, root / name) / "03"
        file.write_bytes(file.read_bytes()[:size])
    second = [_ct(index, SeriesInstanceUID=f"{UID}.2") for index in range(SHAPE[0])]
    _write(shutil.copytree(series, root / "two_series") / "second", second)
    _write(root / "no_image", [_without(plant(_ct(0)), "Rows", "PixelData")])
    for tag in sorted({*SLICE_TAGS, *PIXEL_TAGS} - _SPARE):
        _write(root / f"wrong_{tag}", [_wrong(_ct(index), tag) for index in range(2)])
        _write(root / f"wrong_enhanced_{tag}", [_wrong(_enhanced(), tag)])
    syntax = _write(root / "syntax", [_ct(0)]) / "00"
    known = ExplicitVRLittleEndian.ljust(20, "\0").encode()
    syntax.write_bytes(syntax.read_bytes().replace(known, UID.ljust(20, "\0").encode()))
    _write(root / "codec", [_undecodable(_ct(index)) for index in range(2)])
    (root / "packed_dicom.nii").write_bytes(gzip.compress((series / "00").read_bytes()))


def plant(dataset: pydicom.Dataset, keep: Collection[str] = _READ) -> pydicom.Dataset:
    """Fills every text tag of the standard but those in `keep`, and two private ones."""
    keep = {*map(tag_for_keyword, keep)}
    for tag, element in _everything().items():
        if tag not in keep:
            dataset[tag] = element
    return dataset


@functools.cache
def _everything() -> pydicom.Dataset:
    dataset, values = pydicom.Dataset(), _VALUES | _BYTES
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in (0, 2, 4) or keyword in ("SOPClassUID", "Modality"):
            continue
        if vr in values:
            dataset.add_new(tag, vr, values[vr])
        elif vr == "SQ":
            dataset.add_new(tag, vr, [_person()])
    block = dataset.private_block(0x0011, NAME, create=True)
    block.add_new(1, "LO", TEXT)
    block.add_new(2, "UN", TEXT.ljust(64).encode())
    return dataset


def _person() -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.PatientName, item.PatientBirthDate, item.ReferencedSOPInstanceUID = NAME, DATE, UID
    return item


def _plant_items(dataset: pydicom.Dataset) -> None:
    """Adds the patient to whatever is in sequences, where an organ's name may stay."""
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            _plant_items(item)
            item.PatientName, item.PatientBirthDate = NAME, DATE
            for name in ("ROIDescription", "SegmentDescription", "CodeMeaning", "TrackingID"):
                setattr(item, name, TEXT)


def _ct(index: int, **fields: str) -> pydicom.Dataset:
    pixels = (hounsfield()[index] + 1024).astype(np.uint16).tobytes()
    size = {"Rows": SHAPE[1], "Columns": SHAPE[2], "PixelSpacing": [2.5, 2.5]}
    size |= {"SliceThickness": 2.5, "PixelData": pixels}
    uids = {"SOPInstanceUID": f"{UID}.{index}", "SeriesInstanceUID": f"{UID}.1"}
    uids |= {"FrameOfReferenceUID": f"{UID}.1", "PatientName": TEXT}
    return ct_slice(index, **(size | uids | fields))


def _enhanced() -> pydicom.Dataset:
    pixels = (hounsfield() + 1024).astype(np.uint16).tobytes()
    size = {"Rows": SHAPE[1], "Columns": SHAPE[2], "PatientName": TEXT}
    dataset = enhanced(**size, PixelData=pixels)
    _plant_items(dataset)
    return dataset


def _wrong(dataset: pydicom.Dataset, tag: str) -> pydicom.Dataset:
    """Text in place of what a tag is for: in an implicit syntax it passes for it."""
    _without(dataset, tag).add_new(tag_for_keyword(tag), "LO", TEXT)
    dataset["PixelData"].VR = "OW"  # or else pydicom asks the tag that is wrong
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _without(dataset: pydicom.Dataset, *tags: str) -> pydicom.Dataset:
    for tag in tags:
        dataset.pop(tag, None)
    return dataset


def _undecodable(dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.PixelData = pydicom.encaps.encapsulate([TEXT.ljust(64).encode()])
    return dataset


def _write(folder: pathlib.Path, datasets: Sequence[pydicom.Dataset]) -> pathlib.Path:
    folder.mkdir()
    for index, dataset in enumerate(datasets):
        _save(dataset, folder / f"{index:02d}")
    return folder


def _save(dataset: pydicom.Dataset, path: pathlib.Path) -> None:
    """Writes a file with the patient in its preamble and file meta information, too."""
    dataset.preamble = TEXT.ljust(128).encode()
    meta = dataset.file_meta
    meta.ImplementationVersionName, meta.ImplementationClassUID = NAME, UID
    meta.SourceApplicationEntityTitle, meta.MediaStorageSOPInstanceUID = NAME, UID
    dataset.save_as(path, enforce_file_format=True)
