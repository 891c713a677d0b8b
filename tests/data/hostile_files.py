"""Odd names, links, pipes, folders with names of files, and wrong tables."""

from __future__ import annotations

import gzip
import os
import pathlib
import unicodedata
from collections.abc import Callable
from typing import Any

from tests.data.dicom_files import ct_slice, write
from tests.data.hostile import TABLE, Kind, Maker, equals, table
from tests.data.hostile_nifti import nifti

_SCAN = gzip.compress(nifti(), mtime=0)


def _named(name: str | bytes, data: bytes = _SCAN) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        path = folder / os.fsdecode(name)
        path.write_bytes(data)
        return path

    return make


def _at(name: str, put: Callable[[pathlib.Path], Any]) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        put(folder / name)
        return folder / name

    return make


def _twins(folder: pathlib.Path) -> pathlib.Path:
    """Two names that look the same, composed and decomposed."""
    for form in ("NFC", "NFD"):
        (folder / unicodedata.normalize(form, "Schädel.nii.gz")).write_bytes(_SCAN)
    return folder / unicodedata.normalize("NFD", "Schädel.nii.gz")


def _loop(folder: pathlib.Path) -> pathlib.Path:
    (folder / "scan.nii.gz").symlink_to("other.nii.gz")
    (folder / "other.nii.gz").symlink_to("scan.nii.gz")
    return folder / "scan.nii.gz"


def _below_itself(folder: pathlib.Path) -> pathlib.Path:
    (folder / "again").symlink_to(folder)
    return folder


def _pipe_among(name: str) -> Maker:
    """A pipe beside the slices of a series."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        write(folder, [ct_slice(index) for index in range(6)])
        os.mkfifo(folder / name)
        return folder

    return make


def _outside(folder: pathlib.Path) -> pathlib.Path:
    """A link to a scan outside of the folder; it is read only if it is named itself."""
    (folder / "scan.nii.gz").symlink_to(outside(folder))
    return folder / "scan.nii.gz"


def outside(folder: pathlib.Path) -> pathlib.Path:
    """A scan beside the folder of scans."""
    path = folder.parent.parent / "outside.nii.gz"
    path.write_bytes(_SCAN)
    return path


def _table(text: str | bytes) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        path = folder / TABLE
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def _csv(name: str, text: str | bytes, outcome: str) -> Kind:
    return Kind(name, _table(text), outcome, table, found=False, passed_over={".csv": 1})


KINDS = (
    Kind("empty file", _named("scan.nii.gz", b""), "the file is empty"),
    Kind("text named nii.gz", _named("scan.nii.gz", b"Doe^Jane, 4711\n" * 99), "not an image in"),
    Kind(
        "scan without ending",
        _named("scan"),
        equals(),
        found=False,
        passed_over={"without ending": 1},
    ),
    Kind(
        "folder named nii.gz",
        _at("scan.nii.gz", os.mkdir),
        "no DICOM images and no PNG",
        found=False,
    ),
    Kind("empty folder", lambda folder: folder, "no DICOM images and no PNG", found=False),
    Kind("pipe", _at("scan.nii.gz", os.mkfifo), "not a file", bomb=True),
    Kind(
        "pipe without ending",
        _at("scan", os.mkfifo),
        "not a file",
        bomb=True,
        found=False,
        passed_over={"without ending": 1},
    ),
    Kind("pipe among slices", _pipe_among("99"), "not a file|cut short", bomb=True),
    Kind("broken link", _at("scan.nii.gz", lambda p: p.symlink_to("gone")), "no such file"),
    Kind("links in a circle", _loop, "cannot be read"),
    Kind("folder below itself", _below_itself, "no DICOM images and no PNG", found=False),
    Kind(
        "link to a device",
        _at("scan.nii.gz", lambda p: p.symlink_to("/dev/zero")),
        "not a file|leads out",
        bomb=True,
    ),
    Kind("link outwards", _outside, equals(), prepared=False),
    Kind("name with a line end", _named('a\nb,"c\x1b[31m.nii.gz'), equals()),
    Kind("name with a line end, cut", _named("a\nb\x1b[31m.nii.gz", _SCAN[:99]), "truncated"),
    Kind("name that is not UTF-8", _named(b"caf\xe9.nii.gz"), equals()),
    Kind("name that is not UTF-8, cut", _named(b"caf\xe9.nii.gz", _SCAN[:99]), "truncated"),
    Kind("name of 255 bytes", _named("x" * 248 + ".nii.gz"), equals()),
    Kind("names that look the same", _twins, equals()),
    Kind("name of another format", _named("scan.mha"), equals()),
    _csv(
        "table that leads upwards", "image\n../secret.nii.gz\n", r"row 2: .* outside of the folder"
    ),
    _csv("table with a whole path", "image\n/etc/passwd\n", "outside of the folder"),
    _csv("table with a mask elsewhere", "image,mask\na.nii.gz,../b\n", "mask .* outside"),
    _csv("table with a line end in a path", 'image\n"a\nb"\n', "control characters"),
    _csv("table with a NUL", "image\na\0b\n", "control characters|row"),
    _csv("table in Latin-1", "image\ncaf\u00e9\n".encode("latin-1"), "not UTF-8"),
    _csv("table without images", "scan\na\n", "its first row does not name"),
    _csv("table, empty", "", "its first row does not name"),
    _csv("table with an open quote", 'image\n"a\n', "row 2"),
    _csv(
        "table with a name as a label", "image,sick\na,Doe^Jane\n", "label 'sick' holds other text"
    ),
    _csv("table with a scan twice", "image\na\na\n", "also in row 2"),
    _csv("table with a bad split", "image,split\na,../x\n", "cannot be the name of a split"),
    _csv("table with a huge cell", "image,report\na," + "x" * 200_000 + "\n", "row 2"),
)
