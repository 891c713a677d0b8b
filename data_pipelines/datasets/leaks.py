"""Finds leaks: patients or scans that are in two splits, of one dataset or of several.

The threshold was measured on 24 CTs of sarcoma (legs and trunk), and on CTs A, B, C and an MR of
the sample scans. Each of them was also used at 1, 1.5, 3 and 5 mm; with the recipes m3d, m3d_cap,
m3d_seg, m3d_refseg, e3d and ct; in windows of 1500 and 2000 HU; flipped, transposed, padded and
cropped to the body; with corners of -3024, with a voxel of metal, with noise of 20 HU, and in 8
bits. The design was tuned on the same scans:

  same scan         10106 pairs   lowest 0.848 (5 mm against m3d_refseg), 99 % above 0.919
  other patients   302037 pairs   highest 0.651 in any of 48 poses, mean 0.07, deviation 0.12
  two chests              A, B    0.17

Many thousand scans of one body region have larger similarities by chance than these 378 pairs of
patients. Check a match by eye if it is near the threshold.

Leaks that are not found, or not always:
  * a part of a scan: the top of B against B is 0.25;
  * another scan of the same patient, unless the patient ids agree;
  * a narrow window (-160..240 HU) against all values: 14 of 28 found;
  * a crop without air inside the body (80 mm): 40 of 48 found at 3 mm, 4 of 48 once e3d pads it;
  * corners of -3024 through m3d, which keeps them, against the scan without: 0.67;
  * a scan with a wrong affine against the same scan with a correct one.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath

from data_pipelines.datasets.signatures import UNKNOWN_POSE, poses, signature

__all__ = ["THRESHOLD", "Entry", "Leak", "find_leaks", "report", "signature", "write"]

THRESHOLD = 0.77
"""Minimum similarity (a cosine) of two volumes that count as the same scan."""

_BLOCK = 4096
"""Volumes per side of a block of products in memory: 64 MB in float32."""
_SHOWN = 20
"""Maximum number of leaks in the report."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A study in the search for leaks.

    Attributes:
      dataset: name or folder of the dataset.
      split: split of the dataset.
      patient_id: id of the patient; "" if unknown.
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
    """Two studies that are a leak or a duplicate.

    Attributes:
      kind: "patient": the same patient id in two different splits. With two datasets this may be
        chance: both may use ids such as "1". "volume": the same scan in two splits or datasets.
        "duplicate": the same scan twice in one split, which is not a leak.
      one: the first study.
      other: the second study.
      similarity: cosine of the signatures, at most 1; None for patients.
    """

    kind: Literal["patient", "volume", "duplicate"]
    one: Entry
    other: Entry
    similarity: float | None = None


def find_leaks(entries: Sequence[Entry]) -> list[Leak]:
    """Finds patients in two splits and duplicate scans; the most similar come first.

    On two cores a pair takes 22 ns: 25 minutes for 354,000 studies. If one study of a pair has no
    affine, the pair takes 1.2 us: 2.3 hours for all pairs of 120,000 such studies. Memory grows by
    1 KB per study, for its signature.
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
    """Returns a table for the terminal: the number of leaks of each kind, and the first leaks."""
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
    """Writes all leaks as CSV; the file always has a header."""
    names = ("dataset", "split", "patient_id", "study_id")
    with epath.Path(path).open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["kind", "similarity", *names, *(f"other_{name}" for name in names)])
        for leak in leaks:
            score = "" if leak.similarity is None else f"{leak.similarity:.4f}"
            studies = (getattr(study, name) for study in (leak.one, leak.other) for name in names)
            table.writerow([leak.kind, score, *studies])


def _similar(entries: Sequence[Entry]) -> Iterator[tuple[int, int, float]]:
    """Yields the pairs (i, j, similarity) above the threshold, i before j."""
    unknown = np.array([entry.signature[UNKNOWN_POSE] != 0 for entry in entries], bool)
    blocks = [
        part[start : start + _BLOCK]
        for part in (np.flatnonzero(~unknown), np.flatnonzero(unknown))
        for start in range(0, len(part), _BLOCK)
    ]
    for number, columns in enumerate(blocks):
        right = _matrix(entries, columns)
        # It is enough to rotate one of two volumes. Blocks of unknown pose come last.
        others = [*poses()][1:] if unknown[columns[0]] else []
        for rows in blocks[: number + 1]:
            left = _matrix(entries, rows)
            products = left @ right.T
            for index, sign in others:
                np.maximum(products, left @ (right[:, index] * sign).T, out=products)
            for row, column in np.argwhere(products >= THRESHOLD):
                if rows is not columns or row < column:
                    i, j = sorted((int(rows[row]), int(columns[column])))
                    yield i, j, min(float(products[row, column]), 1.0)


def _matrix(entries: Sequence[Entry], at: np.ndarray) -> np.ndarray:
    """Returns signatures as float32 rows of length 1; rows of constant volumes stay 0."""
    rows = np.stack([entries[index].signature for index in at]).astype(np.float32)
    rows[:, UNKNOWN_POSE] = 0
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def _patients(entries: Sequence[Entry]) -> Iterator[Leak]:
    """Yields a leak for each pair of different splits that have the same patient."""
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
