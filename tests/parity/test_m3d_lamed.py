"""M3D-LaMed against its code (golden kinds `m3d_lamed_llama`, `m3d_lamed_phi3`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.contracts.task import apply
from m3djax.convert import name_map
from m3djax.convert.lamed import m3d_lamed
from m3djax.generate.generator import Generator
from m3djax.generate.sampling import Sampling
from m3djax.params import Params, flatten
from m3djax.tasks.vision_language import VisionLanguage
from tests.parity import lamed
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 2e-4
FOLDERS = golden_dirs("m3d_lamed_llama") + golden_dirs("m3d_lamed_phi3")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def task(golden: Golden) -> VisionLanguage:
    return lamed.task(golden)


@pytest.fixture(scope="module")
def params(golden: Golden) -> Params:
    return lamed.params(golden)


def test_features_logits_and_hidden_states(
    golden: Golden, task: VisionLanguage, params: Params
) -> None:
    batch = lamed.batch(golden)
    ids, valid, images = batch["token_ids"], batch["attention_mask"], batch["image"]

    @jax.jit
    def run(params: Params) -> dict[str, jax.Array]:
        volumes = task.encode(params, images[:, None])
        embeds = apply(task.llm, params["llm"], ids, method="embed")
        embeds = task.merge_image_features(embeds, volumes, ids, valid)
        encode = {"hidden": True, "method": "encode"}
        hidden, layers = apply(task.llm, params["llm"], embeds, valid, **encode)
        return {
            "vision_tower_features": apply(task.vision, params["vision"], images).tokens,
            "projected_image_tokens": volumes,
            "inputs_embeds": embeds,
            "hidden_after_layer0": layers[0],
            "last_hidden": hidden,
            "logits": apply(task.llm, params["llm"], hidden, method="logits"),
        }

    found = run(params)
    for name, value in found.items():
        golden.compare(name, value, TOLERANCE)
    count = found["projected_image_tokens"].shape[1]
    assert count == golden.config["num_image_tokens"] == task.tokens_per_volume(images.shape[1:4])


def test_loss_and_gradients(golden: Golden, task: VisionLanguage, params: Params) -> None:
    batch = lamed.batch(golden)
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))

    def run(params: Params) -> jax.Array:
        loss = task.loss(params, batch, keys, train=False)
        return loss.total / loss.weight

    loss, grads = jax.jit(jax.value_and_grad(run))(params)
    golden.compare("lm_loss", loss, 0, relative=1e-5)
    golden.compare_gradient_norms(name_map.save(flatten(grads), m3d_lamed(task)))


def test_generated_ids(golden: Golden, task: VisionLanguage, params: Params) -> None:
    """Exactly the original's, stopping early included."""
    config, ids = golden.config, golden.given("prompt_ids")
    volumes = task.encode(params, lamed.images(golden)[:, None])
    embeds = task.merge_image_features(Generator(task.llm, params["llm"]).embed(ids), volumes, ids)
    golden.compare("prompt_logits", _logits(task, params, embeds), TOLERANCE)
    margin = golden.given("generated_top1_margin")
    steps = [_steps(golden, row) for row in golden.given("generated_ids")]
    assert min(m[:n].min() for m, n in zip(margin, steps, strict=True)) > 2 * TOLERANCE
    early = int(golden.given("early_eos_id"))
    for name, eos in (
        ("generated_ids", config["eos_token_id"]),
        ("generated_ids_early_eos", early),
    ):
        theirs = golden.given(name)
        generator = Generator(task.llm, params["llm"], eos_ids=(eos,))
        answers = generator(options=Sampling(theirs.shape[1]), embeds=embeds)
        padded = np.full(theirs.shape, config["pad_token_id"])
        for row, answer in zip(padded, answers, strict=True):
            found = [*answer.tokens, eos] if answer.ended == "eos" else answer.tokens
            row[: len(found)] = found
        np.testing.assert_array_equal(padded, theirs, err_msg=name)


def test_logits_of_every_step(golden: Golden, task: VisionLanguage, params: Params) -> None:
    """Those of the original's steps, from one pass over prompt and answer."""
    prompts, answers = golden.given("prompt_ids"), golden.given("generated_ids")
    volumes = task.encode(params, lamed.images(golden)[:, None])
    # An answer may hold a placeholder, which is a token like any other there.
    asked, said = (
        apply(task.llm, params["llm"], jnp.asarray(ids), method="embed")
        for ids in (prompts, answers)
    )
    embeds = jnp.concatenate([task.merge_image_features(asked, volumes, prompts), said], axis=1)
    logits = _logits(task, params, embeds)
    first = prompts.shape[1] - 1
    theirs = golden.given("generated_step_logits")
    for answer, ours, wanted in zip(answers, logits[:, first:-1], theirs, strict=True):
        steps = _steps(golden, answer)
        np.testing.assert_allclose(ours[:steps], wanted[:steps], atol=TOLERANCE)


def test_nothing_of_the_golden_is_left(golden: Golden) -> None:
    """Every tensor was given or compared by the tests above; gradients are compared by name."""
    golden.used.update(name for name in golden.io if name.startswith("gradnorm/"))
    golden.finish()


def _steps(golden: Golden, answer: np.ndarray) -> int:
    """Returns the number of steps until the answer ended; later steps do not count."""
    ended = np.flatnonzero(answer == golden.config["eos_token_id"])
    return int(ended[0]) + 1 if ended.size else len(answer)


def _logits(task: VisionLanguage, params: Params, embeds: jax.Array) -> Any:
    @jax.jit
    def run(params: Params, embeds: jax.Array) -> jax.Array:
        hidden, _ = apply(task.llm, params["llm"], embeds, method="encode")
        return apply(task.llm, params["llm"], hidden, method="logits")

    return run(params, embeds)
