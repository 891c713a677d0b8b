"""Benchmark of encodings of voxels: size, time to encode and decode, random crops of large CT.

    python benchmarks/encoding.py [--json] [--repeats 15]

Each encoding replaces `codec.compress` and `codec.decompress`. It is measured through the real
path (`ShardWriter`, `publish`, `RecordSource`) in a new process. Times are processor times of one
core with files in the page cache. The least of several repeats counts, because other work on the
machine can only add time. Volumes are real CT: at 1.5 mm, and in M3D's size with 16 and with 8
bits. The large CT is the first of them, padded by reflection to 600 x 512 x 512 voxels, with added
noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np
from etils import epath
from numcodecs import blosc, zstd

from data_pipelines import fetch, preprocess, readers
from data_pipelines.datasets import codec, open_dataset, storage
from data_pipelines.datasets.records import encode
from data_pipelines.volume import Volume

RAW = (lambda array: array.tobytes(), lambda data: data)
ZLIB = (lambda array: zlib.compress(array.tobytes(), 1), zlib.decompress)
ZSTD = (lambda array: zstd.compress(array.tobytes(), 3), zstd.decompress)
CROPS = ((112, 224, 224), (32, 256, 256))


def shuffled(name: str, level: int, shuffle: int) -> tuple[Callable, Callable]:
    """Returns Blosc's encoder, which shuffles bytes or bits before compression, and its decoder."""
    return lambda array: blosc.compress(array, name.encode(), level, shuffle), blosc.decompress


ENCODINGS = {
    "raw": (*RAW, "uncompressed"),
    "ArrayRecord zstd:1": (*RAW, "zstd:1"),
    "ArrayRecord zstd:3": (*RAW, "zstd:3"),
    "zlib 1": (*ZLIB, "uncompressed"),
    "zstd 3": (*ZSTD, "uncompressed"),
    "byteshuffle + zstd 1": (*shuffled("zstd", 1, blosc.SHUFFLE), "uncompressed"),
    "bitshuffle + zstd 1": (*shuffled("zstd", 1, blosc.BITSHUFFLE), "uncompressed"),
    "byteshuffle + lz4": (*shuffled("lz4", 5, blosc.SHUFFLE), "uncompressed"),
    "bitshuffle + lz4": (*shuffled("lz4", 5, blosc.BITSHUFFLE), "uncompressed"),
    "byteshuffle + lz4hc (chosen)": (*shuffled("lz4hc", 5, blosc.SHUFFLE), "uncompressed"),
    "bitshuffle + lz4hc": (*shuffled("lz4hc", 5, blosc.BITSHUFFLE), "uncompressed"),
}


def volumes() -> dict[str, tuple[Volume, bool]]:
    """Returns {name: (volume, whether it has 8 bits)}."""
    scan = readers.read(fetch.sample_scans() / "example_ct.nii.gz", units="HU")
    m3d = preprocess.m3d()(scan)
    return {
        "CT at 1.5 mm, int16": (preprocess.ct((1.5, 1.5, 1.5))(scan), False),
        "32x256x256, int16": (m3d, False),
        "32x256x256, uint8": (m3d, True),
    }


def write(volume: Volume, eight_bit: bool, folder: Path, copies: int) -> tuple[epath.Path, float]:
    """Writes a dataset of copies; returns its folder and the seconds to encode one copy."""
    record = encode(volume, eight_bit=eight_bit)
    (shard := folder / "shard").mkdir(parents=True)
    with storage.ShardWriter(shard, 0) as writer:
        start = time.process_time()
        for _ in range(copies):
            writer.write(record)
    seconds = (time.process_time() - start) / copies
    out = epath.Path(folder / "out")
    storage.publish({"train": [storage.FinishedShard(epath.Path(shard), copies, 0)]}, out, 0)
    sizes = {path.name: path.stat().length for path in out.iterdir()}
    metadata = {"files": sizes, "mask_names": {}, "label_names": []}
    (out / "metadata.json").write_text(json.dumps(metadata))
    return out, seconds


