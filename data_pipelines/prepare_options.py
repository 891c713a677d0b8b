"""The options of the verb `prepare`; `prepare` does the work.

Nothing that reads scans is imported here, so that help is shown at once.
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from data_pipelines.volume import Units


@dataclass(frozen=True)
class PrepareOptions:
    """Turns scans into a dataset that training reads.

    A call that was killed goes on where it was. Scans that cannot be read are put aside
    (quarantine.csv names the reason and the cure of each), and the exit status is then 3; it is
    4 if leaks were looked for and found.

    Attributes:
      dataset: "sample_ct", five public CT studies that are downloaded, or "folder", scans of your
        own: NIfTI, NRRD, MetaImage, npy and npz files, DICOM folders, folders of PNG slices; or
        "m3d_cap", the folder M3D_Cap (or M3D_Cap_npy) of M3D with its splits repaired; "m3d_vqa",
        the same with the questions of M3D-VQA; "m3d_seg", the folder M3D_Seg_npy with masks.
      source: The folder of scans. With sample_ct: an unpacked copy instead of the download.
      table: With folder: a CSV file about the scans. Column "image" is a path below the folder;
        patient_id, study_id, report, mask, split and series are optional; any other is a 0/1
        label. With m3d_vqa: the folder of M3D-VQA's tables, M3D_VQA_train.csv and so on. With
        m3d_seg: the file dataset_info.json, if it is not in the folder.
      overrides: With folder: a CSV file like CT-RATE's metadata (VolumeName, RescaleSlope,
        RescaleIntercept, XYSpacing, ZSpacing) that overrules what headers say.
      masks: With folder: name of the mask, a file or a folder with one file per structure, that
        lies beside each image.
      structures: With folder: names of the labels 1, 2, ... of the masks; they choose among the
        files of mask folders, the segments of a DICOM SEG and the contours of an RTSTRUCT.
      out: The dataset folder; default data/NAME.
      same: With m3d_cap and m3d_vqa: the leaks.csv of an earlier call with check_leaks; cases that
        it found to hold the same scan are put into one split.
      recipe: Preprocessing: "ct" (whole CT in HU at one spacing), "mr" (robust 0..1), "as_is" (done
        before), "e3d", "m3d", "m3d_slices" (M3D's size for slices without an affine), ... By
        default "m3d_slices" with m3d_cap and m3d_vqa, "as_is" with m3d_seg, else "ct".
      spacing: With recipe ct and mr: voxel size in mm along depth, height, width.
      units: Of files that cannot tell: "HU" for CT; None takes them as unknown.
      test_fraction: With folder: share of the patients in the split "test", unless the table
        has a column for it.
      salt: A file with a secret (made if it is not there): ids become salted hashes, and file
        names stay out of the dataset. Who is who is then told by OUT.key.csv alone.
      check_leaks: Look for patients and near-identical scans across splits.
      against: Prepared datasets to look for them in, too; means check_leaks.
      workers: Processes; default one per core. 0 works in this process.
      beam: Make the records with Apache Beam instead of processes of this machine; its pipeline
        options as NAME=VALUE, for example runner=DataflowRunner project=P. None at all: on this
        machine, by the DirectRunner.
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
