"""The smooth fill-in against a direct float64 solution of Laplace's equation."""

import jax
import numpy as np
import pytest
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve

from m3djax.evaluate.reconstruction import fill_in

harmonic = jax.jit(fill_in.harmonic)


def _solve(volume, known, domain):
    """Every unknown voxel is the mean of its neighbours within the domain."""
    number = np.full(volume.shape, -1)
    unknown = np.argwhere(domain & ~known)
    number[tuple(unknown.T)] = np.arange(len(unknown))
    matrix, right = lil_array((len(unknown), len(unknown))), np.zeros(len(unknown))
    for row, place in enumerate(unknown):
        for axis in range(3):
            for step in (-1, 1):
                other = place.copy()
                other[axis] += step
                if not 0 <= other[axis] < volume.shape[axis] or not domain[tuple(other)]:
                    continue
                matrix[row, row] += 1
                if known[tuple(other)]:
                    right[row] += volume[tuple(other)]
                else:
                    matrix[row, number[tuple(other)]] -= 1
    solved = volume.astype(np.float64).copy()
    solved[tuple(unknown.T)] = spsolve(matrix.tocsr(), right)
    return solved


@pytest.mark.parametrize("depth", [6, 4])  # 6: the whole volume; 4: two slices are padding
def test_it_solves_laplaces_equation(depth):
    rng = np.random.default_rng(depth)
    volume = rng.random((6, 8, 8), np.float32)
    known = np.kron(rng.random((3, 2, 2)) < 0.4, np.ones((2, 4, 4))).astype(bool)
    known[0, :4, :4] = True
    domain = np.zeros(volume.shape, bool)
    domain[:depth] = True
    expected = _solve(volume, known & domain, domain)
    solved = np.asarray(harmonic(volume, known, domain))
    np.testing.assert_allclose(solved[domain], expected[domain], atol=2e-4)
    np.testing.assert_array_equal(solved[known & domain], volume[known & domain])


def test_a_linear_ramp_between_two_known_planes_is_found():
    ramp = np.broadcast_to(np.linspace(0, 1, 9, dtype=np.float32)[:, None, None], (9, 4, 4))
    known = np.zeros(ramp.shape, bool)
    known[[0, -1]] = True
    solved = harmonic(np.where(known, ramp, 7.0), known, np.ones_like(known))
    np.testing.assert_allclose(solved, ramp, atol=1e-4)


def test_without_a_known_neighbour_it_is_the_mean():
    volume = np.full((2, 2, 4), 5, np.float32)
    known, domain = np.zeros(volume.shape, bool), np.ones(volume.shape, bool)
    known[..., 0] = True
    domain[..., 1] = False  # a wall: what lies behind it touches nothing known
    solved = np.asarray(harmonic(volume.copy(), known, domain))
    np.testing.assert_allclose(solved[..., 2:], 5, atol=1e-5)


def test_it_can_be_mapped_over_a_batch():
    rng = np.random.default_rng(0)
    volumes = rng.random((3, 4, 4, 4), np.float32)
    known = rng.random(volumes.shape) < 0.5
    domain = np.ones_like(known)
    together = jax.vmap(harmonic)(volumes, known, domain)
    alone = np.stack([harmonic(*item) for item in zip(volumes, known, domain, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
