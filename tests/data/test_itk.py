"""NRRD and MetaImage against ITK: voxels, positions, and no geometry that the header lacks."""

from __future__ import annotations

import pathlib
import re
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
from etils import epath
from scipy.spatial.transform import Rotation

from data_pipelines import readers
from data_pipelines.errors import DataError
from data_pipelines.volume import transform
from tests.data.scans import affine_of

ENDINGS = ("nrrd", "nhdr", "mha", "mhd")
NOISE = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def _image(array: np.ndarray = NOISE) -> sitk.Image:
    """Lying askew in the patient."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    turn = Rotation.from_euler("xyz", (11, -7, 5), degrees=True).as_matrix()
    image.SetDirection(turn.ravel().tolist())
    return image


def _save(folder: pathlib.Path, ending: str, array: np.ndarray = NOISE) -> pathlib.Path:
    path = folder / f"scan.{ending}"
    sitk.WriteImage(_image(array), str(path))
    return path


def _edit(path: pathlib.Path, pattern: str, new: str) -> pathlib.Path:
    """Replaces one piece of a header."""
    data, count = re.subn(pattern.encode(), new.encode(), path.read_bytes(), count=1)
    assert count == 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_voxels_and_place_as_itk_has_them(
    tmp_path: pathlib.Path, ending: str, packed: bool
) -> None:
    """Attached or detached, packed or not, every voxel is where ITK's physical point is."""
    image, path = _image(), tmp_path / f"scan.{ending}"
    sitk.WriteImage(image, str(path), useCompression=packed)
    volume = readers.read(path, units="HU")
    np.testing.assert_array_equal(volume.array, NOISE)
    assert (volume.units, readers.read(path).units) == ("HU", "raw")
    for z, y, x in ((0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (3, 1, 2)):
        point = image.TransformIndexToPhysicalPoint((x, y, z)) * np.array([-1, -1, 1])
        np.testing.assert_allclose(transform(affine_of(volume), [z, y, x]), point, atol=1e-4)
    np.testing.assert_allclose(volume.spacing or (), (2.5, 0.8, 0.7), atol=1e-4)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_same_as_through_nifti(
    tmp_path: pathlib.Path, sample_scans: epath.Path, ending: str
) -> None:
    """A real scan, whichever of the formats it comes in."""
    source, path = sample_scans / "example_ct_sm.nii.gz", tmp_path / f"scan.{ending}"
    sitk.WriteImage(sitk.ReadImage(str(source)), str(path), useCompression=True)
    one, other = readers.read(source), readers.read(path)
    np.testing.assert_array_equal(one.array, other.array.transpose(2, 1, 0))
    here = np.random.default_rng(0).uniform(0, 100, (20, 3))
    there = transform(affine_of(other), here[:, ::-1])
    np.testing.assert_allclose(transform(affine_of(one), here), there, atol=1e-3)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types(tmp_path: pathlib.Path, ending: str, dtype: str) -> None:
    """All of ITK's names of types; floats become float32."""
    array = np.abs(NOISE).astype(dtype)
    read = readers.read(_save(tmp_path, ending, array)).array
    np.testing.assert_array_equal(read, array)
    assert read.dtype == (np.float32 if dtype[0] == "f" else dtype)


def test_big_endian(tmp_path: pathlib.Path) -> None:
    """The byte order that the header names."""
    for ending, old, new in (
        ("nrrd", "endian: little", "endian: big"),
        ("mha", "MSB = False", "MSB = True"),
    ):
        path = _edit(_save(tmp_path, ending, NOISE.byteswap()), old, new)
        np.testing.assert_array_equal(readers.read(path).array, NOISE)


@pytest.mark.parametrize(
    ("ending", "pattern", "new", "spacing"),
    [
        ("nrrd", "space: .*\n", "space dimension: 3\n", True),
        ("nrrd", "space: .*\n", "space: scanner-xyz\n", True),
        ("nrrd", "space origin: .*\n", "", True),
        ("nrrd", "space directions: .*\n", "", False),
        ("nrrd", "space directions: .*\n", "spacings: 0.7 0.8 2.5\n", True),
        ("nrrd", "space directions: .*\n", "spacings: nan nan nan\n", False),
        ("mha", "TransformMatrix = .*\n", "", True),
        ("mha", "Offset = .*\n", "", True),
        ("mha", "ElementSpacing = .*\n", "", False),
    ],
)
def test_what_the_header_leaves_out_stays_unknown(
    tmp_path: pathlib.Path, ending: str, pattern: str, new: str, spacing: bool
) -> None:
    """No identity in place of directions, no zero in place of an origin, no 1 mm."""
    volume = readers.read(_edit(_save(tmp_path, ending), pattern, new))
    np.testing.assert_array_equal(volume.array, NOISE)
    assert volume.affine is None and (volume.spacing is not None) == spacing
    if volume.spacing:
        np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.7), atol=1e-4)


