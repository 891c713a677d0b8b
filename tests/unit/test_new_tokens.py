"""New tokens, prompts and their special tokens."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from data_pipelines.text import prompts
from m3djax.convert import new_tokens, pretrained
from m3djax.convert.pretrained import Pretrained
from m3djax.mesh import sharding
from m3djax.params import flatten
from tests import tiny_llm

SPECIAL, PLAIN = ("<im_patch>", "<bx_start>", "<bx_end>"), ("[SEG]",)


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    """258 tokens, 264 rows."""
    return tiny_llm.pretrained()


@pytest.mark.parametrize("multiple", [1, 128])
def test_rows_in_and_out(tiny: Pretrained, multiple: int) -> None:
    """Padding gives way to the new rows, which are the mean of the real ones."""
    grown = new_tokens.grow(tiny, SPECIAL, PLAIN, multiple=multiple)
    rows = 262 if multiple == 1 else 384
    assert grown.model.vocab_size == rows
    assert (grown.model.num_tokens or rows) == 262
    for path, axis in (("token_embed/embedding", 0), ("head/kernel", 1)):
        old = np.moveaxis(np.asarray(flatten(tiny.params["llm"])[path]), axis, 0)
        new = np.moveaxis(np.asarray(flatten(grown.params["llm"])[path]), axis, 0)
        assert len(new) == rows
        np.testing.assert_array_equal(new[:258], old[:258])
        mean = np.broadcast_to(old[:258].mean(axis=0), new[258:262].shape)
        np.testing.assert_allclose(new[258:262], mean, atol=1e-6)
        assert not new[262:].any()
    ids = grown.tokenizer("<im_patch>[SEG]<im_patch>")["input_ids"]
    assert ids == [258, 261, 258]
    assert grown.tokenizer.decode(ids, skip_special_tokens=True) == "[SEG]"
    assert len(tiny.tokenizer) == 258


def test_a_grown_model_survives_the_disk(tiny: Pretrained, tmp_path: pathlib.Path) -> None:
    mesh = sharding.make_mesh((2, 2, 2))
    pretrained.save(tmp_path / "old", tiny)
    grown = new_tokens.grow(pretrained.load(tmp_path / "old", mesh), SPECIAL, multiple=8)
    table = flatten(grown.params)["llm/token_embed/embedding"]
    assert table.sharding.spec == sharding.parameter_spec(
        "llm/token_embed/embedding", table.shape, mesh, {"llm": grown.model}
    )
    pretrained.save(tmp_path / "new", grown)
    back = pretrained.load(tmp_path / "new")
    assert back.model == dataclasses.replace(grown.model, dtype=back.model.dtype)
    jax.tree.map(np.testing.assert_array_equal, back.params, grown.params)
    assert prompts.token_id(back.tokenizer, "<bx_end>") == 260


def test_tokens_that_cannot_be_added(tiny: Pretrained) -> None:
    with pytest.raises(ConfigError, match="has these tokens already: <bos>"):
        new_tokens.grow(tiny, ("<bos>",))
    with pytest.raises(ConfigError, match="the model has no tokenizer"):
        new_tokens.grow(dataclasses.replace(tiny, tokenizer=None), SPECIAL)
    with pytest.raises(ConfigError, match="'<im_patch>' is not a token of this tokenizer"):
        prompts.token_id(tiny.tokenizer, "<im_patch>")


def test_plain_prompts_begin_with_bos_if_there_is_one(tiny: Pretrained) -> None:
    word = tiny.tokenizer("hi")["input_ids"]
    assert prompts.plain(tiny.tokenizer, "hi") == [256, *word]
    from transformers import PreTrainedTokenizerFast

    without = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer.backend_tokenizer)
    assert prompts.plain(without, "hi") == word


def test_chat_templates(tiny: Pretrained) -> None:
    said = [{"role": "user", "content": "hi"}]
    with pytest.raises(ConfigError, match="no chat template. Cure: use plain prompts"):
        prompts.chat(tiny.tokenizer, said)
    tokenizer = tiny_llm.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<bos>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    assert tokenizer.decode(prompts.chat(tokenizer, said)) == "<bos>hi:"
    with pytest.raises(ConfigError, match="refuses this conversation: no system"):
        prompts.chat(tokenizer, [{"role": "system", "content": "x"}])
