"""Names of TotalSegmentator's labels in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LEVELS = tuple(
    f"{part}{number}"
    for part, count in (("C", 7), ("T", 12), ("L", 5), ("S", 1))
    for number in range(1, count + 1)
)
_VERTEBRA = re.compile(r"vertebrae?_([CTLS]\d+)")
_RIB = re.compile(r"rib_(left|right)_(\d+)")
_SIDED = re.compile(r"(.+)_(left|right)")
_WORDS = {
    "autochthon": "deep muscles of the back",
    "clavicula": "collarbone",
    "gluteus_maximus": "gluteus maximus muscle",
    "gluteus_medius": "gluteus medius muscle",
    "gluteus_minimus": "gluteus minimus muscle",
    "iliac_vena": "common iliac vein",
    "iliac_artery": "common iliac artery",
    "iliopsoas": "iliopsoas muscle",
    "lung_upper_lobe": "upper lobe of the lung",
    "lung_middle_lobe": "middle lobe of the lung",
    "lung_lower_lobe": "lower lobe of the lung",
    "portal_vein_and_splenic_vein": "portal and splenic vein",
}


def phrases(names: Sequence[str]) -> list[str]:
    """Returns names of labels as parts of a sentence.

    Pairs and neighbouring levels become one part. Example: liver, kidney_left, kidney_right,
    vertebrae_T12, vertebrae_L1 become "the liver", "the left and right kidney" and "the vertebrae
    T12 to L1".

    Args:
      names: names without repetition; the parts keep their order.
    """
    sides: dict[str, list[str]] = {}
    levels: dict[str, list[int]] = {}
    for name in names:
        if match := _VERTEBRA.fullmatch(name):
            if match[1] in _LEVELS:
                levels.setdefault("vertebra", []).append(_LEVELS.index(match[1]))
                continue
        elif match := _RIB.fullmatch(name):
            levels.setdefault(match[1], []).append(int(match[2]))
            continue
        elif match := _SIDED.fullmatch(name):
            sides.setdefault(match[1], []).append(match[2])
            continue
        sides[name] = []
    parts = [
        " ".join(["the", " and ".join(sorted(found)), _WORDS.get(name, name.replace("_", " "))])
        for name, found in sides.items()
    ]
    parts = [" ".join(part.split()) for part in parts]
    for kind, numbers in levels.items():
        for first, last in _runs(numbers):
            parts.append(_run(kind, first, last))
    return parts


def spoken(parts: Sequence[str]) -> str:
    """Joins parts to a list: "a", "a and b", "a, b and c".

    The separator is "; " if a part has an "and" in it.
    """
    comma = "; " if any(" and " in part for part in parts) else ", "
    return " and ".join(filter(None, (comma.join(parts[:-1]), parts[-1])))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first and last number of every run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _run(kind: str, first: int, last: int) -> str:
    if kind == "vertebra":
        names, one, several = _LEVELS[first : last + 1], "vertebra", "vertebrae"
    else:
        names, one, several = (f"{first}", f"{last}"), f"{kind} rib", f"{kind} ribs"
    return f"the {one} {names[0]}" if first == last else f"the {several} {names[0]} to {names[-1]}"
