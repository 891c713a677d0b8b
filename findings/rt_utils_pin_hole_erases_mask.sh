#!/usr/bin/env bash
# rt-utils 1.2.7 writes the outline of a mask through the centres of its outermost voxels, so a voxel
# is inside if its centre is inside OR ON the contour. With use_pin_hole=True it erases a channel
# two to three voxels wide between the hole and the outside before it draws: these voxels are in no contour.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check rt-utils==1.2.7 opencv-python==5.0.0.93 numpy==2.4.6 pydicom==3.0.2
env/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from rt_utils import image_helper

y, x = np.indices((64, 64))
radius = np.hypot(y - 32, x - 32)
ring = ((radius < 20) & (radius > 8)).astype(np.uint8)
cut = image_helper.create_pin_hole_mask(ring.astype(bool), approximate_contours=False)
lost = ring.astype(bool) & ~cut
contours, _ = image_helper.find_mask_contours(ring.astype(bool), approximate_contours=False)
on = sum(int(ring[row, column]) for contour in contours for column, row in contour)
points = sum(map(len, contours))
widths = sorted(set(lost.sum(1)[lost.any(1)].tolist()))
print("rt-utils", version("rt-utils"), f"contour points that are voxels of the mask: {on} of {points};",
      f"voxels erased by the pin hole: {int(lost.sum())} of {int(ring.sum())}, {widths} in a row")
assert on == points and lost.sum() == 35 and widths == [2, 3], "CHANGED"
PY
