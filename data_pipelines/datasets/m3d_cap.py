"""Reads M3D-Cap (arXiv 2404.00578): CT series of Radiopaedia's cases, one report per case.

    M3D_Cap/ct_case/000006/text.txt                      the report of the case
    M3D_Cap/ct_case/000006/Axial_non_contrast/0.png ...  a series: folder of slices, or
    M3D_Cap/ct_case/000006/Axial_non_contrast.npy        an array that M3D's script prepared
    M3D_Cap/ct_quizze/...                                likewise
    M3D_Cap/M3D_Cap.json                                 the released splits

The released splits are by series, so that other series of a test case are in the training set.
Also, some cases of ct_quizze are cases of ct_case (github.com/BAAI-DCAI/M3D, issues 38 and 61).
Here every case is in one split, together with all cases that have a copy of one of its series. A
case is in the test set if any of its series is in a released test set; otherwise in validation if
any of its series is in the released validation set; otherwise in train. The released splits are
available as `released_train`, `released_validation`, `released_test`, `test1k`, `test500` and
`test100`. They are lists of records; each record is stored once.

The tables of M3D-VQA have questions about the same series. If they are given, the questions become
part of the records. The splits `vqa_train`, `vqa_val`, `vqa_test`, `vqa_test5k` and `vqa_yn_train`
are the records with a row in the table of that name. A case with a series in a test table is in the
test set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from data_pipelines.datasets import twins
from data_pipelines.datasets.m3d_index import NAME, read_index
from data_pipelines.datasets.m3d_questions import read_tables
from data_pipelines.datasets.qa import QuestionRow, to_text
from data_pipelines.datasets.search import Search, own_name
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError
from data_pipelines.preprocess import Recipe
from data_pipelines.volume import Units

_TEXT = "text.txt"


def m3d_cap(
    root: epath.PathLike,
    recipe: Recipe,
    *,
    same: epath.PathLike | None = None,
    units: Units | None = None,
    questions: epath.PathLike | None = None,
) -> Collection:
    """Returns M3D-Cap with repaired splits.

    Args:
      root: the folder `M3D_Cap` or `M3D_Cap_npy`.
      recipe: preprocessing.
      same: the leaks.csv of an earlier preparation. Cases in it with nearly identical series
        (compressed or cropped again, which only `--check-leaks` finds) also get the same split.
      units: "unit" for prepared arrays of 0..1 that the recipe does not scale.
      questions: the folder with M3D-VQA's tables; see `m3d_questions`.

    Raises:
      DataError: the folder, its index or a table cannot be used, or `same` names studies that are
        not in the folder.
    """
    root = epath.Path(root)
    if not root.is_dir():
        raise DataError(root, "there is no such folder", "give M3D_Cap or M3D_Cap_npy")
    search = Search(root)
    found = list(search.volumes())
    listed = {entry.image: entry for entry in read_index(root, found)}
    rows, aside = read_tables(questions, root, found) if questions else ({}, ())
    volumes = sorted({*found, *listed, *rows})
    if not volumes:
        raise DataError(root, "it holds no series", "give M3D_Cap or M3D_Cap_npy")
    cases = {path: own_name(root, path.parent) for path in volumes}
    groups, notes = _groups(root, found, cases, same)
    released = {
        path: (*(listed[path].splits if path in listed else ()), *_tables(rows.get(path, ())))
        for path in volumes
    }
    splits = _splits(released, cases, groups)
    studies = tuple(
        Study(
            study_id=own_name(root, path),
            patient_id=groups.first(cases[path]),
            split=splits.get(groups.first(cases[path]), "train"),
            image=path,
            report=listed[path].text if path in listed else path.parent / _TEXT,
            qa=to_text(rows.get(path, ())),
            also_in=released[path],
        )
        for path in volumes
    )
    unlisted = len(volumes) - len(listed)
    notes = (
        *notes,
        *_leaks(studies, cases),
        f"{unlisted} series are not in {NAME}: they are in the split of their case, and in no "
        "released split.",
        *search.notes(),
    )
    name = "m3d_vqa" if questions else "m3d_cap"
    return Collection(name, root, studies, recipe, notes=notes, units=units, aside=aside)


def _tables(rows: Iterable[QuestionRow]) -> tuple[str, ...]:
    """Returns the names of the tables that have one of the rows."""
    return tuple(dict.fromkeys(name for row in rows for name in row.splits))


def _groups(
    root: epath.Path,
    found: Iterable[epath.Path],
    cases: Mapping[epath.Path, str],
    same: epath.PathLike | None,
) -> tuple[twins.Union, tuple[str, ...]]:
    """Returns the groups of cases with the same series, and notes for the dataset card."""
    groups = twins.Union()
    copies = twins.copies(found)
    pairs = [[cases[path] for path in group] for group in copies]
    if same is not None:
        case_of = {own_name(root, path): case for path, case in cases.items()}
        try:
            pairs += [[case_of[id_] for id_ in pair] for pair in twins.read_pairs(same)]
        except KeyError as error:
            cure = "give the table of a dataset made from this folder, without --salt"
            raise DataError(same, "it names studies that are not here", cure) from error
    for pair in pairs:
        groups.join(pair)
    everyone = set(cases.values())
    joined = len(everyone) - len({groups.first(case) for case in everyone})
    copied = sum(len(group) - 1 for group in copies)
    note = f"{copied} series are copies of others, byte for byte; {joined} cases were joined to"
    return groups, (f"{note} the case that holds the same series, and share its split.",)


def _splits(
    released: Mapping[epath.Path, tuple[str, ...]],
    cases: Mapping[epath.Path, str],
    groups: twins.Union,
) -> dict[str, str]:
    """Returns {first case of a group: its split}, without groups that are in no released split."""
    names: dict[str, set[str]] = defaultdict(set)
    for path, own in released.items():
        names[groups.first(cases[path])].update(own)
    return {case: _split(own) for case, own in names.items()}


def _split(released: Iterable[str]) -> str:
    if any("test" in name for name in released):
        return "test"
    return "validation" if {"released_validation", "vqa_val"} & set(released) else "train"


def _leaks(studies: Sequence[Study], cases: Mapping[epath.Path, str]) -> tuple[str, ...]:
    """Returns a note on leaks from the released training set to the released test set."""
    train, test = ("released_train", "released_test")
    own = {cases[study.image] for study in studies if train in study.also_in}
    joined = {study.patient_id for study in studies if train in study.also_in}
    asked = [study for study in studies if test in study.also_in]
    by_case = sum(cases[study.image] in own for study in asked)
    by_any = sum(study.patient_id in joined for study in asked)
    if not asked:
        return ()
    return (
        f"Of the {len(asked)} series in {test}, {by_any} leak from {train}: {by_case} have other "
        f"series of their case there, {by_any - by_case} a copy in another case. The splits train, "
        "validation and test are free of both.",
    )
