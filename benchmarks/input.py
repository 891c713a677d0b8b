"""Benchmark of the input pipeline against M3D's: volumes per second, bytes on disk, waiting time.

    pip install -r requirements-peers.txt
    python benchmarks/input.py [--json] [--volumes 96]

Both sides hold the same volumes of 32 x 256 x 256 voxels, cut from real CT, with 8 bits as in
M3D-Cap. M3D's side has one float32 .npy file per volume, MONAI's random transforms, torch's
DataLoader and batches of 8. Our side uses `Data` on a prepared dataset, with batches of 8.

Our augmentation is part of the compiled step on the device. A separate column has its cost on this
machine's processor. "Cold" means that the files are dropped from the page cache before a pass. Each
pass is a new process; imports and the first batch do not count. The quickstart also trains for some
steps, to measure the share of time that it waits for data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

SIZE = (32, 256, 256)
BATCH = 8
STEPS = 100  # steps of the quickstart's training, to measure its waiting time


def make_volumes(folder: Path, count: int) -> None:
    """Writes uint8 volumes cut at random from real CT, resampled to M3D's size."""
    import numpy as np

    from data_pipelines import fetch, preprocess, readers

    root = fetch.sample_scans()
    window = preprocess.ScaleIntensityRange(-1000, 1000)
    recipe = preprocess.Recipe((preprocess.Orientation(), window))
    scans = [
        recipe(readers.read(root / name, units="HU"))
        for name in ("example_ct.nii.gz", "aorta_report/example_ct.nii.gz")
    ]
    rng = np.random.default_rng(0)
    for number in range(count):
        volume = scans[number % len(scans)]
        share = rng.uniform(0.6, 1.0, 3)
        crop = preprocess.center_crop(volume, tuple((share * volume.shape).astype(int)))
        array = preprocess.Resize(SIZE)(crop).array
        array = array + rng.normal(0, 0.01, SIZE)  # replaces the noise that enlarging removed
        np.save(folder / f"{number:04}.npy", np.rint(array.clip(0, 1) * 255).astype(np.uint8))


