"""Computes a signature that identifies a scan after any recipe: cosine moments of its body.

The moments are of low order, in a frame with the centre and extent of the body. Padding, cropping
of air, anisotropic resizing and any increasing map of the values (windows, percentiles, 8 bits)
change them little. With an affine, the moments are rotated to the patient's axes. Without one, they
can be compared in all 48 poses. The measurements are in `leaks`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
from nibabel import orientations

from data_pipelines.volume import Volume

UNKNOWN_POSE = 0
"""Index of the entry that is 1 if the pose is unknown. It replaces the moment of order 0, whose
gain is 0."""

_ORDERS = 8
"""Cosine moments of order 0..7 along each axis: 512 float16, 1 KB."""
_REACH = 2.4
"""Half the width of the frame in standard deviations of the body; for a box, faces are at 1.7."""
_WHITENING = 2.5
"""Exponent of the gain |order| ** 2.5: the rough shape, common to all bodies, is of low order."""
_RAMP = (0.1, 0.6)
"""Start and end of the ramp between air (0) and tissue (1) where the body begins. With a sharp step
instead, fat would be inside or outside the body depending on the window."""
_SIDE = 96
"""Maximum number of voxels along each axis; larger ones are subsampled, as moments are averages."""
_SMALLEST = 4
"""Minimum number of voxels along an axis for moments."""
_BINS = 1024
"""Number of grey values."""

_ORDER = np.stack(np.meshgrid(*[np.arange(_ORDERS)] * 3, indexing="ij"))
_GAIN = np.sqrt((_ORDER**2).sum(0)) ** _WHITENING


def signature(volume: Volume) -> np.ndarray:
    """Returns the signature of a volume, (512,) float16, which recipes change little.

    It takes 0.03 s for 300 x 512 x 512 voxels, much less than reading them.

    Returns:
      Entry 0 is 1 if the volume has no affine; the other entries are a vector of length 1. A
      constant volume gives zeros, which are similar to no signature. A volume of two values, or
      with fewer than 4 voxels along an axis, gives a hash, which is similar only to the hash of an
      exact copy.
    """
    array = volume.array[tuple(slice(None, None, -(-n // _SIDE)) for n in volume.shape)]
    array = array.astype(np.float32)
    if min(array.shape) < _SMALLEST:
        return _hashed(array)
    if volume.units == "HU":
        array = array.clip(-1024, None)  # below lies padding such as -3024
    lowest = array.min()
    above = array[array > lowest]
    if not above.size:
        return np.zeros(_GAIN.size, np.float16)
    # Without the padding: the amount of padding must not change the limit.
    highest = np.percentile(above, 99)
    scaled = (array - lowest) * ((_BINS - 1) / (highest - lowest))
    bins = scaled.clip(0, _BINS - 1).astype(np.uint16)
    body, content = (table[bins] for table in _tables(np.bincount(bins.ravel(), minlength=_BINS)))
    bases = [_cosines(body.sum((axis - 1, axis - 2), dtype=np.float64)) for axis in range(3)]
    moments = np.einsum("kd,lh,mw,dhw->klm", *bases, content, optimize=True)
    if volume.affine is not None:
        moments = _to_patient_axes(moments, volume.affine)
    whitened = (moments * _GAIN).ravel()
    if not whitened.any():  # two values only: all of the body has one rank
        return _hashed(array)
    result = whitened / np.linalg.norm(whitened)
    result[UNKNOWN_POSE] = volume.affine is None
    return result.astype(np.float16)


def poses() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields index and sign (512,) that permute and flip a signature: 48 poses, identity first."""
    index = np.arange(_GAIN.size).reshape(_GAIN.shape)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((0, 1), repeat=3):
            sign = (-1.0) ** np.tensordot(flips, _ORDER, 1)
            yield index.transpose(axes).ravel(), sign.ravel().astype(np.float32)


def _hashed(array: np.ndarray) -> np.ndarray:
    """Returns a random direction with a seed from the array: any change of the array changes it."""
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()
    bits = np.random.default_rng(np.frombuffer(digest, np.uint32)).integers(0, 2, _GAIN.size)
    result = (bits * 2 - 1) / np.sqrt(_GAIN.size)
    result[UNKNOWN_POSE] = 0
    return result.astype(np.float16)


def _tables(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much each grey value is body, and its rank in the body; both (bins,) float32.

    The median of the body has rank 0, the same as air. Otherwise the outline of the body would have
    more weight than its content.
    """
    values, below = np.arange(_BINS), np.cumsum(counts)
    total, sums = below[-1], np.cumsum(counts * values)
    # Otsu's threshold. Rounding can leave the last bin empty, so that a class has no voxels.
    sizes = np.maximum(below * (total - below), 1)
    split = np.argmax((sums[-1] * (below / total) - sums) ** 2 / sizes)
    air = np.searchsorted(below, 0.1 * below[split])
    tissue = np.searchsorted(below, (below[split] + total) / 2)
    body = np.clip(((values - air) / (tissue - air) - _RAMP[0]) / (_RAMP[1] - _RAMP[0]), 0, 1)
    weight = counts * body
    rank = (np.cumsum(weight) - weight / 2) / weight.sum()
    return body.astype(np.float32), (body * (rank - 0.5)).astype(np.float32)


def _cosines(profile: np.ndarray) -> np.ndarray:
    """Returns cosines over the body's frame, integrated over each voxel: (orders, voxels) float32.

    Args:
      profile: (voxels,) amount of body at each position of the axis.
    """
    at, mass = np.arange(profile.size), profile.sum()
    centre = (profile * at).sum() / mass
    spread = np.sqrt((profile * (at - centre) ** 2).sum() / mass + 1 / 12)  # the width of a voxel
    faces = np.arange(profile.size + 1) - 0.5
    phase = np.pi * np.clip((faces - centre) / (2 * _REACH * spread) + 0.5, 0, 1)
    order = np.arange(1, _ORDERS)[:, None]
    waves = np.diff(np.sin(order * phase)) / order * np.sqrt(2)
    return np.concatenate([np.diff(phase)[None], waves]).astype(np.float32)


def _to_patient_axes(moments: np.ndarray, affine: np.ndarray) -> np.ndarray:
    pose = orientations.io_orientation(affine)
    signs = [(-1.0) ** _ORDER[axis] if flip < 0 else 1.0 for axis, (_, flip) in enumerate(pose)]
    return np.transpose(moments * signs[0] * signs[1] * signs[2], np.argsort(pose[:, 0]))
