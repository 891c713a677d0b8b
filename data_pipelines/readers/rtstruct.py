"""Reads RTSTRUCT contours (PS3.3 C.8.8.6) and fills them on the grid of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydicom
from etils import epath
from matplotlib import path as polygons

from data_pipelines.errors import DataError
from data_pipelines.readers import structure_names
from data_pipelines.readers.dicom_geometry import LPS_TO_RAS
from data_pipelines.readers.dicom_header import EXPORT, items, quiet, read_header, text, whole
from data_pipelines.volume import Volume, transform

_FLAT = 0.25
"""Tolerance for the distance of a contour's points from the centre of a slice, in slices."""
_ON_EDGE = 0.02
"""Tolerance for a voxel centre on the edge of a contour, in voxels. Files round positions."""
_REDRAW = "give the scan that the contours were drawn on, with all of its slices"
_TAGS = (
    "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
)


@quiet()
def drawn_names(path: epath.Path) -> list[str]:
    """Returns the names of the structures with contours.

    They are free text: use them only for comparisons and never print them.
    """
    return [text(roi, "ROIName") for roi, _ in _drawn(path, read_header(path, _TAGS))]


@quiet()
def read_rtstruct(path: epath.Path, like: Volume, wanted: Sequence[str]) -> np.ndarray:
    """Reads structures as a mask: fills their closed contours on the slices of the image.

    A voxel is inside a contour if its centre is inside or on the edge. So two kinds of contours
    give a mask back: contours around its voxels, and contours through the centres of its outermost
    voxels (rt-utils 1.2, OpenCV). If contours of a structure overlap on a slice, the inner one is a
    hole. A contour of one or two points encloses nothing. It adds
    the voxels whose centres it meets.

    Args:
      path: the file.
      like: the image, with an affine; its axes may be in any order.
      wanted: names of structures.

    Returns:
      (D, H, W) uint8: i + 1 inside the i-th structure of `wanted`; later structures overwrite
      earlier ones.

    Raises:
      DataError: a structure is missing or has no voxels; or contours are not closed and planar, or
        are in another frame of reference, between the slices or outside of the image.
    """
    header = read_header(path, _TAGS)
    drawn = _drawn(path, header)
    places = structure_names.places(path, [text(roi, "ROIName") for roi, _ in drawn], wanted)
    mask = np.zeros(like.shape, np.uint8)
    for value, (roi, contours) in enumerate((drawn[i] for i in places), 1):
        structure_names.check_frame(path, _frame(path, header, roi), like)
        _check_closed(path, contours)
        inside = _filled(path, [_points(path, contour) for contour in contours], like)
        if not inside.any():
            problem = f"the contours of {wanted[value - 1]!r} contain no voxel"
            raise DataError(path, problem, _REDRAW)
        mask[inside] = value
    return mask


def _drawn(
    path: epath.Path, header: pydicom.Dataset
) -> list[tuple[pydicom.Dataset, Sequence[pydicom.Dataset]]]:
    """Returns (structure, its contours) for each structure that has contours."""
    contours = {
        whole(path, item, "ReferencedROINumber"): items(path, item, "ContourSequence")
        for item in items(path, header, "ROIContourSequence")
    }
    rois = items(path, header, "StructureSetROISequence")
    pairs = [(roi, contours.get(whole(path, roi, "ROINumber"), ())) for roi in rois]
    return [(roi, drawn) for roi, drawn in pairs if drawn]


def _frame(path: epath.Path, header: pydicom.Dataset, roi: pydicom.Dataset) -> str:
    """Returns the UID of a structure's frame of reference, or of the file's as a fallback."""
    referenced = items(path, header, "ReferencedFrameOfReferenceSequence")[:1]
    named = [text(item, "FrameOfReferenceUID") for item in (*referenced, header)]
    return next(filter(None, [text(roi, "ReferencedFrameOfReferenceUID"), *named]), "")


def _check_closed(path: epath.Path, contours: Sequence[pydicom.Dataset]) -> None:
    """Checks that a structure has closed contours and, besides these, only single points."""
    kinds = {text(contour, "ContourGeometricType") for contour in contours}
    if "CLOSED_PLANAR" not in kinds or kinds - {"CLOSED_PLANAR", "POINT"}:
        cure = "export the structure as closed contours (CLOSED_PLANAR)"
        raise DataError(path, "a structure of points or open lines", cure)


def _points(path: epath.Path, contour: pydicom.Dataset) -> np.ndarray:
    """Returns the points of a contour, (n, 3) in LPS mm, n at least 1."""
    try:
        points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
    except Exception:  # pydicom converts values at access
        raise DataError(path, "ContourData holds something else than points", EXPORT) from None
    claimed = whole(path, contour, "NumberOfContourPoints", len(points))
    if len(points) != claimed:
        problem = f"a contour claims {claimed} points and has {len(points)}"
        raise DataError(path, problem, EXPORT)
    if not (np.abs(points) < 1e6).all():  # also catches NaN
        raise DataError(path, "ContourData is not a position in a patient", EXPORT)
    return points


