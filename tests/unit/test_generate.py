"""Generation: one cache, one loop, on one device and on eight."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.convert.pretrained import Pretrained
from m3djax.generate import decode
from m3djax.generate.chooser import Chooser
from m3djax.generate.generator import Generator, bucket
from m3djax.generate.sampling import Sampling
from m3djax.generate.text import RowText
from m3djax.mesh import sharding
from m3djax.params import flatten, unflatten
from tests import tiny_llm

PROMPTS = ([72, 101, 108, 108, 111], [40], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17])
NEW = 9


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    return tiny_llm.pretrained()


@pytest.fixture(scope="module")
def generator(tiny: Pretrained) -> Generator:
    return Generator(tiny.model, tiny.params["llm"], tokenizer=tiny.tokenizer)


@pytest.fixture(scope="module")
def greedy(generator: Generator) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in generator(PROMPTS, Sampling(NEW))]


def test_the_cache_changes_nothing(tiny: Pretrained, greedy: list[tuple[int, ...]]) -> None:
    """Against a loop that reads the whole text again for every token, row by row."""
    apply = jax.jit(tiny.model.apply)
    for prompt, answer in zip(PROMPTS, greedy, strict=True):
        text = np.zeros((1, 32), np.int32)
        text[0, : len(prompt)] = prompt
        for step in range(NEW):
            at = len(prompt) + step
            logits = apply({"params": tiny.params["llm"]}, text)[0, at - 1, :258]
            text[0, at] = int(jnp.argmax(logits))
        assert text[0, len(prompt) : len(prompt) + NEW].tolist() == list(answer)


def test_a_window_is_kept(tiny: Pretrained) -> None:
    """Cached and uncached generation see the same window, also over padding."""
    windowed = tiny_llm.pretrained("phi3", sliding_window=4)
    generator = Generator(windowed.model, windowed.params["llm"])
    answers = generator(PROMPTS, Sampling(NEW))
    apply = jax.jit(windowed.model.apply)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        text = np.zeros((1, 32), np.int32)
        known = [*prompt, *answer.tokens]
        text[0, : len(known)] = known
        best = jnp.argmax(apply({"params": windowed.params["llm"]}, text)[0, :, :258], axis=-1)
        assert best[len(prompt) - 1 : len(known) - 1].tolist() == list(answer.tokens)


def test_a_shared_prefix_changes_nothing(
    generator: Generator, greedy: list[tuple[int, ...]]
) -> None:
    """Read once as tokens, or as embedded tokens with a row for each prompt."""
    shared = [90, 91, 92, 93]
    whole = generator([shared + prompt for prompt in PROMPTS], Sampling(NEW))
    prefix = generator.prefix(shared)
    assert generator(PROMPTS, Sampling(NEW), prefix=prefix) == whole
    rows = generator.prefix(embeds=generator.embed([shared] * len(PROMPTS)))
    assert generator(PROMPTS, Sampling(NEW), prefix=rows) == whole
    assert [answer.tokens for answer in whole] != greedy


def test_prompts_of_embedded_tokens(generator: Generator, greedy: list[tuple[int, ...]]) -> None:
    ids = np.zeros((len(PROMPTS), 12), np.int32)
    valid = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(PROMPTS):
        ids[row, -len(prompt) :], valid[row, -len(prompt) :] = prompt, True
    answers = generator(options=Sampling(NEW), embeds=generator.embed(ids), valid=valid)
    assert [answer.tokens for answer in answers] == greedy


@pytest.mark.parametrize(
    "shape, options",
    [((2, 2, 2), Sampling(NEW, 1.0, 20, 0.9, 1.2)), ((1, 1, 8), Sampling(NEW))],
    ids=("2-2-2 sampled", "1-1-8 greedy"),
)
def test_a_mesh_gives_the_same_ids(
    shape: tuple[int, int, int], options: Sampling, tiny: Pretrained, generator: Generator
) -> None:
    mesh = sharding.make_mesh(shape)
    flat = {
        path: jax.device_put(
            leaf,
            jax.sharding.NamedSharding(
                mesh, sharding.parameter_spec(path, leaf.shape, mesh, {"llm": tiny.model})
            ),
        )
        for path, leaf in flatten(tiny.params).items()
    }
    sharded = Generator(tiny.model, unflatten(flat)["llm"], mesh=mesh)
    shards = jax.tree.leaves(sharded.weights.layers[0])[0].sharding
    assert shards.mesh.shape == mesh.shape
    alone = generator(PROMPTS, options)
    there = sharded(PROMPTS, options)
    assert [answer.tokens for answer in there] == [answer.tokens for answer in alone]


def test_nothing_is_compiled_between_questions(generator: Generator) -> None:
    """Other lengths, numbers of prompts and sampling options within the buckets."""
    generator(PROMPTS, Sampling(NEW, temperature=0.5, top_p=0.8))
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    generator([[5] * 20, [6], [7, 8], [9]], Sampling(20, temperature=1.5, top_k=7, seed=3))
    generator([[5] * 31, [6], [7, 8]], Sampling(3, temperature=0.1, top_p=0.2))
    assert compiled == []
    generator([[5] * 33], Sampling(3))
    assert compiled, "the listener hears nothing"


@pytest.mark.parametrize("rows", [1, 2])
def test_the_loop_copies_no_cache(tiny: Pretrained, rows: int) -> None:
    """In the compiled loop nothing as large as a layer's keys is made but by writing in place."""
    text, size = _compiled_loop(tiny, rows)
    written = re.compile(r"dynamic-update-slice")
    large = [line for line in text.splitlines() if _elements(line) >= size]
    made = [
        line
        for line in large
        if not re.search(r"= \S+ (parameter|get-tuple-element|bitcast)", line)
    ]
    assert any(written.search(line) for line in made), "the cache was not found"
    copies = [
        line for line in made if re.search(r"= \S+ (copy|transpose|concatenate|convert)\(", line)
    ]
    assert not copies, copies[:3]


