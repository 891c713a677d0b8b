"""The sample dataset: five studies of three patients from TotalSegmentator's test files.

  study    patient  split  scan                               mask
  B        B        train  torso, 3 mm, no contrast           8 vertebrae
  B-top    B        train  the uppermost 30 slices of B       41 organs
  A        A        test   chest, 1.5 mm, contrast            heart
  A-crop   A        test   a part of A around the aorta       aorta and 4 more
  C        C        test   20 slices, 0.98x0.98x2 mm, DICOM   31 organs

B-top and C are also the splits `train_organs` and `test_organs`: scans with masks of all organs.

The split is by patient. A and B are two patients. B and C are probably two patients (contrast,
field of view and grid differ), but this is not proven: C may be the patient of the training set.
The masks are TotalSegmentator's own predictions, not drawn by a radiologist.
"""

from collections.abc import Iterable

from etils import epath

from data_pipelines import fetch
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.preprocess import Recipe

NOTES = (
    "Source: test files of totalsegmentator 2.18.0 (Apache-2.0). "
    "Masks are its own predictions, not drawn by a radiologist.",
    "A and B are two patients. B and C are probably two patients, but this is not proven.",
    "B-top is a part of the scan B, and A-crop a part of the scan A, so they are not independent.",
    "A, A-crop and B have masks of few organs, listed in the field `annotated` of the records: "
    "if another organ is not in their masks, it may still be in the scan.",
)

_CROP = "aorta_report/test_result/models"
_CROP_ORGANS = (
    "aorta",
    "brachiocephalic_trunk",
    "common_carotid_artery_left",
    "subclavian_artery_left",
    "vertebrae_T12",
)
_LEVELS = ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11")
_SPINE = tuple(f"vertebrae_{level}" for level in _LEVELS)
_B_SPINE = "spine_report/example_ct_report/totalseg.nii.gz"
_A_HEART = "pulmonary_report/models/heart.nii.gz"


def sample_ct(recipe: Recipe, scans: epath.PathLike | None = None) -> Collection:
    """Returns the sample dataset.

    Args:
      recipe: preprocessing.
      scans: folder of the sample scans; None downloads them.

    Raises:
      DataError: the scans could not be downloaded.
    """
    root = epath.Path(scans) if scans else fetch.sample_scans()
    names = fetch.organ_names(root)
    value = {name: number for number, name in names.items()}

    def some(organs: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(value[organ] for organ in organs))

    studies = (
        Study(
            "B",
            "B",
            "train",
            root / "example_ct.nii.gz",
            mask=root / _B_SPINE,
            annotated=some(_SPINE),
        ),
        Study(
            "B-top",
            "B",
            "train",
            root / "example_ct_sm.nii.gz",
            mask=root / "example_seg.nii.gz",
            also_in=("train_organs",),
        ),
        Study(
            "A",
            "A",
            "test",
            root / "aorta_report/example_ct.nii.gz",
            mask={value["heart"]: root / _A_HEART},
            annotated=some(["heart"]),
        ),
        Study(
            "A-crop",
            "A",
            "test",
            root / _CROP / "ct_cropped.nii.gz",
            mask={value[organ]: root / _CROP / f"{organ}.nii.gz" for organ in _CROP_ORGANS},
            annotated=some(_CROP_ORGANS),
        ),
        Study(
            "C",
            "C",
            "test",
            root / "example_ct_dicom",
            mask=root / "example_seg_dicom.nii.gz",
            also_in=("test_organs",),
        ),
    )
    return Collection("sample_ct", root, studies, recipe, mask_names=names, notes=NOTES, units="HU")