def _filled(path: epath.Path, contours: list[np.ndarray], like: Volume) -> np.ndarray:
    """Returns the inside of one structure's contours, (D, H, W) bool."""
    assert like.affine is not None
    to_index = np.linalg.inv(like.affine) @ LPS_TO_RAS
    voxels = [transform(to_index, points) for points in contours]
    everywhere = np.concatenate(voxels)
    if (everywhere < -1).any() or (everywhere > like.shape).any():
        raise DataError(path, "contours outside of the image", _REDRAW)
    axis = _normal_axis(path, voxels)
    inside = np.zeros(like.shape, bool)
    slices = np.moveaxis(inside, axis, 0)
    levels = [round(points[:, axis].mean()) for points in voxels]
    areas = [level for level, points in zip(levels, voxels, strict=True) if len(points) > 2]
    _check_levels(path, levels, areas, len(slices))
    for level in set(levels):
        drawn = [
            np.delete(points, axis, axis=1)
            for at, points in zip(levels, voxels, strict=True)
            if at == level
        ]
        _fill(slices[level], drawn)
    return inside


def _normal_axis(path: epath.Path, voxels: list[np.ndarray]) -> int:
    """Returns the axis of the image that all contours are perpendicular to.

    Raises:
      DataError: a contour is not flat along any axis, or not near the centre of a slice.
    """
    off = [
        max(np.abs(points - np.rint(points[:, axis].mean()))[:, axis].max() for points in voxels)
        for axis in range(3)
    ]
    if min(off) > _FLAT:
        problem = "contours are oblique to the slices of the image, or between them"
        raise DataError(path, problem, _REDRAW)
    return int(np.argmin(off))


def _check_levels(path: epath.Path, levels: list[int], areas: list[int], depth: int) -> None:
    """Checks the slices of all contours, and the step between those that enclose an area."""
    if min(levels) < 0 or max(levels) >= depth:
        raise DataError(path, "contours outside of the image", _REDRAW)
    gaps = np.diff(np.unique(areas))
    # An even step is the sign of another scan. Uneven ones are separate parts of a structure.
    if len(gaps) > 1 and gaps.min() == gaps.max() > 1:
        problem = f"only one in {gaps[0]} slices of the image has a contour"
        raise DataError(path, problem, _REDRAW)


def _fill(plane: np.ndarray, contours: list[np.ndarray]) -> None:
    """Fills contours (n, 2) on a slice, in place: an inner contour makes a hole.

    Centres on edges are filled last, so that a hole and a keyhole keep the voxels that their edges
    run through.
    """
    different = {tuple(sorted(map(tuple, points.round(2)))): points for points in contours}
    for points in different.values():  # a second copy of a contour is not a hole
        _flip(plane, points)
    for points in contours:
        plane[tuple(_on_edges(points, plane.shape).T)] = True


def _flip(plane: np.ndarray, points: np.ndarray) -> None:
    """Inverts the voxels inside a polygon, in place; those on its edges are undefined."""
    first = np.maximum(np.ceil(points.min(0)), 0).astype(int)
    last = np.minimum(np.floor(points.max(0)) + 1, plane.shape).astype(int)
    rows, columns = np.meshgrid(*map(np.arange, first, last), indexing="ij")
    centres = np.stack([rows, columns], axis=-1)
    inside = polygons.Path(points).contains_points(centres.reshape(-1, 2))
    plane[tuple(map(slice, first, last))] ^= inside.reshape(rows.shape)


def _on_edges(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the voxels of a plane whose centres are on the edges of a polygon, (k, 2) int."""
    ends = np.roll(points, -1, axis=0)
    # Follow each edge along the axis on which it is longer: it meets each line of centres once.
    turned = np.abs(ends - points).argmax(1) == 1
    start, end = (np.where(turned[:, None], p[:, ::-1], p) for p in (points, ends))
    low = np.ceil(np.minimum(start, end)[:, 0] - _ON_EDGE).astype(int)
    high = np.floor(np.maximum(start, end)[:, 0] + _ON_EDGE).astype(int)
    counts = np.maximum(high - low + 1, 0)
    edge = np.repeat(np.arange(len(points)), counts)
    along = low[edge] + np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    length = (end - start)[edge, 0]
    share = np.divide(along - start[edge, 0], length, out=np.zeros(len(edge)), where=length != 0)
    across = start[edge, 1] + share.clip(0, 1) * (end - start)[edge, 1]
    centres = np.stack([along, np.rint(across)], axis=1).astype(int)
    centres = np.where(turned[edge, None], centres[:, ::-1], centres)
    met = np.abs(across - np.rint(across)) <= _ON_EDGE
    return centres[met & ((centres >= 0) & (centres < shape)).all(1)]
