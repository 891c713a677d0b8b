"""Records on disk: round trips, lazy arrays, and errors for damaged files."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from numcodecs import blosc

from data_pipelines.datasets import codec, open_dataset, storage
from data_pipelines.datasets.records import Record, encode
from data_pipelines.datasets.storage import FinishedShard, ShardWriter
from data_pipelines.errors import DataError
from data_pipelines.volume import Volume
from tests.data.bucket import Bucket
from tests.data.scans import random_volume

SHAPES = ((20, 70, 40), (33, 64, 129), (16, 64, 64))
NAMES = ("nodule", "effusion")


def records() -> list[Record]:
    """Noise in HU, with and without masks, reports and labels."""
    made = []
    for number, shape in enumerate(SHAPES):
        volume = random_volume(shape, np.diag([3.0, 1.5, 1.5, 1.0]), seed=number)
        if number == 1:
            volume = Volume(volume.array, "HU", volume.affine)
        labels = {"nodule": float(number % 2)}
        report = "Kein Befund: ä" if number else None
        made.append(encode(volume, report=report, labels=labels, label_names=NAMES))
    return made


def write(
    folder: Path, shards: list[list[Record]], out: epath.PathLike | None = None
) -> epath.Path:
    """A dataset of one split "train", made as `prepare` does."""
    parts = []
    for number, shard in enumerate(shards):
        (path := folder / f"shard-{number}").mkdir()
        with ShardWriter(path, len(NAMES)) as writer:
            for record in shard:
                writer.write(record)
        size = sum(file.stat().st_size for file in path.iterdir())
        parts.append(FinishedShard(epath.Path(path), writer.count, size))
    out = epath.Path(out or folder / "out")
    storage.publish({"train": parts, "test": []}, out, len(NAMES))
    sizes = {path.name: path.stat().length for path in out.iterdir()}
    metadata = {"splits": {}, "files": sizes, "mask_names": {}, "label_names": NAMES}
    (out / "metadata.json").write_text(json.dumps(metadata))
    return out


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores two of the three volumes in bricks."""
    monkeypatch.setattr(codec, "LIMIT", 2 * 16 * 64 * 64)


def same(one: Record, two: Record) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[key], two[key], equal_nan=key == "labels")
        and np.asarray(one[key]).dtype == np.asarray(two[key]).dtype
        for key in one
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("limit", [0, 2 * 16 * 64 * 64, 2**30], ids=["bricks", "both", "whole"])
def test_records_come_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, lazy: bool
) -> None:
    monkeypatch.setattr(codec, "LIMIT", limit)
    first, second, third = records()
    source = open_dataset(write(tmp_path, [[first], [], [second, third]]), "train", lazy=lazy)
    assert len(source) == 3
    for record, expected in zip(source, (first, second, third), strict=True):
        assert same(record, expected)
    assert same(source[-1], third)
    with pytest.raises(IndexError):
        source[3]


def test_tfds_reads_it_without_this_code(tmp_path: Path) -> None:
    expected = records()
    out = write(tmp_path, [expected[:2], expected[2:]])
    builder = tfds.builder_from_directory(out)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 3}
    for stored, record in zip(builder.as_data_source("train"), expected, strict=True):
        image = np.frombuffer(blosc.decompress(stored["image"]), stored["image_dtype"].decode())
        np.testing.assert_array_equal(image.reshape(stored["shape"]), record["image"])
        np.testing.assert_array_equal(stored["affine"], record["affine"])
        assert stored["report"].decode() == record["report"]
        assert stored["low"] == record["image"].min()


def test_eight_bits_stay_eight_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 64, 64)).astype(np.float32)
    unit = encode(Volume(values / 255, "unit"), eight_bit=True, label_names=NAMES)
    raw = encode(Volume((values * 0.99).clip(0, 255), "raw"), eight_bit=True, label_names=NAMES)
    fine = encode(Volume(values / 255, "unit"), label_names=NAMES)
    np.testing.assert_array_equal(unit["image"], values)
    np.testing.assert_allclose(unit["image"] * unit["scale"] + unit["offset"], values / 255, 1e-6)
    assert np.abs(raw["image"] * raw["scale"] + raw["offset"] - values * 0.99).max() <= 0.5
    out = write(tmp_path, [[unit, raw, fine]])
    assert [record["image"].dtype for record in open_dataset(out, "train")] == [np.int16] * 3
    lazy = [record["image"] for record in open_dataset(out, "train", lazy=True)]
    assert [image.dtype for image in lazy] == [np.uint8, np.uint8, np.int16]
    assert lazy[0].nbytes < 1.01 * values.size  # it cannot be compressed, and is not decoded yet


