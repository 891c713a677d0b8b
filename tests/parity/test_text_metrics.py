"""Metrics of texts, retrieval, boxes and masks against the originals' (kind `text_metrics`)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m3djax.evaluate.ranks import ranks_of
from tests.parity.goldens import golden_dirs


def compare_retrieval(golden: dict[str, Any]) -> None:
    """M3D's calculate_recall: images ask for texts (ir), texts for images (tr)."""
    similarity = np.asarray(golden["similarity"])
    assert list(similarity.shape) == golden["similarity_shape"]
    ids = np.arange(len(similarity))
    for name, matrix in (("ir", similarity), ("tr", similarity.T)):
        rank = ranks_of(matrix, ids, ids)
        expected = dict(golden[name])
        assert np.median(rank) == expected.pop("median_rank"), name
        assert expected, "no recall to compare"
        for key, value in expected.items():
            k = int(key.removeprefix("R@"))
            np.testing.assert_allclose(np.mean(rank <= k), value, atol=1e-6, err_msg=key)


COMPARE: dict[str, Callable[[Any], None]] = {"retrieval": compare_retrieval}
"""What compares an entry of metrics.json."""

NOT_YET = ("pairs", "corpus", "boxes", "box_parsing", "dice")
"""Entries that nothing here computes yet."""

FOLDERS = golden_dirs("text_metrics")


def read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("part", COMPARE)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_agrees(folder: pathlib.Path, part: str) -> None:
    COMPARE[part](read(folder)[part])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_entry_is_known(folder: pathlib.Path) -> None:
    assert not set(COMPARE) & set(NOT_YET)
    assert set(read(folder)) <= {*COMPARE, *NOT_YET}
