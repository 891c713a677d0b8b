"""Scans of every format, good and broken, with a patient in every text that their headers hold."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from data_pipelines.readers.dicom_frames import SLICE_TAGS
from data_pipelines.readers.dicom_pixels import PIXEL_TAGS
from tests.data.dicom_files import ct_slice, enhanced, position
from tests.data.structure_files import write_rtstruct, write_seg

NAME = "ZZQMUSTER"
DATE = "19031117"
UID = "1.2.826.0.1.424242.99"
SECRETS = (NAME, DATE, UID)
SHAPE = (8, 24, 24)  # slices, rows, columns
_TEXT = f"{NAME} {DATE} {UID}"
_SHORT = {"PN": f"{NAME}^Erika", "DA": DATE, "DT": f"{DATE}120000", "UI": f"{UID}.1", "IS": DATE}
_SHORT |= {"DS": DATE} | dict.fromkeys(("SH", "AE", "CS", "TM", "AS"), NAME)
_LONG = dict.fromkeys(("LO", "ST", "LT", "UT", "UC", "UR"), _TEXT)
_BYTES = dict.fromkeys(("OB", "UN"), (_TEXT + " " * (len(_TEXT) % 2)).encode())
_READ = {*SLICE_TAGS, *PIXEL_TAGS, "SOPClassUID"} - {"ImageType"}
"""Tags of DICOM images that cannot hold just anything."""


def found(data: bytes) -> list[str]:
    """Which of the secrets are in these bytes, in any case and usual encoding."""
    data = data.lower()
    return [
        f"{secret} ({encoding})"
        for secret in SECRETS
        for encoding in ("utf-8", "utf-16-le", "utf-16-be")
        if secret.lower().encode(encoding) in data
    ]


def hounsfield() -> np.ndarray:
    """An organ in air, with noise; SHAPE, int16 HU."""
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    image = np.full(SHAPE, -1000.0)
    image[1:-1, 5:19, 5:19] = 40
    return np.rint(image + noise).astype(np.int16)


def organ() -> np.ndarray:
    """Where it is; SHAPE, uint8."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:6, 8:16, 8:16] = 1
    return mask


def write_good(root: pathlib.Path) -> None:
    """One scan of each format, and masks for those in DICOM."""
    root.mkdir()
    write_dicom(root / "series", _slices())
    write_dicom(root / "enhanced", [plant(_enhanced())])
    _nifti(root / "one.nii.gz")
    _nifti(root / "two.nii", nib.Nifti2Image)
    (root / "three.nrrd").write_bytes(nrrd())
    (root / "four.mha").write_bytes(metaimage())
    np.save(root / "five.npy", hounsfield())
    with (root / "five.npy").open("ab") as file:
        file.write(_TEXT.encode())
    _archive(root / "six.npz", ct=hounsfield())
    _slice_images(root / "png")
    _slice_images(root / "jpeg")


def write_masks(root: pathlib.Path) -> None:
    """A SEG and an RTSTRUCT of the good series, with an organ and the patient as structures."""
    root.mkdir()
    slices = [_ct(index, SOPInstanceUID=f"{UID}.{index + 1}") for index in range(SHAPE[0])]
    for dataset in slices:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.update({"FrameOfReferenceUID": f"{UID}.1", "SeriesInstanceUID": f"{UID}.1"})
    labels = organ() + 2 * (np.roll(organ(), 3, axis=1) > organ())
    write_seg(root / "seg", slices, labels.astype(np.uint8), ("liver", NAME))
    write_rtstruct(root / "contours", slices, {"liver": organ(), NAME: np.roll(organ(), 3, axis=1)})
    for path in (root / "seg", root / "contours"):
        dataset = pydicom.dcmread(path)
        _items(dataset)
        kept = {element.tag for element in dataset if element.VR in ("CS", "SQ", "UI", "IS")}
        plant(
            dataset, {pydicom.datadict.keyword_for_tag(tag) for tag in kept} | {"SegmentsOverlap"}
        )
        save(dataset, path)


def write_broken(root: pathlib.Path) -> None:
    """A folder or file for each way of being broken; every one is an error."""
    root.mkdir()
    slices = _slices()
    write_dicom(root / "gap", [*slices[:3], *slices[4:]])
    for dataset in slices[4:]:
        dataset.SeriesInstanceUID = f"{UID}.2"
    write_dicom(root / "two_series", slices)
    for name, size in {"cut_header": 3000, "cut_pixels": -300}.items():
        folder = write_dicom(root / name, _slices())
        (folder / "03").write_bytes((folder / "03").read_bytes()[:size])
    write_dicom(root / "no_image", [_without_image()])
    for tag in sorted({*SLICE_TAGS, *PIXEL_TAGS} - _HARMLESS):
        write_dicom(root / f"tag_{tag}", [_wrong(_ct(index), tag) for index in range(3)])
    for tag in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        write_dicom(root / f"frames_{tag}", [_wrong(_enhanced(), tag)])
    write_dicom(root / "syntax", [_other_syntax(_ct(index)) for index in range(3)])
    write_dicom(root / "codec", [_compressed(_ct(index)) for index in range(3)])
    slice_ = (root / "gap" / "00").read_bytes()
    (root / "dicom.nii").write_bytes(gzip.compress(slice_))
    _broken_nifti(root)
    _broken_text_headers(root)
    _broken_arrays(root)
    for kind in ("png", "jpeg"):
        folder = _slice_images(root / kind)
        cut = next(folder.glob("3.*"))
        cut.write_bytes(cut.read_bytes()[:-400])