def _compiled_loop(tiny: Pretrained, rows: int) -> tuple[str, int]:
    """HLO of the loop alone, and how many numbers one layer's keys are."""
    slots, room = 512, 256
    weights = decode.unstack(tiny.model, tiny.params["llm"])
    cache = decode.empty_cache(tiny.model, rows, slots)
    keys = jax.random.split(jax.random.key(0), rows)
    tokens, done = jnp.zeros((rows, room), jnp.int32), jnp.zeros(rows, bool)
    state = decode.State(jnp.int32(1), tokens, done, cache, None, keys)
    chooser = Chooser.of(Sampling(), tiny.model.vocab_size)
    lowered = decode.decode.lower(
        tiny.model, weights, state, chooser, jnp.array([-1]), jnp.int32(9), length=1
    )
    return lowered.compile().as_text(), cache.layers[0][0].size


def _elements(line: str) -> int:
    """Numbers that an HLO instruction makes, if it makes one array."""
    shape = re.search(r"= \w+\[([\d,]+)\]", line)
    return int(np.prod([int(side) for side in shape.group(1).split(",")])) if shape else 0


def test_sampling_draws_what_it_says() -> None:
    """top_k and top_p leave exactly the right tokens, and draws follow the softmax."""
    logits = jnp.log(jnp.array([0.05, 0.4, 0.3, 0.15, 0.1]))
    rows = 4000
    keys = jax.random.split(jax.random.key(1), rows)

    def shares(options: Sampling) -> np.ndarray:
        chooser = Chooser.of(options, len(logits))
        drawn = chooser(jnp.broadcast_to(logits, (rows, 5)), None, keys)
        return np.bincount(np.asarray(drawn), minlength=5) / rows

    np.testing.assert_allclose(shares(Sampling(temperature=1)), jnp.exp(logits), atol=0.03)
    wanted = np.array([0, 4, 3, 0, 0]) / 7
    np.testing.assert_allclose(shares(Sampling(temperature=1, top_k=2)), wanted, atol=0.03)
    # 0.4 + 0.3 hold 0.7: the third token is needed for 0.75.
    wanted = np.array([0, 40, 30, 15, 0]) / 85
    np.testing.assert_allclose(shares(Sampling(temperature=1, top_p=0.75)), wanted, atol=0.03)
    np.testing.assert_allclose(shares(Sampling(temperature=1, top_p=0.01)), [0, 1, 0, 0, 0], atol=0)
    cold = jnp.exp(2 * logits) / jnp.sum(jnp.exp(2 * logits))
    np.testing.assert_allclose(shares(Sampling(temperature=0.5)), cold, atol=0.03)


def test_seeds_and_rows_differ(generator: Generator) -> None:
    options = Sampling(NEW, temperature=2.0)
    same = generator([PROMPTS[0]] * 3, options)
    assert len({answer.tokens for answer in same}) == 3
    assert generator([PROMPTS[0]] * 3, options) == same
    assert generator([PROMPTS[0]] * 3, Sampling(NEW, temperature=2.0, seed=1)) != same


def test_eos_ends_rows_apart(tiny: Pretrained, greedy: list[tuple[int, ...]]) -> None:
    eos = greedy[0][2]
    generator = Generator(tiny.model, tiny.params["llm"], eos_ids=(eos,))
    for answer, whole in zip(generator(PROMPTS, Sampling(NEW)), greedy, strict=True):
        end = whole.index(eos) if eos in whole else NEW
        assert answer.tokens == whole[:end]
        assert answer.ended == ("eos" if eos in whole else "length")


