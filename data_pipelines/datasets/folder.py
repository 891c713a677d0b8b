"""Anybody's own scans: a folder of volumes, and a table if there is more to tell about them.

Without a table every NIfTI file and every DICOM series is a study, and everything directly below
the root, file or folder, a patient. With one, its rows are the studies: see `table`.
"""

import re
from collections.abc import Iterator

from etils import epath

from data_pipelines.datasets.study import Collection, Study, hold_one_out, split_by_hash
from data_pipelines.datasets.table import Row, read_table
from data_pipelines.errors import DataError
from data_pipelines.preprocess import Recipe
from data_pipelines.readers import find_series
from data_pipelines.volume import Units

_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def folder(
    root: epath.PathLike,
    recipe: Recipe,
    *,
    table: epath.PathLike | None = None,
    units: Units | None = None,
    test_fraction: float = 0.1,
) -> Collection:
    """Returns the dataset of a folder of scans.

    Args:
      root: The folder, searched through all its subfolders.
      recipe: Preprocessing.
      table: A CSV file; see the module `table`.
      units: Of NIfTI files, which cannot tell: "HU" for CT.
      test_fraction: Share of the patients in "test", chosen by a hash of patient_id, so that a
        patient stays in its split when others are added. If it is above 0 and there are two
        patients, there is at least one.

    Raises:
      DataError: Names the file, and in a table the row and the column at fault.
    """
    root = epath.Path(root)
    if not root.is_dir():
        raise DataError(root, "there is no such folder", "give the folder that holds the scans")
    labels: tuple[str, ...] = ()
    if table is None:
        rows = [row for path in find_volumes(root) for row in _rows(root, path)]
        note = (
            "No table was given: each folder directly below the root, and each file there, counts "
            "as a patient."
        )
    else:
        rows, labels = read_table(root, table)
        note = f"Patients, reports, masks, splits and labels as in {epath.Path(table).name}."
    if not rows:
        cure = "put NIfTI files (.nii, .nii.gz) or folders of DICOM files there"
        raise DataError(table or root, "it holds no volumes", cure)
    studies = tuple(_study(row, labels, test_fraction) for row in rows)
    if test_fraction > 0 and not any(row.cells.get("split") for row in rows):
        studies = hold_one_out(studies)
    return Collection(root.name, root, studies, recipe, labels, notes=(note,), units=units)


def find_volumes(root: epath.Path) -> Iterator[epath.Path]:
    """Yields NIfTI files and the innermost folders with DICOM files, in alphabetical order."""
    children = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    if any(_is_dicom(path) for path in children if not path.is_dir()):
        yield root
        return
    for path in children:
        if path.is_dir():
            yield from find_volumes(path)
        elif _NIFTI.search(path.name):
            yield path


def _is_dicom(path: epath.Path) -> bool:
    # Unlike the readers' own test it never raises: a damaged file must not stop the search.
    # A DICOMDIR is the table of contents of a disc, not a slice of the folder that it lies in.
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(132).endswith(b"DICM")
    except OSError:
        return False


def _rows(root: epath.Path, path: epath.Path) -> list[Row]:
    """Returns one row, or one for each series of a DICOM folder, all of the same patient."""
    try:
        series = sorted(find_series(path)) if path.is_dir() else []
    except Exception:  # whoever reads it will say what is wrong, and put it aside
        series = []
    if len(series) < 2:
        return [Row(root, path)]
    own = _own_name(root, path)
    return [
        Row(root, path, {"study_id": f"{own}/{number}", "series": uid})
        for number, uid in enumerate(series, 1)
    ]


def _own_name(root: epath.Path, path: epath.Path) -> str:
    relative = path.relative_to(root).as_posix()
    return root.name if relative == "." else _NIFTI.sub("", relative)


def _study(row: Row, labels: tuple[str, ...], test_fraction: float) -> Study:
    """Makes the study of a row; what the row leaves open follows from the path of the image."""
    own = _own_name(row.root, row.image)
    # Without a table, what lies in one folder of the root is taken for one patient: scans of two
    # patients in one split are no harm, one patient in two splits is.
    patient = row.cells.get("patient_id", own.split("/")[0])
    return Study(
        study_id=row.cells.get("study_id", own),
        patient_id=patient,
        split=row.cells.get("split") or split_by_hash(patient, test_fraction),
        image=row.image,
        series=row.cells.get("series"),
        mask=row.path("mask") if "mask" in row.cells else None,
        report=row.cells.get("report"),
        labels={name: row.label(name) for name in labels if name in row.cells},
    )
