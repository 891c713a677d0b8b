"""Leaks: a patient or a scan that is in two splits, of one dataset or of several.

Scans are compared by a signature that survives resampling: the lowest cosine moments of the body,
in a frame given by the body's own centre and extent. Padding, cropping of air, anisotropic resizing
and any rising map of the values (windows, percentiles, 8 bits) hardly change it. Where an affine
tells how the axes lie, the signature is turned into the patient's axes; where none does, all 48
permutations and flips are compared.

Measured on 24 CTs of legs and trunk (`sarcoma`), three CTs of chest and torso (A, B, C of the
sample scans) and an MR, each also at 1, 1.5, 3 and 5 mm, through the recipes m3d, m3d_cap, m3d_seg,
m3d_refseg, e3d and ct, windowed, flipped, transposed, padded, cropped to the body, with corners of
-3024, with noise of 20 HU and in 8 bits; all 48 poses tried for every pair:

MEASURED

What it cannot find: a part of a scan (the top of B and B: BTOP), so neither what e3d's crop to
384 mm takes from the body of a wide scan; the same patient scanned again; a scan whose affine
lies; corners of -3024 under m3d's recipes against the same scan in HU. A narrow window
(-160..240 HU) against all values is found mostly but not always (NARROW).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath
from nibabel import orientations

from data_pipelines.volume import Volume

THRESHOLD = 0.77
"""Similarity (a cosine) from which two volumes count as the same scan; in the gap measured above."""

_ORDERS = 8
"""Cosine moments of order 0..7 along each axis: 512 float16, 1 KB."""
_REACH = 2.4
"""Half the width of the frame in standard deviations of the body; a box reaches to 1.7."""
_WHITENING = 2.5
"""Moments grow by |order| ** 2.5: what all bodies share, their rough shape, is of low order."""
_RAMP = (0.1, 0.6)
"""Where the body begins, from air (0) to tissue (1): a ramp, since a sharp step would fall on
either side of fat as the window has it."""
_SIDE = 96
"""Voxels along each axis that are looked at, at most; the moments average over them."""
_SMALLEST = 4
_BINS = 1024
_BLOCK = 4096
"""Volumes whose products are in memory at once, squared: 64 MB in float32."""
_SHOWN = 20

_ORDER = np.stack(np.meshgrid(*[np.arange(_ORDERS)] * 3, indexing="ij"))
_GAIN = np.sqrt((_ORDER**2).sum(0)) ** _WHITENING
_UNKNOWN_POSE = 0
"""Where a signature has a 1 if no affine told its pose. The moment of order 0 has no gain."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A study as the search sees it.

    Attributes:
      dataset: name or folder.
      split: of the dataset.
      patient_id: "" when unknown.
      study_id: unique in the dataset.
      signature: (512,) float16, see `signature`.
    """

    dataset: str
    split: str
    patient_id: str
    study_id: str
    signature: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Leak:
    """Two studies that should not be where they are.

    Attributes:
      kind: "patient": the same patient id in two different splits, of one dataset or of two (there
        it may be chance: ids such as "1" name nobody); "volume": the same scan in two splits or
        datasets; "duplicate": the same scan twice in one split, which is no leak.
      one: a study.
      other: the other one.
      similarity: cosine of the signatures, at most 1; None for patients.
    """

    kind: Literal["patient", "volume", "duplicate"]
    one: Entry
    other: Entry
    similarity: float | None = None


def signature(volume: Volume) -> np.ndarray:
    """What stays of a volume through any recipe, as (512,) float16.

    Takes COST, far below reading a scan. Entry 0 is 1 when the volume has no affine; the others
    have length 1. A constant volume gives zeros, which are similar to nothing; one of fewer than 4
    voxels along an axis gives a hash, which is similar to that of an exact copy alone.
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
    # Of what is above the padding: the share of padding must not move the limit.
    highest = np.percentile(above, 99)
    scaled = (array - lowest) * ((_BINS - 1) / (highest - lowest))
    bins = scaled.clip(0, _BINS - 1).astype(np.uint16)
    body, content = (table[bins] for table in _tables(np.bincount(bins.ravel(), minlength=_BINS)))
    bases = [_cosines(body.sum((axis - 1, axis - 2), dtype=np.float64)) for axis in range(3)]
    moments = np.einsum("kd,lh,mw,dhw->klm", *bases, content, optimize=True)
    if volume.affine is not None:
        moments = _to_patient_axes(moments, volume.affine)
    whitened = (moments * _GAIN).ravel()
    result = whitened / max(np.linalg.norm(whitened), 1e-30)
    result[_UNKNOWN_POSE] = volume.affine is None
    return result.astype(np.float16)


