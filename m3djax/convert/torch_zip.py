"""Reader of `torch.save` files that needs no torch and executes no code of the pickle.

Such a file is a zip. Its `data.pkl` describes the tensors as views into storages, and `data/N` hold
the bytes. A pickle can name any function of Python. Here it may name only the two functions that
rebuild tensors, the class of dicts and the types of storages. All other names are refused with an
error.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from data_pipelines.errors import DataError, printable

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LARGEST_PICKLE = 64 * 2**20
_CURE = "get the weights from a source you trust, as safetensors, which cannot hold code"
_INCOMPLETE = "download it again and compare its size"


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file that `torch.save` wrote (torch 1.6 or newer), by name.

    Several tensors may be views into one storage; each is copied out of it. The tensors are those
    of the saved dict. If it has none, they are those of its entry "state_dict" or "model".

    Raises:
      DataError: the file is damaged or has another format, or its pickle names anything else than
        tensors; the message has that name.
    """
    try:
        with zipfile.ZipFile(path) as file:
            pickles = [i for i in file.infolist() if i.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise DataError(path, f"is a zip with {len(pickles)} data.pkl, not weights", _CURE)
            root = pickles[0].filename.removesuffix("data.pkl")
            saved = _unpickle(path, _stored(path, file, pickles[0]))
            return _Storages(path, file, root).read(_tensors(path, saved))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(path, f"is damaged or cut off ({error})", _INCOMPLETE) from error


class _Storage(NamedTuple):
    kind: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _StorageType(NamedTuple):
    name: str


class _Dict(dict):
    """A replacement of OrderedDict that ignores the version numbers that torch attaches."""

    def __setstate__(self, state: object) -> None:
        pass


class _Function:
    """A callable for pickles whose attributes the pickle cannot change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes the attributes of a function")


class _RebuildTensor(_Function):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int for n in numbers):
            raise pickle.UnpicklingError("a tensor is not described by integers")
        return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _RebuildParameter(_Function):
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(name) for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not part of tensors"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, count = pid
        if word != "storage" or not isinstance(kind, _StorageType) or type(count) is not int:
            raise pickle.UnpicklingError("it refers to an object that is not a storage")
        return _Storage(kind.name, str(key), count)


def _unpickle(path: Path, data: bytes) -> Any:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # The memo is as long as its largest index, so a small pickle could fill the memory.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise pickle.UnpicklingError("it numbers more objects than it holds")
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a pickle can raise any exception
        reason = printable(error) or type(error).__name__
        raise DataError(path, f"its pickle is refused: {reason}", _CURE) from error


def _tensors(path: Path, saved: Any) -> dict[str, _Tensor]:
    for found in (saved, *(saved.get(k) for k in ("state_dict", "model") if _is_dict(saved))):
        tensors = {k: v for k, v in found.items() if isinstance(v, _Tensor)} if found else {}
        if tensors:
            return {str(name): tensor for name, tensor in tensors.items()}
    raise DataError(path, "holds no dict of tensors", "save model.state_dict()")


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


@dataclasses.dataclass(frozen=True)
class _Storages:
    """The storages of a zip, which hold the bytes of its tensors.

    Attributes:
      path: path of the zip, for messages.
      file: the open zip.
      root: folder in the zip that holds all members.
    """

    path: Path
    file: zipfile.ZipFile
    root: str

    def read(self, tensors: dict[str, _Tensor]) -> dict[str, np.ndarray]:
        """Reads all tensors; each storage is read once and its checksum is checked."""
        self._check_order()
        arrays: dict[_Storage, np.ndarray] = {}
        for tensor in tensors.values():
            if tensor.storage not in arrays:
                arrays[tensor.storage] = self._storage(tensor.storage)
        return {name: self._view(name, t, arrays[t.storage]) for name, t in tensors.items()}

    def _storage(self, storage: _Storage) -> np.ndarray:
        dtype, name = np.dtype(_DTYPES[storage.kind]), f"{self.root}data/{storage.key}"
        if name not in self.file.namelist():
            raise DataError(self.path, f"storage {printable(storage.key)} is missing", _INCOMPLETE)
        data = _stored(self.path, self.file, self.file.getinfo(name))
        if len(data) != storage.numel * dtype.itemsize:
            problem = f"storage {storage.key} has {len(data)} bytes, not {storage.numel} {dtype}"
            raise DataError(self.path, printable(problem), _INCOMPLETE)
        return np.frombuffer(data, dtype)

    def _view(self, name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
        shape, stride, count = tensor.shape, tensor.stride, math.prod(tensor.shape)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=False))
        fine = len(shape) == len(stride) and min((tensor.offset, *shape, *stride)) >= 0
        if not fine or (count and last >= len(storage)):
            raise DataError(self.path, f"tensor {printable(name)} lies outside its storage", _CURE)
        if count > len(storage):  # a stride of 0, which published weights do not have
            problem = f"tensor {printable(name)} has more elements than its storage"
            raise DataError(self.path, problem, _CURE)
        steps = tuple(s * storage.itemsize for s in stride)
        start = storage[tensor.offset :]
        return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False).copy()

    def _check_order(self) -> None:
        name = f"{self.root}byteorder"
        if name in self.file.namelist() and self.file.read(name).strip() != b"little":
            problem = "was saved on a machine with the other byte order"
            raise DataError(self.path, problem, "save it again on a little-endian one")


def _stored(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Reads a member's bytes; refuses compressed members, which torch never writes."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _limit(info):
        problem = f"{printable(info.filename)} is compressed or too large; torch never writes this"
        raise DataError(path, problem, _CURE)
    return file.read(info)


def _limit(info: zipfile.ZipInfo) -> int:
    return _LARGEST_PICKLE if info.filename.endswith("data.pkl") else info.compress_size
