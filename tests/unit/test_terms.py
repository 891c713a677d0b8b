"""Losses of several terms: exact in parts of a batch, or refused; named wherever they are shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from data_pipelines.errors import ConfigError
from m3djax.adapters import LoRA
from m3djax.config import serialize
from m3djax.contracts.task import Batch, Task, apply
from m3djax.contracts.terms import Loss, Term
from m3djax.optim import AdamW
from m3djax.params import Params
from m3djax.runs import report, training_curves
from m3djax.step import Metrics, Trainer, TrainState
from tests import tiny

ROWS = 8


@dataclasses.dataclass(frozen=True)
class TwoHeads(Task):
    """Regresses what is measured and rates what is marked: other rows, so other weights."""

    head: nn.Dense = nn.Dense(2)

    def init(self, rng: Array, batch: Batch) -> Params:
        return {"head": self.head.init(rng, jnp.zeros((1, 5)))["params"]}

    def weights(self, batch: Batch) -> Mapping[str, Array]:
        return {"rating": jnp.sum(batch["marked"]), "value": jnp.sum(batch["measured"])}

    def loss(self, params: Params, batch: Batch, keys: Array, *, train: bool) -> Loss:
        out = apply(self.head, params["head"], batch["x"])
        value = jnp.sum(jnp.square(out[:, 0] - batch["y"]) * batch["measured"])
        rating = jnp.sum(jax.nn.softplus(out[:, 1]) * batch["marked"])
        weights = self.weights(batch)
        terms = {"value": Term(value, weights["value"]),
                 "rating": Term(rating, weights["rating"], 0.3)}  # fmt: skip
        return Loss(terms, {"mark": Term(jnp.sum(out[:, 1] * batch["marked"]), weights["rating"])})


class Untold(TwoHeads):
    """Leaves a weight out."""

    def weights(self, batch: Batch) -> Mapping[str, Array]:
        return {"rating": super().weights(batch)["rating"]}

    def loss(self, params: Params, batch: Batch, keys: Array, *, train: bool) -> Loss:
        return TwoHeads().loss(params, batch, keys, train=train)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows whose marks are spread unevenly over every way to cut the batch in parts."""
    rng = np.random.default_rng(0)
    fields = {"x": rng.normal(size=(ROWS, 5)), "y": rng.normal(size=ROWS),
              "measured": np.array([1, 0, 0, 1, 0, 1, 0, 1]),
              "marked": np.array([0, 0, 3, 0, 0, 1, 7, 0])}  # fmt: skip
    return {name: value.astype(np.float32) for name, value in fields.items()}


def step(
    task: Task, batch: Batch, parts: int, adapters: LoRA | None = None
) -> tuple[TrainState, Metrics]:
    """Takes one step from the same start, without clipping."""
    changes = {"task": task, "gradient_accumulation_steps": parts, "adapters": adapters}
    trainer = Trainer(tiny.experiment(**changes, optimizer=AdamW(clip_norm=0)), {})
    state = trainer.init(jax.random.key(0))
    return jax.jit(trainer.step)(state, batch, jax.random.key(1))


def mean(params: Params, batch: Batch) -> Array:
    """The loss as it is defined, without sums and weights."""
    out = batch["x"] @ params["head"]["kernel"] + params["head"]["bias"]
    value = jnp.square(out[:, 0] - batch["y"])
    rating = jax.nn.softplus(out[:, 1])
    weigh = lambda x, name: jnp.average(x, weights=batch[name])  # noqa: E731
    return weigh(value, "measured") + 0.3 * weigh(rating, "marked")


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_terms_of_different_weights_are_exact_in_parts(
    batch: dict[str, np.ndarray], parts: int
) -> None:
    trainer = Trainer(tiny.experiment(task=TwoHeads()), {})
    params = trainer.init(jax.random.key(0)).params
    wanted, gradients = jax.value_and_grad(mean)(params, batch)
    state, metrics = step(TwoHeads(), batch, parts)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss/value"] + metrics["loss/rating"], metrics["loss"], rtol=1e-6
    )
    # Adam's first moment after one step is a tenth of the gradient.
    moments = state.opt_state[1].mu
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            moments[f"head/{name}"], 0.1 * gradients["head"][name], rtol=2e-5, atol=1e-7
        )
    out = batch["x"] @ params["head"]["kernel"][:, 1] + params["head"]["bias"][1]
    marks = np.average(out, weights=batch["marked"])
    np.testing.assert_allclose(metrics["mark"], marks, rtol=1e-5)


@pytest.mark.parametrize("adapters", [None, LoRA(targets="head")])
def test_terms_whose_weights_no_part_knows_are_refused(
    batch: dict[str, np.ndarray], adapters: LoRA | None
) -> None:
    with pytest.raises(
        ConfigError, match=r"Untold.weights does not tell the weight of value.*Cure"
    ):
        step(Untold(), batch, 2, adapters)


def test_one_weight_adds_no_operation_to_the_program() -> None:
    """A loss of one term, and one of terms that share their weight, are divided at the end only."""

    def program(*scales: float) -> str:
        def total(x: Array, weight: Array) -> Array:
            return Loss({str(n): Term(x, weight, s) for n, s in enumerate(scales)}).total

        jaxpr = jax.make_jaxpr(total)(1.0, 2.0).jaxpr
        return " ".join(equation.primitive.name for equation in jaxpr.eqns)

    assert program(1.0) == ""
    assert program(1.0, 0.5) == "mul add"


def test_terms_of_one_name_are_refused() -> None:
    one = Term(jnp.float32(1), jnp.float32(2))
    loss = Loss({"a": one}).plus({"b": dataclasses.replace(one, scale=4.0)})
    assert {name: float(value) for name, value in loss.values().items()} == {
        "loss/a": 0.5,
        "loss/b": 2.0,
    }
    with pytest.raises(ValueError, match="two terms of one name: a"):
        loss.plus({"a": one})


def test_every_term_is_in_the_curves_and_the_report(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": n, "loss": 3.0 - n, "loss/value": 4.0 - n, "loss/rating": -1.0} for n in range(3)
    ]
    assert [(c.key, c.log) for c in training_curves.of(rows)[:3]] == [
        ("loss", True),
        ("loss/rating", False),
        ("loss/value", True),
    ]
    config = tiny.experiment()
    (tmp_path / "config.json").write_text(serialize.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report.render(tmp_path)
    assert "<h3>Loss: rating</h3>" in page and "<h3>Loss: value</h3>" in page
    assert "1 = rating -1 + value 2" in page