def least_ms(call: Callable[[], Any], repeats: int) -> float:
    """Returns the least processor time in ms; the first call, which opens files, does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def measure_encoding(title: str, name: str, repeats: int, work: Path) -> dict[str, Any]:
    """Measures size and times of one encoding of one volume."""
    volume, eight_bit = volumes()[title]
    compress, decompress, options = ENCODINGS[name]

    def decode(data: bytes, dtype: Any, shape: Any) -> np.ndarray:
        return np.frombuffer(decompress(data), dtype).reshape(shape)

    # The chosen encoding is not replaced, because the real code decodes into the array itself.
    own = {} if "chosen" in name else {"compress": compress, "decompress": decode}
    with (
        mock.patch.object(storage, "_OPTIONS", f"group_size:1,{options}"),
        mock.patch.multiple(codec, LIMIT=2**40, **own),
    ):
        out, seconds = write(volume, eight_bit, work, copies=3)
        records = open_dataset(out, "train", lazy=True)
        numbers = itertools.cycle(range(3))
        decode_ms = least_ms(lambda: np.asarray(records[next(numbers)]["image"]), repeats)
    stored = sum(path.stat().length for path in out.glob("*array_record*")) / 3
    return {
        "volume": f"{title} {'x'.join(map(str, volume.shape))}",
        "encoding": name,
        "mb": stored / 1e6,
        "share_of_float32": stored / (4 * volume.array.size),
        "encode_ms": 1e3 * seconds,
        "decode_ms": decode_ms,
    }


def large_volume() -> np.ndarray:
    """Returns a CT of (600, 512, 512) voxels, int16."""
    array = np.rint(next(iter(volumes().values()))[0].array)
    array = np.pad(
        array,
        [(0, want - have) for have, want in zip(array.shape, (600, 512, 512), strict=True)],
        mode="reflect",
    )
    noise = np.random.default_rng(0).normal(0, 8, array.shape)
    return np.rint(array + noise).astype(np.int16)


def measure_bricks(work: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Measures random crops from a large volume that is stored whole, in bricks, and in zarr3."""
    array = large_volume()
    sides = [("whole", 2**40, codec.BRICK)]
    sides += [(f"bricks {b}", 0, b) for b in ((16, 64, 64), (32, 32, 32), (32, 64, 64))]
    for name, limit, brick in sides:
        with mock.patch.multiple(codec, LIMIT=limit, BRICK=brick):
            out, _ = write(Volume(array, "HU"), False, work / name, copies=1)
            records = open_dataset(out, "train", lazy=True)
            size = sum(path.stat().length for path in out.glob("*array_record*"))

            def look(window: tuple[slice, ...], records: Any = records) -> np.ndarray:
                return records[0]["image"][window]

            yield from crops(name, size, look, repeats)
        shutil.rmtree(work / name)
    for brick in ((16, 64, 64), (32, 32, 32)):
        store, size = zarr_shard(array, brick, work / "zarr")
        yield from crops(
            f"tensorstore zarr3 shard {brick}",
            size,
            lambda w, s=store: s[w].read().result(),
            repeats,
        )
        shutil.rmtree(work / "zarr")


def crops(
    name: str, size: int, look: Callable[[tuple[slice, ...]], np.ndarray], repeats: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each size of crop."""
    for crop in CROPS:
        rng = np.random.default_rng(0)

        def random_crop(crop: Any = crop, rng: Any = rng) -> np.ndarray:
            starts = rng.integers(0, np.array((600, 512, 512)) - crop + 1).tolist()
            return look(tuple(slice(s, s + c) for s, c in zip(starts, crop, strict=True)))

        yield {
            "stored": name,
            "mb": size / 1e6,
            "crop": "x".join(map(str, crop)),
            "ms": least_ms(random_crop, repeats),
        }


def zarr_shard(array: np.ndarray, brick: tuple[int, ...], folder: Path) -> tuple[Any, int]:
    """Writes the array with tensorstore: one zarr3 shard, its inner chunks compressed as ours.

    Returns the store and its bytes on disk.
    """
    import tensorstore

    shape = [-(-side // inner) * inner for side, inner in zip(array.shape, brick, strict=True)]
    blosc_codec = {"cname": "lz4hc", "clevel": 5, "shuffle": "shuffle"}
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": blosc_codec},
    ]
    sharding = {"chunk_shape": brick, "codecs": inner}
    metadata = {
        "shape": array.shape,
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {"driver": "zarr3", "kvstore": f"file://{folder}/", "metadata": metadata}
    store = tensorstore.open(spec, create=True).result()
    store.write(array).result()
    return store, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measures everything and prints two tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if options.one:
            print(json.dumps(measure_encoding(*options.one, options.repeats, Path(work))))
            return
        arguments = ["--repeats", str(options.repeats), "--one"]
        found = [
            common.in_process(__file__, *arguments, title, name)
            for title in volumes()
            for name in ENCODINGS
        ]
        large = [*measure_bricks(Path(work), options.repeats)]
    results = {
        "command": "python benchmarks/encoding.py",
        "machine": common.machine("numpy", "numcodecs", "array_record", "tensorstore"),
        "encodings": found,
        "crops": large,
    }
    common.show(results, options.json, table(found))
    if not options.json:
        print()
        common.show(results, False, table(large))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns a header and rows of cells."""
    cells = [
        [value if isinstance(value, str) else f"{value:.3g}" for value in row.values()]
        for row in rows
    ]
    return [[*rows[0]], *cells]


if __name__ == "__main__":
    main()