def test_stop_strings_and_streaming(generator: Generator, greedy: list[tuple[int, ...]]) -> None:
    """A stop string ends its own row; what streams is the answer, piece by piece."""
    new = 40
    whole = [answer.text for answer in generator(PROMPTS, Sampling(new))]
    stop = whole[0][10:12]
    pieces: list[tuple[int, str]] = []
    answers = generator(
        PROMPTS, Sampling(new, stop=(stop,)), on_text=lambda row, text: pieces.append((row, text))
    )
    assert answers[0].ended == "stop"
    for row, (answer, text) in enumerate(zip(answers, whole, strict=True)):
        assert answer.text == text.split(stop)[0]
        assert "".join(piece for at, piece in pieces if at == row) == answer.text
    assert len([piece for row, piece in pieces if row == 0]) > 1


def test_no_half_character_and_no_half_stop_string_is_sent() -> None:
    def text_of(tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    sent: list[str] = []
    row = RowText(text_of, ("END",), sent.append)
    data = list("aé EN EEND b".encode())
    for size in range(1, len(data) + 1):
        row.feed(data[:size], last=size == len(data))
    assert "".join(sent) == row.text == "aé EN E"
    assert row.stopped and all("\ufffd" not in piece for piece in sent)
    row = RowText(text_of, (), sent.append)
    row.feed(data[:2], last=True)
    assert row.text == "a\ufffd"  # that is all there is


WRONG: dict[str, tuple[dict, str]] = {
    "too long": (
        {"prompts": [[1] * 250], "options": Sampling(9)},
        r"prompt of 250 tokens .* context of 256. Cure: max_new_tokens <= 6",
    ),
    "far too long": ({"prompts": [[1] * 300]}, "Cure: a shorter prompt"),
    "empty": ({"prompts": [[]]}, "a prompt is empty"),
    "none": ({"prompts": []}, "there is no prompt"),
    "padding row": ({"prompts": [[1, 260]]}, "token 260 is not in the vocabulary of 258"),
    "negative": ({"prompts": [[-1]]}, "token -1 is not in the vocabulary"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_answered(kind: str, generator: Generator) -> None:
    arguments, message = WRONG[kind]
    with pytest.raises(ConfigError, match=message):
        generator(**arguments)


def test_options_that_mean_nothing(tiny: Pretrained) -> None:
    for wrong in ({"top_p": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}, {"stop": ("",)}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* is out of range"):
            Sampling(**wrong)
    mute = Generator(tiny.model, tiny.params["llm"])
    with pytest.raises(ConfigError, match="need a tokenizer"):
        mute([[1]], Sampling(stop=("x",)))
    with pytest.raises(ConfigError, match="the prefix has 256 tokens"):
        mute.prefix([1] * 256)


def test_rows_that_are_no_token_are_never_said(tiny: Pretrained) -> None:
    params = jax.tree.map(lambda leaf: leaf, tiny.params["llm"])
    params["head"] = {"kernel": params["head"]["kernel"].at[:, 258:].mul(1e3)}
    answers = Generator(tiny.model, params)(PROMPTS, Sampling(NEW, temperature=3.0))
    assert max(max(answer.tokens) for answer in answers) < 258


def test_long_and_short_rotations(tiny: Pretrained) -> None:
    """With Phi-3's two sets of frequencies a prefix must have been read for the right one."""
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    }
    trained = {"original_max_position_embeddings": 24}
    long = tiny_llm.pretrained("phi3", rope_scaling=scaling, **trained)
    generator = Generator(long.model, long.params["llm"])
    short = generator.prefix([1, 2, 3], reserve=12)
    generator([[4]], Sampling(9), prefix=short)
    with pytest.raises(ConfigError, match="read for texts of another length than 35.*reserve=32"):
        generator([[4]], Sampling(31), prefix=short)
    whole = generator([[1, 2, 3, 4]], Sampling(31))
    prefix = generator.prefix([1, 2, 3], reserve=32)
    assert generator([[4]], Sampling(31), prefix=prefix) == whole


def test_a_dynamic_scaling_reaches_beyond_the_trained_positions() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = tiny_llm.pretrained(rope_scaling=scaling, max_position_embeddings=32).model
    assert model.max_position_embeddings == 64
    within, beyond = (model.rotary.frequencies(8, length) for length in (32, 64))
    np.testing.assert_array_equal(within, model.rotary.frequencies(8, 1))
    assert (beyond[1:] < within[1:]).all()


def test_buckets() -> None:
    sizes = {size: bucket(size) for size in range(1, 5000)}
    assert all(size <= slots <= max(32, 1.25 * size + 1) for size, slots in sizes.items())
    assert len(set(sizes.values())) < 4 * 9
    assert [bucket(n) for n in (1, 32, 33, 64, 65, 320, 321)] == [32, 32, 40, 64, 80, 320, 384]
