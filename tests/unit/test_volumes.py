"""Questions about volumes: shared prefixes give the answers of whole prompts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.generate.generator import Generator
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import MOST_PREFIXES, EncodedVolumes, VolumeReader
from m3djax.inputs.inputs import IMAGE, Inputs
from m3djax.params import Params
from tests import tiny

TASK = tiny.vision_language()
QUESTIONS = ("a", "bcd", "ef", "ghijk", "l")
OPTIONS = Sampling(max_new_tokens=5)


def prompt(question: str) -> list[int]:
    """bos, four placeholders, and a letter for each word."""
    return [1, *[60] * 4, *(ord(letter) % 50 + 3 for letter in question)]


PROMPTS = [prompt(question) for question in QUESTIONS]


class Letters:
    """Enough of a tokenizer to stream."""

    def decode(self, tokens: list[int], **_: bool) -> str:
        return "".join(chr(64 + token) for token in tokens)


@pytest.fixture(scope="module")
def params() -> Params:
    params = jax.jit(TASK.init)(jax.random.key(0), tiny.dialogue_batch())
    # As it is drawn, the model would say the same to all.
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def reader(params: Params) -> VolumeReader:
    return VolumeReader(TASK, Inputs().bound(IMAGE), params, tokenizer=Letters())


def whole(params: Params, batch: dict[str, np.ndarray], row: int, question: str) -> tuple[int, ...]:
    """The answer to one prompt, read in one piece."""
    ids = np.array([prompt(question)])
    generator = Generator(TASK.llm, params["llm"])
    one = {name: value[row : row + 1] for name, value in batch.items()}
    volumes = TASK.encode(params, tiny.network(one)["image"])
    embeds = TASK.merge_image_features(generator.embed(ids), volumes, ids)
    return generator(options=OPTIONS, embeds=embeds)[0].tokens


def test_many_questions_about_one_volume(
    params: Params, reader: VolumeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume is read once for all of them."""
    batch = tiny.batch(rows=1)
    encoded, lengths = reader.read(batch), prefixes_read(monkeypatch)
    answers = reader.answer(encoded, PROMPTS, OPTIONS, batch_size=2)
    wanted = [whole(params, batch, 0, question) for question in QUESTIONS]
    assert [answer.tokens for answer in answers] == wanted
    assert len(set(wanted)) > 1
    reader.answer(encoded, PROMPTS[:1], OPTIONS)
    assert lengths == [5]


def prefixes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes the length of every beginning of a prompt that is read from now on."""
    lengths: list[int] = []
    prefix = Generator.prefix

    def noting(self: Generator, **how: Any) -> Any:
        made = prefix(self, **how)
        lengths.append(made.length)
        return made

    monkeypatch.setattr(Generator, "prefix", noting)
    return lengths


def test_many_questions_about_many_volumes(params: Params, reader: VolumeReader) -> None:
    batch, rows = tiny.batch(3, rows=3), [2, 0, 1, 1, 2]
    answers = reader.answer(reader.read(batch), PROMPTS, OPTIONS, rows=rows, batch_size=3)
    asked = zip(rows, QUESTIONS, strict=True)
    wanted = [whole(params, batch, row, question) for row, question in asked]
    assert [answer.tokens for answer in answers] == wanted
    each = reader.answer(reader.read(batch), PROMPTS[:3], OPTIONS)
    asked = enumerate(QUESTIONS[:3])
    assert [a.tokens for a in each] == [whole(params, batch, row, q) for row, q in asked]


def test_answers_stream_under_their_own_numbers(reader: VolumeReader) -> None:
    encoded = reader.read(tiny.batch(rows=1))
    texts = dict.fromkeys(range(len(QUESTIONS)), "")

    def on_text(number: int, text: str) -> None:
        texts[number] += text

    answers = reader.answer(encoded, PROMPTS, OPTIONS, batch_size=2, on_text=on_text)
    assert list(texts.values()) == [answer.text for answer in answers]
    assert all(texts.values())


def test_questions_may_come_before_the_volume(
    reader: VolumeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then only the encoding is shared; of what was read of prompts, the latest are kept."""
    prompts = [[*ids[5:], *prompt("?")] for ids in PROMPTS]
    encoded, lengths = reader.read(tiny.batch(rows=1)), prefixes_read(monkeypatch)
    one = reader.answer(encoded, prompts, OPTIONS)
    assert len(lengths) == len(PROMPTS) == MOST_PREFIXES + 1
    last = [reader.answer(encoded, [ids], OPTIONS)[0] for ids in prompts[1:]]
    assert len(lengths) == len(PROMPTS)
    first = reader.answer(encoded, prompts[:1], OPTIONS)
    assert len(lengths) == len(PROMPTS) + 1
    assert [a.tokens for a in one] == [a.tokens for a in [*first, *last]]
    reader.answer(encoded, prompts[2:3], OPTIONS)  # prompts[1] had to go for prompts[0]
    assert len(lengths) == len(PROMPTS) + 1


def test_what_cannot_be_asked(reader: VolumeReader) -> None:
    encoded, two = reader.read(tiny.batch(rows=2)), [prompt("a"), prompt("b")]
    with pytest.raises(ConfigError, match="5 questions, 2 samples"):
        reader.answer(encoded, PROMPTS)
    with pytest.raises(ConfigError, match="rows"):
        reader.answer(encoded, PROMPTS[:1], rows=[2])
    with pytest.raises(ConfigError, match="max_new_tokens <= 250"):
        reader.answer(encoded, two, Sampling(max_new_tokens=251))
    with pytest.raises(ConfigError, match="image tokens and text after them"):
        reader.answer(encoded, [[1, *[60] * 4]] * 2)
    two_volumes = EncodedVolumes(jnp.concatenate([encoded.tokens, encoded.tokens], axis=1))
    with pytest.raises(ConfigError, match="has 4 image tokens, and its volumes become 8"):
        reader.answer(two_volumes, two)
    with pytest.raises(ConfigError, match="MAE answers no questions"):
        VolumeReader(tiny.mae(), Inputs().bound(IMAGE), {})
