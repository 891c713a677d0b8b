"""Language models of every family against transformers in torch (golden kind `llm`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.contracts.terms import Loss
from m3djax.convert import llm, llm_config, name_map, pretrained
from m3djax.generate.generator import Generator
from m3djax.generate.sampling import Sampling
from m3djax.models.llm.decoder import Decoder
from m3djax.params import flatten, unflatten
from m3djax.tasks.next_token import IGNORE, next_token_loss
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 5e-5


@pytest.fixture(scope="module", params=golden_dirs("llm"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden) -> Decoder:
    return llm_config.decoder(llm_config.read_config(golden.folder))


@pytest.fixture(scope="module")
def params(golden: Golden, model: Decoder) -> dict:
    expected = pretrained.shapes(model)
    flat = name_map.load(golden.weights, llm.rules(model), expected)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})["llm"]


def test_logits_and_loss(golden: Golden, model: Decoder, params: dict) -> None:
    """With padding on either side; what padding itself gives is not compared."""

    @jax.jit
    def run(ids: jax.Array, valid: jax.Array, positions: jax.Array) -> tuple[jax.Array, Loss]:
        variables = {"params": params}
        embeds = model.apply(variables, ids, method="embed")
        hidden, _ = model.apply(variables, embeds, valid, positions, method="encode")
        loss = next_token_loss(model, params, hidden, jnp.where(valid, ids, IGNORE), logits_chunk=4)
        return model.apply(variables, hidden, method="logits"), loss

    for side in ("right", "left"):
        ids, valid = golden.given(f"input_ids_{side}"), golden.given(f"mask_{side}") > 0
        positions = np.cumsum(np.ones_like(valid) if side == "right" else valid, axis=1) - 1
        logits, loss = run(ids, valid, np.maximum(positions, 0))
        golden.compare(f"logits_{side}", logits * valid[..., None], TOLERANCE)
        if side == "right":
            golden.compare("loss", loss.total / loss.weight, 0, relative=1e-5)


def test_generated_ids(golden: Golden, model: Decoder, params: dict) -> None:
    """Both prompts at once, the shorter one padded: every id is the original's."""
    ids, valid = golden.given("input_ids_left"), golden.given("mask_left") > 0
    prompts = [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)]
    new = golden.io["generated_ids"].shape[1]
    endless = Generator(model, params)
    answers = endless(prompts, Sampling(new))
    golden.compare("generated_ids", [answer.tokens for answer in answers], 0)
    answers = endless(prompts, Sampling(new, repetition_penalty=1.5))
    golden.compare("generated_ids_penalty", [answer.tokens for answer in answers], 0)
    eos = int(golden.given("eos_id"))
    answers = Generator(model, params, eos_ids=(eos,))(prompts, Sampling(new))
    theirs = golden.given("generated_ids_eos")
    for answer, row in zip(answers, theirs.tolist(), strict=True):
        end = row.index(eos) if eos in row else len(row)
        assert list(answer.tokens) == row[:end]
        assert answer.ended == ("eos" if eos in row else "length")
    golden.finish()


def test_export_is_bit_equal(golden: Golden, model: Decoder, params: dict) -> None:
    theirs = name_map.save(flatten({"llm": params}), llm.rules(model))
    assert set(theirs) == set(golden.weights)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, golden.weights[name], err_msg=name)
