"""Reader and writer of weight files; the format is recognised by content, not by file name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from data_pipelines.errors import DataError, printable
from data_pipelines.files import write_whole
from m3djax.convert.options import Dtype
from m3djax.convert.torch_zip import read_torch_zip


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors, by name, from a safetensors file or a zip that `torch.save` wrote.

    Floating-point tensors keep their dtype. Nothing in the file is executed.

    Raises:
      DataError: the file is missing, damaged or cut off, has an unknown format, or holds code.
    """
    if not path.is_file():
        raise DataError(path, "there is no such file", "check the path")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        return read_torch_zip(path)
    if start[8:9] != b"{":  # the first byte of the safetensors header
        raise DataError(
            path,
            "is neither safetensors nor a zip of torch 1.6 or newer; its pickle is not opened",
            "save it again as safetensors",
        )
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        problem = f"is damaged, cut off, or has an unsupported dtype ({printable(error)})"
        raise DataError(path, problem, "download it again and compare its size") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: Dtype) -> None:
    """Writes a safetensors file that transformers and torch can read; it is whole or absent."""
    kind = as_dtype(dtype)
    # Not ascontiguousarray, which turns a scalar into an array of shape (1,).
    cast = {name: np.asarray(value, kind, order="C") for name, value in tensors.items()}
    write_whole(path, safetensors.numpy.save(cast, {"format": "pt"}))


def as_dtype(name: Dtype) -> np.dtype:
    """Returns the NumPy dtype with a name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
