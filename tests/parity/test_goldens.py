"""No golden folder may go uncompared, and the comparing itself must be able to fail."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity import goldens


@pytest.mark.parametrize("folder", goldens.all_dirs(), ids=lambda folder: folder.name)
def test_is_compared(folder: pathlib.Path) -> None:
    """Each folder, the environment's included, has a known kind with a test."""
    goldens.check_covered(folder)


def test_longest_kind_wins() -> None:
    """mg3d_swin_b is a mg3d_swin, not a mg3d."""
    assert goldens.kind_of(pathlib.Path("mg3d_swin_b")) == "mg3d_swin"
    assert goldens.kind_of(pathlib.Path("mg3d_2")) == "mg3d"


def test_unknown_and_untested_kinds_fail(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of the environment is never passed over in silence."""
    unknown, untested = tmp_path / "other_thing", tmp_path / "lora_x"
    unknown.mkdir()
    untested.mkdir()
    monkeypatch.setenv("M3DJAX_GOLDEN", f"{unknown}:{untested}")
    assert goldens.all_dirs()[-2:] == [unknown, untested]
    with pytest.raises(AssertionError, match="unknown kind"):
        goldens.check_covered(unknown)
    monkeypatch.setitem(goldens.KINDS, "lora", "")
    with pytest.raises(AssertionError, match="no parity test for kind lora"):
        goldens.check_covered(untested)
    with pytest.raises(AssertionError, match="not a folder"):
        goldens.check_covered(tmp_path / "lora_missing")


def test_comparing_fails(tmp_path: pathlib.Path) -> None:
    """A wrong value, a wrong shape, a missing tensor and a forgotten one are failures."""
    save_file({"a": np.arange(3.0), "b": np.zeros(2)}, tmp_path / "io.safetensors")
    (tmp_path / "config.json").write_text("{}")
    golden = goldens.Golden.read(tmp_path)
    with pytest.raises(AssertionError, match="nothing was compared"):
        golden.finish()
    for wrong in (np.array([0, 1, 2.1]), np.array([0, 1, np.nan]), np.arange(3.0)[None]):
        with pytest.raises(AssertionError, match="a"):
            golden.compare("a", wrong, 1e-3)
    golden.compare("a", np.arange(3.0), 0)
    with pytest.raises(AssertionError, match=r"not compared: \['b'\]"):
        golden.finish()
    with pytest.raises(AssertionError, match="no tensor c"):
        golden.given("c")
