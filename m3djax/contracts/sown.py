"""Terms of the loss that modules add on their own, such as the balance of a mixture of experts."""

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
"""The collection of sown variables; scans over blocks stack it."""

_collected: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar(TERMS, default=None)


def sow(module: nn.Module, name: str, term: Term) -> None:
    """Adds a term to the loss from within a module; the step's metrics then have "loss/NAME".

    A term that is sown in several layers or components is their mean: its sum and its weight are
    the means of theirs. In evaluation and generation it costs nothing.

    Args:
      module: the module, while it is applied; `tasks.base.apply` must apply its component.
      name: of the term; no task has a term of that name.
      term: sum, weight and scale, as in `Loss.terms`.
    """
    module.sow(TERMS, name, term)


@contextlib.contextmanager
def collecting() -> Iterator[list[Any]]:
    """While it lasts, `apply` collects what modules sow; yields what `merged` takes."""
    collected: list[Any] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Returns `module.apply(...)`, and collects what is sown if that is asked for."""
    collected = _collected.get()
    if collected is None:
        return module.apply(variables, *args, **kwargs)
    out, changed = module.apply(variables, *args, mutable=[TERMS], **kwargs)
    collected.append(changed.get(TERMS, {}))
    return out


def merged(collected: list[Any]) -> dict[str, Term]:
    """Returns the terms by name; those of all layers and components of one name become one.

    Raises:
      ConfigError: something else than a term was sown, or terms of one name differ in scale.
    """
    named: dict[str, list[Term]] = {}
    found, _ = jax.tree_util.tree_flatten_with_path(
        collected, is_leaf=lambda node: isinstance(node, Term)
    )
    for path, term in found:
        name = [key.key for key in path if isinstance(key, DictKey)][-1]
        if not isinstance(term, Term):
            raise ConfigError(
                f"{name} in the collection {TERMS!r} is no term of a loss. Cure: losses.sown.sow."
            )
        named.setdefault(name, []).append(term)
    return {name: _mean(name, terms) for name, terms in named.items()}


def _mean(name: str, terms: list[Term]) -> Term:
    if len({term.scale for term in terms}) > 1:
        raise ConfigError(
            f"the term {name} is sown with two scales. Cure: one scale, or two names."
        )
    # Scans have stacked the terms of their layers: a number per layer, or one number.
    total, weight = (
        jnp.mean(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]))
        for leaves in ([term.sum for term in terms], [term.weight for term in terms])
    )
    return dataclasses.replace(terms[0], sum=total, weight=weight)
