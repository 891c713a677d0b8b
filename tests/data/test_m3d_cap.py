"""M3D-Cap's layout, made of the sample scans: splits, copies, and everything that is broken."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipelines import preprocess
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.m3d_cap import m3d_cap
from data_pipelines.errors import DataError
from data_pipelines.prepare import LEAKS, QUARANTINED, Prepare
from data_pipelines.readers import read
from tests.data import m3d_tree

SMALL = {"workers": 0, "recipe": "as_is"}


@pytest.fixture(scope="module")
def tree(m3d: Path) -> Path:
    return m3d.parent / "M3D_Cap"


@pytest.fixture(scope="module")
def dataset(m3d: Path) -> str:
    return str(m3d)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A folder of the same layout with two cases of noise, to break."""
    root = tmp_path / "M3D_Cap"
    rng = np.random.default_rng(0)
    for case in ("ct_case/000001", "ct_quizze/000002"):
        m3d_tree.write_series(root / case / "Axial", rng.integers(0, 255, (4, 8, 9), np.uint8))
        (root / case / "text.txt").write_text("study_findings: A finding.")
    m3d_tree.write_index(root, {"train": ["ct_case/000001/Axial"], "test": []})
    yield root
    shutil.rmtree(root)


def collection(root: Path, **options: Any) -> Any:
    return m3d_cap(root, preprocess.as_is(), **options)


def split_of(studies: Any) -> dict[str, str]:
    return {study.study_id: study.split for study in studies}


def test_a_case_is_in_one_split_with_all_that_hold_a_copy_of_its_series(dataset: str) -> None:
    splits = {
        split: {(r["study_id"], r["patient_id"]) for r in open_dataset(dataset, split)}
        for split in ("train", "validation", "test")
    }
    first, second = "ct_case/000001", "ct_case/000002"
    assert splits == {
        "train": {("ct_case/000003/Axial_Pöschl", "ct_case/000003")},
        "validation": {("ct_quizze/000002/Coronal_C__delayed", "ct_quizze/000002")},
        "test": {
            (f"{first}/Axial_non_contrast", first),
            (f"{first}/Coronal_bone_window", first),
            (f"{second}/Axial_C__arterial_phase", second),
            ("ct_quizze/000001/Axial_aorta", second),
            ("ct_quizze/000001/Sagittal_aorta", second),
        },
    }


def test_the_released_splits_are_there_by_name_and_stored_once(dataset: str) -> None:
    for split, listed in m3d_tree.INDEX.items():
        name = split if split == "test100" else f"released_{split}"
        ids = [record["study_id"].replace("ö", "o") for record in open_dataset(dataset, name)]
        assert sorted(ids) == sorted(listed)
    stored = [name for name in Path(dataset).iterdir() if "array_record" in name.name]
    assert {path.name.split("-")[1].split(".")[0] for path in stored} == {
        "train",
        "validation",
        "test",
    }
    with pytest.raises(DataError, match="it has no split 'test1k'.* train.*, released_train, .*"):
        open_dataset(dataset, "test1k")
    page = (Path(dataset) / "card.md").read_text()
    assert "1 series are copies of others, byte for byte; 1 cases were joined" in page
    assert "Of the 2 series in released_test, 2 leak from released_train: 1 have" in page
    assert "| released_train | 3 |" in page
    assert json.loads((Path(dataset) / "card.json").read_text())["subsets"]["test100"] == 1


