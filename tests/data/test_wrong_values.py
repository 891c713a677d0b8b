"""Values of fields, sources of captions and data that cannot work are errors with a cure."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_pipelines import spatial
from data_pipelines.captions import MaskCaption
from data_pipelines.captions.instructions import Conversation, Mixture, Stored
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.crops import Crop
from data_pipelines.errors import ConfigError, DataError, TextError
from data_pipelines.fields.image import Image
from data_pipelines.fields.labels import Labels
from data_pipelines.fields.mask import Mask
from data_pipelines.fields.points import Points
from data_pipelines.fields.slice import Slice
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.volume import Volume
from tests.data.organ_scans import data, take
from tests.data.words import AnswerLengths

WEIGHTS = "weights of kinds must not be negative, and not all zero"
SOURCES = (Source("nowhere"),)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Labels(()), "names=() must name at least one label, each once."),
        (lambda: Labels(("cyst", "cyst")), "must name at least one label, each once."),
        (lambda: Mask({"organs": ()}), "groups: 'organs' has no labels. Cure: name one."),
        (lambda: Points(count=0), "count=0 must be at least 1."),
        (lambda: Slice(()), "axes must not be empty, and size must be positive."),
        (lambda: Slice(size=(0, 4)), "axes must not be empty, and size must be positive."),
        (lambda: MaskCaption(least=0), "least=0 must be at least 1."),
        (lambda: MaskCaption(("[",)), "labels: '[' is not a regular expression"),
        (lambda: MaskQuestions(yes_no=-1.0), WEIGHTS),
        (lambda: MaskQuestions(yes_no=0, choice=0, rec=0, reg=0), WEIGHTS),
        (lambda: MaskQuestions(absent=1.5), "absent=1.5 must be a share from 0 to 1."),
        (lambda: Stored(closed=-1.0), WEIGHTS),
        (lambda: Stored(topics=("planes",)), "topics: 'planes' is not one of plane, phase, organ"),
        (lambda: Mixture({}), "sources must not be empty"),
        (lambda: Mixture({"ask": Stored()}, {"asks": 1.0}), "there is no source 'asks'"),
        (lambda: Mixture({"ask": Stored()}, {"ask": 0.0}), "nor weights negative or all zero"),
        (lambda: Data(()), "sources and crops must not be empty"),
        (lambda: Data(SOURCES, crops=()), "sources and crops must not be empty"),
        (lambda: Data((Source("nowhere", weight=-1.0),)), "weights must be positive"),
        (lambda: Data(SOURCES, batch_size=0), "batch_size and size must be positive"),
        (
            lambda: Data(SOURCES, fields={"a": Mask(), "a_known": Labels(("cyst",))}),
            "the fields 'a' and 'a_known' both make the array 'a_known'. Cure: leave one of them",
        ),
    ],
)
def test_a_value_is_refused_when_it_is_given(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_records_in_other_units(organ_data: str) -> None:
    made = data(organ_data, {"image": Image()}, units="raw")
    message = "has values in 'HU', but the config expects 'raw'.*set data.units and the task's"
    for run in (made.check, lambda: take(made)):
        with pytest.raises(DataError, match=message):
            run()


def test_captions_name_labels_of_the_dataset(organ_data: str) -> None:
    made = data(organ_data, {"text": Text(AnswerLengths(), MaskCaption(("lung",)))})
    with pytest.raises(ConfigError, match="'lung' matches no label .*there: liver, tumour."):
        made.check()


def test_a_conversation_is_made_of_questions(organ_data: str) -> None:
    telling = Conversation(MaskCaption(least=1), 2)
    with pytest.raises(ConfigError, match=r"made of questions. Cure: use Describe\(...\)"):
        take(data(organ_data, {"text": Text(AnswerLengths(), telling)}))
    mixture = Mixture({"tell": MaskCaption(least=1), "ask": MaskQuestions()})
    _, view = next(data(organ_data, {"mask": Mask()}).eval_crops(Source(organ_data)))
    with pytest.raises(ConfigError, match="the source 'tell' asks no questions"):
        mixture.every(view)


@dataclasses.dataclass(frozen=True)
class Picky(AnswerLengths):
    """A tokenizer that cannot use texts about a tumour."""

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        if "tumour" in text:
            raise TextError("text", "names a tumour", "leave it out")
        return super().__call__(text, rng)


def test_a_text_that_cannot_be_used_is_left_out_in_training_only(
    organ_data: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"mask": Mask(), "text": Text(Picky(), MaskCaption(least=1))}
    made = data(organ_data, fields, crops=(Crop(),))
    with caplog.at_level(logging.WARNING, "data_pipelines.fields.text"):
        batches = take(made, 6)
    assert "its text names a tumour" in caplog.text
    assert "It is left out: its volume is used without a text." in caplog.text
    told, left = 0, 0
    for batch in batches:
        tumour = (batch["mask"] == 2).any((1, 2, 3))
        seen = (batch["mask"] > 0).any((1, 2, 3))
        np.testing.assert_array_equal(batch["report_valid"], seen & ~tumour)
        assert not batch["token_ids"][tumour].any() and not batch["text_id"][tumour].any()
        assert batch["allowed_flips"][tumour].all() and batch["allowed_turns"][tumour].all()
        told, left = told + int((seen & ~tumour).sum()), left + int(tumour.sum())
    assert told and left
    with pytest.raises(TextError, match=r"/ct.*its text names a tumour.*leave it out"):
        list(made.eval_crops(Source(organ_data), crops=12))


def test_steps_that_need_geometry_or_voxels() -> None:
    volume = Volume(np.zeros((3, 4, 5), np.float32), "HU", source="scan.npy")
    with pytest.raises(DataError, match="the voxel spacing is unknown.*give spacing"):
        spatial.Spacing((1.0, 1.0, 1.0))(volume)
    with pytest.raises(DataError, match="does not state the orientation.*without Orientation"):
        spatial.Orientation()(volume)
    with pytest.raises(DataError, match="no voxel is above 0.*leave this scan out"):
        spatial.CropForeground(0)(volume)
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) does not fit into a volume of \(3, 4, 5\)"):
        spatial.center_crop(volume, (4, 4, 4))