@pytest.mark.parametrize(("space", "signs"), [("RAS", (1, 1)), ("left-anterior-superior", (-1, 1))])
def test_spaces(tmp_path: pathlib.Path, space: str, signs: tuple[int, int]) -> None:
    """The same numbers lie elsewhere in another space; as ITK reads them."""
    path = _edit(_save(tmp_path, "nrrd"), "space: .*\n", f"space: {space}\n")
    here = affine_of(readers.read(path))
    point = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(transform(here, [3, 2, 1]), point * np.array([-1, -1, 1]), atol=1e-4)
    np.testing.assert_allclose(here[:2, 3], np.array([10, -20]) * signs, atol=1e-4)


def test_older_words(tmp_path: pathlib.Path) -> None:
    """As LUNA16 and other old files have them; unknown and free fields do not matter."""
    expected = affine_of(readers.read(_save(tmp_path, "mhd")))
    path = _edit(tmp_path / "scan.mhd", "TransformMatrix", "Orientation")
    _edit(path, "Offset", "Position")
    _edit(path, "DimSize", "Comment = any: thing\r\nComment = more\r\nDimSize")
    _edit(path, "ElementDataFile", "HeaderSize = -1\nElementDataFile")
    raw = tmp_path / "scan.raw"
    raw.write_bytes(b"whatever" + raw.read_bytes())
    volume = readers.read(path)
    np.testing.assert_array_equal(volume.array, NOISE)
    np.testing.assert_allclose(affine_of(volume), expected)
    path = _edit(
        _save(tmp_path, "nhdr"), "encoding", "# a comment\na key:=a value\nbyteskip: 8\nencoding"
    )
    raw.write_bytes(b"whatever" + raw.read_bytes())
    np.testing.assert_array_equal(readers.read(path).array, NOISE)


# ---- Errors


