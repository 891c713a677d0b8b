"""Files with a patient in every text that their format holds; here all formats but DICOM."""

from __future__ import annotations

import gzip
import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin

NAME = "ZZQMUSTER"  # short enough for the shortest fields
DATE = "19031117"
UID = "1.2.826.0.1.424242"
SECRETS = (NAME, DATE, UID)
TEXT = f"{NAME} {DATE} {UID}"
SHAPE = (6, 24, 24)  # slices, rows, columns
_CUT = -400
"""Bytes that are missing at the end of a truncated file."""


def found(data: bytes) -> set[str]:
    """The secrets in these bytes, in any case and encoding that a header may have."""
    data = data.lower()
    codes = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
    return {text for text in SECRETS if any(text.lower().encode(code) in data for code in codes)}


def hounsfield() -> np.ndarray:
    """An organ in air, with noise; SHAPE, int16 HU."""
    image = np.full(SHAPE, -1000.0)
    image[1:-1, 5:19, 5:19] = 40
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    return np.rint(image + noise).astype(np.int16)


def organ() -> np.ndarray:
    """A part of it; SHAPE, uint8."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 8:16, 8:16] = 1
    return mask


def write_good(root: pathlib.Path) -> None:
    """A scan of each format."""
    (root / "one.nii.gz").write_bytes(gzip.compress(_nifti()))
    (root / "two.nii").write_bytes(_nifti(nib.Nifti2Image))
    (root / "three.nrrd").write_bytes(_nrrd())
    (root / "four.mha").write_bytes(_metaimage())
    (root / "five.npy").write_bytes(_npy(hounsfield()) + TEXT.encode())
    (root / "six.npz").write_bytes(_npz(ct=hounsfield()))
    for kind in ("png", "jpeg"):
        _slices(root / kind, kind)


def write_broken(root: pathlib.Path) -> None:
    """Files that are errors: cut, or with the patient where something else should be."""
    content = {"short.nii": _nifti()[:_CUT], "packed.nii.gz": gzip.compress(_nifti())[:_CUT]}
    content |= {"short_nrrd.nrrd": _nrrd()[:_CUT], "short_mha.mha": _metaimage()[:_CUT]}
    content |= {f"{name}.nii": data for name, data in _broken_nifti().items()}
    for field in _NRRD:
        content[f"{field.replace(' ', '_')}.nrrd"] = _nrrd(**{field: TEXT})
    for field in _METAIMAGE.keys() - {"ElementDataFile"}:
        content[f"{field}.mha"] = _metaimage(**{field: TEXT})
    content["detached.nhdr"] = _nrrd(**{"data file": f"{NAME}.raw"})
    content["detached_mhd.mhd"] = _metaimage(ElementDataFile=f"{NAME}.raw")
    content["fields.npy"] = _npy(np.zeros(SHAPE, [(NAME, "i2"), (DATE, "i2")]))
    content["objects.npy"] = _npy(np.full(SHAPE, TEXT, object))
    content["text.npy"] = _npy(np.full(SHAPE, TEXT))
    content["header.npy"] = _npy(hounsfield()).replace(b"'<i2'", f"'{NAME}'".encode())
    content["many.npz"] = _npz(**{NAME: hounsfield(), DATE: hounsfield()})
    content["short_npz.npz"] = _npz(ct=hounsfield())[:_CUT]
    content["letter.nii"] = TEXT.encode() * 100
    for name, data in content.items():
        (root / name).write_bytes(data)
    for kind in ("png", "jpeg"):
        (cut,) = _slices(root / kind, kind).glob("3.*")
        cut.write_bytes(cut.read_bytes()[:_CUT])


def _nifti(kind: Any = nib.Nifti1Image) -> bytes:
    image = kind(hounsfield(), np.diag([2.5, 2.5, 2.5, 1]))
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = TEXT[: image.header[field].dtype.itemsize]
    if kind is nib.Nifti1Image:
        image.header["db_name"], image.header["data_type"] = f"{NAME}-{DATE}", NAME
    for code in (0, 4, 6):  # unknown, AFNI, comment
        image.header.extensions.append(Nifti1Extension(code, TEXT.encode()))
    return image.to_bytes()


def _broken_nifti() -> dict[str, bytes]:
    """Each of the header's fields that is read, overwritten."""
    whole, fields = _nifti(), nib.Nifti1Header.template_dtype.fields
    assert fields is not None
    broken = {"pair": whole[:344] + b"ni1\0" + whole[348:]}
    for name in ("dim", "datatype", "vox_offset", "scl_inter", "pixdim", "sform_code"):
        dtype, start = fields[name][:2]
        text = (NAME * 10).encode()[: dtype.itemsize]
        broken[name] = whole[:start] + text + whole[start + len(text) :]
    broken["sform_code"] = whole[:252] + bytes(4) + whole[256:]
    return broken


_NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "24 24 6",
    "space directions": "(2.5,0,0) (0,2.5,0) (0,0,2.5)",
    "space origin": "(0,0,0)",
    "kinds": "domain domain domain",
    "space units": '"mm" "mm" "mm"',
    "endian": "little",
    "encoding": "raw",
    "byte skip": "0",
    "line skip": "0",
}


def _nrrd(**changed: str) -> bytes:
    free = {"content": TEXT, "sample units": TEXT, "labels": f'"{TEXT}"', "old min": TEXT}
    lines = [f"{name}: {value}" for name, value in (_NRRD | free | changed).items()]
    lines += [f"# {TEXT}", f"PatientName:={TEXT}", f"{NAME}:={TEXT}"]
    return "\n".join(["NRRD0005", *lines, "", ""]).encode() + hounsfield().tobytes()


_METAIMAGE = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "2.5 2.5 2.5",
    "DimSize": "24 24 6",
    "HeaderSize": "0",
    "ElementNumberOfChannels": "1",
    "ElementToIntensityFunctionSlope": "1",
    "DistanceUnits": "mm",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def _metaimage(**changed: str) -> bytes:
    free = dict.fromkeys(("Comment", "PatientName", "Name", "AcquisitionDate", NAME), TEXT)
    fields: Mapping[str, str] = free | _METAIMAGE | changed
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items())
    return lines.encode() + hounsfield().tobytes()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    """An archive with a comment, a letter, and small arrays named after the patient."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = TEXT.encode()
        archive.writestr(f"{NAME}.txt", TEXT)
        for name, array in ({f"{NAME} {DATE}": np.zeros(1)} | arrays).items():
            archive.writestr(f"{name}.npy", _npy(array))
    return file.getvalue()


def _slices(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """PNG or JPEG files with EXIF and every kind of comment."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010E], exif[0x010F], exif[0x013B] = TEXT, NAME, DATE  # description, make, artist
    comments = PngImagePlugin.PngInfo()
    comments.add_text("PatientName", TEXT)
    comments.add_text(NAME, TEXT, zip=True)
    comments.add_itxt("Comment", TEXT, NAME, NAME)
    options: dict[str, Any] = {"pnginfo": comments} if kind == "png" else {"comment": TEXT}
    for index, plane in enumerate(hounsfield()):
        grey = ((plane.clip(-1000, 1000) + 1000) / 8).astype(np.uint8)
        path = folder / f"{index}.{kind}"
        Image.fromarray(grey).save(path, exif=exif, xmp=TEXT.encode(), **options)
    return folder