_HARMLESS = {
    "ImageType",
    "SpacingBetweenSlices",
    "SliceThickness",
    "SharedFunctionalGroupsSequence",
}
"""Tags that single slices of a series do without, or in which text does no harm."""


def write_dicom(folder: pathlib.Path, datasets: Sequence[pydicom.Dataset]) -> pathlib.Path:
    """Files that are not held to the standard, as scanners do not hold to it either."""
    folder.mkdir()
    for index, dataset in enumerate(datasets):
        save(dataset, folder / f"{index:02d}")
    return folder


def save(dataset: pydicom.Dataset, path: pathlib.Path) -> None:
    """Writes a file with the patient in its preamble and its file meta information, too."""
    dataset.preamble = _TEXT.ljust(128).encode()
    dataset.file_meta.ImplementationVersionName = NAME
    dataset.file_meta.ImplementationClassUID = UID
    dataset.file_meta.SourceApplicationEntityTitle = NAME
    dataset.save_as(path)


def plant(dataset: pydicom.Dataset, keep: set[str] = _READ) -> pydicom.Dataset:
    """Fills every text tag of the standard but those in `keep`, and private ones."""
    values = _SHORT | _LONG | _BYTES
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in (0, 2, 4) or keyword in keep:
            continue
        if vr in values:
            dataset.add_new(tag, vr, values[vr])
        elif vr == "SQ":
            dataset.add_new(tag, vr, [_person()])
    _private(dataset)
    return dataset


def _person() -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.PatientName, item.PatientBirthDate, item.ReferencedSOPInstanceUID = NAME, DATE, UID
    return item


def _private(dataset: pydicom.Dataset) -> None:
    block = dataset.private_block(0x0011, NAME, create=True)
    block.add_new(1, "LO", _TEXT)
    block.add_new(2, "UN", _TEXT.ljust(64).encode())


def _items(dataset: pydicom.Dataset) -> None:
    """Plants the patient beside whatever is in the sequences of a dataset."""
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            _items(item)
            item.update(_person())
            for name in ("ROIDescription", "SegmentDescription", "CodeMeaning", "TrackingID"):
                setattr(item, name, _TEXT)


def _ct(index: int, **fields: Any) -> pydicom.Dataset:
    pixels = (hounsfield()[index] + 1024).astype(np.uint16).tobytes()
    size = {"Rows": SHAPE[1], "Columns": SHAPE[2], "PixelSpacing": [2.5, 2.5]}
    return ct_slice(index, **(size | {"PixelData": pixels, "PatientName": NAME} | fields))


def _slices() -> list[pydicom.Dataset]:
    return [plant(_ct(index)) for index in range(SHAPE[0])]


def _enhanced() -> pydicom.Dataset:
    pixels = (hounsfield() + 1024).astype(np.uint16).tobytes()
    dataset = enhanced(range(6), Rows=SHAPE[1], Columns=SHAPE[2], PatientName=NAME)
    frames = dataset.PerFrameFunctionalGroupsSequence
    for index in range(6, SHAPE[0]):
        frames.append(frames[0].__deepcopy__({}))
        frames[index].PlanePositionSequence[0].ImagePositionPatient = position(index)
    dataset.NumberOfFrames, dataset.PixelData = SHAPE[0], pixels
    _items(dataset)
    return dataset


def _wrong(dataset: pydicom.Dataset, tag: str) -> pydicom.Dataset:
    """Text in place of a number: only an implicit syntax lets it pass for one."""
    if tag in dataset:
        del dataset[tag]
    dataset.add_new(pydicom.datadict.tag_for_keyword(tag), "LO", NAME)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _without_image() -> pydicom.Dataset:
    dataset = plant(_ct(0))
    for name in ("Rows", "Columns", "PixelData"):
        del dataset[name]
    return dataset


def _other_syntax(dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.file_meta.TransferSyntaxUID = UID
    # pydicom cannot know how to write it.
    dataset.save_as(io.BytesIO(), implicit_vr=False, little_endian=True)
    return dataset


def _compressed(dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.PixelData = pydicom.encaps.encapsulate([_TEXT.encode()])
    return dataset
