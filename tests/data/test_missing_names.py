"""A config that names labels, points or questions which the data lacks is refused at once."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.around import Candidates, Foreground
from data_pipelines.caption import Caption
from data_pipelines.captions import CaptionSource, MaskCaption, Report, View
from data_pipelines.captions.instructions import Conversation, Describe, Mixture, Stored
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.crops import Crop
from data_pipelines.datasets import contents, open_dataset
from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Field
from data_pipelines.fields.image import Image
from data_pipelines.fields.mask import AskedMask
from data_pipelines.fields.points import Points
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Placement
from tests.data.organ_scans import data, take
from tests.data.words import AnswerLengths

IMAGE: dict[str, Field] = {"image": Image()}
ASK = MaskQuestions()


def placed(path: str, at: Placement, *splits: str) -> Data:
    """Crops of these splits, half of them placed in this way."""
    sources = tuple(Source(path, split) for split in splits or ("train",))
    return data(path, IMAGE, crops=(Crop(), Crop(at=at)), sources=sources)


def refused(made: Data, *parts: str) -> None:
    """Both the check before compilation and the stream of batches refuse, with the same words."""
    for run in (made.check, lambda: take(made)):
        with pytest.raises(ConfigError, match=".*".join(map(re.escape, parts))):
            run()


def test_a_split_holds_the_structures_that_its_masks_show(organ_data: str) -> None:
    train, test = (open_dataset(organ_data, split) for split in ("train", "test"))
    assert contents.structures([train]) == {"liver", "tumour"} == contents.structures([test, train])
    # The names of masks are those of the dataset, but no study of this split has a mask.
    assert test.mask_names == train.mask_names and contents.structures([test]) == set()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_label_of_foreground_that_no_study_holds(organ_data: str, share: float) -> None:
    """It is an error even where no crop would ever draw a label."""
    refused(
        placed(organ_data, Foreground(("liver", "lung"), share)),
        f"data.crops.1.at.labels: 'lung' matches no structure in the masks of {organ_data} (train)",
        "Cure: choose from the structures that are there: liver, tumour.",
    )
    refused(
        placed(organ_data, Foreground(("liver",), share), "test"),
        f"'liver' matches no structure in the masks of {organ_data} (test)",
        "are there: none.",
    )
    # "live" is only a part of a name.
    refused(placed(organ_data, Foreground(("live",), share)), "'live' matches no structure")


def test_one_split_of_a_mixture_is_enough(organ_data: str) -> None:
    made = placed(organ_data, Foreground(("tum.*",), 1.0), "test", "train")
    made.check()
    assert take(made)[0]["image"].shape[0] == 4
    # A split without such masks can still be evaluated with the config of its training.
    batches = list(made.eval_batches(Source(organ_data, "test"), crops=4))
    assert sum(int(batch["counts"].sum()) for batch in batches) == 4


def test_points_that_no_study_has(organ_data: str) -> None:
    cure = "Cure: choose from the points that are there: candidates, corner."
    field: dict[str, Field] = {"image": Image(), "centres": Points("candidate")}
    refused(
        data(organ_data, field),
        f"data.fields.centres.column: no study of {organ_data} (train) has points 'candidate'",
        cure,
    )
    refused(placed(organ_data, Candidates("corners")), "data.crops.1.at.column", "'corners'", cure)
    refused(placed(organ_data, Candidates(), "test"), "(test) has points 'candidates'", "none.")
    for column in ("candidates", "corner"):
        placed(organ_data, Candidates(column), "test", "train").check()


def test_datasets_of_earlier_versions_do_not_tell_their_points(
    organ_data: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(organ_data, old)
    rows = [json.loads(line) for line in (old / "studies.jsonl").read_text().splitlines()]
    assert [row.pop("points") for row in rows] == [["candidates", "corner"], [], []]
    size = (old / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = json.loads((old / "metadata.json").read_text())
    metadata["files"]["studies.jsonl"] = size
    (old / "metadata.json").write_text(json.dumps(metadata))
    made = data(str(old), {"image": Image(), "centres": Points("candidate")})
    made.check()
    assert np.isnan(take(made)[0]["centres"]).all()
    refused(placed(str(old), Foreground(("lung",))), "'lung' matches no structure")


@dataclasses.dataclass(frozen=True)
class Own(CaptionSource):
    """A source of another package, which does not tell how many questions it asks."""

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        return None


@pytest.mark.parametrize(
    "source, count",
    [
        (Report(), 0),
        (MaskCaption(), 0),
        (Stored(), 0),
        (Describe(MaskCaption()), 0),
        (Own(), 1),
        (ASK, 1),
        (Conversation(ASK, 3), 3),
        (Conversation(Stored(), 3), 0),
        (Mixture({"tell": Describe(), "ask": ASK}), 1),
        (Mixture({"tell": Describe(), "ask": Conversation(ASK, 2)}), 2),
        (Mixture({"tell": Describe(), "ask": ASK}, {"ask": 0.0}), 0),
    ],
)
def test_the_asked_mask_needs_one_question(
    organ_data: str, source: CaptionSource, count: int
) -> None:
    assert source.label_questions == count
    made = data(organ_data, {"text": Text(AnswerLengths(), source), "asked": AskedMask()})
    if count == 0:
        problem = "data.fields.asked: no text asks about a label of the mask"
        refused(made, problem, "Cure: add a Text with the source MaskQuestions, or leave 'asked'")
    elif count > 1:
        problem = f"data.fields.asked: a text has up to {count} questions, but AskedMask holds"
        refused(made, problem, "Cure: set turns=1 in the Conversation, or leave 'asked' out.")
    else:
        made.check()


def test_an_asked_mask_without_any_text(organ_data: str) -> None:
    refused(
        data(organ_data, {"image": Image(), "asked": AskedMask()}), "no text asks about a label"
    )


def test_fields_see_each_other(organ_data: str) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Curious(Image):
        def check_fields(self, name: str, fields: Mapping[str, Field]) -> None:
            seen.append((name, list(fields)))

    data(organ_data, {"image": Curious(), "points": Points()}).check()
    assert seen == [("image", ["image", "points"])]
