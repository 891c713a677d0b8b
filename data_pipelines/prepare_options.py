"""The options of the command `prepare`, which the module `prepare` implements.

This module does not import the readers of scans, so that help is shown at once.
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from data_pipelines.volume import Units


@dataclass(frozen=True)
class PrepareOptions:
    """Turns scans into a dataset that training reads.

    A call that was killed resumes when it is repeated. Scans that cannot be read are put into
    quarantine (quarantine.csv gives the reason and the cure for each), and the exit status is then
    3. It is 4 if leaks were looked for and found.

    Attributes:
      dataset: "sample_ct": five public CT studies, which are downloaded. "folder": your own scans,
        as NIfTI, NRRD, MetaImage, npy and npz files, DICOM folders, or folders of PNG slices.
        "m3d_cap": the folder M3D_Cap (or M3D_Cap_npy) of M3D, with its splits repaired. "m3d_vqa":
        the same with the questions of M3D-VQA. "m3d_seg": the folder M3D_Seg_npy with masks.
      source: The folder of scans. With sample_ct: an unpacked copy, used instead of the download.
      table: With folder: a CSV file about the scans. Column "image" is a path below the folder;
        patient_id, study_id, report, mask, split and series are optional; any other is a 0/1
        label. With m3d_vqa: the folder of M3D-VQA's tables, M3D_VQA_train.csv and so on. With
        m3d_seg: the file dataset_info.json, if it is not in the folder.
      overrides: With folder: a CSV file like CT-RATE's metadata (VolumeName, RescaleSlope,
        RescaleIntercept, XYSpacing, ZSpacing). Its values replace those of the headers.
      masks: With folder: name of the mask beside each image; a file, or a folder with one file per
        structure.
      structures: With folder: names of the labels 1, 2, ... of the masks. They select the files of
        mask folders, the segments of a DICOM SEG and the contours of an RTSTRUCT.
      out: The dataset folder; default data/NAME.
      same: With m3d_cap and m3d_vqa: the leaks.csv of an earlier call with check_leaks. Cases with
        the same scan, as listed there, are put into one split.
      recipe: Preprocessing: "ct" (whole CT in HU at one spacing), "mr" (scaled to 0..1 by
        percentiles), "as_is" (already preprocessed), "e3d", "m3d", "m3d_slices" (M3D's size for
        slices without an affine), ... By default "m3d_slices" with m3d_cap and m3d_vqa, "as_is"
        with m3d_seg, else "ct".
      spacing: With recipe ct and mr: voxel size in mm along depth, height, width.
      units: Units of files that do not state them: "HU" for CT; None means unknown.
      test_fraction: With folder: share of the patients in the split "test", unless the table
        has a column for it.
      salt: A file with a secret (created if it is missing). Ids become salted hashes, and file
        names stay out of the dataset. Only OUT.key.csv then links the hashes to the ids.
      check_leaks: Look for the same patients and near-identical scans in several splits.
      against: Other prepared datasets to look for them in; implies check_leaks.
      workers: Number of processes; default one per core. 0 uses only the main process.
      beam: Make the records with Apache Beam instead of local processes. The values are Beam's
        pipeline options as NAME=VALUE, for example runner=DataflowRunner project=P. Without any
        option, the DirectRunner runs on this machine.
      overwrite: Replace a dataset made with another recipe or from other files.
    """

    dataset: tyro.conf.Positional[
        Literal["sample_ct", "folder", "m3d_cap", "m3d_vqa", "m3d_seg"]
    ] = "sample_ct"
    source: str | None = None
    table: str | None = None
    overrides: str | None = None
    masks: str | None = None
    structures: tuple[str, ...] = ()
    same: str | None = None
    out: str | None = None
    recipe: (
        Literal["ct", "mr", "as_is", "e3d", "m3d", "m3d_slices", "m3d_cap", "m3d_seg", "m3d_refseg"]
        | None
    ) = None
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    units: Units | None = None
    test_fraction: float = 0.1
    salt: str | None = None
    check_leaks: bool = False
    against: tuple[str, ...] = ()
    workers: int | None = None
    beam: tuple[str, ...] | None = None
    overwrite: bool = False
