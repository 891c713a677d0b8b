"""Own scans: crops of a real CT in folders, with and without a table."""

import csv
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from etils import epath
from PIL import Image

from data_pipelines import preprocess
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.folder import folder
from data_pipelines.datasets.job import make
from data_pipelines.datasets.study import Broken, Collection, split_by_hash
from data_pipelines.errors import DataError
from data_pipelines.inspect_scan import Inspect
from data_pipelines.prepare import Prepare
from data_pipelines.volume import transform
from tests.data.structure_files import write_contours

_RECIPE = preprocess.ct()


@pytest.fixture
def scans(sample_scans: epath.Path, tmp_path: Path) -> Path:
    """Four crops of a real CT, one with a mask, and one real DICOM series."""
    image = nib.Nifti1Image.from_filename(sample_scans / "example_ct_sm.nii.gz")
    mask = nib.Nifti1Image.from_filename(sample_scans / "example_seg.nii.gz")
    root = tmp_path / "scans"
    for index, name in enumerate(("one", "two", "deep/er/three", "four")):
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image.slicer[20 + index : 60, 30:70, 5:25], path)
    nib.save(mask.slicer[20:60, 30:70, 5:25], root / "one_mask.nii.gz")
    shutil.copytree(sample_scans / "example_ct_dicom", root / "series")
    (root / "readme.txt").write_text("not a scan")
    return root


def _table(scans: Path, text: str | bytes) -> Path:
    path = scans.parent / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_without_a_table_the_first_folder_is_the_patient(scans: Path) -> None:
    (scans / "one_mask.nii.gz").unlink()
    shutil.copytree(scans / "series", scans / "deep" / "series")
    collection = folder(scans, _RECIPE, test_fraction=0.5)
    ids = {study.study_id: study.patient_id for study in collection.studies}
    assert ids == {
        "deep/er/three": "deep",
        "deep/series": "deep",
        "four": "four",
        "one": "one",
        "series": "series",
        "two": "two",
    }
    assert len({study.split for study in collection.studies if study.patient_id == "deep"}) == 1
    assert "each folder directly below the root" in collection.notes[0]