def find_leaks(entries: Sequence[Entry]) -> list[Leak]:
    """Finds patients in two splits and scans that are there twice; the most similar come first.

    PAIRCOST
    """
    volumes = [
        Leak(
            "duplicate" if _place(entries[i]) == _place(entries[j]) else "volume",
            entries[i],
            entries[j],
            similarity,
        )
        for i, j, similarity in _similar(entries)
    ]
    kinds = ("volume", "duplicate")
    volumes.sort(key=lambda leak: (kinds.index(leak.kind), -(leak.similarity or 0)))
    return [*_patients(entries), *volumes]


def report(leaks: Sequence[Leak]) -> str:
    """A table for the terminal: how many of each kind, and the first ones."""
    if not leaks:
        return "No patient is in two splits, and no scan is there twice."
    kinds = [leak.kind for leak in leaks]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    lines = [f"Found twice ({counts}):"]
    for leak in leaks[:_SHOWN]:
        score = "" if leak.similarity is None else f"{leak.similarity:.3f}"
        lines.append(f"  {leak.kind:9} {score:5}  {_name(leak.one)}  =  {_name(leak.other)}")
    if len(leaks) > _SHOWN:
        lines.append(f"  and {len(leaks) - _SHOWN} more")
    return "\n".join(lines)


def write(leaks: Sequence[Leak], path: epath.PathLike) -> None:
    """Writes all of them as CSV, with a header even when there are none."""
    names = ("dataset", "split", "patient_id", "study_id")
    with epath.Path(path).open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["kind", "similarity", *names, *(f"other_{name}" for name in names)])
        for leak in leaks:
            score = "" if leak.similarity is None else f"{leak.similarity:.4f}"
            studies = (getattr(study, name) for study in (leak.one, leak.other) for name in names)
            table.writerow([leak.kind, score, *studies])


