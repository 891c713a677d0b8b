"""Hostile and odd NRRD and MetaImage files, whose headers are text."""

from __future__ import annotations

import gzip
import pathlib
import zlib

import numpy as np

from tests.data.hostile import CT, ZEROS, Kind, Maker, equals, file

_ZYX = np.ascontiguousarray(CT.T)
_NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 6 7",
    "space directions": "(3,0,0) (0,3,0) (0,0,3)",
    "space origin": "(0,0,0)",
    "endian": "little",
    "encoding": "raw",
}
_MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "3 3 3",
    "DimSize": "5 6 7",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nrrd(changed: dict[str, str] | None = None, data: bytes = _ZYX.tobytes()) -> bytes:
    """An NRRD file; an empty field is left out."""
    fields = {**_NRRD, "content": "Doe^Jane", **(changed or {})}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return "\n".join(["NRRD0004", *lines, "", ""]).encode() + data


def metaimage(changed: dict[str, str] | None = None, data: bytes = _ZYX.tobytes()) -> bytes:
    """A MetaImage file; an empty field is left out, the data file comes last."""
    fields = {"Comment": "Doe^Jane", **_MHA, **(changed or {})}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    return "".join(f"{k} = {v}\n" for k, v in fields.items() if v).encode() + data


def _nrrd(data: bytes = _ZYX.tobytes(), **changed: str) -> Maker:
    named = {name.replace("_", " "): value for name, value in changed.items()}
    return file(nrrd(named, data), "scan.nrrd")


def _mha(data: bytes = _ZYX.tobytes(), **changed: str) -> Maker:
    return file(metaimage(changed, data), "scan.mha")


def _beside(name: str) -> Maker:
    """An .nhdr whose data file has this name; the voxels lie in a folder beside its own."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        (folder / "other").mkdir()
        (folder / "other" / "voxels").write_bytes(_ZYX.tobytes())
        (given := folder / "given").mkdir()
        (given / "link").symlink_to(folder / "other" / "voxels")
        where = name.replace("FOLDER", str(folder))
        (given / "scan.nhdr").write_bytes(nrrd({"data file": where}, b""))
        return given / "scan.nhdr"

    return make


def _endless() -> bytes:
    """2 GB of zeros and no end, packed by zlib."""
    pack = zlib.compressobj()
    start = pack.compress(bytes(1)) + pack.flush(zlib.Z_FULL_FLUSH)
    return start + (pack.compress(bytes(1 << 24)) + pack.flush(zlib.Z_FULL_FLUSH)) * 128


_TWO = {"without ending": 2}
_NUL = "other\0/voxels"

KINDS = (
    Kind("nrrd", _nrrd(), equals(_ZYX)),
    Kind(
        "nrrd with a path upwards",
        _beside("../other/voxels"),
        "outside of its folder",
        passed_over=_TWO,
    ),
    Kind(
        "nrrd with a whole path",
        _beside("FOLDER/other/voxels"),
        "outside of its folder",
        passed_over=_TWO,
    ),
    Kind("nrrd with a link outwards", _beside("link"), "outside of its folder", passed_over=_TWO),
    Kind("nrrd with a NUL", _beside(_NUL), "outside of its folder", passed_over=_TWO),
    Kind(
        "nrrd with a device",
        _beside("/dev/zero"),
        "outside of its folder",
        bomb=True,
        passed_over=_TWO,
    ),
    Kind("nrrd of several files", _beside("LIST"), "several files", passed_over=_TWO),
    Kind("nrrd that claims 2 GB", _nrrd(sizes="1024 1024 1024"), "ends before", bomb=True),
    Kind("nrrd of 10^54 voxels", _nrrd(sizes=f"{'9' * 18} " * 3), "an image of shape", bomb=True),
    Kind(
        "nrrd bomb",
        _nrrd(gzip.compress(_ZYX.tobytes()) + ZEROS * 128, encoding="gzip"),
        equals(_ZYX),
        bomb=True,
    ),
    Kind("nrrd without directions", _nrrd(space_directions=""), equals(_ZYX), prepared=False),
    Kind("nrrd of vectors", _nrrd(kinds="vector domain domain"), "not an image of three axes"),
    Kind("nrrd cut short", _nrrd(_ZYX.tobytes()[:-1]), "ends before"),
    Kind("nrrd without end", file(nrrd()[:100], "scan.nrrd"), "the header has no end"),
    Kind("nrrd with two types", _nrrd(Type="int"), "two values in the field 'type'"),
    Kind("mha", _mha(), equals(_ZYX)),
    Kind("mha with a path upwards", _mha(ElementDataFile="../x"), "outside of its folder"),
    Kind("mha that claims 2 GB", _mha(DimSize="1024 1024 1024"), "ends before", bomb=True),
    Kind("mha of vectors", _mha(ElementNumberOfChannels="3"), "not an image of three axes"),
    Kind(
        "mha bomb",
        _mha(_endless(), CompressedData="True"),
        equals(_ZYX * 0),
        bomb=True,
        prepared=False,
    ),
    Kind("mha without spacing", _mha(ElementSpacing=""), equals(_ZYX), prepared=False),
    Kind("mha with spacing NaN", _mha(ElementSpacing="3 3 nan"), "not positive"),
    Kind("mha of text", _mha(BinaryData="False"), "written as text"),
)
