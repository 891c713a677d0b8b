#!/usr/bin/env bash
# A NIfTI header can place the voxels twice, by sform and by qform, each with a code.
# nibabel 5.4.2 takes the sform whenever its code is above 0. SimpleITK 2.5.7 takes it only if its
# code is 1 (scanner) or the qform has code 0. With code 2 (aligned) or 4 (MNI) and a qform, the
# two readers put the same voxel at different places. Registered images have these codes.
# Spacing differs too: SimpleITK takes it from pixdim, nibabel's affine from the sform.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check nibabel==5.4.2 SimpleITK==2.5.7
env/bin/python - <<'PY'
import nibabel as nib
import numpy as np
import SimpleITK as sitk

sitk.ProcessObject.SetGlobalWarningDisplay(False)
print("nibabel", nib.__version__, "SimpleITK", sitk.Version.VersionString())
for sform, expected in ((1, (100, 100)), (2, (100, -100)), (4, (100, -100))):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    for set_form, code, shift in ((image.set_sform, sform, 100), (image.set_qform, 1, -100)):
        affine = np.eye(4)
        affine[0, 3] = shift
        set_form(affine, code)
    nib.save(image, "scan.nii")
    seen = nib.load("scan.nii").affine[0, 3], -sitk.ReadImage("scan.nii").GetOrigin()[0]
    print(f"sform code {sform}, qform code 1: first voxel at x = {seen[0]:g} mm (nibabel), {seen[1]:g} mm (SimpleITK)")
    assert seen == expected, "CHANGED"
image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1, 1, 2.5, 1]))
image.set_sform(image.affine, 1)
image.header["pixdim"][3] = 5
nib.save(image, "scan.nii")
seen = float(nib.load("scan.nii").affine[2, 2]), sitk.ReadImage("scan.nii").GetSpacing()[2]
print(f"sform 2.5 mm, pixdim 5 mm: {seen[0]} mm (nibabel's affine), {seen[1]} mm (SimpleITK)")
assert seen == (2.5, 5.0), "CHANGED"
PY
