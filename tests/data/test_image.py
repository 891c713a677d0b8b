"""Formats are recognised by content; a table's rescale and spacing replace the file's own."""

from __future__ import annotations

import os
import pathlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from etils import epath
from PIL import Image

from data_pipelines import readers
from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.volume import transform
from tests.data.scans import affine_of

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.2, -20], [0, -0.1, 3, 5], [0, 0, 0, 1]])
STORED = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)


def _nifti(path: pathlib.Path, stored: np.ndarray = STORED) -> pathlib.Path:
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(3, 7)
    path.write_bytes(image.to_bytes())
    return path


def test_names_lie(tmp_path: pathlib.Path) -> None:
    """The content determines the format, not the name."""
    image = sitk.GetImageFromArray(STORED)
    for ending, kind in (("nrrd", "nrrd"), ("mha", "metaimage")):
        sitk.WriteImage(image, str(tmp_path / f"a.{ending}"), useCompression=True)
        (tmp_path / f"a.{ending}").rename(tmp_path / f"{kind}.png")
    np.save(tmp_path / "a.npy", STORED)
    (tmp_path / "a.npy").rename(tmp_path / "npy.png")
    np.savez(tmp_path / "a.npz", STORED)
    (tmp_path / "a.npz").rename(tmp_path / "npz.png")
    _nifti(tmp_path / "nifti.png")
    for path in tmp_path.iterdir():
        assert content.file_format(path) == path.stem
        assert readers.read_image(path).array.size == 60
    for kind in ("png", "jpeg"):
        Image.fromarray(STORED[0].astype(np.uint8)).save(tmp_path / "a.nii", kind)
        assert content.file_format(tmp_path / "a.nii") == kind
        with pytest.raises(DataError, match="one slice is not a volume"):
            readers.read_image(tmp_path / "a.nii")


def test_what_is_no_image(tmp_path: pathlib.Path) -> None:
    """Archives, texts, empty files, pipes and folders without a scan."""
    path = tmp_path / "scan.nii.gz"
    for data, problem in (
        (b"PK\x03\x04" + bytes(100), "archive is truncated"),
        (b"NDims of nothing", "not an image in a format"),
        (b"", "empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=problem):
            readers.read_image(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a file"):
        readers.read_image(path)
    path.unlink()
    with pytest.raises(DataError, match="no DICOM images and no PNG or JPEG slices"):
        readers.read_image(tmp_path)


@pytest.mark.parametrize(
    ("rescale", "dtype"),
    [
        ((1, -1024), np.int16),
        ((1, 40_000), np.int32),
        ((1, 0.5), np.float32),
        ((2, -1024), np.float32),
        ((1, 0), np.uint16),
        ((1, 3e9), np.float32),
    ],
)
def test_rescale_replaces_the_files_own(
    tmp_path: pathlib.Path, rescale: tuple[float, float], dtype: type
) -> None:
    """Applied once, whole numbers where they are exact; the slope of the file is ignored."""
    np.save(tmp_path / "scan.npy", STORED)
    for path in (_nifti(tmp_path / "scan.nii"), tmp_path / "scan.npy"):
        array = readers.read(path, rescale=rescale, units="HU").array
        assert array.dtype == dtype
        expected = STORED.astype(np.float64) * rescale[0] + rescale[1]
        np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_a_shift_is_exact_at_the_ends_of_a_type(tmp_path: pathlib.Path) -> None:
    """65,535 - 40,000 fits 16 bits, although neither of the numbers does."""
    np.save(tmp_path / "a.npy", np.array([[[10_000, 65_535]]], np.uint16))
    array = readers.read(tmp_path / "a.npy", rescale=(1, -40_000)).array
    assert array.dtype == np.int16 and array.ravel().tolist() == [-30_000, 25_535]


def test_spacing_replaces_the_files_own(tmp_path: pathlib.Path) -> None:
    """Directions stay, the first voxel stays, and an image without a place gets the spacing."""
    path = _nifti(tmp_path / "scan.nii")
    old, new = readers.read(path), readers.read(path, spacing=(1.0, 2.0, 4.0))
    np.testing.assert_allclose(new.spacing or (), (1, 2, 4))
    assert new.source_affine is not None
    np.testing.assert_allclose(new.source_affine, affine_of(new))
    np.testing.assert_allclose(transform(affine_of(new), [0, 0, 0]), AFFINE[:3, 3])
    turned = np.linalg.norm(affine_of(old)[:3, :3], axis=0) * affine_of(new)[:3, :3]
    np.testing.assert_allclose(turned / [1, 2, 4], affine_of(old)[:3, :3])
    np.save(tmp_path / "scan.npy", STORED)
    assert readers.read(tmp_path / "scan.npy", spacing=(1.0, 2.0, 4.0)).spacing == (1, 2, 4)


def test_refuses_wrong_replacements(tmp_path: pathlib.Path, sample_scans: epath.Path) -> None:
    """No slope of zero, no spacing of zero, and neither for DICOM, which says both."""
    path = _nifti(tmp_path / "scan.nii")
    for rescale in ((0, 1), (np.nan, 1), (1, np.inf)):
        with pytest.raises(DataError, match="a rescale of"):
            readers.read(path, rescale=rescale)
    for spacing in ((0, 1, 1), (1, 1, np.nan), (1, -1, 1)):
        with pytest.raises(DataError, match="a spacing of"):
            readers.read(path, spacing=spacing)
    dicom = sample_scans / "example_ct_dicom"
    with pytest.raises(DataError, match="a rescale or spacing was given"):
        readers.read(dicom, rescale=(1, 0))
    with pytest.raises(DataError, match="a rescale or spacing was given"):
        readers.read(dicom, spacing=(1, 1, 1))
