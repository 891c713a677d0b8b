"""M3D's released preprocessing and boxes against goldens of its own scripts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from data_pipelines import boxes, intensity, preprocess
from data_pipelines.volume import Units, Volume
from tests.parity import goldens

TOLERANCE = 1e-5  # the golden's README


def _volume(array: np.ndarray, mask: np.ndarray | None = None, units: Units = "raw") -> Volume:
    return Volume(array, units, mask=None if mask is None else mask.astype(np.uint8))


@pytest.fixture(params=goldens.golden_dirs("m3d_preproc"), ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> goldens.Golden:
    """Each m3d_preproc golden in turn."""
    folder: pathlib.Path = request.param
    return goldens.Golden.read(folder)


def test_every_tensor(golden: goldens.Golden) -> None:
    """All chains of all volumes; each tensor of the file is an input or compared."""
    volumes = [f"v{k}" for k in range(len(golden.config["vols"]))]
    assert volumes
    for name, shape in zip(volumes, golden.config["vols"], strict=True):
        assert golden.given(f"{name}/slices_uint8").shape == tuple(shape)
        _check_cap(golden, name)
        _check_seg(golden, name)
        _check_refseg(golden, name)
        _check_texts(golden, name)
    assert set(_texts(golden)) == set(volumes)
    golden.finish()


def _check_cap(golden: goldens.Golden, name: str) -> None:
    volume = _volume(golden.given(f"{name}/slices_uint8"))
    recipe = preprocess.m3d_cap(tuple(golden.config["out_size"]))
    scaled = recipe.steps[0](volume)
    golden.compare(f"{name}/cap_minmax", scaled.array[None], TOLERANCE)
    cropped = recipe.steps[1](scaled)
    golden.compare(f"{name}/cap_cropped", cropped.array[None], TOLERANCE)
    start = cropped.to_source[:3, 3]
    golden.compare(f"{name}/cap_crop_start_end", [start, start + cropped.shape], 0)
    golden.compare(f"{name}/cap_out", recipe(volume).array[None], TOLERANCE)


def _check_seg(golden: goldens.Golden, name: str) -> None:
    (image,) = golden.given(f"{name}/seg_image_CXYZ")
    masks = golden.given(f"{name}/seg_mask_CXYZ")
    recipe = preprocess.m3d_seg(tuple(golden.config["out_size"]))
    # Classes may overlap, a label map cannot: M3D stores one mask per class, and so do we here.
    out = [recipe(_volume(image, mask)) for mask in masks]
    masks_out = np.stack([np.asarray(volume.mask) for volume in out])
    golden.compare(f"{name}/seg_out", out[0].array[None], TOLERANCE)
    golden.compare(f"{name}/seg_mask_out", masks_out, 0)
    upright = golden.given(f"{name}/mask_CDHW")
    np.testing.assert_array_equal(upright, masks.transpose(0, 3, 2, 1))
    for kind, of in (("resized", masks_out), ("original", upright)):
        ours = [boxes.mask_to_box(mask, released=True) for mask in of]
        # Stored as float32, rounded to three decimals before.
        golden.compare(f"{name}/boxes_{kind}", np.array(ours, np.float32), 0)


def _check_refseg(golden: goldens.Golden, name: str) -> None:
    image = golden.given(f"{name}/refseg_image_XYZ")
    recipe = preprocess.m3d_refseg(tuple(golden.config["out_size"]))
    out = recipe(_volume(image, golden.given(f"{name}/refseg_mask_XYZ")))
    # Stored in float32: exact up to its precision.
    golden.compare(
        f"{name}/refseg_p005_p995",
        intensity.percentiles(image, 0.5, 99.5),
        TOLERANCE,
        relative=1e-7,
    )
    golden.compare(f"{name}/refseg_out", out.array[None], TOLERANCE)
    assert out.mask is not None
    golden.compare(f"{name}/refseg_mask_out", out.mask[None], 0)


def _check_texts(golden: goldens.Golden, name: str) -> None:
    texts = _texts(golden)[name]
    resized = np.round(golden.given(f"{name}/boxes_resized").astype(np.float64), 3)
    original = np.round(golden.given(f"{name}/boxes_original").astype(np.float64), 3)
    rendered = [boxes.START + boxes.box_to_text(box) + boxes.END for box in resized]
    assert rendered == texts.pop("boxes_resized_text")
    assert [boxes.box_to_text(box) for box in original] == texts.pop("boxes_original_text")
    parsed = np.concatenate([boxes.text_to_boxes(text) for text in rendered])
    np.testing.assert_array_equal(parsed, texts.pop("parsed"))
    pairs = {
        "m3d_calculate_iou": (resized[0], resized[1]),
        "m3d_iou_resized0_vs_original0": (resized[0], original[0]),
    }
    for key, (one, other) in pairs.items():
        ours = boxes.iou(one, other, released=True)
        assert ours == pytest.approx(texts.pop(key), rel=1e-9, abs=1e-12), key
    assert not texts, f"not compared: {sorted(texts)}"


def _texts(golden: goldens.Golden) -> dict[str, Any]:
    return json.loads((golden.folder / "texts.json").read_text())
