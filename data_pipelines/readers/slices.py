"""Reads a folder of PNG or JPEG slices, as in M3D-Cap: grey values without units or affine."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.readers import content, values
from data_pipelines.readers.dicom_header import quiet
from data_pipelines.volume import Units, Volume

_NAMED = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_NUMBER = re.compile("([0-9]+)")
_MOST_PIXELS = 1 << 26
"""8,192 x 8,192; a larger slice is treated as a decompression bomb."""
_MODES = {8: ("L", "LA", "RGB", "RGBA"), 16: ("I;16", "I")}
"""Pillow's accepted pixel modes, by bits per channel."""
_GREY = "save the slices as 8 or 16 bit grey without transparency"


def find_slices(folder: epath.PathLike) -> list[epath.Path]:
    """Returns the PNG and JPEG files directly in a folder, of any name; hidden files are ignored.

    Raises:
      DataError: a file is named as an image but is not one, so a slice may be missing.
    """
    found = []
    for path in sorted(epath.Path(folder).iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        with content.open_file(path) as file:
            kind = content.magic(file.read(8))
        if kind in ("png", "jpeg"):
            found.append(path)
        elif _NAMED.search(path.name):
            raise DataError(path, "named as an image, but it is not one", "copy the slices again")
    return found


def read_slices(
    folder: epath.PathLike, files: Sequence[epath.Path], *, units: Units = "raw"
) -> Volume:
    """Stacks slices in the order of the numbers in their names, as (slice, row, column).

    Args:
      folder: folder that is named as the source in the volume and in errors.
      files: PNG or JPEG files, one slice each.
      units: units of the grey values.

    Returns:
      A volume of uint8 or uint16, without affine and spacing.

    Raises:
      DataError: the files are not one series of grey slices of one size without gaps.
    """
    files = _in_order(folder, files)
    with _opened(files[0]) as image:
        width, height = image.size
    shape = len(files), height, width
    values.count_bytes(folder, shape, np.dtype(np.uint8))
    first = _plane(files[0], (width, height))
    array = np.empty(shape, first.dtype)
    for index, path in enumerate(files):
        plane = _plane(path, (width, height))
        if plane.dtype != array.dtype:
            raise DataError(path, "8 and 16 bit slices in one series", _GREY)
        array[index] = plane
    return Volume(array=array, units=units, source=str(folder))


def _in_order(folder: epath.PathLike, files: Sequence[epath.Path]) -> list[epath.Path]:
    """Sorts files by the only number that changes in their names; checks that none is missing."""
    parts = [_NUMBER.split(_NAMED.sub("", path.name)) for path in files]
    texts = {tuple(name[::2]) for name in parts}
    if len(texts) != 1:
        raise DataError(folder, "slices whose names differ in more than a number", "rename them")
    numbers = [tuple(int(number) for number in name[1::2]) for name in parts]
    changing = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if len(files) < 2 or len(changing) > 1:
        problem = "a single slice" if len(files) < 2 else "names with two numbers that change"
        raise DataError(folder, problem, "give the slices of one series, named 0.png, 1.png, ...")
    order = sorted(zip(numbers, files, strict=True))
    pairs = itertools.pairwise(order)
    # At most one number changes, so the difference of two sums is the difference of this number.
    steps = [(sum(after) - sum(before), path) for (before, _), (after, path) in pairs]
    least, path = min(steps)
    if least == 0:
        raise DataError(path, "a second slice of the same number", "remove one of them")
    for step, path in steps:
        if step != least:
            raise DataError(path, "slices are missing before it", "copy the whole series again")
    return [path for _, path in order]


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Image.Image]:
    """Opens an image and reads its header; turns every error into a `DataError`."""
    try:
        # Warnings, logs and errors must not quote metadata of the file.
        with (
            quiet(),
            content.open_file(path) as file,
            Image.open(file, formats=("PNG", "JPEG")) as image,
        ):
            if image.width * image.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        problem = f"a slice of more than {_MOST_PIXELS:,} pixels"
        raise DataError(path, problem, "cut or resample the slices") from None
    except Exception:  # decoders raise many types of errors
        problem = "the image is truncated or damaged"
        raise DataError(path, problem, "copy or export it again") from None


def _plane(path: epath.Path, size: tuple[int, int]) -> np.ndarray:
    """Returns one slice (height, width), uint8 or uint16."""
    with _opened(path) as image:
        if image.size != size:
            raise DataError(path, "a slice of another size than the first", "split the series")
        if getattr(image, "n_frames", 1) != 1 or "transparency" in image.info:
            raise DataError(path, "several frames, or a transparent colour", _GREY)
        # Read from the file itself, because Pillow silently reduces 16 bit colours to 8 bit.
        depth = content.head(path, 25)[24] if image.format == "PNG" else 8
        if image.mode not in _MODES.get(depth, ()):
            raise DataError(path, f"{depth} bit pixels of the kind {image.mode}", _GREY)
        pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels.astype(np.uint8 if depth == 8 else np.uint16)
    grey, alpha = pixels[..., 0], pixels[..., -1] if image.mode.endswith("A") else np.uint8(255)
    colours = pixels[..., : len(image.mode.removesuffix("A"))]
    if (colours != grey[..., None]).any() or (alpha != 255).any():
        raise DataError(path, "a colour image, or one that is partly transparent", _GREY)
    return grey