def test_a_disc_with_a_table_of_contents_is_searched(scans: Path) -> None:
    disc = scans.parent / "disc"
    for patient in ("P1", "P2"):
        shutil.copytree(scans / "series", disc / patient / "S1")
    (disc / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (disc / "dangling.dcm").symlink_to(disc / "nowhere")
    studies = folder(disc, _RECIPE).studies
    assert [study.study_id for study in studies] == ["P1/S1", "P2/S1"]
    assert [len(list(study.files())) for study in studies] == [20, 20]


def test_prepared_from_a_table(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _table(
        scans,
        "image,patient_id,study_id,report,mask,split,nodule,effusion\n"
        'one.nii.gz,p1,s1,"No nodule, no effusion.\nNormal.",one_mask.nii.gz,train,0,0\n'
        "two.nii.gz,p1,s2,,,train,1,\n"
        "deep/er/three.nii.gz,p2,s3,A nodule.,,test,1,1\n"
        "series,p3,s4,,,train,,\n",
    )
    out = tmp_path / "data"
    prepare = Prepare("folder", str(scans), str(table), out=str(out), units="HU", workers=0)
    assert prepare.run() == 0
    assert "Wrote 4 studies (3 train, 1 test)" in capsys.readouterr().out

    train = open_dataset(out, "train")
    assert train.label_names == ("nodule", "effusion")
    first, second, series = train
    assert first["report"] == "No nodule, no effusion.\nNormal."
    assert first["report_valid"] and not second["report_valid"] and second["report"] == ""
    assert first["labels"].tolist() == [0, 0] and first["labels"].dtype == np.float32
    assert second["labels"][0] == 1 and math.isnan(second["labels"][1])
    assert second["labels_valid"] and not series["labels_valid"]
    assert series["source"] == "series" and series["patient_id"] == "p3"
    stored = np.asarray(nib.Nifti1Image.from_filename(scans / "one_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(first["mask"], stored.transpose(2, 1, 0)[:, ::-1, ::-1])
    assert first["mask_valid"] and first["annotated"].all()
    assert not second["mask_valid"] and not second["mask"].any() and not second["annotated"].any()
    (test,) = open_dataset(out, "test")
    assert test["labels"].tolist() == [1, 1]
    assert "| nodule | 2 of 3 |" in (out / "card.md").read_text()


def test_a_dicom_folder_with_two_series_is_one_patient(scans: Path) -> None:
    files = sorted((scans / "series").iterdir())
    uid = pydicom.uid.generate_uid()
    for path in files[10:]:
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = uid
        dataset.save_as(path)
    collection = folder(scans / "series", _RECIPE)
    assert [study.study_id for study in collection.studies] == ["series/1", "series/2"]
    assert {study.patient_id for study in collection.studies} == {"series"}
    assert len({study.split for study in collection.studies}) == 1
    out = scans.parent / "data"
    Prepare("folder", str(scans / "series"), out=str(out), workers=0, test_fraction=0).prepare()
    assert [record["source_shape"][0] for record in open_dataset(out, "train")] == [10, 10]


def test_the_split_follows_the_patient(scans: Path) -> None:
    rows = "".join(f"{name},p{index}\n" for index, name in enumerate(("one.nii.gz", "series")))
    same = _table(scans, "image,patient_id\ntwo.nii.gz,p0\nfour.nii.gz,p0\n" + rows)
    for fraction in (0.0, 0.3, 0.5, 1.0):
        studies = folder(scans, _RECIPE, table=same, test_fraction=fraction).studies
        assert len({study.split for study in studies if study.patient_id == "p0"}) == 1
    assert {study.split for study in studies} == {"test"}


def test_the_hash_takes_the_wanted_share_and_keeps_it() -> None:
    split = {f"patient {n}": split_by_hash(f"patient {n}", 0.1) for n in range(2000)}
    test = {name for name, part in split.items() if part == "test"}
    assert 0.08 < len(test) / 2000 < 0.12
    more = {name for name in split if split_by_hash(name, 0.2) == "test"}
    assert test < more  # a larger share only adds patients


def test_small_datasets_hold_out_a_patient_too(scans: Path) -> None:
    table = _table(scans, "image,patient_id\none.nii.gz,p1\ntwo.nii.gz,p2\nfour.nii.gz,p2\n")
    for fraction, expected in ((1e-9, {"train", "test"}), (0.0, {"train"})):
        studies = folder(scans, _RECIPE, table=table, test_fraction=fraction).studies
        assert {study.split for study in studies} == expected
        assert len({study.split for study in studies if study.patient_id == "p2"}) == 1
    alone = _table(scans, "image,patient_id\none.nii.gz,p1\ntwo.nii.gz,p1\n")
    assert {s.split for s in folder(scans, _RECIPE, table=alone).studies} == {"train"}


def test_a_patient_in_two_splits_is_named(scans: Path, tmp_path: Path) -> None:
    text = "image,patient_id,split\none.nii.gz,p1,train\ntwo.nii.gz,p1,test\nfour.nii.gz,p2,test\n"
    prepare = Prepare("folder", str(scans), str(_table(scans, text)), out=str(tmp_path / "data"))
    with pytest.raises(DataError, match="patient p1 is in the splits test and train"):
        prepare.prepare()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["held-out", "all", "train[:1]", "1st"])
def test_a_split_needs_a_usable_name(scans: Path, tmp_path: Path, name: str) -> None:
    table = _table(scans, f"image,split\none.nii.gz,{name}\n")
    with pytest.raises(DataError, match="cannot be the name of a split"):
        Prepare("folder", str(scans), str(table), out=str(tmp_path / "data")).prepare()


def test_equal_study_ids_are_refused(scans: Path, tmp_path: Path) -> None:
    table = _table(scans, "image,study_id\none.nii.gz,s\ntwo.nii.gz,s\n")
    with pytest.raises(DataError, match="2 studies have the id s"):
        Prepare("folder", str(scans), str(table), out=str(tmp_path / "data")).prepare()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first row does not name"),
        ("file,report\none.nii.gz,x\n", "its first row does not name"),
        ("image,image\none.nii.gz,x\n", "each once"),
        ("image;report\none.nii.gz;x\n", "separated by semicolons, not by commas"),
        ("image\treport\none.nii.gz\tx\n", "separated by tabs, not by commas"),
        ("image\n../table.csv\n", "row 2: image '../table.csv' is outside"),
        ("image\n/etc/hostname\n", "row 2: image '/etc/hostname' is outside"),
        ("image,mask\none.nii.gz,../m.nii.gz\n", "row 2: mask '../m.nii.gz' is outside"),
        ('image\n"one\t.nii.gz"\n', "row 2: image 'one\\t.nii.gz' holds control characters"),
        (
            "image\none.nii.gz\ntwo.nii.gz\none.nii.gz\n",
            "row 4: image 'one.nii.gz' is also in row 2",
        ),
        ("image,report\n,x\n", "row 2: the column 'image' is empty"),
        ("image,report\none.nii.gz,a,b\n", "row 2: it has more or fewer cells"),
        ('image,report\none.nii.gz,"a\nb"\ntwo.nii.gz\n', "row 3: it has more or fewer cells"),
        (
            "image,nodule\none.nii.gz,yes\n",
            "row 2: label 'nodule' holds other text",
        ),
        ('image,report\none.nii.gz,"open\n', "row 2: unexpected end of data"),
        (b"image,report\none.nii.gz,\xe4\n", "byte 24 is not UTF-8"),
        ("image\n", "it holds no volumes"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(scans: Path, text: str | bytes, message: str) -> None:
    table = _table(scans, text)
    with pytest.raises(DataError) as error:
        folder(scans, _RECIPE, table=table)
    assert str(error.value).startswith(f"{table}: ")
    assert message in str(error.value)


def test_a_missing_table_and_a_missing_folder(scans: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: there is no such readable file"):
        folder(scans, _RECIPE, table=scans / "none.csv")
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        folder(epath.Path("nowhere"), _RECIPE)
    (scans.parent / "empty").mkdir()
    with pytest.raises(DataError, match="it holds no volumes"):
        folder(scans.parent / "empty", _RECIPE)


def test_a_table_saved_by_a_spreadsheet(scans: Path) -> None:
    table = _table(scans, "\ufeffimage;x\n".replace(";", ",") + "one.nii.gz,1\r\n")
    (study,) = folder(scans, _RECIPE, table=table).studies
    assert (study.study_id, dict(study.labels)) == ("one", {"x": 1.0})


def test_what_a_table_names_and_is_not_there_is_put_aside(scans: Path, tmp_path: Path) -> None:
    table = _table(scans, "image,mask\none.nii.gz,\nnine.nii.gz,\ntwo.nii.gz,m.nii.gz\n")
    out = tmp_path / "data"
    prepare = Prepare("folder", str(scans), str(table), out=str(out), units="HU", workers=0)
    assert prepare.run() == 3
    rows = list(csv.DictReader((out / "quarantine.csv").open()))
    assert {row["file"]: row["reason"] for row in rows} == {
        "nine.nii.gz": "no such file",
        "m.nii.gz": "no such file",
    }


def test_links_that_lead_out_are_put_aside(scans: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    shutil.copy(scans / "one.nii.gz", outside / "secret.nii.gz")
    (scans / "file.nii.gz").symlink_to(outside / "secret.nii.gz")
    (scans / "folder").symlink_to(outside)
    (scans / "deep" / "round").symlink_to(scans)
    (scans / "deep" / "again.nii.gz").symlink_to(scans / "two.nii.gz")
    (scans / "one_mask.nii.gz").unlink()
    out = tmp_path / "data"
    options = {"units": "HU", "workers": 0, "test_fraction": 0}
    assert Prepare("folder", str(scans), out=str(out), **options).run() == 3
    rows = list(csv.DictReader((out / "quarantine.csv").open()))
    assert {row["file"] for row in rows} == {"file.nii.gz", "folder"}
    assert all("leads out of the folder of scans" in row["reason"] for row in rows)
    ids = {record["study_id"] for record in open_dataset(out, "train")}
    assert ids == {"one", "two", "four", "series", "deep/er/three", "deep/again"}


def test_masks_beside_the_images(scans: Path, sample_scans: epath.Path, tmp_path: Path) -> None:
    root = tmp_path / "totalsegmentator"
    for subject, organs in (("s1", ("liver", "spleen")), ("s2", ("spleen",))):
        (root / subject / "segmentations").mkdir(parents=True)
        shutil.copy(scans / "one.nii.gz", root / subject / "ct.nii.gz")
        mask = nib.Nifti1Image.from_filename(scans / "one_mask.nii.gz")
        for number, organ in enumerate(organs):
            array = (np.asarray(mask.dataobj) == 5 + number).astype(np.uint8)
            image = nib.Nifti1Image(array, mask.affine)
            nib.save(image, root / subject / "segmentations" / f"{organ}.nii.gz")
    out = tmp_path / "data"
    options = {"masks": "segmentations", "units": "HU", "workers": 0, "test_fraction": 0}
    Prepare("folder", str(root), out=str(out), **options).prepare()
    one, two = source = open_dataset(out, "train")
    assert source.mask_names == {1: "liver", 2: "spleen"}
    assert np.flatnonzero(one["annotated"]).tolist() == [1, 2]
    assert np.flatnonzero(two["annotated"]).tolist() == [2]
    Prepare(
        "folder", str(root), out=str(out), structures=("spleen",), overwrite=True, **options
    ).prepare()
    assert open_dataset(out, "train").mask_names == {1: "spleen"}


def test_masks_in_folders_of_every_form(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prepare` reads what `inspect` reads, and puts aside folders without a mask."""
    root, mask = tmp_path / "tree", nib.Nifti1Image.from_filename(scans / "one_mask.nii.gz")
    labels = (np.asarray(mask.dataobj) == 5).astype(np.uint8)
    for form in ("png", "rtstruct", "organs", "other", "empty"):
        (root / form / "masks").mkdir(parents=True)
        shutil.copy(scans / "one.nii.gz", root / form / "ct.nii.gz")
    for number, plane in enumerate(labels):
        Image.fromarray(plane).save(root / "png" / "masks" / f"{number}.png")
    square = np.array([(4.5, 4.5, 3), (4.5, 8.5, 3), (8.5, 8.5, 3), (8.5, 4.5, 3)])
    points = transform(mask.affine, square) * (-1, -1, 1)
    write_contours(root / "rtstruct" / "masks" / "rs.dcm", "", {"liver": [points]})
    for form, name in (("organs", "liver"), ("other", "spleen")):
        deeper = root / form / "masks" / "v2"
        deeper.mkdir()
        nib.save(nib.Nifti1Image(labels, mask.affine), deeper / f"{name}.nii.gz")
    options = {"masks": "masks", "structures": ("liver",), "units": "HU", "workers": 0}
    out = tmp_path / "data"
    prepare = Prepare("folder", str(root), recipe="as_is", out=str(out), test_fraction=0, **options)
    assert prepare.run() == 3
    found = {record["study_id"]: int(record["mask"].sum()) for record in open_dataset(out, "train")}
    assert found == {"organs/ct": labels.sum(), "png/ct": labels.sum(), "rtstruct/ct": 16}
    reasons = {
        row["study_id"]: row["reason"] for row in csv.DictReader((out / "quarantine.csv").open())
    }
    assert reasons == {
        "empty/ct": "a folder without files, where a mask should be",
        "other/ct": "the mask holds none of the structures",
    }
    scan, masks = root / "rtstruct" / "ct.nii.gz", root / "rtstruct" / "masks"
    inspect = Inspect(str(scan), str(masks), units="HU", structures=("liver",), picture=None)
    assert inspect.run() == 0
    printed = capsys.readouterr().out
    assert "1 liver: 16 voxels" in printed and "--masks masks --structures liver" in printed


def test_a_metadata_table_overrules_headers(scans: Path, tmp_path: Path) -> None:
    overrides = tmp_path / "metadata.csv"
    overrides.write_text(
        "VolumeName,PatientSex,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing\n"
        'two.nii.gz,F,1.0,-10,"[1.5, 1.5]",2\n'
        "four.nii.gz,F,,,,\n"
    )
    collection = folder(scans, _RECIPE, overrides=overrides)
    told = {study.study_id: (study.rescale, study.spacing) for study in collection.studies}
    assert told.pop("two") == ((1.0, -10.0), (1.5, 1.5, 2.0))
    assert set(told.values()) == {(None, None)}
    assert "overrules the headers of 2 files; 4 are not in it" in collection.notes[-1]
    overrides.write_text("VolumeName,RescaleSlope,RescaleIntercept\none.nii.gz,x,0\n")
    with pytest.raises(DataError, match="row 2: RescaleSlope and RescaleIntercept must be numbers"):
        folder(scans, _RECIPE, overrides=overrides)


def test_a_table_for_files_that_are_in_hu_already(scans: Path, tmp_path: Path) -> None:
    """CT-RATE's `_fixed` files with the table of the others: the cure is to leave it out."""
    overrides = tmp_path / "metadata.csv"
    overrides.write_text("VolumeName,RescaleSlope,RescaleIntercept\ntwo.nii.gz,1,-1024\n")
    studies = folder(scans, _RECIPE, overrides=overrides, units="HU").studies
    (study,) = (study for study in studies if study.study_id == "two")
    collection = Collection("scans", epath.Path(scans), (study,), _RECIPE, units="HU")
    broken = make(collection, study)
    assert isinstance(broken, Broken)
    assert "after the slope and intercept of the metadata table" in broken.reason
    assert broken.cure.endswith("are in HU already, leave out the table (--overrides)")


def test_a_stray_dicom_file_hides_no_scan(scans: Path, tmp_path: Path) -> None:
    (scans / "one_mask.nii.gz").unlink()
    slice_file = next((scans / "series").iterdir())
    shutil.copy(slice_file, scans / "stray.dcm")
    shutil.copytree(scans / "series", scans / "deep" / "one")
    shutil.copy(scans / "one.nii.gz", scans / "deep" / "one.nii.gz")
    ids = [study.study_id for study in folder(scans, _RECIPE).studies]
    assert sorted(ids) == ["deep/er/three", "deep/one", "four", "one", "scans", "two"]


def test_two_scans_that_differ_in_their_ending_are_two_studies(scans: Path) -> None:
    shutil.copytree(scans / "series", scans / "one")
    studies = folder(scans, _RECIPE).studies
    patients = {study.study_id: study.patient_id for study in studies}
    assert patients["one"] == patients["one.nii.gz"] == "one"


def test_a_broken_organ_costs_its_own_study_only(scans: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for subject in ("s1", "s2"):
        (root / subject / "masks").mkdir(parents=True)
        shutil.copy(scans / "one.nii.gz", root / subject / "ct.nii.gz")
        shutil.copy(scans / "one_mask.nii.gz", root / subject / "masks" / "liver.nii.gz")
    (root / "s2" / "masks" / "liver.nii.gz").write_bytes(b"")
    out = tmp_path / "data"
    prepare = Prepare("folder", str(root), masks="masks", units="HU", out=str(out), workers=0)
    assert prepare.run() == 3
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert row["study_id"] == "s2/ct" and "empty" in row["reason"]


def test_options_that_match_nothing_are_refused(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image has a mask 'tumor.nii' beside it"):
        folder(scans, _RECIPE, masks="tumor.nii")
    table = tmp_path / "metadata.csv"
    table.write_text("VolumeName,RescaleSlope,RescaleIntercept\nnobody.nii.gz,1,0\n")
    with pytest.raises(DataError, match="it names none of the scans"):
        folder(scans, _RECIPE, overrides=table)
    shutil.copy(scans / "one.nii.gz", scans / "deep" / "one.nii.gz")
    table.write_text("VolumeName,RescaleSlope,RescaleIntercept\none.nii.gz,1,0\n")
    with pytest.raises(DataError, match="'one.nii.gz' matches 2 files"):
        folder(scans, _RECIPE, overrides=table)
    prepare = Prepare("folder", str(scans), out=str(tmp_path / "data"), against=("nowhere",))
    with pytest.raises(DataError, match="nowhere: there is no such dataset"):
        prepare.run()
    assert not (tmp_path / "data").exists()
