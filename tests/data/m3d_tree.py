"""Small folders in the exact layouts of M3D-Cap and M3D-Seg, made of the sample scans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from etils import epath
from PIL import Image

from data_pipelines import fetch, readers, resample
from data_pipelines.preprocess import Orientation

TEXTS = {
    "ct_case/000001": "Title: \nstudy_findings: \nCyst in the left kidney, 2.5 cm.\nNo stones.\n"
    "discussion: \nBosniak I.",
    "ct_case/000002": "study_findings:\nDissection of the descending aorta. Heart is normal.",
    "ct_case/000003": "study_findings: \n\ndiscussion: \nLiver and spleen are normal.",
    "ct_quizze/000001": "Aortic dissection, Stanford type B.",
    "ct_quizze/000002": "study_findings:\nNo abnormality.",
}
SERIES = {
    "ct_case/000001/Axial_non_contrast": ("B", 0, "jpeg"),
    "ct_case/000001/Coronal_bone_window": ("B", 1, "png"),
    "ct_case/000002/Axial_C__arterial_phase": ("A", 0, "png"),
    "ct_case/000003/Axial_Pöschl": ("C", 0, "png"),
    "ct_quizze/000001/Axial_aorta": ("A", 0, "png"),  # a copy, byte for byte
    "ct_quizze/000001/Sagittal_aorta": ("A", 2, "png"),
    "ct_quizze/000002/Coronal_C__delayed": ("C", 1, "png"),
}
INDEX = {
    "train": [
        "ct_case/000001/Axial_non_contrast",
        "ct_case/000003/Axial_Poschl",
        "ct_quizze/000001/Sagittal_aorta",
    ],
    "validation": ["ct_quizze/000002/Coronal_C__delayed"],
    "test": ["ct_case/000002/Axial_C__arterial_phase", "ct_case/000001/Coronal_bone_window"],
    "test100": ["ct_case/000002/Axial_C__arterial_phase"],
}
FILES = {"A": "aorta_report/example_ct.nii.gz", "B": "example_ct.nii.gz", "C": "example_ct_dicom"}
SIDE = 96
CROP = "aorta_report/test_result/models"
SEG = {  # set: case, split, scan, and of every class its name and its label in the scan's masks
    "0007": ("17", "test", f"{CROP}/ct_cropped.nii.gz", {"spleen": "", "aorta": "aorta"}),
    "0011": (
        "s0004",
        "train",
        "example_ct_sm.nii.gz",
        {
            "liver": "liver",
            "left kidney": "kidney_left",
            "spleen": "spleen",
            "left adrenal gland": "adrenal_gland_left",
            "urinary bladder": "urinary_bladder",
        },
    ),
}
SEG_SIZE = (32, 256, 256)


def make(root: Path, scans: epath.Path) -> Path:
    """Writes the folder M3D_Cap below `root`: slices, reports and the index."""
    root /= "M3D_Cap"
    grey = {name: _grey(scans / file) for name, file in FILES.items()}
    for series, (scan, axis, ending) in SERIES.items():
        write_series(root / series, np.moveaxis(grey[scan], axis, 0), ending)
    for case, text in TEXTS.items():
        (root / case / "text.txt").write_text(text)
    write_index(root, INDEX)
    return root


def write_series(folder: Path, array: np.ndarray, ending: str = "png") -> None:
    """Writes uint8 slices 0.png, 1.png, ..."""
    folder.mkdir(parents=True)
    for number, plane in enumerate(array):
        Image.fromarray(plane).save(folder / f"{number}.{ending}")


def write_index(root: Path, index: dict[str, list[str]]) -> None:
    """Writes M3D_Cap.json, whose paths are those of the prepared arrays."""
    entries = {split: [entry(series) for series in listed] for split, listed in index.items()}
    (root / "M3D_Cap.json").write_text(json.dumps(entries))


def entry(series: str) -> dict[str, str]:
    """An entry of the index."""
    case = series.rpartition("/")[0]
    return {"image": f"M3D_Cap_npy/{series}.npy", "text": f"M3D_Cap_npy/{case}/text.txt"}


def prepared_by_m3d(root: Path, target: Path) -> Path:
    """The same folder as M3D's script leaves it: float32 arrays (1, D, H, W) of 0..1."""
    target /= "M3D_Cap_npy"
    for series in SERIES:
        slices = sorted((root / series).iterdir(), key=lambda path: int(path.stem))
        array = np.stack([np.asarray(Image.open(path)) for path in slices])[None] / np.float32(255)
        path = target / f"{series.replace('ö', 'o')}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    for case in TEXTS:
        shutil.copy(root / case / "text.txt", target / case / "text.txt")
    shutil.copy(root / "M3D_Cap.json", target)
    return target


def make_seg(root: Path, scans: epath.Path) -> Path:
    """Writes the folder M3D_Seg_npy below `root`, as M3D's scripts leave it: z, y, x of the files.

    One set is drawn in one file of many labels, the other in a file for each.
    """
    root /= "M3D_Seg_npy"
    values = {name: value for value, name in fetch.organ_names(scans).items()}
    for code, (case, split, scan, classes) in SEG.items():
        (root / code / case / "masks").mkdir(parents=True)
        image = _array(scans / scan).astype(np.float32)
        image = (image - image.min()) / np.ptp(image)
        steps = np.array(image.shape) / SEG_SIZE
        image = resample.linear(image, SEG_SIZE, (steps - 1) / 2, steps)
        np.save(root / code / case / "image.npy", image[None])
        entries = []
        for number, label in enumerate(classes.values()):
            mask = np.zeros(SEG_SIZE, bool)
            if label and code == "0011":
                mask = resample.nearest_floor(
                    _array(scans / "example_seg.nii.gz") == values[label], SEG_SIZE
                )
            elif label:
                mask = resample.nearest_floor(_array(scans / CROP / f"{label}.nii.gz"), SEG_SIZE)
            path = f"{code}/{case}/masks/mask_{number}.npy"
            np.save(root / path, mask[None] > 0 if mask.any() else np.zeros((1, 1, 1, 1), bool))
            entries.append({"image": f"{code}/{case}/image.npy", "label": path})
        index = {"train": [], "test": [], split: entries}
        (root / code / f"{code}.json").write_text(json.dumps(index))
    names = {code: list(classes) for code, (*_, classes) in SEG.items()}
    (root / "dataset_info.json").write_text(json.dumps(names))
    return root


def _array(path: epath.Path) -> np.ndarray:
    """The voxels of a NIfTI file in the order z, y, x."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj).T


def _grey(path: epath.Path) -> np.ndarray:
    """8 bit grey of a soft tissue window, at most `SIDE` voxels along each axis."""
    array = Orientation()(readers.read(path, units="HU")).array
    array = array[tuple(slice(None, None, -(-side // SIDE)) for side in array.shape)]
    return np.clip((array + 400) * (255 / 1000), 0, 255).astype(np.uint8)
