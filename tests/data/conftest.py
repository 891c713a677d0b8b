"""Fixtures of the tests of preparation."""

from pathlib import Path

import nibabel as nib
import pytest
from etils import epath

from data_pipelines.datasets import staging, workers


@pytest.fixture
def scans(sample_scans: epath.Path, tmp_path: Path) -> Path:
    """Five crops of a real CT."""
    image = nib.Nifti1Image.from_filename(sample_scans / "example_ct_sm.nii.gz")
    root = tmp_path / "scans"
    root.mkdir()
    for index in range(5):
        nib.save(image.slicer[20 + index : 60, 30:70, 5:25], root / f"s{index}.nii.gz")
    return root


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the studies whose records are made in this process."""
    ids = []
    make = staging.make

    def count(job: staging.Job) -> object:
        ids.append(job.study.study_id)
        return make(job)

    monkeypatch.setattr(workers, "make", count)
    return ids
