"""Recognises the layout of the Medical Segmentation Decathlon and of nnU-Net's raw datasets.

    imagesTr/case_001.nii.gz    labelsTr/case_001.nii.gz    imagesTs/case_009.nii.gz

nnU-Net appends the number of the channel to the name of an image: case_001_0000.nii.gz.
"""

from __future__ import annotations

import re
from collections import defaultdict

from etils import epath

from data_pipelines.datasets.table import StudyRow
from data_pipelines.errors import DataError, printable

TRAIN, LABELS, TEST = "imagesTr", "labelsTr", "imagesTs"
_NAME = re.compile(r"(?P<case>.+?)(?:_\d{4})?(?P<ending>\.(?:nii|nii\.gz|nrrd|mha))")


def is_decathlon(root: epath.Path) -> bool:
    """Returns whether a folder has images and labels in folders of these names."""
    return (root / TRAIN).is_dir() and (root / LABELS).is_dir()


def read_decathlon(root: epath.Path) -> list[StudyRow]:
    """Returns a row for each image; every case is a patient.

    Images of imagesTr get the mask of the same case. If there are images in imagesTs, they are the
    split "test" and all others are "train", as published.

    Raises:
      DataError: a case has several channels.
    """
    train, test = _cases(root / TRAIN), _cases(root / TEST)
    rows = []
    for folder, cases in ((TRAIN, train), (TEST, test)):
        for case, (name, ending) in cases.items():
            cells = {"patient_id": case, "study_id": case}
            if test:
                cells["split"] = "train" if folder == TRAIN else "test"
            if folder == TRAIN and (root / LABELS / f"{case}{ending}").exists():
                cells["mask"] = f"{LABELS}/{case}{ending}"
            rows.append(StudyRow(root, root / folder / name, cells))
    return rows


def _cases(folder: epath.Path) -> dict[str, tuple[str, str]]:
    """Returns {case: (file name, ending)} of the images in a folder."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith(".") and (parts := _NAME.fullmatch(path.name)):
            found[printable(parts["case"])].append((path.name, parts["ending"]))
    for case, names in found.items():
        if len(names) > 1:
            problem = f"the case {case} has {len(names)} images (channels)"
            cure = "prepare one channel: give a table (--table) that names one image of each case"
            raise DataError(folder, problem, cure)
    return {case: names[0] for case, names in found.items()}
