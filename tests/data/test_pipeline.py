"""Batch n is a pure function of (seed, n)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from data_pipelines.crops import Crop, RandomCrop
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.cached import CachedRecords
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.image import Image
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import place

SIZE = (8, 16, 16)


def data(path: str, **changes: Any) -> Data:
    return dataclasses.replace(Data((Source(path),), SIZE, batch_size=4, buffer=1), **changes)


def take(
    data: Data, count: int, seed: int = 0, start: int = 0, rows: tuple[int, ...] | None = None
) -> list[dict[str, np.ndarray]]:
    batches = data.batches(seed, start, rows)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


@pytest.fixture(scope="module")
def expected(prepared: str) -> list[dict[str, np.ndarray]]:
    return take(data(prepared), 5)


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def test_batches_are_what_the_spec_says(prepared: str, expected: list) -> None:
    spec = data(prepared).spec()
    for batch in expected:
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (s.shape, s.dtype) for k, s in spec.items()
        }


@pytest.mark.parametrize(
    "workers, parts",
    [
        (0, [(0, 1), (2, 3)]),
        (0, [(0,), (1,), (2,), (3,)]),
        (0, [(0, 3), (1, 2)]),  # as on a torus
        (1, [(0, 1, 2, 3)]),
        (2, [(0, 3), (1, 2)]),
    ],
)
@pytest.mark.parametrize("start", [0, 3])
def test_workers_rows_and_starts_agree(
    prepared: str, expected: list, workers: int, parts: list[tuple[int, ...]], start: int
) -> None:
    for rows in parts:
        taken = take(data(prepared, workers=workers), 2, start=start, rows=rows)
        for number, batch in enumerate(taken):
            whole = expected[start + number]
            assert same(batch, {key: value[list(rows)] for key, value in whole.items()})


def test_another_seed_is_another_stream(prepared: str, expected: list) -> None:
    assert not same(take(data(prepared), 1, seed=1)[0], expected[0])
    assert not same(expected[0], expected[1])


def test_mixtures_keep_their_weights(prepared: str) -> None:
    sources = (Source(prepared, "train", 3.0), Source(prepared, "test", 1.0))
    mixed = data(prepared, sources=sources, batch_size=40)
    records = {split: open_dataset(prepared, split) for split in ("train", "test")}
    lows = {split: {int(r["image"].max()) for r in records[split]} for split in records}
    assert lows["train"].isdisjoint(lows["test"])
    samples = [mixed._samples(0)[n] for n in range(400)]
    assert len(samples) == 400
    alone = [data(prepared)._samples(0)[n]["image"] for n in range(150)]
    shared = sum(any(np.array_equal(s["image"], a) for a in alone) for s in samples[:40])
    assert shared == 30  # three of four come from the first source, in its own order


def test_crop_recipes_keep_their_weights(prepared: str) -> None:
    record = open_dataset(prepared, "train")[0]
    cut = RandomCrop(SIZE, (Crop(0.5, 1.0), Crop(1.0, 1.0), Crop(2.0, 2.0)), {"image": Image()})
    rng = np.random.default_rng(0)
    samples = [cut(record, rng) for _ in range(400)]
    spacings = np.array([sample["spacing"][0] for sample in samples])
    for spacing, share in ((1.5, 0.25), (3.0, 0.25), (6.0, 0.5)):
        assert abs((spacings == spacing).mean() - share) < 0.08
    assert {sample["image"].shape for sample in samples} == {(*SIZE, 1)}


def test_a_zoomed_crop_is_the_resampled_scan() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.int16) * 10, (32, 64, 64))
    record = {
        "image": ramp,
        "low": 0,
        "units": "HU",
        "scale": 1.0,
        "offset": 0.0,
        "spacing": np.ones(3, np.float32),
    }
    cut = RandomCrop(SIZE, (Crop(2.0),), {"image": Image()})
    image = cut(record, np.random.default_rng(0))["image"][..., 0].astype(float)
    np.testing.assert_allclose(np.diff(image, axis=2)[:, :, 1:-1], 20, atol=1)
    np.testing.assert_allclose(np.diff(image, axis=0), 0, atol=1)


def test_windows_cover_every_place_and_small_volumes_are_padded_with_air() -> None:
    image = np.arange(6 * 4 * 4, dtype=np.int16).reshape(6, 4, 4) + 7
    rng = np.random.default_rng(0)
    starts = {int(window(image, (2, 4, 4), rng)[0, 0, 0] - 7) // 16 for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}
    padded = window(image, (6, 4, 9), rng)
    assert padded.shape == (6, 4, 9)
    assert (padded == 7).sum() == 6 * 4 * 5 + 1


def test_what_is_held_back_is_never_seen(prepared: str) -> None:
    image = np.arange(10, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    rng = np.random.default_rng(0)
    halves: list[set[int]] = []
    for part in ((0.0, 0.6), (0.6, 1.0)):
        windows = [place(image.shape, (3, 2, 2), rng, part) for _ in range(100)]
        assert {w.of(image, 99).shape for w in windows} == {(3, 2, 2)}
        halves.append({int(voxel) for w in windows for voxel in w.of(image, 99).ravel()})
    assert halves == [set(range(6)), set(range(6, 10))]
    # Less than a window: all of it, and air.
    thin = place(image.shape, (3, 2, 2), rng, (0.9, 1.0))
    assert np.unique(thin.of(image, 99)).tolist() == [9, 99] and thin.middle[0] == 9
    for low, high in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ConfigError, match="must be .low, high. with 0 <= low < high <= 1"):
            Source(prepared, part=(low, high))
    held = Source(prepared, "train_organs", part=(0.67, 1.0))
    (batch,) = data(prepared).eval_batches(held, crops=4)
    record = open_dataset(prepared, "train_organs")[0]
    assert (batch["place"][:, 0] >= 20).all()
    for middle, sample in zip(batch["place"], batch["image"], strict=True):
        around = tuple(slice(m - s // 2, m + s // 2) for m, s in zip(middle, SIZE, strict=True))
        np.testing.assert_array_equal(record["image"][around], sample[..., 0])


def window(image: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return place(image.shape, size, rng).of(image, 7)


def test_the_cache_forgets_the_oldest_and_changes_nothing(prepared: str) -> None:
    records = open_dataset(prepared, "test")
    one = records[0]["image"].nbytes
    cached = CachedRecords(open_dataset(prepared, "test", lazy=True), limit=one)
    for index in (0, 1, 2, 0, 0, 1):
        np.testing.assert_array_equal(cached[index]["image"], records[index]["image"])
    assert list(cached._kept) == [1]
    assert cached._nbytes == records[1]["image"].nbytes + cached[1]["mask"].nbytes


def test_what_cannot_work_is_an_error(prepared: str, tmp_path: Any) -> None:
    with pytest.raises(DataError, match="prepare"):
        take(data(str(tmp_path / "none")), 1)
    with pytest.raises(DataError, match="no split 'validation'"):
        take(data(prepared, sources=(Source(prepared, "validation"),)), 1)
    with pytest.raises(ValueError, match="weights must be positive"):
        data(prepared, crops=(Crop(weight=0.0),))
    with pytest.raises(ValueError, match="must be positive"):
        data(prepared, size=(0, 4, 4))
