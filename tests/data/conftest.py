"""Fixtures of the tests of preparation."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import nibabel as nib
import pytest
from etils import epath

from data_pipelines.datasets import job
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.prepare import Prepare
from tests.data import m3d_tree, organ_scans
from tests.data.bucket import Bucket


@pytest.fixture
def scans(sample_scans: epath.Path, tmp_path: Path) -> Path:
    """Five crops of a real CT."""
    image = nib.Nifti1Image.from_filename(sample_scans / "example_ct_sm.nii.gz")
    root = tmp_path / "scans"
    root.mkdir()
    for index in range(5):
        nib.save(image.slicer[20 + index : 60, 30:70, 5:25], root / f"s{index}.nii.gz")
    return root


@pytest.fixture(scope="session")
def m3d(sample_scans: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of a small folder in M3D-Cap's layout, which lies beside it."""
    root = m3d_tree.make(tmp_path_factory.mktemp("m3d"), sample_scans)
    out = root.parent / "data"
    assert Prepare("m3d_cap", str(root), out=str(out), workers=0).run() == 0
    return out


@pytest.fixture(scope="session")
def organ_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prepared dataset of `organ_scans`."""
    return organ_scans.make(tmp_path_factory.mktemp("organs"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the studies whose records are made in this process."""
    ids = []
    make = job.make

    def count(collection: Collection, study: Study) -> object:
        ids.append(study.study_id)
        return make(collection, study)

    monkeypatch.setattr(job, "make", count)
    return ids


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[epath.Path]:
    """A gs:// folder, and an empty cache for what is copied from it."""
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    monkeypatch.setenv("M3DJAX_CACHE", str(tmp_path / "cache"))
    yield epath.Path("gs://bucket/ct")
    Bucket.store.clear()
    Bucket.opened.clear()
