"""Batch n is a pure function of (seed, n), for every placement and every field."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

from data_pipelines import around, stream
from data_pipelines.around import Candidates, Foreground
from data_pipelines.captions import CaptionSource, MaskCaption
from data_pipelines.captions.instructions import Conversation, Describe, Mixture
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.crops import Crop
from data_pipelines.fields.base import Field
from data_pipelines.fields.image import Image
from data_pipelines.fields.labels import Labels
from data_pipelines.fields.mask import AskedMask, Mask
from data_pipelines.fields.points import Points
from data_pipelines.fields.slice import Slice
from data_pipelines.fields.text import Text
from data_pipelines.lru import LruCache
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Placement, Uniform, Whole
from tests.data.organ_scans import data, take
from tests.data.words import AnswerLengths

PLACEMENTS: tuple[Placement, ...] = (
    *(Uniform(), Whole(), Candidates(), Candidates("corner")),
    *(Foreground(), Foreground(("tumour",), 1.0)),
)
ASK = MaskQuestions(seg=1.0, absent=0.5, least=1)
SOURCES: dict[str, CaptionSource] = {
    "caption": MaskCaption(least=1),
    "question": ASK,
    "conversation": Conversation(ASK, 2),
    "mixture": Mixture({"tell": Describe(MaskCaption(least=1)), "ask": ASK}),
}
FIELDS: dict[str, Field] = {
    "image": Image(),
    "mask": Mask(),
    "groups": Mask({"both": ("liver", "tumour")}),
    "asked": AskedMask(),
    "findings": Labels(("cyst", "nodule")),
    "centres": Points(count=2),
    "plane": Slice(("D", "H", "W"), (5, 6)),
    "text": Text(AnswerLengths(), ASK),
}
NUMBER = 3
"""The batch that every test makes again."""

Arrays = dict[str, np.ndarray]


def everything(path: str, at: Placement, **changes: Any) -> Data:
    """All fields, in crops of two sizes that are placed in one way."""
    return data(path, FIELDS, crops=(Crop(at=at), Crop(1.5, 2.0, at)), **changes)


def assert_equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("at", PLACEMENTS, ids=repr)
def test_a_batch_depends_on_seed_and_number_alone(
    organ_data: str, at: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = everything(organ_data, at)
    first = take(made, NUMBER + 2)
    monkeypatch.setattr(around, "_cache", LruCache(1))  # what was kept changes nothing
    again = pickle.loads(pickle.dumps(made))
    resumed = take(dataclasses.replace(again, cache_gb=0.0, buffer=3), 2, start=NUMBER)
    for one, other in zip(first[NUMBER:], resumed, strict=True):
        assert_equal(one, other)
    rows = take(made, start=NUMBER, rows=(2, 0))[0]
    assert_equal(rows, {name: array[[2, 0]] for name, array in first[NUMBER].items()})
    other_seed = take(made, start=NUMBER, seed=1)[0]
    assert any((array != first[NUMBER][name]).any() for name, array in other_seed.items())
    spec = made.spec()
    for batch in first:
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {
            n: (s.shape, s.dtype) for n, s in spec.items()
        }


@pytest.mark.parametrize("at", PLACEMENTS, ids=repr)
def test_a_pass_over_a_split_is_the_same_every_time(organ_data: str, at: Placement) -> None:
    made, source = everything(organ_data, at), Source(organ_data)
    first, again = (list(made.eval_batches(source, crops=3, seed=5)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_equal(one, other)
    # Two records, three crops of each, and two rows that fill up the last batch.
    together = {name: np.concatenate([batch[name] for batch in first]) for name in first[0]}
    assert together["counts"].tolist() == [True] * 6 + [False] * 2
    assert together["record"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert together["crop"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    if at == Uniform():
        other_seed = np.concatenate([b["place"] for b in made.eval_batches(source, 3, seed=6)])
        places = np.concatenate([together["place"][:6], other_seed[:6]])
        assert len({tuple(place) for place in places.tolist()}) > 8
    crops = list(made.eval_crops(source, crops=3, seed=5))
    assert len(crops) == 6
    for number, (crop, view) in enumerate(crops):
        assert view.names == {1: "liver", 2: "tumour"}
        assert view.record["study_id"] == f"{number // 3}/ct"
        assert_equal(crop, {name: together[name][number] for name in crop})
    part = list(made.eval_crops(source, crops=3, seed=5, part=slice(2, 6, 2)))
    assert [int(crop["record"]) for crop, _ in part] == [0, 1]
    for (one, _), (other, _) in zip(part, crops[2:6:2], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_texts_about_masks_do_not_depend_on_the_image(
    organ_data: str, source: CaptionSource
) -> None:
    """So a model of text alone can be compared with one that sees the volumes."""
    text = Text(AnswerLengths(), source)
    seeing = data(organ_data, {"image": Image(), "text": text})
    blind = data(organ_data, {"text": text})
    texts = set()
    for one, other in zip(take(seeing, 4), take(blind, 4), strict=True):
        assert set(one) - set(other) == {"image", "scale", "offset", "spacing"}
        assert_equal({name: one[name] for name in other}, other)
        texts |= set(other["text_id"].tolist())
    assert len(texts) > 1


def test_rows_of_batches_are_numbered_one_after_the_other() -> None:
    samples: Any = [{"number": np.array(number)} for number in range(40)]
    rows = stream.Rows(samples, (3, 1), 4)
    assert [int(rows(n)["number"]) for n in range(6)] == [3, 1, 7, 5, 11, 9]


def test_a_finite_stream_ends_and_can_be_closed() -> None:
    import grain

    samples = grain.MapDataset.range(12).map(lambda n: {"number": np.array(n)})

    def stack(some: Any) -> Arrays:
        return {"number": np.stack([one["number"] for one in some])}

    rows = stream.Rows(samples, (0, 2), 3)
    found = [b["number"].tolist() for b in stream.batches(rows, 1, 4, stack, 0, 2)]
    assert found == [[3, 5], [6, 8], [9, 11]]
    early = stream.batches(rows, 0, 4, stack, 0, 2)
    assert next(early)["number"].tolist() == [0, 2]
    early.close()
    with pytest.raises(StopIteration):
        next(early)
