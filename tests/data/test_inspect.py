"""`inspect`: its facts and picture, and private tags that must not be in them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from etils import epath
from matplotlib import image as pictures
from PIL import Image

from data_pipelines import preprocess, readers
from data_pipelines.errors import DataError
from data_pipelines.inspect_scan import DOUBTFUL, Inspect, describe
from data_pipelines.planes import draw_planes
from data_pipelines.preprocess import Orientation
from data_pipelines.volume import Volume
from tests.data.scans import oblique, random_volume


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_ct_with_its_mask(
    sample_scans: epath.Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, mask = (str(sample_scans / f"example_{name}.nii.gz") for name in ("ct_sm", "seg"))
    assert Inspect(scan, mask=mask, units="HU").run() == 0
    out = capsys.readouterr().out
    for fact in (
        "nifti, 122 x 101 x 30 voxels (D x H x W), int16",
        "RAS: D to Right, H to Anterior, W to Superior",
        "366 x 303 x 90 mm",
        "HU, given by you",
        "passed",
        "1: 9452 voxels, 255.2 ml",
        "--units HU",
        "Not for clinical use.",
    ):
        assert fact in out
    drawn = pictures.imread("inspect.png")
    colourful = np.ptp(drawn[..., :3], axis=-1) > 0.3
    assert colourful.sum() > 1000  # the outlines


def test_a_picture_without_a_folder_is_told_first(home: Path) -> None:
    with pytest.raises(DataError, match=r"no/where.png: its folder is not there. Cure: "):
        Inspect("nowhere.nii.gz", picture="no/where.png").run()
    with pytest.raises(DataError, match="is a folder"):
        Inspect("nowhere.nii.gz", picture=str(home)).run()


def test_json_is_all_that_is_printed(
    sample_scans: epath.Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = sample_scans / "example_mr_sm.nii.gz"
    assert Inspect(str(scan), json=True, picture=None).run() == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["units"] == "raw" and facts["units_from"] == "nobody"
    assert not facts["could_be_hu"] and facts["doubt"] is None
    assert facts["axes"] == "LPS" and facts["shape"] == [117, 91, 20]
    assert "--recipe mr" in facts["next"]
    assert not list(home.iterdir())


def test_wrong_units_are_told_by_the_status(
    sample_scans: epath.Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Inspect(str(sample_scans / "example_mr_sm.nii.gz"), units="HU").run() == DOUBTFUL
    assert "FAILED" in capsys.readouterr().out


def test_a_ct_without_units_is_told_to_look_like_hu(sample_scans: epath.Path) -> None:
    facts = describe(readers.read(sample_scans / "example_ct_sm.nii.gz"))
    assert facts["units"] == "raw" and facts["could_be_hu"]


def test_a_dicom_folder_tells_its_units_and_no_tags(
    sample_scans: epath.Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Inspect(str(sample_scans / "example_ct_dicom")).run() == 0
    out = capsys.readouterr().out
    assert "HU, given by the file" in out and "dicom, 20 x 512 x 512" in out
    assert "1.2.840" not in out and "1.3.6" not in out  # UIDs


def test_a_folder_of_masks_gives_their_names(
    sample_scans: epath.Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    organs = home / "organs"
    organs.mkdir()
    for name in ("liver", "spleen"):
        (sample_scans / f"example_seg_fast/{name}.nii.gz").copy(organs / f"{name}.nii.gz")
    scan = str(sample_scans / "example_ct_sm.nii.gz")
    assert Inspect(scan, mask=str(organs), units="HU").run() == 0
    both = capsys.readouterr().out
    assert "1 liver: " in both and "2 spleen: " in both
    Inspect(scan, mask=str(organs), structures=("spleen",), units="HU").run()
    one = capsys.readouterr().out
    assert "1 spleen: " in one and "liver" not in one


def test_a_folder_of_slices_is_drawn_as_stored(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = home / "slices"
    slices.mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 20), np.uint8)
        Image.fromarray(pixels).save(slices / f"{index}.png")
    assert Inspect(str(slices)).run() == 0
    out = capsys.readouterr().out
    assert "image slices, 5 x 30 x 20" in out and "8-bit" in out
    assert "There is no affine" in out and (home / "inspect.png").exists()


def test_a_folder_of_scans_is_listed(
    scans: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Inspect(str(scans)).run() == 0
    out = capsys.readouterr().out
    assert "5 scans in this folder" in out and "s0.nii.gz" in out
    assert f"prepare folder --source {scans}" in out
    assert not (home / "inspect.png").exists()


def test_a_folder_with_one_scan_is_that_scan(
    scans: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(scans.iterdir())[1:]:
        path.unlink()
    assert Inspect(str(scans), units="HU").run() == 0
    assert "nifti, 40 x 40 x 20" in capsys.readouterr().out


def test_nothing_there(home: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Inspect("nowhere.nii.gz").run()


def _corner_lit() -> Volume:
    """A volume in RAS, bright at its right, anterior, superior corner."""
    array = np.zeros((40, 40, 40), np.float32)
    array[18:, 18:, 18:] = 1  # the planes through the middle cut it
    return Volume(array, "unit", affine=np.eye(4))


def _quadrants(path: Path) -> list[tuple[bool, bool]]:
    """For each of three pictures side by side: whether its bright part is left, and above."""
    grey = pictures.imread(path)[..., :3].min(-1)
    lit = grey > 0.99
    found = []
    for panel in np.array_split(np.arange(grey.shape[1]), 3):
        rows, columns = np.nonzero(lit[:, panel])
        middle = grey.shape[0] / 2
        found.append((bool(columns.mean() < len(panel) / 2), bool(rows.mean() < middle)))
    return found


@pytest.mark.parametrize("axcodes", ["RAS", "SPL", "AIL", "LPI"])
def test_the_picture_is_radiological_however_the_file_lies(axcodes: str, tmp_path: Path) -> None:
    """Right is on the left, anterior above in axial and left in sagittal, superior above."""
    path = tmp_path / "planes.png"
    draw_planes(path, Orientation(axcodes)(_corner_lit()), (0, 1))
    assert _quadrants(path) == [(True, True), (True, True), (True, True)]


def test_the_picture_has_the_aspect_of_the_patient(tmp_path: Path) -> None:
    """A cube of 40 mm stays a square, whatever its voxels."""
    volume = Volume(np.ones((8, 40, 20), np.float32), "unit", affine=np.diag([5.0, 1, 2, 1]))
    draw_planes(tmp_path / "planes.png", volume, (0, 1))
    lit = pictures.imread(tmp_path / "planes.png")[..., :3].min(-1) > 0.99
    height, width = (np.flatnonzero(lit.any(axis)).size for axis in (1, 0))
    assert width / 3 == pytest.approx(height, rel=0.03)


def test_a_volume_without_affine_is_drawn_as_stored(tmp_path: Path) -> None:
    draw_planes(tmp_path / "planes.png", Volume(np.eye(9)[None].repeat(5, 0), "raw"), (0, 1))
    assert (tmp_path / "planes.png").stat().st_size > 5000


@pytest.mark.parametrize("shape", [(1, 30, 30), (30, 1, 30), (30, 30, 1), (400, 5, 5)])
def test_thin_volumes_and_their_masks_are_drawn(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    draw_planes(tmp_path / "planes.png", oblique(random_volume(shape)), (-1000, 1000))
    assert max(pictures.imread(tmp_path / "planes.png").shape) < 2000


def test_mr_recipe_ignores_margins_and_bright_voxels(sample_scans: epath.Path) -> None:
    """Neither zeros around the body nor a few bright voxels change the grey values."""
    volume = readers.read(sample_scans / "example_mr_sm.nii.gz")
    plain = preprocess.mr()(volume)
    assert plain.units == "unit" and 0.2 < plain.array.mean() < 0.6
    array = np.pad(volume.array.astype(np.int32), 40)
    array[45, 45, 45] = 100_000
    changed = preprocess.mr()(Volume(array, "raw", affine=volume.affine))
    inside = tuple((np.array(changed.shape) - plain.shape) // 2)
    assert changed.shape == plain.shape and inside == (0, 0, 0)
    assert np.abs(changed.array - plain.array).mean() < 0.01


def test_mr_recipe_refuses_ct(sample_scans: epath.Path) -> None:
    volume = readers.read(sample_scans / "example_ct_sm.nii.gz", units="HU")
    with pytest.raises(DataError, match="'raw'"):
        preprocess.RECIPES["mr"](volume)


def test_names_of_patients_stay_out_of_the_output(
    scans: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.Nifti1Image.from_filename(scans / "s0.nii.gz")
    image.header["descrip"] = b"Doe^Jane"
    image.header["db_name"] = b"4711"
    nib.save(image, home / "scan.nii.gz")
    Inspect("scan.nii.gz", units="HU").run()
    out = capsys.readouterr().out
    assert "Doe" not in out and "4711" not in out
    assert b"Doe" not in (home / "inspect.png").read_bytes()
