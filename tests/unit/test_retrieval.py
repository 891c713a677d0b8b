"""Retrieval: an oracle, chance, equal captions, cached vectors, and error messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines import pipeline
from data_pipelines.datasets.records import encode
from data_pipelines.errors import ConfigError
from data_pipelines.fields import image as image_field
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.volume import Volume
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import Scores
from m3djax.evaluate import Retrieval, fingerprint, loop, split
from m3djax.evaluate.retrieval import evaluator as retrieval
from m3djax.mesh import sharding
from m3djax.params import Params
from m3djax.tasks.clip import Clip
from tests import tiny
from tests.data.words import WordLengths
from tests.unit.fakes import SIZE, Records, init, subject

FIELDS = {"image": image_field.Image(), "text": Text(WordLengths(8))}
DATA = Data((Source("data/x"),), SIZE, batch_size=8, units="HU", fields=FIELDS)


class Oracle(Clip):
    """Knows the volume by its brightness, and the caption by its first word."""

    def embed_images(self, params: Params, images: jax.Array) -> jax.Array:
        number = jnp.round(images.mean((1, 2, 3, 4)) * 200).astype(int)
        return jax.nn.one_hot(number, 64)

    def embed_texts(self, params: Params, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.one_hot(token_ids[:, 0], 64)


class Loaded(np.ndarray):
    """An array that is in memory already."""

    def load(self) -> None:
        """Nothing to do."""


class Split(Records):
    @property
    def metadata(self) -> dict[str, Any]:
        """What tells datasets apart."""
        return {"made of": [record["report"] for record in self]}


def oracle() -> Oracle:
    task = tiny.clip()
    return Oracle(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})


def study(number: int, patient: int, word: int | None = None) -> dict[str, Any]:
    """A volume of one brightness, whose caption is a word of as many letters."""
    image = np.full(SIZE, -1000 + 10 * (number + 1), np.int16)
    volume = Volume(image, "HU", None, patient_id=f"P{patient}", study_id=f"S{number}")
    letters = number + 1 if word is None else word
    record = encode(volume, report="x" * letters if letters else None)
    return record | {"image": record["image"].view(Loaded), "mask": record["mask"].view(Loaded)}


@pytest.fixture(scope="module")
def params() -> Params:
    return init(tiny.clip())


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, params: Params
) -> Callable[..., dict[str, Any]]:
    def run(
        task: Any, studies: list[dict[str, Any]], weights: Params = params, **fields: Any
    ) -> dict[str, Any]:
        for module in (pipeline, fingerprint, split, retrieval):
            monkeypatch.setattr(module, "open_dataset", lambda *a, **k: Split(studies))
        evaluator = Retrieval(**({"batch_size": 8} | fields))
        mesh = sharding.make_mesh(evaluator.mesh)
        # The parameters are those of two towers, also where the task is another one.
        measured = subject(tiny.clip(), weights, DATA, tmp_path, mesh)
        return loop.measure(evaluator, dataclasses.replace(measured, task=task))

    return run


STUDIES = [study(number, number // 2) for number in range(20)]


def test_a_model_that_knows_finds_everything(evaluate: Any, tmp_path: Any) -> None:
    results = evaluate(oracle(), STUDIES, pools=(10, 500))
    json.dumps(results, allow_nan=False)
    assert list(results["pools"]) == ["test", "test, 10 drawn"]
    whole = results["pools"]["test"]
    assert (whole["samples"], whole["patients"], whole["captions"]) == (20, 10, 20)
    column = Scores.read(epath.Path(tmp_path)).column("test", "text_to_image_R@5")
    assert len(column.value) == 20 and column.units.names == tuple(f"P{n}" for n in range(10))
    assert whole["chance"] == pytest.approx({"R@1": 0.05, "R@5": 0.25, "R@10": 0.5})
    for direction in ("image_to_text", "text_to_image"):
        assert whole[direction]["R@1"] == {"value": 1.0, "interval": [1.0, 1.0]}
        assert whole[direction]["median_rank"]["value"] == 1
        assert results[f"{direction}_R@1"] == 1.0
    assert any("no pool of 500" in caveat for caveat in results["report"]["caveats"])
    assert "above chance (5.0%)" in results["report"]["sentences"][0]
    for picture in results["report"]["pictures"]:
        with Image.open(tmp_path / picture["file"]) as image:
            assert image.width > 800 and len(image.convert("L").getcolors()) > 20


def test_an_untrained_model_is_at_chance(evaluate: Any) -> None:
    results = evaluate(tiny.clip(), STUDIES, queries=0)
    recall = results["pools"]["test"]["image_to_text"]["R@5"]
    assert recall["interval"][0] <= 0.25 + 0.2 and recall["value"] < 0.8
    assert not results["report"]["pictures"]


def test_passing_means_above_chance_beyond_the_interval(evaluate: Any) -> None:
    assert evaluate(oracle(), STUDIES, queries=0, pass_at=5)["passed"] is True
    assert evaluate(oracle(), STUDIES, queries=0)["passed"] is None
    lost = [study(number, number, word=40 - number) for number in range(20)]
    assert evaluate(oracle(), lost, queries=0, pass_at=5)["passed"] is False


def test_one_patient_has_intervals_over_regions_and_it_is_said(evaluate: Any) -> None:
    studies = [study(number, 0) for number in range(12)]
    results = evaluate(tiny.clip(), studies, queries=0, crops=3, at=(1,))
    pool = results["pools"]["test"]
    low, high = pool["image_to_text"]["R@1"]["interval"]
    assert (pool["samples"], pool["patients"], pool["regions"]) == (36, 1, 12) and low < high
    assert "all samples are of one patient" in " ".join(results["report"]["caveats"])
    assert "over 12 regions of one patient" in results["report"]["tables"][0]["note"]


def test_equal_captions_are_equally_right(evaluate: Any) -> None:
    """Two words for ten volumes: five of ten texts are right, so chance is high, and known."""
    studies = [study(number, number, word=1 + number % 2) for number in range(10)]
    results = evaluate(oracle(), studies, queries=0, at=(1, 5))
    pool = results["pools"]["test"]
    assert pool["captions"] == 2 and pool["chance"]["R@1"] == 0.5
    assert 0.99 < pool["chance"]["R@5"] < 1
    # The oracle knows volumes 0 and 1 only; of the others it is sure of wrong words.
    assert pool["image_to_text"]["R@1"]["value"] == pytest.approx(0.2)
    assert "count as equally right" in results["report"]["caveats"][0]


def test_samples_without_text_are_left_out_and_said(evaluate: Any) -> None:
    studies = [*STUDIES[:6], study(30, 30, word=0), study(31, 31, word=0)]
    results = evaluate(oracle(), studies, queries=0)
    assert results["pools"]["test"]["samples"] == 6
    assert "2 samples without text were left out" in " ".join(results["report"]["caveats"])


def test_vectors_are_kept_as_long_as_nothing_changes(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, params: Params
) -> None:
    computed = []
    compute = loop._predict
    monkeypatch.setattr(loop, "_predict", lambda *a: computed.append(1) or compute(*a))
    task = tiny.clip()
    first = evaluate(task, STUDIES, queries=0)
    assert evaluate(task, STUDIES, queries=0) == first and len(computed) == 1
    evaluate(task, STUDIES, queries=0, crops=2)
    assert len(computed) == 2 and len(list(tmp_path.glob("predictions-*"))) == 2
    (kept, *_) = sorted(tmp_path.glob("predictions-*"))
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])  # damaged: computed again, not believed
    evaluate(task, STUDIES, queries=0, crops=2)
    assert evaluate(task, STUDIES, queries=0) == first and len(computed) == 3
    # One bit of one weight, and two weights that change places.
    for change in (lambda x: x.at[0, 0].set(jnp.nextafter(x[0, 0], 9.0)), lambda x: x[::-1]):
        other = jax.tree.map(lambda x: x, params)
        kernel = other["text_head"]["projection"]["kernel"]
        other["text_head"]["projection"]["kernel"] = change(kernel)
        evaluate(task, STUDIES, other, queries=0)
        assert len(list(tmp_path.glob("predictions-*"))) == 1  # those of other weights are gone
    assert len(computed) == 5


def test_the_devices_share_the_work_and_agree(evaluate: Any) -> None:
    """On two meshes of 8 devices, with a batch that the split does not fill."""
    task = tiny.clip()
    first = evaluate(task, STUDIES, queries=0, at=(1, 3))
    again = evaluate(task, STUDIES, queries=0, at=(1, 3), seed=0, batch_size=16, mesh=(2, 2, 2))
    assert again == first


@pytest.mark.parametrize(
    "task, studies, fields, message",
    [
        (tiny.mae(), STUDIES, {}, "such as Clip, and MAE does not"),
        (tiny.clip(), STUDIES[:1], {}, "test: has 1 samples with text in 1 places.*needs 2"),
    ],
)
def test_what_does_not_fit_is_refused(
    task: Any, studies: Any, fields: Any, message: str, evaluate: Any
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(task, studies, **fields)


def test_configs_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="at, pools and crops start at 1"):
        Retrieval(at=(0,))
    with pytest.raises(ConfigError, match=r"pass_at=2 is none of at=\(1, 5, 10, 50, 100\)"):
        Retrieval(pass_at=2)
    with pytest.raises(ConfigError, match="parts: 'train' is none of splits"):
        Retrieval(parts={"train": (0.0, 0.5)})
    with pytest.raises(ConfigError, match="has no field 'text' of the class Text"):
        Retrieval().check(dataclasses.replace(DATA, fields={"image": image_field.Image()}))
