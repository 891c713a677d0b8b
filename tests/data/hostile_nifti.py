"""Hostile and odd NIfTI files, and voxels with other units than stated."""

from __future__ import annotations

import gzip
import io
import pathlib
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np

from data_pipelines.volume import Volume
from tests.data.hostile import AFFINE, CT, MASK, ZEROS, Kind, Maker, equals, hounsfield, masked

_FLOAT = CT.astype(np.float32)
_PADDED = np.where(np.arange(7) < 3, np.int16(-3024), CT)


def nifti(array: np.ndarray = CT, affine: np.ndarray = AFFINE, **header: Any) -> bytes:
    """A NIfTI-1 file; `header` fields are written over what nibabel made consistent."""
    data = nib.Nifti1Image(array, affine).to_bytes()
    fields = nib.Nifti1Header.from_fileobj(io.BytesIO(data), check=False)
    fields["descrip"], fields["db_name"] = b"Doe^Jane 19700101", b"4711"
    for name, value in header.items():
        fields[name] = value
    return fields.binaryblock + data[len(fields.binaryblock) :]


def _file(data: bytes, name: str = "scan.nii.gz", packed: bool = True) -> Maker:
    """Writes one file, and lets gzip pack it."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        path = folder / name
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
        return path

    return make


def _scan(array: np.ndarray = CT, affine: np.ndarray = AFFINE, **header: Any) -> Maker:
    return _file(nifti(array, affine, **header))


write_scan = _scan()
"""Writes a good one."""


def _packed(change: Callable[[bytes], bytes]) -> Maker:
    """A gzipped scan whose bytes are changed."""
    return _file(change(gzip.compress(nifti(np.tile(CT, (4, 4, 4))), mtime=0)), packed=False)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def _one(value: float) -> np.ndarray:
    array = _FLOAT.copy()
    array[1, 2, 3] = value
    return array


def _dim(*dim: int) -> Maker:
    return _scan(dim=(*dim, *[1] * (8 - len(dim))))


def _sizes(value: float) -> Maker:
    return _scan(pixdim=[1, 3, value, 3, 1, 1, 1, 1])


def _extended(size: int) -> bytes:
    """An extension of 16 bytes that claims to be of another size."""
    data = nifti(vox_offset=368)
    return data[:348] + b"\1\0\0\0" + np.array([size, 6], "<i4").tobytes() + bytes(8) + data[352:]


def _swapped_header() -> bytes:
    """A header in the other byte order than its voxels."""
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(nifti()), check=False)
    return header.as_byteswapped().binaryblock + nifti()[348:]


def _big_endian() -> bytes:
    return _swapped_header()[:352] + nifti(CT.byteswap())[352:]


def _pair(folder: pathlib.Path) -> pathlib.Path:
    nib.Nifti1Pair(CT, AFFINE).to_filename(folder / "scan.hdr")
    return folder / "scan.hdr"


def _mask(array: np.ndarray, affine: np.ndarray = AFFINE) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        write_scan(folder)
        return _file(nifti(array, affine), MASK)(folder)

    return make


def _is_mask(expected: np.ndarray) -> Callable[[Volume], None]:
    return lambda volume: np.testing.assert_array_equal(volume.mask, expected)


_LABELS = (CT > 1000).astype(np.uint8)
_BOMB = gzip.compress(nifti(), mtime=0) + ZEROS * 192
_LIAR = gzip.compress(nifti(dim=[3, 1024, 1024, 1024, 1, 1, 1, 1]), mtime=0)
_LESS = gzip.compress(nifti(dim=[3, 512, 512, 384, 1, 1, 1, 1]), mtime=0)
_RGB = np.zeros(CT.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])

KINDS = (
    Kind("gz cut in its first bytes", _packed(lambda d: d[:8]), "truncated or damaged"),
    Kind("gz cut in the header", _packed(lambda d: d[:60]), "truncated or damaged"),
    Kind("gz cut in the middle", _packed(lambda d: d[: len(d) // 2]), "truncated or damaged"),
    Kind("gz cut in the checksum", _packed(lambda d: d[:-5]), "truncated or damaged"),
    Kind("gz with a flipped bit", _packed(_flipped), "truncated or damaged"),
    Kind("gz then garbage", _packed(lambda d: d + b"junk" * 99), equals(np.tile(CT, (4, 4, 4)))),
    Kind(
        "gz in members",
        _file(gzip.compress(nifti()[:500]) + gzip.compress(nifti()[500:]), packed=False),
        equals(),
    ),
    Kind("gz bomb of 3 GB", _file(_BOMB, packed=False), equals(), bomb=True),
    Kind("gz that claims 2 GB", _file(_LIAR, packed=False), "ends before", bomb=True),
    Kind(
        "gz that ends a little before its claim",
        _file(_LESS + ZEROS * 11 + ZEROS[:9999] + bytes(99_999), packed=False),
        "truncated or damaged",
    ),
    Kind("nii cut short", _file(nifti()[:-1], "scan.nii", False), "ends before the image"),
    Kind("nii cut in the header", _file(nifti()[:200], "scan.nii", False), "not an image"),
    Kind("NaN", _scan(_one(np.nan)), "1 voxels are NaN or infinite"),
    Kind("infinite", _scan(_one(np.inf)), "1 voxels are NaN or infinite"),
    Kind("minus infinite", _scan(_one(-np.inf)), "1 voxels are NaN or infinite"),
    Kind("2D", _scan(CT[0]), "not three axes"),
    Kind("4D", _scan(np.stack([CT, CT], -1)), r"shape \[5, 6, 7, 2\], not three axes"),
    Kind("5D", _scan(np.stack([CT, CT], -1)[..., None, :]), "not three axes"),
    Kind("one time point", _scan(CT[..., None]), equals()),
    Kind("RGB", _scan(_RGB), "voxels of type several numbers"),
    Kind("complex", _scan(CT.astype(np.complex64)), "voxels of type complex64"),
    Kind("zero spacing", _sizes(0), "voxel sizes of"),
    Kind("negative spacing", _sizes(-3), "voxel sizes of"),
    Kind("NaN spacing", _sizes(np.nan), "voxel sizes of"),
    Kind("singular sform", _scan(srow_x=[0, 0, 0, 0]), "singular"),
    Kind("NaN sform", _scan(srow_x=[0, np.nan, 0, 0]), "not a finite 4x4"),
    Kind("huge sform", _scan(srow_x=[0, 0, 0, 1e38]), "lengths of more than"),
    Kind("qform of no rotation", _scan(sform_code=0, qform_code=1, quatern_b=2), "not a rotation"),
    Kind("neither form", _scan(sform_code=0, qform_code=0), "neither qform nor sform"),
    Kind("metres", _scan(xyzt_units=1), "not in millimetres"),
    Kind("one slice", _scan(CT[:, :, :1]), equals(CT[:, :, :1])),
    Kind("slope 0 means none", _scan(scl_slope=0, scl_inter=99), equals()),
    Kind("slope NaN means none", _scan(scl_slope=np.nan), equals()),
    Kind("slope infinite means none", _scan(scl_slope=np.inf), equals()),
    Kind("NaN intercept", _scan(scl_slope=1, scl_inter=np.nan), "intercept .* not a number"),
    Kind("slope 2 once", _scan(CT // 2, scl_slope=2, scl_inter=0), equals(CT // 2 * 2.0, "f4")),
    Kind("slope that overflows", _scan(scl_slope=1e38), "NaN or infinite"),
    Kind("32767 cubed", _dim(3, 32767, 32767, 32767), "an image of shape", bomb=True),
    Kind("negative axis", _dim(3, -5, 6, 7), "an image of shape"),
    Kind("nine axes", _dim(9, 5, 6, 7), "a header of"),
    Kind("voxels beyond the end", _scan(vox_offset=1e30), "ends before"),
    Kind("voxels before the header", _scan(vox_offset=-352), "voxels from byte -352"),
    Kind("voxels from byte NaN", _scan(vox_offset=np.nan), "voxels from byte nan"),
    Kind("voxels of type 9999", _scan(datatype=9999), "not a readable NIfTI"),
    Kind("extension of 2 GB", _file(_extended(2**31 - 1)), equals()),
    Kind("extension of -16 bytes", _file(_extended(-16)), equals()),
    Kind("big endian", _file(_big_endian()), equals()),
    Kind("byte order of the header only", _file(_swapped_header()), "too wide", hounsfield),
    Kind(
        "pair of files", _pair, "a pair of files", found=False, passed_over={".hdr": 1, ".img": 1}
    ),
    Kind("constant", _scan(np.zeros_like(CT)), "all voxels are 0", hounsfield),
    Kind("0 to 1 as HU", _scan((_FLOAT + 1024) / 4000), "too narrow for HU", hounsfield),
    Kind("without intercept", _scan(CT + 1024), "intercept had not been", hounsfield),
    Kind("intercept twice", _scan(CT - 1024), "applied twice", hounsfield),
    Kind("slope twice", _scan(CT * 10), "too wide for HU", hounsfield),
    Kind("8 bit as HU", _scan((CT // 16 + 64).clip(0).astype("u1")), "8-bit image", hounsfield),
    Kind("padding of -3024", _scan(_PADDED), equals(_PADDED), hounsfield),
    Kind("clipped CT", _scan(CT.clip(-1000, 1000)), equals(CT.clip(-1000, 1000)), hounsfield),
    Kind("float64", _scan(CT.astype("f8")), equals(_FLOAT), hounsfield),
    Kind("int32", _scan(CT.astype("i4")), equals(CT.astype("i4")), hounsfield),
    Kind(
        "uint16",
        _scan((CT + 1024).astype("u2"), scl_slope=1, scl_inter=-1024),
        equals(),
        hounsfield,
    ),
    Kind("mask of floats", _mask(_LABELS * np.float32(0.5)), "not whole numbers", masked),
    Kind("mask of whole floats", _mask(_LABELS * np.float32(2)), _is_mask(_LABELS * 2), masked),
    Kind("mask below 0", _mask(-_LABELS.astype("i2")), "labels from -1", masked),
    Kind("mask with label 255", _mask(_LABELS * 255), "labels from 0 to 255", masked),
    Kind("mask on fewer slices", _mask(_LABELS[:-1]), "another grid", masked),
    Kind("mask 3 mm away", _mask(_LABELS, AFFINE + np.eye(4, k=3) * 3), "another grid", masked),
    Kind("mask of NaN", _mask(_LABELS * np.float32(np.nan)), "NaN or infinite", masked),
    Kind("empty mask", _mask(_LABELS * 0), _is_mask(_LABELS * 0), masked),
)
