"""M3D-LaMed's language models (golden kinds `m3d_lamed_llama`, `m3d_lamed_phi3`).

From its embedded inputs on: logits, loss, gradients, generated ids. Tower and projector are put
together in the test (`lamed.py`), so that gradients of the tower pass through the language model.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.convert import llm, name_map, pretrained
from m3djax.generate.generator import Generator
from m3djax.generate.sampling import Sampling
from m3djax.params import flatten, unflatten
from m3djax.tasks.next_token import next_token_loss
from tests.parity import lamed
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 2e-4
FOLDERS = golden_dirs("m3d_lamed_llama") + golden_dirs("m3d_lamed_phi3")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def params(golden: Golden) -> dict[str, Any]:
    model, tower = lamed.decoder(golden), lamed.tower(golden)
    images = jnp.moveaxis(golden.io["images"], 1, -1)
    vision = jax.eval_shape(tower.init, jax.random.key(0), images)["params"]
    expected = pretrained.shapes(model)
    expected |= {path: leaf.shape for path, leaf in flatten({"vision": vision}).items()}
    weights = {k: v for k, v in golden.weights.items() if not k.startswith(lamed.PROJECTOR)}
    flat = name_map.load(weights, (*llm.rules(model), *lamed.TOWER), expected)
    tree = unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})
    return tree | {"projector": lamed.projector_of(golden.weights)}


def test_hidden_states_logits_loss_and_gradients(golden: Golden, params: dict[str, Any]) -> None:
    model = lamed.decoder(golden)
    ids, valid = golden.given("input_ids"), golden.given("attention_mask") > 0
    labels = golden.given("labels")

    def run(params: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables = {"params": params["llm"]}
        tokens = model.apply(variables, ids, method="embed")
        embeds = lamed.inputs_embeds(golden, tokens, params["vision"], params["projector"])
        hidden, layers = model.apply(variables, embeds, valid, hidden=True, method="encode")
        loss = next_token_loss(model, params["llm"], hidden, labels, chunk=7)
        logits = model.apply(variables, hidden, method="logits")
        found = {"inputs_embeds": embeds, "last_hidden": hidden, "logits": logits}
        return loss.total / loss.weight, found | {"hidden_after_layer0": layers[0]}

    (loss, found), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    for name, value in found.items():
        golden.compare(name, value, TOLERANCE)
    golden.compare("lm_loss", loss, 0, relative=1e-5)
    flat = flatten({name: grads[name] for name in ("llm", "vision")})
    theirs = name_map.save(flat, (*llm.rules(model), *lamed.TOWER))
    theirs |= {lamed.PROJECTOR + name: grad for name, grad in grads["projector"].items()}
    golden.compare_gradient_norms(theirs)


def test_generated_ids(golden: Golden, params: dict[str, Any]) -> None:
    """Exactly the original's, stopping early included."""
    model, config = lamed.decoder(golden), golden.config
    embed = Generator(model, params["llm"]).embed
    embeds = lamed.inputs_embeds(
        golden, embed(golden.given("prompt_ids")), params["vision"], params["projector"]
    )
    hidden, _ = model.apply({"params": params["llm"]}, embeds, method="encode")
    logits = model.apply({"params": params["llm"]}, hidden, method="logits")
    golden.compare("prompt_logits", logits, TOLERANCE)
    assert float(golden.given("generated_top1_margin").min()) > 2 * TOLERANCE
    early = int(golden.given("early_eos_id"))
    for name, eos in (
        ("generated_ids", config["eos_token_id"]),
        ("generated_ids_early_eos", early),
    ):
        theirs = golden.given(name)
        generator = Generator(model, params["llm"], eos_ids=(eos,))
        answers = generator(options=Sampling(theirs.shape[1]), embeds=embeds)
        padded = np.full(theirs.shape, config["pad_token_id"])
        for row, answer in zip(padded, answers, strict=True):
            ids = [*answer.tokens, eos] if answer.ended == "eos" else answer.tokens
            row[: len(ids)] = ids
        np.testing.assert_array_equal(padded, theirs, err_msg=name)
