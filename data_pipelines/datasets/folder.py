"""Makes a collection from the user's own scans: a folder of volumes, with an optional table.

Without a table, every volume file, DICOM series and folder of image slices is a study, and every
file or folder directly below the root is a patient. Folders with the names of the Medical
Segmentation Decathlon are read as such: see `decathlon`. With a table, its rows are the studies:
see `table`.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from etils import epath

from data_pipelines.datasets.decathlon import is_decathlon, read_decathlon
from data_pipelines.datasets.search import Search, own_name
from data_pipelines.datasets.study import Collection, Study, hold_one_out, split_by_hash
from data_pipelines.datasets.table import Override, StudyRow, read_overrides, read_table
from data_pipelines.errors import DataError, printable
from data_pipelines.preprocess import Recipe
from data_pipelines.readers import find_series
from data_pipelines.readers.masks import find_mask, organ_files
from data_pipelines.volume import Units


def folder(
    root: epath.PathLike,
    recipe: Recipe,
    *,
    table: epath.PathLike | None = None,
    overrides: epath.PathLike | None = None,
    masks: str | None = None,
    structures: Sequence[str] = (),
    units: Units | None = None,
    test_fraction: float = 0.1,
) -> Collection:
    """Returns the dataset of a folder of scans.

    Args:
      root: the folder; all its subfolders are searched.
      recipe: preprocessing.
      table: a CSV file; see the module `table`.
      overrides: a table in CT-RATE's layout that overrules headers; see `read_overrides`.
      masks: name of the mask (a file or a folder) beside each image.
      structures: names of the labels 1, 2, ... For masks with a file, a segment or a contour per
        structure, only these structures are read. () reads every file of mask folders.
      units: units of files without units: "HU" for CT.
      test_fraction: share of the patients in "test". A hash of patient_id chooses them, so that a
        patient stays in its split when others are added. If the share is above 0 and there are at
        least two patients, "test" has at least one.

    Raises:
      DataError: a file or table cannot be used. The error names the file, and for a table also the
        row and the column.
    """
    root = epath.Path(root)
    if not root.is_dir():
        raise DataError(root, "there is no such folder", "give the folder with the scans")
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...]
    if table is None and is_decathlon(root):
        rows = read_decathlon(root)
        notes = ("Read in the layout of the Medical Segmentation Decathlon: a case is a patient.",)
    elif table is None:
        rows, notes = _found(root, masks)
    else:
        rows, labels = read_table(root, table)
        told = f"Patients, reports, masks, splits and labels as in {epath.Path(table).name}."
        notes = (told,)
    if not rows:
        cure = "put volumes (NIfTI, NRRD, MetaImage, npy, npz) or folders of DICOM files there"
        raise DataError(table or root, "it holds no volumes", cure)
    studies = tuple(_study(row, labels, test_fraction, masks) for row in rows)
    if test_fraction > 0 and not any(row.cells.get("split") for row in rows):
        studies = hold_one_out(studies)
    if masks and not any(study.mask for study in studies):
        cure = "correct --masks: the name of a file or folder beside each image, with its ending"
        raise DataError(root, f"no image has a mask {masks!r} beside it", cure)
    if overrides is not None:
        studies, note = _overrule(studies, root, overrides)
        notes += (note,)
    studies, names = _with_organs(studies, structures)
    return Collection(
        root.name,
        root,
        studies,
        recipe,
        labels,
        mask_names=dict(enumerate(names, 1)),
        notes=notes,
        units=units,
        structures=tuple(structures),
    )


def _found(root: epath.Path, masks: str | None) -> tuple[list[StudyRow], tuple[str, ...]]:
    search = Search(root, masks)
    paths = list(search.volumes())
    names = Counter(own_name(root, path) for path in paths)
    # ct.nii.gz beside a DICOM folder ct: two scans, which keep their endings as different names.
    twins = {path for path in paths if names[own_name(root, path)] > 1}
    rows = [row for path in paths for row in _rows(root, path, whole_name=path in twins)]
    notes = (
        "No table was given: each folder directly below the root, and each file there, counts "
        "as a patient.",
    )
    return rows, notes + search.notes()


def _rows(root: epath.Path, path: epath.Path, *, whole_name: bool) -> list[StudyRow]:
    """Returns one row, or one for each series of a DICOM folder, all of the same patient."""
    try:
        series = sorted(find_series(path)) if path.is_dir() else []
    except Exception:  # its reader reports the error and puts it aside
        series = []
    own = own_name(root, path)
    if whole_name and not path.is_dir():
        patient = own.split("/")[0]
        own = printable(path.relative_to(root).as_posix())
        return [StudyRow(root, path, {"study_id": own, "patient_id": patient})]
    if len(series) < 2:
        return [StudyRow(root, path)]
    return [
        StudyRow(root, path, {"study_id": f"{own}/{number}", "series": uid})
        for number, uid in enumerate(series, 1)
    ]


def _study(
    row: StudyRow, labels: tuple[str, ...], test_fraction: float, masks: str | None
) -> Study:
    """Makes the study of a row; the path of the image replaces missing cells."""
    own = own_name(row.root, row.image)
    # Without a table, each folder directly below the root counts as one patient. It does no harm if
    # two patients count as one, but a patient in two splits would be a leak.
    patient = row.cells.get("patient_id", own.split("/")[0])
    mask = row.path("mask") if "mask" in row.cells else None
    if mask is None and masks and (beside := row.image.parent / masks).exists():
        mask = beside
    return Study(
        study_id=row.cells.get("study_id", own),
        patient_id=patient,
        split=row.cells.get("split") or split_by_hash(patient, test_fraction),
        image=row.image,
        series=row.cells.get("series"),
        mask=mask,
        report=row.cells.get("report"),
        points=row.points(),
        labels={name: row.label(name) for name in labels if name in row.cells},
    )


def _overrule(
    studies: Sequence[Study], root: epath.Path, table: epath.PathLike
) -> tuple[tuple[Study, ...], str]:
    overrides = read_overrides(table)
    names = Counter(study.image.name for study in studies)
    told, count = [], Counter[bool]()
    for study in studies:
        name, path = study.image.name, study.image.relative_to(root).as_posix()
        if path not in overrides and name in overrides and names[name] > 1:
            problem = f"VolumeName {name!r} matches {names[name]} files"
            raise DataError(table, problem, "write their paths below the folder of scans instead")
        own = overrides.get(path) or overrides.get(name)
        count[own is not None] += 1
        own = own or Override()
        spacing = own.spacing
        if spacing is not None and study.image.suffix in (".npy", ".npz"):
            spacing = (spacing[2], spacing[1], spacing[0])  # arrays are stored as z, y, x
        told.append(replace(study, rescale=own.rescale, spacing=spacing))
    if not count[True]:
        cure = "VolumeName must be the name of a file, or its path below the folder of scans"
        raise DataError(table, "it names none of the scans", cure)
    note = f"A metadata table overrules the headers of {count[True]} files"
    return tuple(told), f"{note}; {count[False]} are not in it."


def _with_organs(
    studies: tuple[Study, ...], structures: Sequence[str]
) -> tuple[tuple[Study, ...], Sequence[str]]:
    """Gives the files of mask folders the label values of the whole dataset."""
    organs = {}
    for study in studies:
        if isinstance(study.mask, epath.Path) and study.mask.is_dir():
            with contextlib.suppress(DataError):  # its worker reports the error and puts it aside
                found = find_mask(study.mask)
                if found.form == "organs":
                    organs[study.study_id] = organ_files(found.path)
    names = structures or sorted({name for found in organs.values() for name in found})

    def own(study: Study) -> Study:
        if study.study_id not in organs:
            return study
        files = organs[study.study_id]
        mask = {value: files[name] for value, name in enumerate(names, 1) if name in files}
        # A worker reports a folder without any of the structures, and puts its study aside.
        return replace(study, mask=mask, annotated=tuple(mask)) if mask else study

    return tuple(map(own, studies)), names