def test_a_dataset_of_before_has_no_overlapping_splits(dataset: str, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(dataset, old)
    (old / "subsets.json").unlink()
    metadata = json.loads((old / "metadata.json").read_text())
    del metadata["files"]["subsets.json"]
    (old / "metadata.json").write_text(json.dumps(metadata))
    assert len(open_dataset(old, "test")) == 5
    with pytest.raises(DataError, match="it has no split 'test100'"):
        open_dataset(old, "test100")


def test_volumes_have_m3ds_size_and_each_the_report_of_its_case(dataset: str) -> None:
    reports = {
        r["study_id"]: r["report"] for s in ("train", "test") for r in open_dataset(dataset, s)
    }
    assert reports["ct_case/000001/Axial_non_contrast"] == (
        "Cyst in the left kidney, 2.5 cm.\nNo stones.\n\nBosniak I."
    )
    assert (
        reports["ct_case/000001/Coronal_bone_window"]
        == reports["ct_case/000001/Axial_non_contrast"]
    )
    assert reports["ct_case/000003/Axial_Pöschl"] == "Liver and spleen are normal."
    assert reports["ct_quizze/000001/Axial_aorta"] == "Aortic dissection, Stanford type B."
    record = open_dataset(dataset, "train")[0]
    assert record["image"].shape == (32, 256, 256)
    assert (record["units"], record["affine_valid"]) == ("unit", False)
    assert record["report_valid"] and record["image"].max() * record["scale"] == pytest.approx(1)


def test_prepared_arrays_give_the_same_studies(tree: Path, tmp_path: Path, dataset: str) -> None:
    arrays = m3d_tree.prepared_by_m3d(tree, tmp_path)
    made, slices = (m3d_cap(root, preprocess.m3d_slices()) for root in (arrays, tree))
    plain = {study.replace("ö", "o"): split for study, split in split_of(slices.studies).items()}
    assert split_of(made.studies) == plain
    out = tmp_path / "data"
    Prepare("m3d_cap", str(arrays), out=str(out), **SMALL, units="unit").prepare()
    record = open_dataset(out, "validation")[0]
    stack = read(tree / "ct_quizze/000002/Coronal_C__delayed").array
    assert (record["units"], record["report"]) == ("unit", "No abnormality.")
    np.testing.assert_allclose(record["image"] * record["scale"], stack / 255, atol=1e-4)


def test_what_check_leaks_finds_joins_cases_in_the_next_call(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "M3D_Cap"
    shutil.copytree(tree, root)
    series = root / "ct_quizze/000001/Axial_aorta"
    for path in series.iterdir():  # the same pixels, compressed anew, and in other hands
        Image.open(path).save(path.with_suffix(".jpeg"), quality=90)
        path.unlink()
    out = str(tmp_path / "data")
    options: dict[str, Any] = {"out": out, "check_leaks": True, **SMALL}
    assert Prepare("m3d_cap", str(root), **options).run() == LEAKS
    assert split_of(collection(root).studies)["ct_quizze/000001/Axial_aorta"] == "train"
    found = list(csv.DictReader((Path(out) / "leaks.csv").open()))
    assert any("Axial_aorta" in row["study_id"] + row["other_study_id"] for row in found)
    options |= {"same": f"{out}/leaks.csv", "overwrite": True}
    assert Prepare("m3d_cap", str(root), **options).run() == 0
    patients = {r["study_id"]: r["patient_id"] for r in open_dataset(out, "test")}
    assert patients["ct_quizze/000001/Axial_aorta"] == "ct_case/000002"
    # C, coronal in a quiz, is C, axial in a case: not a copy, and found all the same.
    assert {r["study_id"] for r in open_dataset(out, "validation")} == {
        "ct_case/000003/Axial_Pöschl",
        "ct_quizze/000002/Coronal_C__delayed",
    }


@pytest.mark.parametrize(
    "text, reason",
    [
        (b"", "has no words"),
        (b" \n \n", "has no words"),
        (b"study_findings:\n\ndiscussion:\n", "holds no report"),
        (b"NaN", "has no words"),
        (b"study_findings: nan\ndiscussion: None", "holds no report"),
        (b"Not available.", "has no words"),
        (b"study_findings: Caf\xe9 au lait", "is not UTF-8 (byte 19)"),
        (None, "no such file"),
    ],
)
def test_a_caption_that_says_nothing_is_named(
    copy: Path, text: bytes | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "ct_quizze/000002/text.txt"
    path.unlink() if text is None else path.write_bytes(text)
    out = copy.parent / "data"
    assert Prepare("m3d_cap", str(copy), out=str(out), **SMALL).run() == QUARANTINED
    assert "Put aside ct_quizze/000002/text.txt" in " ".join(capsys.readouterr().err.split())
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert row["study_id"] == "ct_quizze/000002/Axial"
    assert row["file"] == "ct_quizze/000002/text.txt"
    assert row["reason"] == reason and row["cure"]
    assert [r["study_id"] for r in open_dataset(out, "train")] == ["ct_case/000001/Axial"]


def test_a_report_of_a_table_that_says_nothing_is_named(copy: Path) -> None:
    table = copy.parent / "table.csv"
    table.write_text("image,report\nct_case/000001/Axial,NaN\nct_quizze/000002/Axial,\n")
    out = copy.parent / "data"
    options: dict[str, Any] = {**SMALL, "test_fraction": 0.0}
    prepare = Prepare("folder", str(copy), str(table), out=str(out), **options)
    assert prepare.run() == QUARANTINED
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert (row["file"], row["reason"]) == (
        "ct_case/000001/Axial",
        "its report has no words, or is a filler such as NaN",
    )
    (record,) = open_dataset(out, "train")
    assert not record["report_valid"]


def test_a_series_that_is_missing_or_broken_is_named(copy: Path) -> None:
    listed = ["ct_case/000001/Axial", "ct_case/000001/Gone", "ct_quizze/000002/Axial"]
    m3d_tree.write_index(copy, {"train": listed})
    (copy / "ct_quizze/000002/Axial/2.png").write_bytes(b"no image")
    out = copy.parent / "data"
    assert Prepare("m3d_cap", str(copy), out=str(out), **SMALL).run() == QUARANTINED
    rows = {row["file"]: row["reason"] for row in csv.DictReader((out / "quarantine.csv").open())}
    assert rows == {
        "ct_case/000001/Gone.npy": "no such file",
        "ct_quizze/000002/Axial/2.png": "named as an image, but it is not one",
    }
    assert json.loads((out / "card.json").read_text())["subsets"] == {"released_train": 1}


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"image": "../../etc/x.npy"}, "train[0]: image '../../etc/x.npy' is outside"),
        ({"image": "/etc/x.npy"}, "train[0]: image '/etc/x.npy' is outside"),
        ({"text": "M3D_Cap/../../secret.txt"}, "train[0]: text 'M3D_Cap/../../secret.txt' is"),
        ({"text": "C:\\x.txt"}, "is outside of the folder, or not a plain path"),
        ({"image": "a\nb.npy"}, "is outside of the folder, or not a plain path"),
        ({"image": None}, "train[0]: 'image' is missing, or is not a path"),
        ({"text": float("nan")}, "train[0]: 'text' is missing, or is not a path"),
        ({"text": " "}, "train[0]: 'text' is missing, or is not a path"),
    ],
)
def test_an_entry_that_is_no_path_below_the_folder_stops_it(
    copy: Path, change: dict[str, Any], problem: str
) -> None:
    entry = {**m3d_tree.entry("ct_case/000001/Axial"), **change}
    (copy / "M3D_Cap.json").write_text(json.dumps({"train": [entry]}))
    with pytest.raises(DataError) as error:
        collection(copy)
    assert error.value.path.endswith("M3D_Cap.json") and problem in error.value.problem
    assert error.value.cure


