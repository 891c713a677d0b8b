"""Pictures: orientation and scale."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from m3djax.evaluate.pictures import PLANES, centre, three_planes


@pytest.mark.parametrize(
    ("plane", "corner"),
    [
        # Corner voxel at the upper left of the picture, axes running to S, P, L.
        ("axial", (2, 0, 0)),  # anterior, right
        ("coronal", (4, 2, 0)),  # superior, right
        ("sagittal", (4, 0, 2)),  # superior, anterior
    ],
)
def test_orientation(plane, corner):
    (chosen,) = (p for p in PLANES if p.name == plane)
    volume = np.zeros((5, 5, 5))
    volume[corner] = 1
    image = chosen.cut(volume, 2)
    assert image[0, 0] == 1
    assert image.sum() == 1


def test_the_centre_is_that_of_the_body():
    volume = np.full((10, 20, 30), -1000)
    volume[2:5, 10:13, 20:23] = 40
    assert centre(volume, -500) == (3, 11, 21)
    assert centre(np.full((4, 4, 4), -1000), -500) == (2, 2, 2)


def test_the_picture_shows_what_it_is_given(tmp_path):
    original = np.full((10, 20, 20), 1000.0)
    hidden = np.where(np.arange(20) < 10, np.nan, original)
    path = epath.Path(tmp_path) / "x.png"
    columns = {"one": original, "two": hidden}
    three_planes(path, columns, spacing=(4, 1, 1), window=(-1000, 1000), at=(5, 5, 15))
    image = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(int)
    white = (image > 250).all(-1)
    # Of 20 x 20, 40 x 20 and 40 x 20 mm the first two are half hidden; text is not white.
    left, right = white[:, : image.shape[1] // 2].sum(), white[:, image.shape[1] // 2 :].sum()
    assert right / left == pytest.approx((200 + 400 + 800) / 2000, rel=0.03)


def test_voxels_are_shown_in_millimetres(tmp_path):
    path = epath.Path(tmp_path) / "x.png"
    volume = np.full((10, 40, 40), 1000.0)
    three_planes(path, {"one": volume}, spacing=(2, 1, 1), window=(-1000, 1000), at=(5, 20, 20))
    white = (np.asarray(Image.open(tmp_path / "x.png").convert("RGB")) > 250).all(-1)
    rows = np.flatnonzero(white.mean(1) > 0.5)
    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    heights = [len(part) for part in parts if len(part) > 20]
    # Axial 40 mm high, coronal and sagittal 10 slices of 2 mm.
    assert len(heights) == 3
    assert heights[1] / heights[0] == pytest.approx(0.5, abs=0.03)
    assert heights[2] == pytest.approx(heights[1], abs=2)
