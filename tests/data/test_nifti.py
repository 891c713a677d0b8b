"""NIfTI files: exact round trips, and errors for ambiguous headers."""

from __future__ import annotations

import gzip
import io
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from etils import epath

from data_pipelines import readers
from data_pipelines.errors import DataError
from data_pipelines.readers import nifti
from tests.data.scans import affine_of, mask_of

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.2, -20], [0, -0.1, 3, 5], [0, 0, 0, 1]])


def _image(array: np.ndarray, affine: np.ndarray = AFFINE, **header: Any) -> bytes:
    """A NIfTI-1 file; `header` fields are written over what nibabel made consistent."""
    data = nib.Nifti1Image(array, affine).to_bytes()
    fields = nib.Nifti1Header.from_fileobj(io.BytesIO(data), check=False)
    for name, value in header.items():
        fields[name] = value
    return fields.binaryblock + data[len(fields.binaryblock) :]


def _save(folder: pathlib.Path, data: bytes, name: str = "scan.nii") -> pathlib.Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.fixture
def noise() -> np.ndarray:
    """(5, 6, 7) int16."""
    return np.random.default_rng(0).integers(-1024, 3000, (5, 6, 7), np.int16)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan"])
def test_reads_what_was_written(
    tmp_path: pathlib.Path, noise: np.ndarray, kind: Any, name: str
) -> None:
    """Both versions, gzipped or not, under any name; the units are the caller's."""
    data = kind(noise, AFFINE).to_bytes()
    path = tmp_path / name
    path.write_bytes(data if name == "scan.nii" else gzip.compress(data))
    volume = readers.read(path, units="HU", patient_id="p1", study_id="s1")
    np.testing.assert_array_equal(volume.array, noise)
    assert volume.array.dtype == np.int16 and volume.array.dtype.isnative
    np.testing.assert_allclose(affine_of(volume), AFFINE, atol=1e-5)
    assert (volume.units, volume.patient_id, volume.study_id) == ("HU", "p1", "s1")
    assert volume.source == str(path)
    assert readers.read(path).units == "raw"


