"""Questions about volumes: what is read once gives what reading all again would give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.generate.generator import Generator
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import Seen, VolumeReader
from m3djax.params import Params
from tests import tiny

TASK = tiny.vision_language()
QUESTIONS = ("a", "bcd", "ef", "ghijk", "l")
OPTIONS = Sampling(max_new_tokens=5)


def prompt(question: str, form: str = "") -> list[int]:
    """bos, four placeholders, and a letter for each word."""
    return [1, *[60] * 4, *(ord(letter) % 50 + 3 for letter in question)]


class Letters:
    """Enough of a tokenizer to stream."""

    def decode(self, tokens: list[int], **_: bool) -> str:
        return "".join(chr(64 + token) for token in tokens)


@pytest.fixture(scope="module")
def params() -> Params:
    params = TASK.init(jax.random.key(0), tiny.dialogue_batch())
    # As it is drawn, the model would say the same to all.
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def reader(params: Params) -> VolumeReader:
    return VolumeReader(TASK, params, prompt, tokenizer=Letters())


def whole(params: Params, batch: dict[str, np.ndarray], row: int, question: str) -> tuple[int, ...]:
    """The answer to one prompt, read in one piece."""
    ids = np.array([prompt(question)])
    generator = Generator(TASK.llm, params["llm"])
    one = {name: value[row : row + 1] for name, value in batch.items()}
    volumes = TASK.encode(params, TASK.windowed(one))
    embeds = TASK.place(generator.embed(ids), volumes, ids)
    return generator(options=OPTIONS, embeds=embeds)[0].tokens


def test_many_questions_about_one_volume(params: Params, reader: VolumeReader) -> None:
    batch = tiny.batch(rows=1)
    seen = reader.read(batch)
    answers = reader.answer(seen, QUESTIONS, OPTIONS, batch_size=2)
    wanted = [whole(params, batch, 0, question) for question in QUESTIONS]
    assert [answer.tokens for answer in answers] == wanted
    assert len(set(wanted)) > 1
    assert len(seen.prefixes) == 1
    prefix = next(iter(seen.prefixes.values()))
    assert prefix.length == 5
    reader.answer(seen, QUESTIONS[:1], OPTIONS)
    assert next(iter(seen.prefixes.values())) is prefix


def test_many_questions_about_many_volumes(params: Params, reader: VolumeReader) -> None:
    batch, rows = tiny.batch(3, rows=3), [2, 0, 1, 1, 2]
    answers = reader.answer(reader.read(batch), QUESTIONS, OPTIONS, rows=rows, batch_size=3)
    asked = zip(rows, QUESTIONS, strict=True)
    wanted = [whole(params, batch, row, question) for row, question in asked]
    assert [answer.tokens for answer in answers] == wanted
    each = reader.answer(reader.read(batch), QUESTIONS[:3], OPTIONS)
    asked = enumerate(QUESTIONS[:3])
    assert [a.tokens for a in each] == [whole(params, batch, row, q) for row, q in asked]


def test_answers_stream_under_their_own_numbers(reader: VolumeReader) -> None:
    seen = reader.read(tiny.batch(rows=1))
    texts = dict.fromkeys(range(len(QUESTIONS)), "")

    def on_text(number: int, text: str) -> None:
        texts[number] += text

    answers = reader.answer(seen, QUESTIONS, OPTIONS, batch_size=2, on_text=on_text)
    assert list(texts.values()) == [answer.text for answer in answers]
    assert all(texts.values())


def test_questions_may_come_before_the_volume(params: Params) -> None:
    """Then nothing is shared but the encoding, and answers are right all the same."""
    reader = VolumeReader(TASK, params, lambda text, _: [*prompt(text)[5:], *prompt("?")])
    seen = reader.read(tiny.batch(rows=1))
    one = reader.answer(seen, QUESTIONS, OPTIONS)
    assert len(seen.prefixes) == len(QUESTIONS)
    two = [reader.answer(seen, [question], OPTIONS)[0] for question in QUESTIONS]
    assert [a.tokens for a in one] == [a.tokens for a in two]


def test_prompts_are_told_the_form_of_their_question(params: Params, reader: VolumeReader) -> None:
    told = VolumeReader(TASK, params, lambda text, form: prompt(f"{text}{form}"))
    seen = told.read(tiny.batch(rows=1))
    one = told.answer(seen, ["a", "b"], OPTIONS, forms=["cd", ""])
    two = reader.answer(seen, ["acd", "b"], OPTIONS)
    assert [a.tokens for a in one] == [a.tokens for a in two]


def test_what_cannot_be_asked(reader: VolumeReader, params: Params) -> None:
    seen = reader.read(tiny.batch(rows=2))
    with pytest.raises(ConfigError, match="5 questions, 2 samples"):
        reader.answer(seen, QUESTIONS)
    with pytest.raises(ConfigError, match="rows"):
        reader.answer(seen, ["a"], rows=[2])
    with pytest.raises(ConfigError, match="max_new_tokens <= 250"):
        reader.answer(seen, ["a", "b"], Sampling(max_new_tokens=251))
    with pytest.raises(ConfigError, match="image tokens and text behind them"):
        VolumeReader(TASK, params, lambda *_: [1, *[60] * 4]).answer(seen, ["a", "b"])
    two_volumes = Seen(jnp.concatenate([seen.tokens, seen.tokens], axis=1))
    with pytest.raises(ConfigError, match="has 4 image tokens, and its volumes become 8"):
        reader.answer(two_volumes, ["a", "b"])
    with pytest.raises(ConfigError, match="MAE answers no questions"):
        VolumeReader(tiny.mae(), {}, prompt)