@pytest.mark.usefixtures("small_limit")
def test_a_window_reads_only_the_bricks_that_it_touches(tmp_path: Path) -> None:
    expected = records()[1]
    record = open_dataset(write(tmp_path, [records()]), "train", lazy=True)[1]
    image, read = record["image"], []
    assert isinstance(image, codec.Bricked) and isinstance(record["mask"], codec.WholeArray)
    fetch = image._read
    image._read = lambda numbers: (read.extend(numbers), fetch(numbers))[1]
    np.testing.assert_array_equal(
        image[16:32, 10:50, 64:128], expected["image"][16:32, 10:50, 64:128]
    )
    assert len(read) == 1
    image[15:17, 10:50, 63:65]
    assert len(read) == 1 + 4
    rng = np.random.default_rng(0)
    for _ in range(50):
        low, high = np.sort(rng.integers(0, np.array(SHAPES[1]) + 1, (2, 3)), axis=0)
        window = tuple(map(slice, low.tolist(), high.tolist()))
        np.testing.assert_array_equal(image[window], expected["image"][window])
    assert (record["low"], image.ndim, image.shape) == (expected["low"], 3, SHAPES[1])


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("kind", [storage.RECORDS, storage.BRICKS])
def test_damage_is_found_wherever_it_is(tmp_path: Path, kind: str) -> None:
    expected = records()
    out = write(tmp_path, [expected])
    file = Path(out / storage.file_name(kind, "train", 0, 1))
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for position in [*range(0, 200, 7), *rng.integers(0, len(content), 60).tolist()]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        file.unlink()  # the shards share it by a link
        file.write_bytes(damaged)
        try:
            # A bit that nothing depends on may flip: then the records are right.
            assert all(map(same, open_dataset(out, "train"), expected)), position
        except DataError as error:
            assert "damaged" in error.problem and "prepare it again" in error.cure
            found += 1
    assert found > 60


@pytest.mark.usefixtures("small_limit")
def test_threads_and_processes_share_a_source(tmp_path: Path) -> None:
    expected = records()
    source = open_dataset(write(tmp_path, [expected[:1], expected[1:]]), "train")
    assert same(source[0], expected[0])
    again = pickle.loads(pickle.dumps(source))
    numbers = np.random.default_rng(0).integers(0, 3, 60).tolist()
    with ThreadPoolExecutor(8) as pool:
        for number, record in zip(numbers, pool.map(again.__getitem__, numbers), strict=True):
            assert same(record, expected[number])


@pytest.mark.usefixtures("small_limit")
def test_shards_elsewhere_are_copied_once_when_they_are_needed(
    tmp_path: Path, bucket: epath.Path
) -> None:
    expected = records()
    write(tmp_path, [expected[:2], expected[2:]], bucket)
    Bucket.opened.clear()
    for _ in range(2):
        source = open_dataset("gs://bucket/ct", "train", lazy=True)
        assert len(source) == 3
        assert same(source[1], expected[1])
        copied = [path.rsplit("/")[-1] for path in Bucket.opened if "array_record" in path]
        names = [
            storage.file_name(kind, "train", 0, 2) for kind in (storage.RECORDS, storage.BRICKS)
        ]
        assert copied == names
    assert same(open_dataset("gs://bucket/ct", "train")[2], expected[2])


def test_a_dataset_that_was_made_anew_elsewhere_is_copied_anew(
    tmp_path: Path, bucket: epath.Path
) -> None:
    expected = records()
    for number, record in enumerate((expected[0], expected[2])):
        (folder := tmp_path / str(number)).mkdir()
        write(folder, [[record]], bucket)
        assert same(open_dataset(bucket, "train")[0], record)


def test_a_copy_that_is_not_whole_is_refused(tmp_path: Path, bucket: epath.Path) -> None:
    out = write(tmp_path, [records()], bucket)
    source = open_dataset(out, "train")
    file = out / storage.file_name(storage.RECORDS, "train", 0, 1)
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(DataError, match="missing or incomplete. Cure: wait until the dataset"):
        source[0]
    file.unlink()
    with pytest.raises(DataError, match="missing or incomplete. Cure: wait until the dataset"):
        source[0]
    file.write_bytes(content)
    assert len([*source]) == 3
