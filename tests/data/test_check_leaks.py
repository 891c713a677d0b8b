"""The command `prepare --check-leaks`."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from etils import epath

from data_pipelines import preprocess, readers
from data_pipelines.prepare import LEAKS, Prepare


def test_a_resampled_twin_in_another_split_or_dataset_is_found(
    sample_scans: epath.Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    shutil.copy(sample_scans / "example_ct.nii.gz", root / "b.nii.gz")
    scan = readers.read(sample_scans / "example_ct.nii.gz", units="HU")
    twin = preprocess.Spacing((4, 4, 4))(preprocess.Orientation("LPS")(scan))
    image = nib.Nifti1Image(twin.array.round().astype("int16"), twin.affine)
    nib.save(image, root / "twin.nii.gz")
    shutil.copytree(sample_scans / "example_ct_dicom", root / "c")
    table = tmp_path / "scans.csv"
    table.write_text("image,patient_id,split\nb.nii.gz,p1,train\ntwin.nii.gz,p2,test\nc,p3,test\n")
    out = tmp_path / "data"
    options = {"units": "HU", "workers": 0, "check_leaks": True}
    assert Prepare("folder", str(root), str(table), out=str(out), **options).run() == LEAKS == 4
    assert "twin" in capsys.readouterr().out
    (row,) = csv.DictReader((out / "leaks.csv").open())
    assert {row["study_id"], row["other_study_id"]} == {"b", "twin"}

    table.write_text("image,patient_id,split\nb.nii.gz,p1,train\nc,p3,test\n")
    clean = {**options, "out": str(tmp_path / "clean")}
    assert Prepare("folder", str(root), str(table), **clean).run() == 0
    against = {**clean, "against": (str(out),)}
    assert Prepare("folder", str(root), str(table), **against).run() == LEAKS
    rows = list(csv.DictReader((tmp_path / "clean" / "leaks.csv").open()))
    assert any(row["kind"] == "volume" for row in rows)
