"""The evaluator of answers: an oracle, a real tiny model, interruption, models side by side."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines import pipeline
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.errors import ConfigError
from data_pipelines.fields import image as image_field
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.dialogue import DialogueTokens
from m3djax.contracts.evaluator import Subject
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import OWN, Scores
from m3djax.contracts.share import Share
from m3djax.evaluate import Answers, Beside, fingerprint, split
from m3djax.evaluate.answers import evaluator as answers_module
from m3djax.evaluate.answers.answerers import Answerer
from m3djax.evaluate.answers.answering import Questioned
from m3djax.evaluate.answers.asking import asked
from m3djax.evaluate.answers.table import AnswerTable, Row
from m3djax.evaluate.loop import measure
from m3djax.generate.generator import Answer
from m3djax.generate.sampling import Sampling
from m3djax.inputs.inputs import Inputs
from m3djax.mesh import sharding
from m3djax.runs.run_folder import RunError
from m3djax.tasks.language import Language
from tests import tiny, tiny_llm
from tests.unit.fakes import SIZE, Records, record, subject

NAMES = {1: "liver", 2: "spleen", 3: "aorta", 4: "stomach", 5: "pancreas", 6: "heart"}
SOURCE = Source("data/x", "test")


class Split(Records):
    @property
    def metadata(self) -> dict[str, Any]:
        return {"made of": "boxes"}


def study(number: int) -> dict[str, Any]:
    """Noise with a box for every structure, somewhere along D."""
    rng = np.random.default_rng(number)
    image = rng.integers(-500, 500, (32, 24, 24)).astype(np.int16)
    mask = np.zeros(image.shape, np.uint8)
    for value in NAMES:
        d, h, w = rng.integers(0, (26, 18, 18))
        mask[d : d + 6, h : h + 6, w : w + 6] = value
    return record(image, f"S{number}", mask)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_llm.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tokenizer: str) -> Data:
    tokens = DialogueTokens(tokenizer, image_tokens=4, length=256, vocab_size=264)
    fields = {"image": image_field.Image(), "text": Text(tokens, MaskQuestions())}
    return Data((SOURCE,), SIZE, batch_size=8, fields=fields)


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Split:
    records = Split([study(number) for number in range(4)], NAMES)
    for module in (pipeline, fingerprint, split):
        monkeypatch.setattr(module, "open_dataset", lambda *a, **k: records)
    monkeypatch.setattr(pipeline, "CachedRecords", lambda records, *a, **k: records)
    return records


class Oracle(Answerer):
    """Knows every answer, and how to spoil it; counts what it is asked."""

    def __init__(self, data: Data, spoil: Callable[[str, int], str] = lambda truth, _: truth):
        self.known = {
            (one.sample["image"].tobytes(), row.question): row.truth
            for one in asked(data, SOURCE, crops=3)
            for row in one.rows
        }
        self.spoil, self.count, self.stop_after = spoil, 0, 10**9

    def look(self, batch: Any) -> Any:
        assert len(batch["image"]) == 8  # as there are devices
        return batch["image"]

    def answer(self, seen: Any, questions: Any, volumes: Any) -> list[Answer]:
        if self.count >= self.stop_after:
            raise KeyboardInterrupt
        first, self.count = self.count, self.count + len(questions)
        put = zip(volumes, questions, strict=True)
        truths = [self.known[seen[volume].tobytes(), row.question] for volume, row in put]
        return [Answer((), self.spoil(truth, n), "eos") for n, truth in enumerate(truths, first)]


def test_a_model_that_is_missing_is_told_before_minutes_of_answers(
    evaluate: Any, data: Data
) -> None:
    oracle = Oracle(data)
    with pytest.raises(RunError, match="nowhere: is not a run"):
        evaluate({False: oracle}, beside={"other": Beside("nowhere")})
    assert oracle.count == 0


def fake(task: Any, params: Any, data: Data, folder: pathlib.Path) -> Subject:
    """A model whose parameters are none."""
    mesh = sharding.make_mesh((-1, 1, 1))
    return Subject(
        task,
        Inputs().bound(data.spatial()),
        params,
        data,
        mesh,
        epath.Path(folder.parent),
        epath.Path(folder),
    )


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, studies: Split, data: Data
) -> Callable[..., dict[str, Any]]:
    task = tiny.vision_language()
    params = {"llm": np.zeros(3, np.float32)}
    monkeypatch.setattr(answers_module, "placed", lambda params, *a: params)

    def run(answerers: dict[bool, Answerer], **fields: Any) -> dict[str, Any]:
        monkeypatch.setattr(answers_module, "answerer", lambda *a, blind, **k: answerers[blind])
        evaluator = Answers(**({"crops": 3, "batch_size": 4} | fields))
        return measure(evaluator, fake(task, params, data, tmp_path))

    return run


def test_who_knows_is_right_in_everything(
    evaluate: Any, data: Data, tmp_path: pathlib.Path
) -> None:
    results = evaluate({False: Oracle(data)})
    json.dumps(results, allow_nan=False)
    kinds = results["kinds"]
    assert set(kinds) == {"yes_no", "choice", "rec", "reg"}
    for kind, metric in (("yes_no", "accuracy"), ("choice", "accuracy"), ("rec", "iou"),
                         ("reg", "exact"), ("reg", "rouge1")):  # fmt: skip
        number = kinds[kind]["models"][OWN]["all"][metric]
        assert number == {"value": 1.0, "interval": [1.0, 1.0]}, kind
        assert results[f"{kind}_{metric}"] == 1.0
        assert 2 <= kinds[kind]["units"] <= 4
    assert kinds["choice"]["guesses"]["chance"]["all"] == pytest.approx(0.25)
    assert set(kinds["rec"]["guesses"]) == {"the whole volume"}
    assert 0 < kinds["rec"]["guesses"]["the whole volume"]["all"] < 1
    assert "iou_whole" not in kinds["rec"]["models"][OWN]["all"] and not kinds["reg"]["guesses"]
    assert kinds["yes_no"]["models"][OWN]["all"]["balanced"]["value"] == 1
    assert kinds["choice"]["models"][OWN]["all"]["accuracy_m3d"]["value"] == 1
    column = Scores.read(epath.Path(tmp_path)).column("choice", "accuracy")
    assert len(column.value) == kinds["choice"]["questions"] and column.value.min() == 1
    assert set(column.units.names) <= {f"P-S{number}" for number in range(4)}
    said = " ".join(results["report"]["sentences"])
    assert "above chance (25.0%); above one answer for all (" in said
    assert "above the box of the whole volume (0." in said
    assert "patients." in results["report"]["tables"][-1]["note"]
    (picture,) = results["report"]["pictures"]
    with Image.open(tmp_path / picture["file"]) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_an_interrupted_evaluation_goes_on(
    evaluate: Any, data: Data, tmp_path: pathlib.Path
) -> None:
    oracle = Oracle(data)
    oracle.stop_after = 30
    with pytest.raises(KeyboardInterrupt):
        evaluate({False: oracle}, questions=8, pictures=0)
    (file,) = tmp_path.glob("answers-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == oracle.count >= 30
    file.write_text("".join(lines)[:-20])  # as a kill in the middle of a write leaves it
    oracle.stop_after = 10**9
    before, oracle.count = oracle.count, 0
    results = evaluate({False: oracle}, questions=8, pictures=0)
    total = sum(kind["questions"] for kind in results["kinds"].values())
    assert oracle.count == total - (before - 1)
    assert len(file.read_text().splitlines()) == total
    oracle.count = 0
    assert evaluate({False: oracle}, questions=8, pictures=0) == results
    assert oracle.count == 0
    rows = [json.loads(line) for line in (tmp_path / "scores-this_run.jsonl").open()]
    assert len(rows) == total and all(row["said"] == row["truth"] for row in rows)
    assert {"accuracy", "unparsed"} <= set(next(r for r in rows if r["kind"] == "choice"))


def test_processes_share_the_crops_and_read_what_others_answered(
    studies: Split, data: Data, tmp_path: pathlib.Path
) -> None:
    files = [epath.Path(tmp_path) / f"answers.{number}.jsonl" for number in range(2)]
    crops = lambda part: asked(data, SOURCE, crops=3, part=part)  # noqa: E731
    found: dict[int, list[Row]] = {}
    for number, file in enumerate(files):
        table = AnswerTable(file, files)
        for batch in Questioned(crops, 3, table).batches(Share(4, number, 2)):
            assert batch["image"].shape == (4, *SIZE, 1)
            assert [rows is None for rows in batch["questions"]] == (~batch["counts"]).tolist()
            chosen = batch["number"][batch["counts"]], batch["questions"][batch["counts"]]
            rows = dict(zip(*chosen, strict=True))
            table.add(row for some in rows.values() for row in some)
            found |= rows
    everything = [one.rows for one in crops(slice(None))]
    assert [found[crop] for crop in sorted(found)] == everything
    table = AnswerTable(files[0], files)
    assert not any(table.missing(rows) for rows in everything)
    assert table.missing([dataclasses.replace(everything[0][0], question="Another?")])


def test_models_side_by_side(evaluate: Any, data: Data) -> None:
    def spoilt(truth: str, number: int) -> str:
        return truth if number % 3 else "I cannot tell: A or B, yes or no, [1, 2"

    blind = Oracle(data, spoilt)
    results = evaluate(
        {False: Oracle(data), True: blind}, beside={"the same, blind": Beside(blind=True)}
    )
    choice = results["kinds"]["choice"]
    both = choice["models"]
    assert list(both) == [OWN, "the same, blind"]
    lost = both["the same, blind"]["all"]
    assert 0 < lost["accuracy"]["value"] < 1
    assert lost["unparsed"]["value"] == pytest.approx(1 - lost["accuracy"]["value"])
    gain = choice["gain_over"]["the same, blind"]
    assert gain["value"] == pytest.approx(1 - lost["accuracy"]["value"])
    assert results["kinds"]["rec"]["gain_over"]["the same, blind"]["interval"][0] > 0
    said = " ".join(results["report"]["sentences"])
    assert "better than the same, blind" in said
    unread = lost["unparsed"]["value"]
    assert f"; {unread:.0%} of its answers cannot be read)" in said
    assert "the box of the whole volume (0." in said
    assert results["kinds"]["rec"]["models"]["the same, blind"]["all"]["unparsed"]["value"] > 0.1


def test_a_real_model_blind_and_of_text_alone(
    studies: Split, data: Data, tmp_path: pathlib.Path
) -> None:
    llm = dataclasses.replace(tiny.vision_language().llm, vocab_size=264, num_tokens=262)
    task = tiny.vision_language(llm=llm, image_token_id=258)
    params = jax.tree.map(
        lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf,
        jax.jit(task.init)(jax.random.key(0), tiny.batch(rows=1)),
    )
    evaluator = Answers(
        per_crop=1, sampling=Sampling(max_new_tokens=6), pictures=2,
        beside={"blind": Beside(blind=True)},
    )  # fmt: skip
    results = measure(evaluator, subject(task, params, data, tmp_path))
    models = results["kinds"]["reg"]["models"]
    assert set(models) == {OWN, "blind"}
    said = {
        name: [json.loads(line)["said"] for line in (tmp_path / f"scores-{name}.jsonl").open()]
        for name in ("this_run", "blind")
    }
    assert len(said["blind"]) == len(said["this_run"]) > 8
    assert said["blind"] != said["this_run"]  # it does see
    text = data.field("text", Text)
    tokens = dataclasses.replace(text.tokens, image_tokens=0)
    alone = data.with_fields(text=dataclasses.replace(text, tokens=tokens))
    text_only = dataclasses.replace(evaluator, beside={})
    place = tmp_path / "text"
    place.mkdir()
    found = measure(text_only, subject(Language(llm), {"llm": params["llm"]}, alone, place))
    assert not found["report"]["pictures"]
    questions = {kind: numbers["questions"] for kind, numbers in results["kinds"].items()}
    assert {k: n["questions"] for k, n in found["kinds"].items()} == questions


def test_what_cannot_be_measured(
    evaluate: Any, studies: Split, data: Data, tmp_path: pathlib.Path
) -> None:
    mae = fake(tiny.mae(), {"vision": np.zeros(1, np.float32)}, data, tmp_path)
    with pytest.raises(EvaluationError, match="VisionLanguage and Language"):
        measure(Answers(), mae)
    silent = dataclasses.replace(data, fields={"image": image_field.Image()})
    with pytest.raises(ConfigError, match="needs data with questions"):
        Answers().check(silent)
    with pytest.raises(ConfigError, match="is taken"):
        Answers(beside={OWN: Beside(blind=True)})
    studies[:] = [study(0)]
    with pytest.raises(EvaluationError, match="one place of one patient"):
        evaluate({False: Oracle(data)}, crops=1)
