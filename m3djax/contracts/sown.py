"""Loss terms that modules add, such as the balance loss of a mixture of experts."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import DictKey

from data_pipelines.errors import ConfigError
from m3djax.contracts.terms import Term

TERMS = "terms"
"""The Flax collection of sown terms. Scans over blocks stack it."""

_collected: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar(TERMS, default=None)


def sow(module: nn.Module, name: str, term: Term) -> None:
    """Adds a term to the loss from within a module. The step's metrics then have "loss/NAME".

    Several layers or components can sow a term of the same name. The loss then has one term, whose
    sum and weight are the means of their sums and weights. In evaluation and generation sown terms
    cost nothing.

    Args:
      module: the module, during its call. `m3djax.contracts.apply` must apply its component.
      name: name of the term. The task must not have a term of that name.
      term: sum, weight and scale, as in `Loss.terms`.
    """
    module.sow(TERMS, name, term)


@contextlib.contextmanager
def collecting() -> Iterator[list[Any]]:
    """Makes `apply` collect sown terms inside the `with` block; yields the argument of `merged`."""
    collected: list[Any] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Returns `module.apply(...)`. Inside `collecting()` it also collects the sown terms."""
    collected = _collected.get()
    if collected is None:
        return module.apply(variables, *args, **kwargs)
    out, changed = module.apply(variables, *args, mutable=[TERMS], **kwargs)
    collected.append(changed.get(TERMS, {}))
    return out


def merged(collected: list[Any]) -> dict[str, Term]:
    """Returns the terms by name. Terms of the same name from several layers become one term.

    Raises:
      ConfigError: a sown value is not a `Term`, or terms of the same name differ in scale.
    """
    named: dict[str, list[Term]] = {}
    found, _ = jax.tree_util.tree_flatten_with_path(
        collected, is_leaf=lambda node: isinstance(node, Term)
    )
    for path, term in found:
        name = [key.key for key in path if isinstance(key, DictKey)][-1]
        if not isinstance(term, Term):
            raise ConfigError(
                f"{name} in the collection {TERMS!r} is no term of a loss. "
                "Cure: add it with m3djax.contracts.sow."
            )
        named.setdefault(name, []).append(term)
    return {name: _mean(name, terms) for name, terms in named.items()}


def _mean(name: str, terms: list[Term]) -> Term:
    if len({term.scale for term in terms}) > 1:
        raise ConfigError(
            f"the term {name} is sown with two scales. Cure: use one scale, or two names."
        )
    # A scan stacks the terms of its layers: a leaf is one number, or one number per layer.
    total, weight = (
        jnp.mean(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]))
        for leaves in ([term.sum for term in terms], [term.weight for term in terms])
    )
    return dataclasses.replace(terms[0], sum=total, weight=weight)
