"""A prepared dataset of three scans with structures, labels and points, and its crops."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from data_pipelines.fields.base import Field
from data_pipelines.pipeline import Data, Source
from data_pipelines.prepare import Prepare

SIZE = (8, 12, 10)
SIDES = (20, 24, 28)
"""Voxels of a scan along x, y, z, of 2 mm."""
LIVER = (slice(4, 16), slice(6, 18), slice(10, 24))
TUMOUR = (slice(7, 10), slice(8, 12), slice(14, 17))


def scan(index: int) -> np.ndarray:
    """A different number in every voxel, in HU."""
    return (np.arange(np.prod(SIDES)) % 3000 - 1000 + index).reshape(SIDES).astype(np.int16)


def make(root: Path) -> str:
    """Prepares two scans in "train" with two structures, and one without in "test".

    The scans are in `root / "scans"`. Returns the dataset's folder.
    """
    scans = root / "scans"
    affine = np.diag([-2.0, -2, 2, 1])
    for index in range(3):
        (scans / f"{index}").mkdir(parents=True)
        nib.save(nib.Nifti1Image(scan(index), affine), scans / f"{index}/ct.nii.gz")
    for index, (name, box) in itertools.product(range(2), (("liver", LIVER), ("tumour", TUMOUR))):
        mask = np.zeros(SIDES, np.uint8)
        mask[box] = 1
        (scans / f"{index}/organs").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, affine), scans / f"{index}/organs/{name}.nii.gz")
    table = root / "table.csv"
    table.write_text(
        "image,split,mask,nodule,cyst,points:candidates:lps,points:corner:voxel\n"
        "0/ct.nii.gz,train,0/organs,1,,10 8 40; 36 44 50,0 0 0\n"
        "1/ct.nii.gz,train,1/organs,0,1,,\n"
        "2/ct.nii.gz,test,,,,,\n"
    )
    out = root / "data"
    options: dict[str, Any] = {"units": "HU", "spacing": (2.0, 2.0, 2.0), "workers": 0}
    assert Prepare("folder", str(scans), str(table), out=str(out), **options).run() == 0
    return str(out)


def data(path: str, fields: dict[str, Field], **changes: Any) -> Data:
    """Small crops of the split "train"."""
    made = Data((Source(path),), SIZE, batch_size=4, buffer=1, fields=fields)
    return dataclasses.replace(made, **changes)


def take(
    data: Data, count: int = 1, start: int = 0, seed: int = 0, **where: Any
) -> list[dict[str, np.ndarray]]:
    """The first batches of the stream."""
    batches = data.batches(seed, start, **where)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken
