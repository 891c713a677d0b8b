#!/usr/bin/env bash
# In a label map SEG with 16 bits, highdicom 0.28.2 separates segments by their number modulo 256:
# get_volume(segment_numbers=[257]) is empty, and get_volume(segment_numbers=[1]) holds the voxels of
# 1 and of 257. get_volume(combine_segments=True) keeps all numbers. There is no error or warning.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import highdicom
import numpy as np
import pydicom
from pydicom.sr.codedict import codes


def slices(count):
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for number in range(count):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        empty = "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber"
        for name in f"{empty} ReferringPhysicianName Manufacturer PositionReferenceIndicator".split():
            setattr(one, name, "")
        one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 1, number + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.Rows, one.Columns = [1, 1], 3, 8, 8
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = bytes(128)
        yield one


labels = np.zeros((3, 8, 8), np.uint16)
labels[1, 0, :3], labels[1, 4, :5] = 1, 257
segments = [
    highdicom.seg.SegmentDescription(
        number, f"part {number}", codes.SCT.Organ, codes.SCT.Liver, "MANUAL"
    )
    for number in (1, 257)
]
uid = highdicom.UID
highdicom.seg.Segmentation(
    list(slices(3)), labels, "LABELMAP", segments, uid(), 1, uid(), 1, "m", "m", "1", "1"
).save_as("map.dcm")
read = highdicom.seg.segread("map.dcm")
alone = {n: int(read.get_volume(segment_numbers=[n]).array.sum()) for n in (1, 257)}
whole = read.get_volume(combine_segments=True).array
whole = {n: int((whole == n).sum()) for n in (1, 257)}
print("highdicom", highdicom.__version__, "one by one", alone, "combined", whole, "true", {1: 3, 257: 5})
assert whole == {1: 3, 257: 5} and alone == {1: 8, 257: 0}, "CHANGED"
PY