@pytest.mark.parametrize(
    ("ending", "pattern", "new", "problem"),
    [
        ("nrrd", "dimension: 3", "dimension: 4", "three axes"),
        ("nrrd", "kinds: domain", "kinds: RGB-color", "three axes"),
        ("nrrd", "sizes: 7 6 5", "sizes: 7 6", "three lengths"),
        ("nrrd", "sizes: 7 6 5", "sizes: 7 6 -5", "three lengths"),
        ("nrrd", "sizes: 7 6 5", "sizes: 7 6 0", "an image of shape"),
        ("nrrd", "sizes: 7 6 5", "sizes: 70000 60000 5000", "an image of shape"),
        ("nrrd", "sizes: 7 6 5", "sizes: 1000 1000 1000", "ends before"),
        ("nrrd", "sizes: 7 6 5", "sizes: " + "9" * 5000 + " 1 1", "three lengths"),
        ("nrrd", "type: short", "type: block", "unknown type"),
        ("nrrd", "type: short\n", "", "no field 'type'"),
        ("nrrd", "endian: little\n", "", "no field 'endian'"),
        ("nrrd", "endian: little", "endian: smith", "neither little nor big"),
        ("nrrd", "encoding: raw", "encoding: bzip2", "neither raw nor gzip"),
        ("nrrd", "endian: little\nencoding: raw", "encoding: ascii", "neither raw nor gzip"),
        ("nrrd", "encoding: raw", "encoding: raw\nline skip: 1", "to skip"),
        ("nrrd", "encoding: raw", "encoding: raw\nbyte skip: 1", "ends before"),
        ("nrrd", "encoding: raw", "encoding: raw\nbyte skip: x", "not a whole number"),
        (
            "nrrd",
            "encoding: raw",
            "encoding: raw\nEncoding: gzip",
            "two values in the field 'encoding'",
        ),
        ("nrrd", "encoding: raw", 'encoding: raw\nspace units: "cm" "cm" "cm"', "millimetres"),
        ("nrrd", r"space directions: \S*", "space directions: none", "9 numbers"),
        ("nrrd", r"space directions: \S*", "space directions: (0,0,0)", "singular"),
        ("nrrd", r"space directions: \S*", "space directions: (nan,nan,nan)", "not a finite"),
        ("nrrd", r"space origin: .*", "space origin: (smith,1,2)", "3 numbers"),
        ("nrrd", r"space origin: .*", "space origin: (1e200,1,2)", "lengths of more than"),
        ("nrrd", "space directions: .*\n", "spacings: 1 1 0\n", "a spacing of"),
        ("nrrd", "space directions: .*\n", "spacings: 1 1 1e9\n", "lengths of more than"),
        ("mha", "NDims = 3", "NDims = 4", "three axes"),
        ("mha", "NDims = 3", "NDims = 3\nElementNumberOfChannels = 3", "three axes"),
        ("mha", "ObjectType = Image", "ObjectType = Tube", "three axes"),
        ("mha", "DimSize = 7 6 5", "DimSize = 7 6", "three lengths"),
        ("mha", "DimSize = 7 6 5", "DimSize = 1000 1000 1000", "ends before"),
        ("mha", "DimSize = 7 6 5", "DimSize = 70000 60000 5000", "an image of shape"),
        ("mha", "MET_SHORT", "MET_SHORT_ARRAY", "unknown type"),
        ("mha", "BinaryData = True", "BinaryData = False", "written as text"),
        ("mha", "BinaryData = True", "BinaryData = smith", "neither True nor False"),
        ("mha", "Offset = 10", "Offset = nan", "not a finite"),
        ("mha", r"ElementSpacing = \S*", "ElementSpacing = -0.7", "not positive"),
        ("mha", r"ElementSpacing = \S*", "ElementSpacing = nan", "not positive"),
        ("mha", r"TransformMatrix = \S*", "TransformMatrix = ", "9 numbers"),
        ("mha", "Offset", "DistanceUnits = cm\nOffset", "millimetres"),
        ("mha", "Offset", "ElementToIntensityFunctionSlope = 2\nOffset", "intensities"),
        (
            "mha",
            "ElementDataFile = LOCAL\n",
            "HeaderSize = 5\nElementDataFile = LOCAL\n",
            "HeaderSize",
        ),
        ("mha", "ElementDataFile = LOCAL\n", "", "no field 'ElementDataFile'"),
        ("mha", "CompressedData = False", "CompressedData = True", "truncated or damaged"),
    ],
)
def test_refuses(tmp_path: pathlib.Path, ending: str, pattern: str, new: str, problem: str) -> None:
    """The error names file and field, and quotes no value of the header."""
    path = _edit(_save(tmp_path, ending), pattern, new)
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(path)
    assert caught.value.path == str(path) and caught.value.cure
    assert "smith" not in str(caught.value)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_not_finite(tmp_path: pathlib.Path, ending: str) -> None:
    """As for NIfTI."""
    array = NOISE.astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(DataError, match="2 voxels are NaN or infinite"):
        readers.read(_save(tmp_path, ending, array))


