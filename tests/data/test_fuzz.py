"""Thousands of damaged headers: each gives a volume of the right size or a `DataError`, quickly."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import io
import pathlib
import re
import tracemalloc
import warnings
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.readers import read_image
from tests.data.dicom_files import ct_slice, enhanced
from tests.data.hostile import AFFINE, CT
from tests.data.hostile_arrays import archive, npy
from tests.data.hostile_headers import metaimage, nrrd
from tests.data.hostile_nifti import nifti

_MOST_PER_BYTE = 1032
"""Voxels that deflate can make of a byte."""
_MEMORY = 1 << 25
"""Bytes; the good files take less than a hundredth of it."""
_EXTREMES = [
    *(np.array(n, "<i2").tobytes() for n in (-32768, -1, 0, 1, 9, 255, 32767)),
    *(np.array(n, "<i4").tobytes() for n in (-(2**31), -1, 2**31 - 1)),
    *(np.array(x, "<f4").tobytes() for x in (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-38)),
    *(np.array(n, "<i8").tobytes() for n in (-(2**63), 2**62)),
    *(np.array(x, "<f8").tobytes() for x in (np.nan, np.inf, 1e300)),
]
_NUMBERS = "0 -1 -0 1e999 nan inf 1_000 0x10 9999999999999999999 3 4 65536 2147483648 \u0663 \u00b2"
_OTHERS = """True None \\ .. / LIST % gzip raw : = := ( ) {} "mm" (1,0,0) \0 \xff \ufeff " """
_WORDS = [*_NUMBERS.split(), *_OTHERS.split(), "\n", "", "9" * 5000, "(" * 300]

Change = Callable[[st.DrawFn, bytes, int], bytes]
"""Damages the first bytes, which are as many as the number says."""


def _put(data: bytes, at: int, new: bytes, instead: int | None = None) -> bytes:
    return data[:at] + new + data[at + (len(new) if instead is None else instead) :]


def _overwrite(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    return _put(data, draw(st.integers(0, head)), draw(st.binary(min_size=1, max_size=8)))


def _overwrite_field(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    return _put(data, 2 * draw(st.integers(0, head // 2)), draw(st.sampled_from(_EXTREMES)))


def _swap(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    """Inserts, removes or repeats a piece."""
    start, end = sorted(draw(st.tuples(*[st.integers(0, head)] * 2)))
    return _put(data, start, data[start:end] * draw(st.sampled_from([0, 2, 3])), end - start)


def _element(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    """Changes the VR or the length of a DICOM element."""
    places = [found.start() for found in re.finditer(rb"[A-Z]{2}[^A-Z]", data[:head])]
    if not places:
        return data
    at = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(b"SQ OB UN US DS IS UI PN FD AT OW UT LO".split()))
    length = draw(st.one_of(st.binary(min_size=2, max_size=6), st.just(b"\0\0\xff\xff\xff\xff")))
    return _put(data, *draw(st.sampled_from([(at, kind), (at + 2, length), (at, kind + length)])))


def _replace_word(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    words = list(re.finditer(rb"[^\s,()]+", data[:head]))
    if not words:
        return data
    word = draw(st.sampled_from(words))
    new = draw(st.one_of(st.sampled_from(_WORDS), st.integers().map(str), st.floats().map(str)))
    return _put(data, word.start(), new.encode("utf-8", "replace"), len(word[0]))


def _repeat_line(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    return _on_lines(data, head, lambda lines: lines.append(draw(st.sampled_from(lines))))


def _drop_line(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    return _on_lines(data, head, lambda lines: lines.pop(draw(st.integers(0, len(lines) - 1))))


def _on_lines(data: bytes, head: int, edit: Callable[[list[bytes]], object]) -> bytes:
    lines = data[:head].split(b"\n")
    edit(lines)
    return b"\n".join(lines) + data[head:]


_BINARY = (_overwrite, _overwrite_field, _swap)
_TEXT = (_overwrite, _replace_word, _replace_word, _repeat_line, _drop_line)


@dataclasses.dataclass(frozen=True)
class Target:
    """A good file to damage.

    Attributes:
      data: what it holds.
      head: bytes at its start that are its header.
      changes: ways to damage it.
      pack: function from the damaged bytes to the bytes of the file.
    """

    data: bytes
    head: int
    changes: tuple[Change, ...]
    pack: Callable[[bytes], bytes] = bytes


def _nifti2() -> bytes:
    return nib.Nifti2Image(CT, AFFINE).to_bytes()


def _dicom(dataset: pydicom.Dataset) -> Target:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    data = file.getvalue()
    return Target(data, data.index(b"\xe0\x7f\x10\x00") + 12, (*_BINARY, _element))


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(CT[0].astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _zipped(data: bytes) -> bytes:
    return archive({"ct.npy": data})


TARGETS = {
    "nifti1": Target(nifti(), 368, _BINARY),
    "nifti2": Target(_nifti2(), 560, _BINARY),
    "nifti1 packed": Target(nifti(), 368, _BINARY, pack=_packed),
    "dicom": _dicom(ct_slice(0, SliceThickness=2)),
    "enhanced": _dicom(enhanced()),
    "nrrd": Target(nrrd(), len(nrrd(data=b"")), _TEXT),
    "nrrd packed": Target(nrrd({"encoding": "gzip"}, _packed(CT.tobytes())), 300, _TEXT),
    "metaimage": Target(metaimage(), len(metaimage(data=b"")), _TEXT),
    "npy": Target(npy(CT), 128, _TEXT),
    "npy in an archive": Target(npy(CT), 128, _TEXT, pack=_zipped),
    "archive": Target(_zipped(npy(CT)), len(_zipped(npy(CT))), _BINARY),
    "slices": Target(_png(), len(_png()), _BINARY),
}


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """The file with one to four changes in its header, and sometimes cut short."""
    data = target.data
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.sampled_from(target.changes))(draw, data, target.head)
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return target.pack(data)


def examine(data: bytes, path: pathlib.Path) -> bool:
    """Reads a file, which becomes a volume or a `DataError`; returns whether it is a volume."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with warnings.catch_warnings(action="error"):
            volume = read_image(path.parent if path.suffix == ".png" else path)
        assert volume.array.size <= len(data) * _MOST_PER_BYTE
        assert volume.array.dtype.kind != "f" or np.isfinite(volume.array).all()
    except DataError as error:
        assert error.cure and pathlib.Path(error.path).is_relative_to(path.parent), error
        assert "Doe" not in str(error), error
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < _MEMORY
    return True


def prepare(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where the damaged file of a target goes; slices need a neighbour."""
    if name != "slices":
        return folder / "scan"
    (folder / "0.png").write_bytes(_png())
    return folder / "1.png"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_headers(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Always the same examples, so that a failure is the fault of a change."""
    path = prepare(tmp_path_factory.mktemp("fuzz"), name)

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=5),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=damaged(TARGETS[name]))
    def run(data: bytes) -> None:
        examine(data, path)

    assert examine(TARGETS[name].pack(TARGETS[name].data), path)
    run()
