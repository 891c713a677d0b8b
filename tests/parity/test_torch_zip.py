"""Files that torch saved, read without torch (golden kind `torch_zip`)."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from m3djax.convert.files import read_tensors
from tests.parity.goldens import Golden, golden_dirs


@pytest.mark.parametrize("folder", golden_dirs("torch_zip"), ids=lambda path: path.name)
def test_every_tensor_is_bit_equal(folder: pathlib.Path) -> None:
    golden = Golden.read(folder)
    tensors = read_tensors(folder / "model.bin")
    assert list(tensors) == list(dict.fromkeys(tensors)) and tensors.keys() == golden.io.keys()
    for name, tensor in tensors.items():
        theirs = golden.given(name)
        assert tensor.dtype == theirs.dtype, name
        np.testing.assert_array_equal(tensor, theirs, err_msg=name)
        assert tensor.tobytes() == np.ascontiguousarray(theirs).tobytes(), name
    golden.finish()