def _color(folder: pathlib.Path, ending: str) -> sitk.Image:
    return sitk.Compose(_image(), _image(), _image())


def _four(folder: pathlib.Path, ending: str) -> sitk.Image:
    return sitk.JoinSeries([_image(), _image()])


def _complex(folder: pathlib.Path, ending: str) -> sitk.Image:
    return sitk.RealAndImaginaryToComplex(*[sitk.Cast(_image(), sitk.sitkFloat32)] * 2)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("make", [_color, _four, _complex])
def test_not_grey_or_not_3d(
    tmp_path: pathlib.Path, make: Callable[..., sitk.Image], ending: str
) -> None:
    """Vectors, time series and complex numbers."""
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(make(tmp_path, ending), str(path))
    with pytest.raises(DataError, match="three axes"):
        readers.read(path)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_damaged_voxels(tmp_path: pathlib.Path, ending: str) -> None:
    """A flipped bit, and a download that ended early."""
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(_image(np.tile(NOISE, (4, 4, 4))), str(path), useCompression=True)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    for broken in (bytes(flipped), data[: len(data) // 2], data[:-3], data[:300], data[:80]):
        path.write_bytes(broken)
        with pytest.raises(DataError):
            readers.read(path)


def test_a_bomb_is_unpacked_no_further_than_its_header_claims(tmp_path: pathlib.Path) -> None:
    """64 MB of zeros where 210 voxels belong, and 210 voxels that claim to be 2 GB."""
    path = tmp_path / "scan.mha"
    sitk.WriteImage(_image(), str(path), useCompression=True)
    head = path.read_bytes().split(b"LOCAL\n")[0] + b"LOCAL\n"
    bomb, liar = tmp_path / "bomb.mha", tmp_path / "liar.mha"
    bomb.write_bytes(head + zlib.compress(bytes(1 << 26)))
    liar.write_bytes(path.read_bytes().replace(b"= 7 6 5", b"= 1000 1000 1000"))
    tracemalloc.start()
    try:
        assert not readers.read(bomb).array.any()
        with pytest.raises(DataError, match="ends before"):
            readers.read(liar)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("ending", "field"), [("nhdr", "data file: "), ("mhd", "ElementDataFile = ")]
)
def test_data_files_stay_in_their_folder(tmp_path: pathlib.Path, ending: str, field: str) -> None:
    """A header cannot show a file that lies elsewhere, and a folder below is fine."""
    folder = tmp_path / "given"
    (folder / "below").mkdir(parents=True)
    path = _save(folder, ending)
    secret = tmp_path / "secret.raw"
    (folder / "scan.raw").rename(secret)
    (folder / "link.raw").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    header = path.read_bytes()
    for name, problem in (
        ("../secret.raw", "outside of its folder"),
        (r"..\secret.raw", "outside of its folder"),
        ("below/../../secret.raw", "outside of its folder"),
        (str(secret), "outside of its folder"),
        ("link.raw", "outside of its folder"),
        ("linked/secret.raw", "outside of its folder"),
        ("nul\0.raw", "outside of its folder"),
        ("missing.raw", "no such file"),
        ("below", "not a file"),
        ("", "not a file"),
        ("x" * 500, "cannot be read"),
        ("LIST", "several files"),
        ("slice%03d.raw 1 5 1", "several files"),
    ):
        path.write_bytes(header.replace(field.encode() + b"scan.raw", (field + name).encode()))
        with pytest.raises(DataError, match=problem):
            readers.read(path)
    secret.rename(folder / "below" / "scan.raw")
    path.write_bytes(header.replace(b"scan.raw", b"below/scan.raw"))
    np.testing.assert_array_equal(readers.read(path).array, NOISE)
