"""`Inputs`: intensities, and moves of all spatial arrays of a sample."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Spatial
from data_pipelines.fields.image import Image
from data_pipelines.fields.slice import Slice
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import IMAGE, Inputs, ScaleIntensityRange
from m3djax.inputs.moves import Moves, move
from m3djax.runs.model import Model
from tests import tiny

ROWS = 24
SIDE = 6
SPATIAL = {
    "image": Spatial("image", (0, 1, 2)),
    "mask": Spatial("mask", (0, 1, 2)),
    "points": Spatial("points"),
    "boxes": Spatial("boxes"),
    "at": Spatial("slice_at"),
    "slice": Spatial("slice", (0, 1), at="at"),
}
FLIPS, TURNS = Augment((0.5, 0.5, 0.5)), Augment((0.5, 0.5, 0.5), rotate90=0.7)
JITTER = Augment((0.5, 0.5, 0.5), 0.7, scale=0.2, shift=0.1, jitter=1.0)


def stored(rows: int = 4, shape: tuple[int, ...] = (4, 6, 8)) -> dict[str, jax.Array]:
    image = jax.random.randint(jax.random.key(0), (rows, *shape, 1), -1200, 2000, jnp.int16)
    return {"image": image, "scale": jnp.ones(rows), "offset": jnp.zeros(rows)}


def keys(rows: int = 4, seed: int = 1) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def test_window_is_linear_between_its_ends() -> None:
    window = ScaleIntensityRange(-1000, 1000, -1, 1, mean=0.4978, std=0.2449)
    hu = jnp.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0])
    expected = (np.array([-1, -1, 0, 1, 1]) - 0.4978) / 0.2449
    np.testing.assert_allclose(window(hu), expected, rtol=1e-5)
    np.testing.assert_allclose(
        window.source_per_unit * (window(hu)[2] - window(hu)[1]), 1000, rtol=1e-5
    )
    np.testing.assert_allclose(window.inverse(window(hu)), np.clip(hu, -1000, 1000), atol=1e-2)
    with pytest.raises(ConfigError, match="a_min must be below a_max"):
        ScaleIntensityRange(100, 100)


def test_stored_integers_become_real_values() -> None:
    data = stored() | {"scale": jnp.full(4, 0.5), "offset": jnp.full(4, 100.0)}
    found = Inputs()(data, None, IMAGE)
    wanted = ScaleIntensityRange()(data["image"] * 0.5 + 100.0)
    np.testing.assert_allclose(found["image"], wanted, atol=1e-6)
    assert found.keys() == {"image"}, "what is in network units cannot be scaled again"


def test_a_batch_of_text_alone_stays_as_it_is() -> None:
    batch = {"token_ids": jnp.arange(4)}
    assert Inputs(augment=JITTER)(batch, keys(), {}) == batch


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_act_on_their_axis_alone(axis: int) -> None:
    chances = tuple(float(i == axis) for i in range(3))
    flipped = Inputs(augment=Augment(chances))(stored(), keys(), IMAGE)["image"]
    np.testing.assert_array_equal(
        flipped, jnp.flip(Inputs()(stored(), None, IMAGE)["image"], axis + 1)
    )


def test_jitter_is_drawn_per_sample_and_stays_in_range() -> None:
    image = jnp.full((2, 2, 2, 1), 0.5)
    augment = Augment(scale=0.2, shift=0.1, jitter=0.5)
    values = jax.vmap(lambda key: augment(key, {"image": image}, IMAGE)["image"][0, 0, 0, 0])(
        keys(2000, 0)
    )
    assert 0.3 - 1e-6 <= values.min() < 0.35 and 0.65 < values.max() <= 0.7 + 1e-6
    np.testing.assert_allclose((jnp.abs(values - 0.5) < 1e-6).mean(), 0.25, atol=0.05)


def test_quarter_turns_stay_in_the_axial_plane() -> None:
    image, augment = jax.random.normal(jax.random.key(0), (3, 6, 6, 1)), Augment(rotate90=0.5)
    turn = jax.vmap(lambda key: augment(key, {"image": image}, IMAGE)["image"])
    turned = np.asarray(turn(keys(64)))
    counts = [sum(np.array_equal(t, jnp.rot90(image, k, (1, 2))) for t in turned) for k in range(4)]
    assert sum(counts) == 64 and 20 <= counts[0] <= 44 and min(counts[1:]) >= 3
    with pytest.raises(ConfigError, match="rotate90 needs H = W"):
        augment(keys()[0], {"image": image[:, :4]}, IMAGE)


def brightest(image: np.ndarray) -> np.ndarray:
    """(B, D, H, W) a threshold that jitter does not pass: the brightest value of each sample."""
    return image[..., 0] >= image.max(axis=(1, 2, 3, 4), keepdims=True)[..., 0]


def box_of(mask: np.ndarray) -> np.ndarray:
    """First and past-the-last voxel of a mask along D, H, W."""
    at = np.argwhere(mask)
    return np.concatenate([at.min(0), at.max(0) + 1])


def samples(depth: int) -> dict[str, jax.Array]:
    """Images with what can be read off them: a mask, its voxels and box, and a slice.

    Every sample has one bright block; planes of all three directions are there.
    """
    rng = np.random.default_rng(0)
    shape = (depth, SIDE, SIDE)
    image = rng.integers(-900, 300, (ROWS, *shape, 1))
    axis = np.arange(ROWS) % 3
    at = np.stack([axis, rng.integers(0, np.array(shape)[axis])], axis=1)
    points, boxes = np.zeros((ROWS, 2, 3)), np.zeros((ROWS, 1, 6))
    for row in range(ROWS):
        low = rng.integers(0, np.array(shape) - 2)
        high = low + rng.integers(1, 3, 3)
        image[row][tuple(map(slice, low, high))] = rng.integers(500, 900)
        points[row, 0] = low
        points[row, 1] = np.nan  # there is none
        boxes[row, 0] = box_of(brightest(image)[row])
    fields = {"image": image.astype(np.int16), "at": at.astype(np.int32), "points": points}
    fields |= {"boxes": boxes, "mask": brightest(image).astype(np.uint8)}
    if depth == SIDE:  # planes of all directions have one shape
        fields["slice"] = np.stack([x.take(i, a) for x, (a, i) in zip(image, at, strict=True)])
    fields |= {"scale": np.ones(ROWS), "offset": np.zeros(ROWS)}
    fields |= {"allowed_flips": np.ones((ROWS, 3), bool), "allowed_turns": np.ones(ROWS, bool)}
    return {name: jnp.asarray(value) for name, value in fields.items()}


@functools.partial(jax.jit, static_argnums=0)
def augmented(inputs: Inputs, batch: dict[str, jax.Array], keys: jax.Array) -> dict[str, Any]:
    return inputs(batch, keys, SPATIAL)


@pytest.mark.parametrize("augment", [FLIPS, TURNS, JITTER], ids=["flips", "turns", "jitter"])
@pytest.mark.parametrize("depth", [SIDE, 4])
def test_augmentation_commutes_with_what_is_read_off_the_image(
    augment: Augment, depth: int
) -> None:
    """The threshold of a moved image is the moved mask, the slice at a moved index the slice."""
    inputs, batch = Inputs(augment=augment), samples(depth)
    moved = {n: np.asarray(x) for n, x in augmented(inputs, batch, keys(ROWS)).items()}
    stayed = [np.array_equal(*pair) for pair in zip(batch["mask"], moved["mask"], strict=True)]
    assert np.mean(stayed) < 0.5
    bright = brightest(moved["image"])
    np.testing.assert_array_equal(bright, moved["mask"] == 1)
    for row in range(ROWS):
        np.testing.assert_array_equal(box_of(bright[row]), moved["boxes"][row, 0])
        assert bright[row][tuple(moved["points"][row, 0].astype(int))]
        axis, index = moved["at"][row]
        if "slice" in moved:
            found = moved["image"][row].take(index, axis)
            np.testing.assert_array_equal(found, moved["slice"][row])
    assert np.isnan(moved["points"][:, 1]).all()


def test_corners_of_a_box_stay_its_corners() -> None:
    """A point moves as the voxel that it names, for every move."""
    shape = (3, SIDE, SIDE)
    image = np.zeros(shape)
    image[1, 4, 2] = 1.0
    for number in range(8 * 4):
        flips = tuple(jnp.asarray(bool(number >> axis & 1)) for axis in range(3))
        moves = Moves(flips, jnp.asarray(number // 8))
        arrays = {"mask": jnp.asarray(image), "points": jnp.array([1, 4, 2])}
        moved = move(moves, arrays, SPATIAL)
        assert np.asarray(moved["mask"])[tuple(moved["points"])] == 1.0


def test_a_text_that_names_a_side_holds_all_fields_still() -> None:
    batch = samples(SIDE)
    still = jnp.zeros((ROWS, 3), bool).at[::2].set(True)
    batch |= {"allowed_flips": still, "allowed_turns": jnp.zeros(ROWS, bool)}
    moved = Inputs(augment=TURNS)(batch, keys(ROWS), SPATIAL)
    plain = Inputs()(batch, None, SPATIAL)
    for name in SPATIAL:
        np.testing.assert_array_equal(moved[name][1::2], plain[name][1::2])
        assert not np.array_equal(moved[name], plain[name], equal_nan=True)


def test_a_slice_without_its_image_is_refused() -> None:
    batch = {"slice": jnp.zeros((4, SIDE, SIDE, 1), jnp.int16)}
    with pytest.raises(ConfigError, match="slice: the batch has no scale.*Cure: the field Image"):
        Inputs()(batch, None, SPATIAL)


def test_positions_without_voxels_are_refused() -> None:
    with pytest.raises(ConfigError, match="points do not tell their size.*Cure"):
        Inputs(augment=FLIPS)({"points": jnp.zeros((4, 1, 3))}, keys(), SPATIAL)


def test_an_evaluator_gets_the_fields_that_training_gets() -> None:
    """The inputs of a run's model are bound to all fields of its data, not to the image alone."""
    experiment = tiny.experiment()
    fields = {"image": Image(), "plane": Slice()}
    data = dataclasses.replace(experiment.data, size=(SIDE, SIDE, SIDE), fields=fields)
    model = Model(dataclasses.replace(experiment, data=data), {})
    assert "plane" in data.spatial()
    batch = samples(SIDE)
    batch = {n: batch[n] for n in ("image", "scale", "offset")} | {"plane": batch["slice"]}
    found = model.inputs(batch)
    np.testing.assert_array_equal(found["plane"], model.inputs.window(batch["plane"]))
    assert found["plane"].dtype == jnp.float32 and "scale" not in found
    assert hash(model.inputs) == hash(Model(model.experiment, {}).inputs)  # one compilation
