"""Benchmark of preparation against MONAI: full-size scans per minute and peak memory on one core.

    pip install -r requirements-peers.txt
    python benchmarks/prepare.py [--json] [--scans 3] [--volumes 354000]

A real CT is enlarged to 512 x 512 x 600 voxels of 0.7 x 0.7 x 1 mm with scanner-like noise and
saved as .nii.gz. Both sides read it, orient it and resample it to 1.5 x 1.5 x 3 mm. MONAI uses
LoadImage, Orientation and Spacing (bilinear). Our side uses `read` and the same two steps: once
with our anti-aliasing, which MONAI does not have, and once without. Each scan is a new process
bound to one core; the import of the libraries does not count.

Then `prepare` makes a whole dataset of such scans with one worker per core, from file to checked
records. Its cost per volume is extrapolated to a large data set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import common

SHAPE = (512, 512, 600)  # x, y, z
ZOOM_MM = (0.7, 0.7, 1.0)
TARGET = (3.0, 1.5, 1.5)  # D, H, W


def make_scan(path: Path, seed: int) -> None:
    """Writes the enlarged CT as int16 in .nii.gz, as DICOM converters do."""
    import nibabel as nib
    import numpy as np
    from scipy import ndimage

    from data_pipelines import fetch

    image = nib.Nifti1Image.from_filename(fetch.sample_scans() / "example_ct.nii.gz")
    small = np.asarray(image.dataobj, np.float32)
    large = ndimage.zoom(
        small, np.divide(SHAPE, small.shape), order=1, grid_mode=True, mode="nearest"
    )
    large += np.random.default_rng(seed).normal(0, 12, large.shape).astype(np.float32)
    affine = np.diag([*ZOOM_MM, 1.0])
    nib.save(nib.Nifti1Image(np.rint(large).clip(-1024, 3071).astype(np.int16), affine), path)


def ours(path: str, anti_alias: bool) -> tuple[float, tuple[int, ...]]:
    """Runs our preprocessing; returns the seconds and the shape of the result."""
    from data_pipelines import preprocess, readers

    recipe = preprocess.Recipe(
        (preprocess.Orientation("SPL"), preprocess.Spacing(TARGET, anti_alias=anti_alias))
    )
    start = time.perf_counter()
    volume = recipe(readers.read(path, units="HU"))
    return time.perf_counter() - start, volume.shape


def with_monai(path: str) -> tuple[float, tuple[int, ...]]:
    """Runs MONAI's preprocessing; returns the seconds and the shape of the result."""
    import torch
    from monai import transforms

    torch.set_num_threads(1)
    steps = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation(axcodes="SPL"),
            transforms.Spacing(pixdim=TARGET, mode="bilinear"),
        ]
    )
    start = time.perf_counter()
    image = steps(path)
    return time.perf_counter() - start, tuple(image.shape[1:])


def contestant(name: str, path: str) -> None:
    """Runs one side on one scan and prints its time and memory."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if name == "monai":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, shape = with_monai(path)
    else:
        from data_pipelines import preprocess, readers  # noqa: F401

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, shape = ours(path, anti_alias=name == "ours")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {
        "seconds": seconds,
        "shape": shape,
        "peak_mib": peak / 1024,
        "start_mib": before / 1024,
    }
    print(json.dumps(facts))


def whole(scans: Path, out: Path) -> dict[str, Any]:
    """Runs `prepare` with one worker per core; returns seconds and bytes per volume."""
    from data_pipelines.prepare import Prepare

    start = time.perf_counter()
    result = Prepare(
        "folder", str(scans), out=str(out), units="HU", spacing=TARGET, test_fraction=0
    ).prepare()
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    count = sum(result.splits.values())
    return {"volumes": count, "seconds": seconds, "bytes_per_volume": size / count}


def main() -> None:
    """Measures both sides in turns and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--volumes", type=int, default=354_000, help="for the estimate")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(*options.contestant)
        return
    work = Path(tempfile.mkdtemp())
    scans = work / "scans"
    scans.mkdir()
    for seed in range(options.scans):
        make_scan(scans / f"scan{seed}.nii.gz", seed)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "ours, no anti-aliasing": [], "monai": []}
    for path in sorted(scans.iterdir()):
        for name, done in runs.items():
            done.append(common.in_process(__file__, "--contestant", name, str(path)))
    dataset = whole(scans, work / "dataset")
    shutil.rmtree(work)
    results = summary(runs, dataset, options.volumes)
    rows = [["one core, one scan", "seconds", "scans per minute", "peak MiB", "shape"]]
    for name, found in results["one_core"].items():
        seconds = found["seconds"]["median"]
        cells = [f"{seconds:.2f}", f"{60 / seconds:.1f}", f"{found['peak_mib']:.0f}"]
        rows.append([name, *cells, "x".join(map(str, found["shape"]))])
    common.show(results, options.json, rows)
    if not options.json:
        print(f"\n{json.dumps(results['dataset'])}\n{json.dumps(results['estimate'])}")


def summary(
    runs: dict[str, list[dict[str, Any]]], dataset: dict[str, Any], volumes: int
) -> dict[str, Any]:
    """Returns medians, the ratios to MONAI, and the estimate for a large data set."""
    one_core = {
        name: {
            "seconds": common.middle([run["seconds"] for run in done]),
            "peak_mib": max(run["peak_mib"] for run in done),
            "shape": done[0]["shape"],
        }
        for name, done in runs.items()
    }
    cores = len(os.sched_getaffinity(0))
    core_seconds = dataset["seconds"] * cores / dataset["volumes"]
    hours = {n: core_seconds * volumes / n / 3600 for n in (1, 96, 1000)}
    return {
        "command": "python benchmarks/prepare.py",
        "machine": common.machine("numpy", "scipy", "nibabel", "monai", "torch"),
        "one_core": one_core,
        "time_ratio_to_monai": {
            name: found["seconds"]["median"] / one_core["monai"]["seconds"]["median"]
            for name, found in one_core.items()
        },
        "memory_ratio_to_monai": {
            name: found["peak_mib"] / one_core["monai"]["peak_mib"]
            for name, found in one_core.items()
        },
        "dataset": {**dataset, "core_seconds_per_volume": core_seconds},
        "estimate": {
            "volumes": volumes,
            "hours_on_n_cores": hours,
            "terabytes": dataset["bytes_per_volume"] * volumes / 1e12,
        },
    }


if __name__ == "__main__":
    main()
