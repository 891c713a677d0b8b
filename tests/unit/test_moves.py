"""Moves of arrays against NumPy, for every flip and turn and any size of sample."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Spatial
from m3djax.inputs.moves import Moves, move

SPATIAL = {
    "image": Spatial("image", (-4, -3, -2)),
    "mask": Spatial("mask", (0, 1, 2)),
    "points": Spatial("points"),
    "boxes": Spatial("boxes"),
    "at": Spatial("slice_at"),
    "slice": Spatial("slice", (0, 1), at="at"),
}
ALL = [*itertools.product(*[(False, True)] * 3, range(4))]


def moves_of(d: bool, h: bool, w: bool, turns: int) -> Moves:
    return Moves(tuple(map(jnp.asarray, (d, h, w))), jnp.asarray(turns))


def by_hand(mask: np.ndarray, d: bool, h: bool, w: bool, turns: int) -> np.ndarray:
    """The first three axes, flipped one after the other, and then turned."""
    flipped = [axis for axis, chosen in enumerate((d, h, w)) if chosen]
    return np.rot90(np.flip(mask, flipped), turns, (1, 2))


def moved(chosen: tuple[bool, bool, bool, int], **arrays: Any) -> dict[str, np.ndarray]:
    ready = {name: jnp.asarray(value) for name, value in arrays.items()}
    return {n: np.asarray(x) for n, x in move(moves_of(*chosen), ready, SPATIAL).items()}


@pytest.mark.parametrize("chosen", ALL)
def test_voxels_move_as_in_numpy(chosen: tuple[bool, bool, bool, int]) -> None:
    """Also for several images of a sample, whose axes are counted from the end."""
    mask = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = np.stack([mask, mask + 100])[..., None].astype(np.float32)
    found = moved(chosen, mask=mask, image=image)
    assert found["mask"].dtype == mask.dtype and found["image"].shape == image.shape
    np.testing.assert_array_equal(found["mask"], by_hand(mask, *chosen))
    for one, two in zip(found["image"], image, strict=True):
        np.testing.assert_array_equal(one, by_hand(two, *chosen))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_point_and_a_box_move_with_their_voxels(data: st.DataObject) -> None:
    depth, side = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    chosen = data.draw(st.sampled_from(ALL))
    low = np.array([data.draw(st.integers(0, n - 1)) for n in (depth, side, side)])
    high = np.array(
        [data.draw(st.integers(a + 1, n)) for a, n in zip(low, (depth, side, side), strict=True)]
    )
    mask = np.zeros((depth, side, side), np.uint8)
    mask[tuple(map(slice, low, high))] = 1
    boxes = np.array([[[*low, *high]]], np.float32)  # any number of leading axes
    found = moved(chosen, mask=mask, points=np.array([low, high - 1]), boxes=boxes)
    at = np.argwhere(found["mask"])
    wanted = np.concatenate([at.min(0), at.max(0) + 1])
    np.testing.assert_array_equal(found["boxes"], wanted[None, None])
    # Two opposite corners stay opposite corners, in any order.
    np.testing.assert_array_equal(found["points"].min(0), at.min(0))
    np.testing.assert_array_equal(found["points"].max(0), at.max(0))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_slice_is_that_of_its_moved_index(data: st.DataObject) -> None:
    side = data.draw(st.integers(1, 4))
    axis, index = data.draw(st.integers(0, 2)), data.draw(st.integers(0, side - 1))
    chosen = data.draw(st.sampled_from(ALL))
    mask = np.arange(side**3).reshape(side, side, side)
    arrays = {"mask": mask, "at": np.array([axis, index]), "slice": mask.take(index, axis)}
    found = moved(chosen, **arrays)
    np.testing.assert_array_equal(found["slice"], by_hand(mask, *chosen).take(*found["at"][::-1]))


@pytest.mark.parametrize(
    "chosen, at, wanted",
    [
        ((False, False, False, 1), (1, 0), (2, 0)),  # a row of H becomes a column
        ((False, False, False, 1), (2, 0), (1, 3)),
        ((False, False, False, 2), (1, 0), (1, 3)),
        ((False, False, False, 3), (2, 1), (1, 1)),
        ((True, True, True, 0), (0, 0), (0, 1)),
        ((False, True, False, 1), (1, 1), (2, 2)),  # the flip first
        ((False, False, False, 3), (0, 1), (0, 1)),
    ],
)
def test_positions_of_slices(
    chosen: tuple[bool, bool, bool, int], at: tuple[int, int], wanted: tuple[int, int]
) -> None:
    found = moved(chosen, mask=np.zeros((2, 4, 4)), at=np.array(at, np.int32))["at"]
    assert tuple(found) == wanted and found.dtype == np.int32


@pytest.mark.parametrize("chosen", [(a, b, c, 0) for a, b, c, turns in ALL if not turns])
def test_flips_undo_themselves_and_turns_undo_each_other(
    chosen: tuple[bool, bool, bool, int],
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "mask": rng.integers(0, 9, (4, 4, 4)),
        "points": rng.uniform(0, 3, (2, 3)).astype(np.float32),  # between voxels too
        "boxes": np.array([[0, 1, 2, 1, 3, 4]], np.float32),
        "at": np.array([2, 1]),
        "slice": rng.normal(size=(4, 4, 1)).astype(np.float32),
    }
    still = (False, False, False)
    for first, second in ((chosen, chosen), ((*still, 1), (*still, 3)), ((*still, 2),) * 2):
        back = moved(second, **moved(first, **arrays))
        for name, array in arrays.items():
            np.testing.assert_allclose(back[name], array, atol=1e-6, err_msg=name)


def test_axes_that_are_never_flipped_need_no_size() -> None:
    points = {"points": jnp.ones((1, 3))}
    assert move(Moves((None, None, None), None), points, SPATIAL) == points
    with pytest.raises(ConfigError, match="augment moves samples, and points do not tell.*Cure"):
        move(Moves((None, None, jnp.asarray(True)), None), points, SPATIAL)


def test_a_plane_that_is_not_square_is_named() -> None:
    with pytest.raises(ConfigError, match=r"this is 3 x 4\. Cure: set a square size, or rotate90"):
        moved((False, False, False, 1), mask=np.zeros((2, 3, 4)))
