"""The smooth fill-in: a baseline without knowledge of anatomy, hard to beat on squared error.

Hidden voxels take the values of a harmonic function with the visible voxels as boundary values.
This is the steady state of diffusion: every hidden voxel is the mean of its neighbours (Laplace's
equation).
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
    """Solves Laplace's equation for the unknown voxels; works under jit and vmap.

    The neighbours of a voxel are the six voxels with a common face; the spacing does not count. The
    border of the domain reflects: nothing flows across it. A part of the domain without contact to
    known voxels gets the mean of the known voxels.

    Args:
      volume: the values; those of unknown voxels do not count.
      known: voxels with a given value.
      domain: voxels that exist; the others are padding and take no part.
      tolerance: residual at which conjugate gradients stop, relative to the right-hand side.
      max_steps: largest number of iterations.

    Returns:
      `volume` at known voxels, the solution at unknown voxels, and the mean of the known voxels
      outside the domain.
    """
    known = known & domain
    unknown = domain & ~known
    mean = jnp.sum(volume * known) / jnp.maximum(jnp.sum(known), 1)
    degree = sum(neighbour.astype(volume.dtype) for neighbour in _neighbours(domain))

    def laplacian(values: Float[Array, "d h w"]) -> Float[Array, "d h w"]:
        flow = degree * values - sum(_neighbours(jnp.where(domain, values, 0.0)))
        return jnp.where(unknown, flow, 0.0)

    # Solved for the difference from the mean: it is small, so float32 is precise enough.
    given = jnp.where(known, volume - mean, 0.0)
    solution, _ = cg(laplacian, -laplacian(given), tol=tolerance, maxiter=max_steps)
    return mean + jnp.where(unknown, solution, given)


def _neighbours(values: Array) -> list[Array]:
    """Returns the six copies shifted by one voxel; zeros come in at the border."""
    shifted = []
    for axis in range(values.ndim):
        pad = [(0, 0)] * values.ndim
        pad[axis] = (1, 1)
        padded = jnp.pad(values, pad)
        n = values.shape[axis]
        shifted += [jax.lax.slice_in_dim(padded, start, start + n, axis=axis) for start in (0, 2)]
    return shifted
