"""The smooth fill-in: a baseline that knows nothing about anatomy, and is hard to beat on error.

Hidden voxels take the values of the harmonic function that the visible ones enclose: the steady
state of diffusion, in which every hidden voxel is the mean of its neighbours (Laplace's equation).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float


def harmonic(
    volume: Float[Array, "d h w"],
    known: Bool[Array, "d h w"],
    domain: Bool[Array, "d h w"],
    *,
    tolerance: float = 1e-5,
    max_steps: int = 2000,
) -> Float[Array, "d h w"]:
    """Solves Laplace's equation for the voxels that are not known; jit and vmap it at will.

    Neighbours are the six voxels that share a face, whatever the spacing. Nothing flows across the
    border of the domain (reflecting border). A part of the domain that touches no known voxel keeps
    the mean of the known ones.

    Args:
      volume: any values where nothing is known.
      known: voxels whose value is given.
      domain: voxels that exist; the others are padding, and neither give nor take.
      tolerance: residual at which conjugate gradients stop, relative to the right-hand side.
      max_steps: limit of its iterations.

    Returns:
      `volume` where it is known, the solution elsewhere, the mean of the known outside the domain.
    """
    known = known & domain
    unknown = domain & ~known
    mean = jnp.sum(volume * known) / jnp.maximum(jnp.sum(known), 1)
    degree = sum(neighbour.astype(volume.dtype) for neighbour in _neighbours(domain))

    def laplacian(values: Float[Array, "d h w"]) -> Float[Array, "d h w"]:
        flow = degree * values - sum(_neighbours(jnp.where(domain, values, 0.0)))
        return jnp.where(unknown, flow, 0.0)

    # Solved for the difference to the mean, which is small, so that float32 is enough.
    given = jnp.where(known, volume - mean, 0.0)
    solution, _ = cg(laplacian, -laplacian(given), tol=tolerance, maxiter=max_steps)
    return mean + jnp.where(unknown, solution, given)


def _neighbours(values: Array) -> list[Array]:
    """The six shifted copies; beyond the border lie zeros."""
    shifted = []
    for axis in range(values.ndim):
        pad = [(0, 0)] * values.ndim
        pad[axis] = (1, 1)
        padded = jnp.pad(values, pad)
        n = values.shape[axis]
        shifted += [jax.lax.slice_in_dim(padded, start, start + n, axis=axis) for start in (0, 2)]
    return shifted
