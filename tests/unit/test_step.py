"""The train step against float64: clip, decay, frozen parameters, parts, and values not finite."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from data_pipelines.fields.image import Image
from data_pipelines.pipeline import Data, Source
from m3djax import params as params_lib
from m3djax.contracts.task import Task
from m3djax.contracts.terms import Loss, Term
from m3djax.experiment import Experiment
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import IMAGE, Inputs
from m3djax.optim import AdamW, Group
from m3djax.step import Trainer, TrainState, sample_keys

ROWS = 8
SEED = jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class Line(Task):
    """Squared errors of a linear map, beside the sum of the images that the task gets."""

    draws: bool = False

    @property
    def stochastic(self) -> bool:
        return self.draws

    def init(self, rng: Any, batch: Any) -> dict[str, Any]:
        del rng, batch
        kernel = np.linspace(-1, 1, 6).reshape(3, 2)
        return {
            "slope": {"kernel": jnp.asarray(kernel, jnp.float32)},
            "shift": {"bias": jnp.array([0.5, -0.25])},
        }

    def loss(self, params: Any, batch: Any, keys: Any, *, train: bool) -> Loss:
        error = batch["x"] @ params["slope"]["kernel"] + params["shift"]["bias"] - batch["y"]
        count = jnp.float32(len(keys))
        seen = {"image": Term(jnp.sum(batch["image"]), count)} if "image" in batch else {}
        return Loss({"square": Term(jnp.sum(error**2), count)}, seen)


def rows(number: int = 0, *, image: bool = False) -> dict[str, jax.Array]:
    rng = np.random.default_rng(number)
    fields = {"x": rng.normal(size=(ROWS, 3)), "y": rng.normal(size=(ROWS, 2))}
    if image:
        fields |= {"image": rng.integers(-900, 900, (ROWS, 2, 2, 2, 1))}
        fields |= {"scale": np.ones(ROWS), "offset": np.zeros(ROWS)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in fields.items()}


def trainer(task: Task | None = None, **changes: Any) -> Trainer:
    data = Data((Source("nowhere"),), (2, 2, 2), batch_size=ROWS, fields={"image": Image()})
    options: dict[str, Any] = {"optimizer": AdamW(0.1, warmup=0.0, schedule="constant")}
    return Trainer(Experiment("line", task or Line(), data, **options | changes), {})


def run(made: Trainer, *batches: dict[str, jax.Array]) -> tuple[TrainState, list[dict[str, Any]]]:
    state, history, step = made.init(SEED), [], jax.jit(made.step)
    for batch in batches:
        state, metrics = step(state, batch, SEED)
        history.append({name: np.asarray(value) for name, value in metrics.items()})
    return state, history


def by_hand(made: Trainer, *batches: dict[str, jax.Array]) -> tuple[dict[str, np.ndarray], list]:
    """AdamW of Loshchilov and Hutter in float64, the gradients clipped by their common norm."""
    o = made.experiment.optimizer
    w = {p: np.asarray(x, float) for p, x in params_lib.flatten(made.init(SEED).params).items()}
    m, v = ({path: np.zeros_like(x) for path, x in w.items()} for _ in range(2))
    norms = []
    for t, batch in enumerate(batches, 1):
        x, y = (np.asarray(batch[name], float) for name in "xy")
        error = x @ w["slope/kernel"] + w["shift/bias"] - y
        grads = {"slope/kernel": 2 * x.T @ error / ROWS, "shift/bias": 2 * error.sum(0) / ROWS}
        norms.append(math.sqrt(sum((g**2).sum() for g in grads.values())))
        clipped = min(1.0, o.clip_norm / norms[-1]) if o.clip_norm else 1.0
        for path, g in grads.items():
            m[path] = o.b1 * m[path] + (1 - o.b1) * g * clipped
            v[path] = o.b2 * v[path] + (1 - o.b2) * (g * clipped) ** 2
            update = m[path] / (1 - o.b1**t) / (np.sqrt(v[path] / (1 - o.b2**t)) + o.eps)
            decay = o.weight_decay * w[path] if path.endswith("kernel") else 0
            w[path] = w[path] - o.learning_rate * (update + decay)
    return w, norms


@pytest.mark.parametrize("clip_norm", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_four_steps_are_those_of_float64(clip_norm: float, decay: float) -> None:
    optimizer = AdamW(
        0.1, warmup=0.0, schedule="constant", clip_norm=clip_norm, weight_decay=decay, eps=0.1
    )
    made, batches = trainer(optimizer=optimizer), [rows(n) for n in range(4)]
    state, history = run(made, *batches)
    wanted, norms = by_hand(made, *batches)
    assert state.step == 4 and state.trainable.keys() == wanted.keys() and not state.frozen
    for path, value in wanted.items():
        np.testing.assert_allclose(state.trainable[path], value, rtol=1e-5, atol=1e-6)
    # The norm that is logged is that of the gradients before the clip.
    np.testing.assert_allclose([m["grad_norm"] for m in history], norms, rtol=1e-5)
    total = math.sqrt(sum((w**2).sum() for w in wanted.values()))
    np.testing.assert_allclose(history[-1]["param_norm"], total, rtol=1e-5)
    assert all(m["lr"] == np.float32(0.1) for m in history)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_of_a_batch_are_one_batch(parts: int) -> None:
    batches = [rows(n) for n in range(3)]
    whole, history = run(trainer(), *batches)
    state, in_parts = run(trainer(gradient_accumulation_steps=parts), *batches)
    for path, value in whole.trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, rtol=1e-5, atol=1e-6)
    for one, two in zip(history, in_parts, strict=True):
        assert one.keys() == two.keys()
        np.testing.assert_allclose([two[k] for k in one], [one[k] for k in one], rtol=1e-5)


@pytest.mark.parametrize("draws", [False, True])
def test_parts_get_the_augmentation_of_their_rows(draws: bool) -> None:
    """A random loss and the augmentation never share a key."""
    inputs = Inputs(augment=Augment(scale=0.5, shift=0.5))
    batch, options = rows(image=True), {"inputs": inputs}
    keys = sample_keys(SEED, 0, ROWS)
    keys = jax.vmap(jax.random.split)(keys)[:, 0] if draws else keys
    wanted = float(jnp.sum(inputs(batch, keys, IMAGE)["image"])) / ROWS
    for parts in (1, 4):
        made = trainer(Line(draws), gradient_accumulation_steps=parts, **options)
        np.testing.assert_allclose(run(made, batch)[1][0]["image"], wanted, rtol=1e-5)


@pytest.mark.parametrize("trained, frozen", [("slope", "shift/bias"), ("shift", "slope/kernel")])
def test_frozen_parameters_do_not_move_and_have_no_moments(trained: str, frozen: str) -> None:
    made = trainer(trainable=trained)
    state, history = run(made, rows(0), rows(1))
    start = made.init(SEED)
    np.testing.assert_array_equal(state.frozen[frozen], start.frozen[frozen])
    [moved] = state.trainable
    assert np.abs(state.trainable[moved] - start.trainable[moved]).min() > 1e-2
    sizes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert sizes == {state.trainable[moved].shape}
    assert {n for n in history[0] if n.startswith("finite/")} == {
        "finite/loss",
        f"finite/{trained}",
    }


def test_a_group_of_rate_zero_stays_and_others_train() -> None:
    state, _ = run(trainer(groups=(Group("shift", lr_scale=0.0),)), rows())
    start = trainer().init(SEED)
    np.testing.assert_array_equal(state.trainable["shift/bias"], start.trainable["shift/bias"])
    assert not np.array_equal(state.trainable["slope/kernel"], start.trainable["slope/kernel"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(value: float) -> None:
    bad = rows(1) | {"x": rows(1)["x"].at[0, 0].set(value)}
    good, _ = run(trainer(), rows(0))
    state, history = run(trainer(), rows(0), bad)
    assert state.step == 2
    jax.tree.map(np.testing.assert_array_equal, state.trainable, good.trainable)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, good.opt_state)
    assert not history[1]["finite/loss"] and not history[1]["finite/slope"]
    assert all(history[0][f"finite/{part}"] for part in ("loss", "slope", "shift"))


def test_keys_of_samples_depend_on_seed_step_and_row_alone() -> None:
    def bits(seed: int, step: int, count: int) -> list[bytes]:
        keys = sample_keys(jax.random.key(seed), step, count)
        return [np.asarray(jax.random.key_data(key)).tobytes() for key in keys]

    assert bits(0, 5, 8)[:3] == bits(0, 5, 3), "a larger batch keeps the keys of its first rows"
    drawn = [key for seed in (0, 1) for step in (0, 1, 2) for key in bits(seed, step, 4)]
    assert len(set(drawn)) == len(drawn) == 24


def test_a_regex_without_a_match_is_named_before_training() -> None:
    with pytest.raises(ConfigError, match=r"trainable='vision'.*one of \['shift', 'slope'\]"):
        trainer(trainable="vision").init(SEED)
    with pytest.raises(ConfigError, match="group 'bias' matches no trainable parameter. Cure"):
        trainer(groups=(Group("bias"),)).init(SEED)
