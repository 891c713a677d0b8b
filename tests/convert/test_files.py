"""Hostile, damaged and wrong weight files: the error names each, and no code of them runs."""

from __future__ import annotations

import os
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.errors import DataError
from m3djax.convert.files import read_tensors, write_tensors
from tests.parity.goldens import golden_dirs

SAVED = golden_dirs("torch_zip")[0] / "model.bin"


class Runs:
    """Its pickle makes a file."""

    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple:
        return self.call, self.args


def torch_zip(path: pathlib.Path, data: bytes, **storages: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", data)
        file.writestr("m/byteorder", b"little")
        for key, value in storages.items():
            file.writestr(f"m/data/{key.removeprefix('s')}", value)
    return path


Shape = tuple[int, ...]


def described(offset: int, shape: Shape, stride: Shape, count: int = 4) -> bytes:
    """The pickle of {"w": a tensor of float32}, written by hand."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu")
    storage += plain(count) + b"tQ"
    value = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + plain(offset)
    value += plain(shape) + plain(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + plain("w") + value + b"s."


def test_the_hand_written_pickle_is_right(tmp_path: pathlib.Path) -> None:
    numbers = np.arange(4.0, dtype="f4").tobytes()
    path = torch_zip(tmp_path / "w", described(1, (3,), (1,)), s0=numbers)
    np.testing.assert_array_equal(read_tensors(path)["w"], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call, name",
    [
        ((os.system, "touch {}"), "(posix|nt).system"),
        ((exec, "open('{}', 'w')"), "(builtins|__builtin__).exec"),
        ((eval, "open('{}', 'w')"), "(builtins|__builtin__).eval"),
        ((getattr, OrderedDict, "fromkeys"), "(builtins|__builtin__).getattr"),
    ],
    ids=["system", "exec", "eval", "getattr"],
)
def test_no_code_runs(call: tuple, name: str, protocol: int, tmp_path: pathlib.Path) -> None:
    """The error names the refused function, and the function has not run."""
    victim = tmp_path / "victim"
    args = [a.format(victim) if isinstance(a, str) else a for a in call[1:]]
    data = pickle.dumps({"w": Runs(call[0], *args)}, protocol)
    pickle.loads(data) if call[0] is exec else None  # it is armed: the plain unpickler runs it
    assert victim.exists() == (call[0] is exec)
    victim.unlink(missing_ok=True)
    path = torch_zip(tmp_path / "evil.bin", data)
    with pytest.raises(DataError, match=f"evil.bin: its pickle is refused: it asks for {name}"):
        read_tensors(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "data",
    [
        # What it may call must not be changed by it: BUILD on a function, a type, a tensor.
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\nN}X\x04\x00\x00\x00nameK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a storage type is no function
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id that is a string
        b"\x80\x02r\xff\xff\xff\x7f.",  # object number 2^31: would fill the memory
        b"\x80\x02(((((((",
        b"",
    ],
)
def test_a_pickle_that_is_none_is_refused(data: bytes, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="its pickle is refused"):
        read_tensors(torch_zip(tmp_path / "w.bin", data))
    np.testing.assert_array_equal(  # nothing that other files need was changed
        read_tensors(torch_zip(tmp_path / "w.bin", described(0, (4,), (1,)), s0=bytes(16)))["w"],
        np.zeros(4),
    )


@pytest.mark.parametrize(
    "layout, message",
    [
        ((2, (3,), (1,)), "tensor w lies outside its storage"),
        ((-1, (1,), (1,)), "tensor w lies outside"),
        ((0, (2,), (-1,)), "tensor w lies outside"),
        ((0, (2, 2), (1,)), "tensor w lies outside"),
        ((0, (1 << 40,), (0,)), "more elements than its storage"),
        ((0, (4,), (1,), 5), "storage 0 has 16 bytes, not 5 float32"),
    ],
)
def test_no_memory_beside_the_storage_is_read(
    layout: tuple, message: str, tmp_path: pathlib.Path
) -> None:
    path = torch_zip(tmp_path / "w.bin", described(*layout), s0=bytes(16))
    with pytest.raises(DataError, match=message):
        read_tensors(path)


def test_damage_is_named(tmp_path: pathlib.Path) -> None:
    whole = SAVED.read_bytes()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut.bin: is damaged or cut off"):
        read_tensors(cut)
    with zipfile.ZipFile(SAVED) as file:
        info = next(i for i in file.infolist() if i.filename.endswith("data/0"))
    start = whole.index(b"data/0") + len("data/0") + 100
    flipped = bytearray(whole)
    flipped[start] ^= 1
    assert start < info.header_offset + 200 + info.file_size
    (tmp_path / "flipped.bin").write_bytes(flipped)
    with pytest.raises(DataError, match="flipped.bin: is damaged or cut off"):
        read_tensors(tmp_path / "flipped.bin")
    missing = torch_zip(tmp_path / "missing.bin", described(0, (4,), (1,)))
    with pytest.raises(DataError, match="storage 0 is missing"):
        read_tensors(missing)


def test_other_files_are_named(tmp_path: pathlib.Path) -> None:
    old = tmp_path / "old.bin"
    old.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(DataError, match="neither safetensors nor a zip of torch.*not opened"):
        read_tensors(old)
    (tmp_path / "text").write_text("hello, this is no weight file")
    with pytest.raises(DataError, match="neither safetensors nor"):
        read_tensors(tmp_path / "text")
    with pytest.raises(DataError, match="there is no such file"):
        read_tensors(tmp_path / "nothing")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(DataError, match="is a zip with 0 data.pkl"):
        read_tensors(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", described(0, (4,), (1,)))
    with pytest.raises(DataError, match="is compressed or too large"):
        read_tensors(tmp_path / "bomb.bin")
    nothing = torch_zip(tmp_path / "nothing.bin", pickle.dumps({"epoch": 3}, 2))
    with pytest.raises(DataError, match="holds no dict of tensors"):
        read_tensors(nothing)


def test_safetensors(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"w": np.float32([[1, 2], [3, 4]]).T}, "bfloat16")
    np.testing.assert_array_equal(read_tensors(path)["w"].astype("f4"), [[1, 3], [2, 4]])
    whole = path.read_bytes()
    for name, content in {
        "cut": whole[:-3],
        "long": whole + b"more",
        "header": struct.pack("<Q", 1 << 40) + whole[8:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: is damaged, cut off"):
            read_tensors(tmp_path / name)
    save_file({"w": np.zeros(3)}, tmp_path / "plain")
    assert list(read_tensors(tmp_path / "plain")) == ["w"]


def test_nested_dicts_of_weights(tmp_path: pathlib.Path) -> None:
    """Training scripts save {"state_dict": ..., "epoch": ...}."""
    inner = described(0, (4,), (1,))[2:-1]
    data = b"\x80\x02}(X\x05\x00\x00\x00epochK\x03X\x0a\x00\x00\x00state_dict" + inner + b"u."
    path = torch_zip(tmp_path / "w.bin", data, s0=np.ones(4, "f4").tobytes())
    np.testing.assert_array_equal(read_tensors(path)["w"], np.ones(4))