def test_big_endian(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """Foreign byte order is converted."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    image = nib.Nifti1Image(noise.astype(">i2"), AFFINE, header)
    assert image.header.endianness == ">"
    volume = readers.read(_save(tmp_path, image.to_bytes()))
    np.testing.assert_array_equal(volume.array, noise)
    assert volume.array.dtype.isnative


def test_slope_and_intercept_once(tmp_path: pathlib.Path) -> None:
    """Stored 0..9 with slope 2 and intercept -1024 is -1024..-1006, and float32."""
    stored = np.arange(10, dtype=np.uint16).reshape(1, 2, 5)
    path = _save(tmp_path, _image(stored, scl_slope=2, scl_inter=-1024))
    volume = readers.read(path)
    np.testing.assert_array_equal(volume.array, stored * 2.0 - 1024)
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize("sform", [0, 1, 2, 4])
@pytest.mark.parametrize("qform", [0, 1, 2])
def test_forms_that_contradict_each_other(tmp_path: pathlib.Path, sform: int, qform: int) -> None:
    """Both readers take what the sentence says: SimpleITK 2.5.7 the sform only if its code is 1."""
    if not sform and not qform:
        return
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    for name, shift in (("sform", 100), ("qform", -100)):
        affine = np.eye(4)
        affine[0, 3] = shift
        getattr(image, f"set_{name}")(affine, {"sform": sform, "qform": qform}[name])
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    ours = "sform" if affine_of(readers.read(path))[0, 3] > 0 else "qform"
    theirs = "sform" if -SimpleITK.ReadImage(str(path)).GetOrigin()[0] > 0 else "qform"
    found = nifti.contradictions(path)
    if sform and qform:
        (told,) = found
        assert f"200 mm apart. The {ours} is taken; SimpleITK takes the {theirs}." in told
    else:
        assert found == [] and ours == theirs


def test_pixdim_that_contradicts_the_affine(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """SimpleITK 2.5.7 takes the spacing from pixdim, nibabel from the sform."""
    sizes = np.linalg.norm(AFFINE[:3, :3], axis=0)
    path = _save(tmp_path, _image(noise, pixdim=[1, *sizes[:2], 6, 0, 0, 0, 0]))
    (told,) = nifti.contradictions(path)
    assert "pixdim says 2 x 1.503 x 6 mm, the sform 2 x 1.503 x 3.007 mm" in told
    np.testing.assert_allclose(readers.read(path).spacing, sizes, rtol=1e-5)
    assert SimpleITK.ReadImage(str(path)).GetSpacing()[2] == 6
    assert nifti.contradictions(_save(tmp_path, _image(noise))) == []


def test_trailing_axes_of_length_one(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """A single time point is a volume."""
    assert readers.read(_save(tmp_path, _image(noise[..., None]))).shape == noise.shape


def _nan(array: np.ndarray) -> bytes:
    array = array.astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    return _image(array)


def _pixdim(value: float) -> Callable[[np.ndarray], bytes]:
    return lambda array: _image(array, pixdim=[1, 2, value, 3, 1, 1, 1, 1])


def _colour(array: np.ndarray) -> bytes:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return _image(np.zeros(array.shape, kind))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_nan, "2 voxels are NaN or infinite"),
        (_pixdim(0), "voxel sizes of"),
        (_pixdim(-1), "voxel sizes of"),
        (_pixdim(np.nan), "voxel sizes of"),
        (lambda a: _image(a, sform_code=0, qform_code=0), "neither qform nor sform"),
        (lambda a: _image(a, srow_x=[0, 0, 0, 0]), "singular"),
        (lambda a: _image(a, srow_y=[0, np.nan, 0, 0]), "not a finite"),
        (lambda a: _image(np.stack([a, a], -1)), "not three axes"),
        (lambda a: _image(a[0]), "not three axes"),
        (lambda a: _image(a.astype(np.complex64)), "voxels of type"),
        (_colour, "voxels of type"),
        (lambda a: _image(a, xyzt_units=1), "not in millimetres"),
        (lambda a: _image(a, datatype=9999), "not a readable NIfTI"),
        (lambda a: _image(a, sizeof_hdr=2**30), "a header of 1073741824 bytes"),
        (lambda a: _image(a, dim=[3, -5, 6, 7, 1, 1, 1, 1]), "an image of shape"),
        (lambda a: _image(a, dim=[3, 0, 6, 7, 1, 1, 1, 1]), "an image of shape"),
        (lambda a: _image(a, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "an image of shape"),
        (lambda a: _image(a, dim=[3, 32767, 32767, 1, 1, 1, 1, 1]), "ends before"),
        (lambda a: _image(a, dim=[4, 5, 6, 7, 0, 1, 1, 1]), "not three axes"),
        (lambda a: _image(a, dim=[-3, 5, 6, 7, 1, 1, 1, 1]), "a header of"),
        (lambda a: _image(a, vox_offset=np.nan), "voxels from byte nan"),
        (lambda a: _image(a, vox_offset=-352), "voxels from byte -352"),
        (lambda a: _image(a, vox_offset=0), "voxels from byte 0"),
        (lambda a: _image(a, vox_offset=1e30), "ends before"),
        (lambda a: _image(a, vox_offset=1000), "ends before"),
        (lambda a: _image(a, scl_slope=1, scl_inter=np.nan), "scl_inter"),
        (lambda a: _image(a, scl_slope=1e38), "voxels are NaN or infinite"),
        (lambda a: _image(a, sform_code=0, qform_code=1, quatern_b=2), "not a rotation"),
        (lambda a: _image(a, srow_x=[1e30, 0, 0, 0]), "lengths of more than"),
        (lambda a: _image(a, sform_code=99, qform_code=0), "neither qform nor sform"),
        (lambda a: _image(a, magic=b"ni1"), "a pair of files"),
        (lambda a: nib.Nifti2Image(a, AFFINE).to_bytes()[:400], "ends inside its header"),
    ],
)
def test_refuses(
    tmp_path: pathlib.Path, noise: np.ndarray, make: Callable[[np.ndarray], bytes], problem: str
) -> None:
    """The error names the file, the field and a cure."""
    path = _save(tmp_path, make(noise), "doubtful.nii.gz")
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(path)
    assert caught.value.path == str(path) and caught.value.cure


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated(tmp_path: pathlib.Path, noise: np.ndarray, name: str, part: float) -> None:
    """A download that ended early is an error at any length."""
    path = _save(tmp_path, _image(np.tile(noise, (4, 4, 4))), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"empty|truncated|ends before|not an image"):
        readers.read(path)


def test_damaged_gzip(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """A flipped bit fails gzip's checksum."""
    path = _save(tmp_path, _image(np.tile(noise, (4, 4, 4))), "scan.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="truncated or damaged"):
        readers.read(path)


def _with_extension(data: bytes, size: int) -> bytes:
    """An extension of 16 bytes that claims to be `size` long."""
    fields = nib.Nifti1Header.from_fileobj(io.BytesIO(data), check=False)
    fields["vox_offset"] = 368
    extension = b"\1\0\0\0" + np.array([size, 6], "<i4").tobytes() + b"whatever"
    return fields.binaryblock + extension + data[352:]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_passes_over_what_is_no_image(tmp_path: pathlib.Path, noise: np.ndarray, name: str) -> None:
    """Extensions of any size, and bytes after the voxels, are ignored."""
    for data in (
        _with_extension(_image(noise), 2**31 - 1),
        _with_extension(_image(noise), -16),
        _image(noise) + b"\1" * 10_000,
    ):
        np.testing.assert_array_equal(readers.read(_save(tmp_path, data, name)).array, noise)


def test_gzip_in_several_members(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """As pigz and bgzip write it; bytes after the last member are ignored, as by gzip."""
    data = _image(noise)
    parts = [gzip.compress(data[i : i + 100]) for i in range(0, len(data), 100)]
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"".join(parts) + b"\0" * 512)
    np.testing.assert_array_equal(readers.read(path).array, noise)


def test_a_bomb_is_unpacked_no_further_than_its_header_claims(
    tmp_path: pathlib.Path, noise: np.ndarray
) -> None:
    """64 MB of zeros behind 210 voxels, and 210 voxels that claim to be 2 GB."""
    bomb = _save(tmp_path, _image(noise) + bytes(1 << 26), "bomb.nii.gz")
    liar = _save(tmp_path, _image(noise, dim=[3, 1024, 1024, 1024, 1, 1, 1, 1]), "liar.nii.gz")
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(readers.read(bomb).array, noise)
        with pytest.raises(DataError, match="ends before"):
            readers.read(liar)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_not_an_image(tmp_path: pathlib.Path) -> None:
    """A missing file and a text file named .nii."""
    with pytest.raises(DataError, match="no such file"):
        readers.read(tmp_path / "missing.nii.gz")
    path = tmp_path / "notes.nii"
    path.write_text("these are notes" * 100)
    with pytest.raises(DataError, match="not an image in a format"):
        readers.read(path)


# ---- Masks


def test_real_mask(sample_scans: epath.Path) -> None:
    """The liver of the sample scan is brighter than its lungs."""
    volume = readers.read(
        sample_scans / "example_ct_sm.nii.gz",
        sample_scans / "example_seg.nii.gz",
        units="HU",
        mask_names={1: "spleen"},
    )
    assert mask_of(volume).dtype == np.uint8 and volume.mask_names == {1: "spleen"}
    outside = volume.array[mask_of(volume) == 0].mean()
    assert volume.array[mask_of(volume) > 0].mean() > outside + 200


@pytest.mark.parametrize("axcodes", ["RAS", "SPL", "PIR"])
def test_mask_in_another_axis_order(
    tmp_path: pathlib.Path, noise: np.ndarray, axcodes: str
) -> None:
    """A mask stored with other axes, but of the same voxels, is turned to the image's."""
    labels = (noise > 1000).astype(np.uint8)
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels, AFFINE))
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    mask = _save(tmp_path, turned.as_reoriented(change).to_bytes(), "mask.nii.gz")
    volume = readers.read(_save(tmp_path, _image(noise)), mask)
    np.testing.assert_array_equal(volume.mask, labels)