def m3d(folder: str, workers: int) -> Iterator[int]:
    """Runs M3D's data set, transforms and loader; yields the number of volumes in each batch."""
    import numpy as np
    import torch
    from monai import transforms

    files = sorted(Path(folder).glob("*.npy"))
    augment = transforms.Compose(
        [
            transforms.RandRotate90(prob=0.5, spatial_axes=(1, 2)),
            *(transforms.RandFlip(prob=0.10, spatial_axis=axis) for axis in range(3)),
            transforms.RandScaleIntensity(factors=0.1, prob=0.5),
            transforms.RandShiftIntensity(offsets=0.1, prob=0.5),
            transforms.ToTensor(dtype=torch.float),
        ]
    )

    class Volumes(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return augment(np.load(files[index]))

    loader = torch.utils.data.DataLoader(
        Volumes(), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
    )
    while True:
        for batch in loader:
            yield len(batch)


def ours(folder: str, workers: int, augment: bool) -> Iterator[int]:
    """Runs our pipeline; yields the number of volumes in each batch."""
    from data_pipelines.pipeline import Data, Source

    data = Data(
        (Source(folder),), size=SIZE, batch_size=BATCH, units="raw", workers=workers, cache_gb=0
    )
    with contextlib.closing(data.batches(seed=0)) as batches:
        for batch in augmented(batches) if augment else batches:
            yield len(batch["image"])


def augmented(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches after our windows, flips, turns and jitter, compiled for this processor."""
    import jax

    from m3djax.inputs.augment import Augment
    from m3djax.inputs.inputs import IMAGE, Inputs, ScaleIntensityRange

    augment = Augment(flip=(0.1, 0.1, 0.1), rotate90=0.5, scale=0.1, shift=0.1)
    inputs = Inputs(ScaleIntensityRange(0, 255), augment)

    @jax.jit
    def step(batch: Any, key: jax.Array) -> jax.Array:
        return inputs(batch, jax.random.split(key, BATCH), IMAGE)["image"]

    for number, batch in enumerate(batches):
        image = step(batch, jax.random.key(number))
        yield {"image": image.block_until_ready()}


def one_pass(name: str, folder: str, count: int, workers: int) -> None:
    """Loads `count` volumes and prints the seconds from the second batch on."""
    sides = {
        "m3d": lambda: m3d(folder, workers),
        "ours": lambda: ours(folder, workers, augment=False),
        "ours + augmentation": lambda: ours(folder, workers, augment=True),
    }
    with contextlib.closing(sides[name]()) as batches:
        next(batches)
        start, seen = time.perf_counter(), 0
        while seen < count - BATCH:
            seen += next(batches)
        speed = seen / (time.perf_counter() - start)
    print(json.dumps({"volumes_per_second": speed}))


def waiting(folder: str) -> None:
    """Trains the quickstart's model for some steps and prints the share of time without data."""
    import dataclasses

    from data_pipelines.pipeline import Source
    from data_pipelines.prepare import Prepare
    from m3djax import cli
    from m3djax.runs.metrics import read_metrics
    from m3djax.training.train import train

    os.chdir(folder)  # runs/ is made in the working directory
    Prepare("sample_ct", out="data").prepare()
    config = cli.load_config(str(common.ROOT / "configs/quickstart.py"))
    data = dataclasses.replace(config.data, sources=(Source("data"),))
    run = train(
        dataclasses.replace(config, data=data, evaluators={}, steps=STEPS, save_every=STEPS)
    )
    # The first interval holds the compilation.
    shares = [row["data_wait"] for row in read_metrics(run)[1:]]
    print(json.dumps({"data_wait": max(shares), "steps": STEPS}))


def main() -> None:
    """Measures both sides in turns and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--volumes", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--waiting", help=argparse.SUPPRESS)
    parser.add_argument("--pass", nargs=4, dest="one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder, count, workers = options.one
        one_pass(name, folder, int(count), int(workers))
        return
    if options.waiting:
        waiting(options.waiting)
        return
    work = Path(tempfile.mkdtemp())
    folders = make_datasets(work, options.volumes)
    found: dict[str, Any] = {}
    for workers in (0, 2):
        for cache in ("warm", "cold"):
            for _ in range(options.repeats):
                for name, folder in folders.items():
                    files = [path for path in folder.rglob("*") if path.is_file()]
                    for path in files:
                        path.read_bytes()
                    if cache == "cold":
                        common.forget(files)
                    arguments = (name, str(folder), str(options.volumes), str(workers))
                    run = common.in_process(__file__, "--pass", *arguments)
                    key = f"{cache}, {workers} workers"
                    speeds = found.setdefault(key, {}).setdefault(name, [])
                    speeds.append(run["volumes_per_second"])
    wait = common.in_process(__file__, "--waiting", str(work))
    size = {
        name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for name, folder in folders.items()
    }
    shutil.rmtree(work)
    report(found, size, wait, options)


def make_datasets(work: Path, count: int) -> dict[str, Path]:
    """Writes the same volumes in M3D's form and in ours; returns the folders by side."""
    import numpy as np

    from data_pipelines.prepare import Prepare

    source, peer, own = work / "source", work / "m3d", work / "ours"
    source.mkdir()
    peer.mkdir()
    make_volumes(source, count)
    for path in source.iterdir():
        array = np.load(path).astype(np.float32) / 255
        np.save(peer / path.name, array[None])
    Prepare("folder", str(source), out=str(own), recipe="as_is", test_fraction=0).prepare()
    return {"m3d": peer, "ours": own, "ours + augmentation": own}


def report(
    found: dict[str, Any], size: dict[str, int], wait: dict[str, Any], options: argparse.Namespace
) -> None:
    """Prints medians and the ratios to M3D's side."""
    table = {
        key: {name: common.middle(speeds) for name, speeds in sides.items()}
        for key, sides in found.items()
    }
    results = {
        "command": "python benchmarks/input.py",
        "machine": common.machine("numpy", "grain", "array_record", "torch", "monai"),
        "volumes_per_second": table,
        "ratio_to_m3d": {
            key: {name: side["median"] / sides["m3d"]["median"] for name, side in sides.items()}
            for key, sides in table.items()
        },
        "bytes_per_volume": {name: value / options.volumes for name, value in size.items()},
        "bytes_ratio_to_m3d": size["ours"] / size["m3d"],
        "training": wait,
    }
    rows = [["volumes per second", "m3d", "ours", "ratio", "ours + augmentation", "ratio"]]
    for key, sides in table.items():
        ratio = results["ratio_to_m3d"][key]
        cells = [f"{sides['m3d']['median']:.0f}"]
        for name in ("ours", "ours + augmentation"):
            cells += [f"{sides[name]['median']:.0f}", f"{ratio[name]:.2f}"]
        rows.append([key, *cells])
    common.show(results, options.json, rows)
    if not options.json:
        sizes = results["bytes_per_volume"]
        print(f"\nMB per volume: m3d {sizes['m3d'] / 1e6:.2f}, ours {sizes['ours'] / 1e6:.2f}")
        print(f"Quickstart's training waits for data {wait['data_wait']:.2%} of the time.")


if __name__ == "__main__":
    main()