def _hashed(array: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()
    bits = np.random.default_rng(np.frombuffer(digest, np.uint32)).integers(0, 2, _GAIN.size)
    result = (bits * 2 - 1) / np.sqrt(_GAIN.size)
    result[_UNKNOWN_POSE] = 0
    return result.astype(np.float16)


def _tables(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each grey value is body, and its rank within the body; both (bins,) float32.

    The median of the body counts as much as air, 0: else its outline would outweigh what is in it.
    """
    values, below = np.arange(_BINS), np.cumsum(counts)
    total, sums = below[-1], np.cumsum(counts * values)
    # Otsu's threshold; rounding can leave the last bin empty, hence a class without voxels.
    sizes = np.maximum(below * (total - below), 1)
    split = np.argmax((sums[-1] * (below / total) - sums) ** 2 / sizes)
    air = np.searchsorted(below, 0.1 * below[split])
    tissue = np.searchsorted(below, (below[split] + total) / 2)
    body = np.clip(((values - air) / (tissue - air) - _RAMP[0]) / (_RAMP[1] - _RAMP[0]), 0, 1)
    weight = counts * body
    rank = (np.cumsum(weight) - weight / 2) / weight.sum()
    return body.astype(np.float32), (body * (rank - 0.5)).astype(np.float32)


def _cosines(profile: np.ndarray) -> np.ndarray:
    """Cosines over the body's frame, integrated over each voxel: (orders, voxels) float32.

    Args:
      profile: (voxels,) how much body there is at each position of the axis.
    """
    at, mass = np.arange(profile.size), profile.sum()
    centre = (profile * at).sum() / mass
    spread = np.sqrt((profile * (at - centre) ** 2).sum() / mass + 1 / 12)  # a voxel's own width
    faces = np.arange(profile.size + 1) - 0.5
    phase = np.pi * np.clip((faces - centre) / (2 * _REACH * spread) + 0.5, 0, 1)
    order = np.arange(1, _ORDERS)[:, None]
    waves = np.diff(np.sin(order * phase)) / order * np.sqrt(2)
    return np.concatenate([np.diff(phase)[None], waves]).astype(np.float32)


def _to_patient_axes(moments: np.ndarray, affine: np.ndarray) -> np.ndarray:
    pose = orientations.io_orientation(affine)
    signs = [(-1.0) ** _ORDER[axis] if flip < 0 else 1.0 for axis, (_, flip) in enumerate(pose)]
    return np.transpose(moments * signs[0] * signs[1] * signs[2], np.argsort(pose[:, 0]))


def _poses() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index and sign (512,) that permute and flip a signature, for all 48 ways; identity first."""
    index = np.arange(_GAIN.size).reshape(_GAIN.shape)
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((0, 1), repeat=3):
            sign = (-1.0) ** np.tensordot(flips, _ORDER, 1)
            yield index.transpose(axes).ravel(), sign.ravel().astype(np.float32)


def _similar(entries: Sequence[Entry]) -> Iterator[tuple[int, int, float]]:
    """Yields the pairs (i, j, similarity) above the threshold, i before j."""
    unknown = np.array([entry.signature[_UNKNOWN_POSE] != 0 for entry in entries], bool)
    blocks = [
        part[start : start + _BLOCK]
        for part in (np.flatnonzero(~unknown), np.flatnonzero(unknown))
        for start in range(0, len(part), _BLOCK)
    ]
    for number, columns in enumerate(blocks):
        right = _matrix(entries, columns)
        # Of two volumes it is enough to turn one; blocks of unknown pose come last.
        poses = list(itertools.islice(_poses(), None if unknown[columns[0]] else 1))
        for rows in blocks[: number + 1]:
            left = _matrix(entries, rows)
            product = left @ right.T
            for index, sign in poses[1:]:
                np.maximum(product, left @ (right[:, index] * sign).T, out=product)
            for row, column in np.argwhere(product >= THRESHOLD):
                if rows is not columns or row < column:
                    i, j = sorted((int(rows[row]), int(columns[column])))
                    yield i, j, min(float(product[row, column]), 1.0)


def _matrix(entries: Sequence[Entry], at: np.ndarray) -> np.ndarray:
    """Signatures as rows of length 1, in float32; those of constant volumes stay 0."""
    rows = np.stack([entries[index].signature for index in at]).astype(np.float32)
    rows[:, _UNKNOWN_POSE] = 0
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def _patients(entries: Sequence[Entry]) -> Iterator[Leak]:
    """Yields a leak for each patient and two places of different splits that both hold them."""
    places: dict[str, dict[tuple[str, str], Entry]] = {}
    for entry in entries:
        if entry.patient_id:
            places.setdefault(entry.patient_id, {}).setdefault(_place(entry), entry)
    for firsts in places.values():
        for one, other in itertools.combinations(firsts.values(), 2):
            if one.split != other.split:
                yield Leak("patient", one, other)


def _place(entry: Entry) -> tuple[str, str]:
    return entry.dataset, entry.split


def _name(entry: Entry) -> str:
    return f"{entry.dataset}:{entry.split} {entry.study_id} (patient {entry.patient_id or '?'})"
