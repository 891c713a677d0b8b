"""Sessions: no side effects, one encoding, histories, and several meshes in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from data_pipelines import readers
from data_pipelines.text.prompts import Turn
from m3djax import params as params_lib
from m3djax.ask.model import AskModel, Run
from m3djax.ask.session import Exchange, Reply, Session, open_scan
from m3djax.generate.generator import Answer
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import VolumeReader
from m3djax.mesh import sharding
from m3djax.runs import weights
from m3djax.runs.model import Model

SHORT = Sampling(max_new_tokens=10)
BOX = "<bx_start>[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]<bx_end>"


def mesh_of(first: int, last: int) -> Mesh:
    return sharding.make_mesh((1, 1, -1), jax.devices()[first:last])


@pytest.fixture(scope="module")
def model(run: Path) -> AskModel:
    return Run.open(run).load(mesh=mesh_of(0, 1))


@pytest.fixture(scope="module")
def session(model: AskModel, scan: Path) -> Session:
    return open_scan(model, scan, units="HU", sampling=SHORT)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that reach a model, which says "Yes." to all."""
    seen: list[list[int]] = []

    def answer(self: VolumeReader, encoded: Any, asked: Sequence[Any], *_: Any, **__: Any) -> Any:
        seen.extend(map(list, asked))
        return [Answer((), "Yes.", "eos")]

    monkeypatch.setattr(VolumeReader, "answer", answer)
    return seen


def test_a_session_prints_nothing_writes_nothing_and_leaves_no_mesh(
    session: Session,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pieces: list[str] = []

    def on_text(text: str) -> None:
        assert jax.sharding.get_abstract_mesh().empty
        pieces.append(text)

    reply = session.ask((), "Is it there?", on_text)
    assert "".join(pieces) == reply.text and len(pieces) > 1
    assert reply.ended == "length" and len(reply.tokens) == 10
    assert jax.sharding.get_abstract_mesh().empty
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_scan_is_encoded_once_from_a_file_or_a_volume(
    model: AskModel, session: Session, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Any] = []
    read = VolumeReader.read
    monkeypatch.setattr(
        VolumeReader, "read", lambda self, batch: batches.append(batch) or read(self, batch)
    )
    volume = readers.read(scan, units="HU")
    other = open_scan(model, volume, sampling=SHORT)
    assert not batches
    replies = [other.ask((), question) for question in ("Is it there?", "And now?")]
    assert len(batches) == 1
    assert replies == [session.ask((), question) for question in ("Is it there?", "And now?")]


def test_a_history_is_read_as_one_text_in_the_format_of_training(
    model: AskModel, session: Session
) -> None:
    """Against a model that reads the whole conversation, the volume included, in one piece."""
    first = session.ask((), "Is it there?")
    second = session.ask([Exchange("Is it there?", first)], "And now?")
    assert second.tokens != session.ask((), "And now?").tokens
    said = model.tokenizer.decode(list(first.tokens))
    turns = [Turn("Is it there?", said), Turn("And now?", "Yes.")]
    ids, spans = model.run.prompt(1).conversation(model.tokenizer, turns)
    before, reader = np.array([ids[: spans[1][0]]]), model.reader
    embeds = reader.task.merge_image_features(
        reader.generator.embed(before), session.encode().tokens, before
    )
    [whole] = reader.generator(options=SHORT, embeds=embeds)
    assert whole.tokens == second.tokens


def test_prompts_of_histories(model: AskModel, session: Session, prompts: list[list[int]]) -> None:
    """Tokens of boxes are put back, stop strings are not, and texts without tokens are taken."""
    tokenizer, put = model.tokenizer, model.run.prompt(1)
    plain = BOX.removeprefix("<bx_start>").removesuffix("<bx_end>")
    ids = tuple(tokenizer(f"At {BOX}STOP", add_special_tokens=False)["input_ids"])
    history = [
        Exchange("Where?", Reply(f"At {plain}STOP", tokens=ids)),
        Exchange("Where?", Reply(f"At {plain}", tokens=ids, ended="stop")),
        Exchange("Where?", Reply(f"At {plain}")),
    ]
    session.ask(history, "And now?")
    turns = [Turn("Where?", text) for text in (f"At {BOX}STOP", f"At {plain}", f"At {plain}")]
    session.ask((), "And now?")
    assert prompts == [put(tokenizer, "And now?", "", turns), put(tokenizer, "And now?")]


def test_the_form_of_a_question_reaches_its_prompt(
    model: AskModel, session: Session, prompts: list[list[int]]
) -> None:
    tokens = dataclasses.replace(model.run.tokens, separator=" - ", joined=("report",))
    run = dataclasses.replace(model.run, tokens=tokens)
    other = Session(dataclasses.replace(model, run=run), session.fovs)
    reply = other.ask((), "Findings?", form="report")
    other.ask([Exchange("Findings?", reply, "report")], "Is it there?")
    texts = [model.tokenizer.decode(prompt) for prompt in prompts]
    placeholders = "<im_patch>" * 4
    assert texts[0] == f"<bos>{placeholders}Findings?"
    assert texts[1] == f"{texts[0]} Yes.<eos> - Is it there?"


def test_two_models_on_two_meshes_answer_in_turns(
    model: AskModel, session: Session, scan: Path, tmp_path: Path
) -> None:
    """Alternating questions get the same answers as in separate sessions."""
    flat = params_lib.flatten(Model.open(model.run.folder).params)
    changed = {path: np.asarray(leaf) * 1.2 for path, leaf in flat.items()}
    weights.save(tmp_path / "other", model.run.experiment, changed, {})
    there = Run.open(tmp_path / "other").load(mesh=mesh_of(1, 3))
    other = open_scan(there, scan, units="HU", sampling=SHORT)
    within: list[Reply] = []
    reply = session.ask((), "Is it there?", lambda _: within.append(other.ask((), "Why?")))
    assert reply == session.ask((), "Is it there?")
    assert within and all(one == other.ask((), "Why?") for one in within)
    assert within[0] != session.ask((), "Why?")
    places = [one.reader.generator.weights.outer for one in (model, there)]
    devices = [{d.id for leaf in jax.tree.leaves(one) for d in leaf.devices()} for one in places]
    assert devices == [{0}, {1, 2}]
