"""Preparation on Apache Beam, and on a remote file system."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from data_pipelines.datasets import open_dataset
from data_pipelines.errors import DataError
from data_pipelines.prepare import Prepare
from tests.data.crops import prepare_crops, truncate

_DIRECT = ("runner=DirectRunner",)


def _equal(one: epath.PathLike, other: epath.PathLike) -> None:
    pairs = zip(open_dataset(one, "train"), open_dataset(other, "train"), strict=True)
    for first, second in pairs:
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=key)


def test_beam_makes_the_same_records(scans: Path) -> None:
    truncate(scans / "s2.nii.gz")
    assert prepare_crops(scans).run() == 3
    beam = scans.parent / "beam"
    assert prepare_crops(scans, out=str(beam), beam=_DIRECT).run() == 3
    _equal(scans.parent / "data", beam)
    quarantine = (scans.parent / "data" / "quarantine.csv").read_text()
    assert "s2" in quarantine and (beam / "quarantine.csv").read_text() == quarantine
    assert (beam / "card.md").read_text() == (scans.parent / "data" / "card.md").read_text()


def test_beam_goes_on_where_processes_were(
    scans: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are there are kept, whoever made them."""
    from data_pipelines.datasets import runners, shards

    def first_two(todo: list[shards.Shard], *args: object, **options: object) -> None:
        for shard in todo[:2]:
            shards.make(shard)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runners, "in_processes", first_two)
        with pytest.raises(KeyboardInterrupt):
            prepare_crops(scans).prepare()
    assert made == ["s0", "s1"]
    prepare_crops(scans, beam=(*_DIRECT, "direct_running_mode=in_memory")).prepare()
    assert sorted(made) == [f"s{index}" for index in range(5)]


def test_without_beam_the_flag_says_what_to_install(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("apache_beam"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="not installed. Cure: pip install apache-beam"):
        prepare_crops(scans, beam=_DIRECT).prepare()


def test_scans_and_dataset_in_a_bucket(scans: Path, bucket: epath.Path) -> None:
    for path in epath.Path(scans).iterdir():
        path.copy(bucket / "scans" / path.name)
    truncated = bucket / "scans" / "s2.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:100])
    options = {"units": "HU", "test_fraction": 0, "workers": 0}
    out = bucket / "data" / "mine"
    assert Prepare("folder", str(bucket / "scans"), out=str(out), **options).run() == 3

    truncate(scans / "s2.nii.gz")
    prepare_crops(scans).prepare()
    _equal(out, scans.parent / "data")
    assert not Prepare("folder", str(bucket / "scans"), out=str(out), **options).prepare().fresh
    assert not (bucket / "data" / ".mine.partial").exists()

    (out / "metadata.json").unlink()
    with pytest.raises(DataError, match="not a prepared dataset"):
        open_dataset(out, "train")
    assert Prepare("folder", str(bucket / "scans"), out=str(out), overwrite=True, **options).run()
    _equal(out, scans.parent / "data")


def test_beam_options_that_do_not_exist_are_named(scans: Path) -> None:
    with pytest.raises(DataError, match="--beam: .*NoSuchRunner.* Cure: give NAME=VALUE"):
        prepare_crops(scans, beam=("runner=NoSuchRunner",)).prepare()