def _moved(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (_image(np.zeros((5, 6, 8), np.uint8)), "another grid"),
        (_image(np.zeros((5, 6, 7), np.uint8), _moved(2.0)), "another grid"),
        (_image(np.zeros((5, 6, 7), np.uint8), AFFINE * [[1.1], [1], [1], [1]]), "another grid"),
        (_image(np.full((5, 6, 7), -1, np.int16)), "labels from -1"),
        (_image(np.full((5, 6, 7), 255, np.uint8)), "labels from 255"),
        (_image(np.full((5, 6, 7), 0.5, np.float32)), "not whole numbers"),
        (_image(np.full((5, 6, 7), np.nan, np.float32)), "voxels are NaN"),
    ],
)
def test_refuses_masks(
    tmp_path: pathlib.Path, noise: np.ndarray, mask: bytes, problem: str
) -> None:
    """Another grid or interpolated labels would train the wrong voxels."""
    scan, path = _save(tmp_path, _image(noise)), _save(tmp_path, mask, "mask.nii")
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(scan, path)
    assert caught.value.path == str(path)


def test_mask_within_tolerance(tmp_path: pathlib.Path, noise: np.ndarray) -> None:
    """Rounded headers and float labels are fine."""
    mask = _image(np.full(noise.shape, 3.0, np.float32), _moved(0.01))
    volume = readers.read(_save(tmp_path, _image(noise)), _save(tmp_path, mask, "mask.nii"))
    assert (mask_of(volume) == 3).all()
