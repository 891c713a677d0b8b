"""Reads M3D-Seg as prepared by M3D's script (arXiv 2404.00578): 26 public sets on one grid.

    M3D_Seg_npy/0000/0000.json           {"train": [{"image": ..., "label": ...}, ...], "test": ...}
    M3D_Seg_npy/0000/1/image.npy         (1, 32, 256, 256), 0..1
    M3D_Seg_npy/0000/1/masks/mask_0.npy  class 0 of the set, with the same shape; (1, 1, 1, 1) if
                                         the case does not have this class
    M3D_Seg_npy/dataset_info.json        {"0000": ["liver"], ...}: names of the classes

The released split is by case and is kept. Some sets have the same scans as other sets; only
`--check-leaks` finds these. Classes of equal names become one label. If masks of a case overlap,
the later class wins, because sets list tumours after their organs.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.datasets import m3d_index
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError
from data_pipelines.preprocess import Recipe
from data_pipelines.volume import Units

INFO = "dataset_info.json"
_MASK = re.compile(r"mask_(\d+)\.npy")
_CODE = re.compile(r"\d{4}")
_MOST = 254  # maximum number of labels in a mask; 255 means not labelled


def m3d_seg(
    root: epath.PathLike,
    recipe: Recipe,
    *,
    info: epath.PathLike | None = None,
    units: Units | None = None,
) -> Collection:
    """Returns M3D-Seg.

    Args:
      root: the folder `M3D_Seg_npy`.
      recipe: preprocessing.
      info: file with the names of the classes, if `dataset_info.json` is not in the folder.
      units: units of the arrays; None means "unit", the range 0..1 of M3D's arrays.

    Raises:
      DataError: the folder, an index or the names of classes cannot be used.
    """
    root = epath.Path(root)
    classes = _read(epath.Path(info) if info else root / INFO)
    codes = (
        [p.name for p in sorted(root.iterdir()) if _CODE.fullmatch(p.name)] if root.is_dir() else []
    )
    if not codes:
        raise DataError(root, "it holds no sets such as 0000", "give the folder M3D_Seg_npy")
    if unnamed := [code for code in codes if not isinstance(classes.get(code), list)]:
        raise DataError(root, f"the classes of {unnamed[0]} have no names", f"correct {INFO}")
    names = sorted({str(name) for code in codes for name in classes[code]})
    if len(names) > _MOST:
        raise DataError(root, f"{len(names)} classes, but a mask holds {_MOST}", "use fewer sets")
    value = {name: number for number, name in enumerate(names, 1)}
    studies = [study for code in codes for study in _studies(root, code, classes[code], value)]
    notes = (
        "Each set annotates its own classes (field `annotated`); sets repeat each other's scans.",
        "The axes are z, y, x of the files, which do not store an orientation: there is no affine.",
    )
    return Collection(
        "m3d_seg",
        root,
        tuple(studies),
        recipe,
        mask_names={number: name for name, number in value.items()},
        notes=notes,
        units=units or "unit",
    )


def _studies(
    root: epath.Path, code: str, classes: list[str], value: Mapping[str, int]
) -> Iterator[Study]:
    """Yields the cases of a set."""
    index = root / code / f"{code}.json"
    masks: dict[epath.Path, dict[int, epath.Path]] = defaultdict(dict)  # by class
    splits: dict[epath.Path, str] = {}
    for split, entries in _read(index).items():
        if split not in ("train", "test") or not isinstance(entries, list):
            raise DataError(index, f"{split!r} is not a split", 'it must have "train" and "test"')
        for number, entry in enumerate(entries):
            where = f"{split}[{number}]"
            if not isinstance(entry, dict):
                raise DataError(index, f"{where} is not an entry", "download it again")
            image, label = (
                m3d_index.below(root, index, where, entry, field) for field in ("image", "label")
            )
            if splits.setdefault(image, split) != split:
                raise DataError(index, f"{where}: its image is also in another split", "remove one")
            found = _MASK.fullmatch(label.name)
            if not found or int(found[1]) >= len(classes):
                problem = (
                    f"{where}: {label.name!r} is not one of the {len(classes)} classes in {INFO}"
                )
                raise DataError(index, problem, "prepare the set again with M3D's script")
            masks[image][int(found[1])] = label
    for image, split in splits.items():
        own = image.parent.relative_to(root).as_posix()
        drawn = {value[str(classes[n])]: masks[image][n] for n in sorted(masks[image])}
        yield Study(
            study_id=own,
            patient_id=own,
            split=split,
            image=image,
            mask=drawn,
            annotated=tuple(sorted(drawn)),
        )


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(path, "there is no such file", "download it with the data") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(path, "cannot be read, or is not JSON", "download it again") from error
    if not isinstance(content, dict):
        raise DataError(path, "it is not a table", "download it again")
    return content
