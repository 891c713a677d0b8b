"""A small folder in M3D-Cap's exact layout, made of the sample scans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines import readers
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


def _grey(path: epath.Path) -> np.ndarray:
    """8 bit grey of a soft tissue window, at most `SIDE` voxels along each axis."""
    array = Orientation()(readers.read(path, units="HU")).array
    array = array[tuple(slice(None, None, -(-side // SIDE)) for side in array.shape)]
    return np.clip((array + 400) * (255 / 1000), 0, 255).astype(np.uint8)