def test_an_index_of_another_form_stops_it(copy: Path) -> None:
    index = copy / "M3D_Cap.json"
    entry = m3d_tree.entry("ct_case/000001/Axial")
    other = {**entry, "text": "M3D_Cap_npy/ct_quizze/000002/text.txt"}
    for content, problem in (
        (b"{", "cannot be read, or is not JSON"),
        (b'{"train": "\xff"}', "cannot be read, or is not JSON"),
        (b"[1]", "not a table of splits"),
        (b'{"train": [1]}', "train[0] is not an entry"),
        (json.dumps({"train": [entry, entry]}).encode(), "train[1]: its image is in this split"),
        (json.dumps({"train": [entry], "test": [other]}).encode(), "test[0]: its image has anoth"),
    ):
        index.write_bytes(content)
        with pytest.raises(DataError) as error:
            collection(copy)
        assert problem in error.value.problem
    index.unlink()
    with pytest.raises(DataError, match="there is no such index.*prepare folder"):
        collection(copy)
    with pytest.raises(DataError, match="there is no such folder"):
        collection(copy / "none")


def test_a_link_out_of_the_folder_is_not_followed(copy: Path) -> None:
    secret = copy.parent / "secret.txt"
    secret.write_text("study_findings: Something private.")
    (copy / "ct_quizze/000002/text.txt").unlink()
    (copy / "ct_quizze/000002/text.txt").symlink_to(secret)
    out = copy.parent / "data"
    assert Prepare("m3d_cap", str(copy), out=str(out), **SMALL).run() == QUARANTINED
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert "a link in its path leads out" in row["reason"]


def test_a_table_of_leaks_that_is_none_or_of_other_data_is_refused(copy: Path) -> None:
    table = copy.parent / "leaks.csv"
    table.write_text("kind,study_id,other_study_id\nvolume,one,two\n")
    with pytest.raises(DataError, match="it names studies that are not here"):
        collection(copy, same=table)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a readable table of leaks"):
        collection(copy, same=table)


def test_salted_ids_keep_the_released_splits(copy: Path) -> None:
    m3d_tree.write_index(copy, {"train": ["ct_quizze/000002/Axial"], "test": []})
    out = copy.parent / "data"
    Prepare("m3d_cap", str(copy), out=str(out), salt=str(copy.parent / "salt"), **SMALL).run()
    (record,) = open_dataset(out, "released_train")
    assert record["study_id"] == record["source"] and "ct_" not in record["study_id"]
