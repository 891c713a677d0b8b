"""A loss as named terms, each with a sum, a weight and a scale of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Term:
    """A mean that stays a sum and a weight until the whole batch is summed.

    Attributes:
      sum: sum over the batch, float32.
      weight: what divides the sum (samples, patches, tokens), float32. It is a function of the
        batch alone: no gradient passes through it. It is 1 rather than 0 where a batch may have
        nothing to count.
      scale: factor on the mean.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    scale: float = struct.field(pytree_node=False, default=1.0)

    @property
    def value(self) -> Float[Array, ""]:
        """Returns scale * sum / weight."""
        return _scaled(self.sum, self.scale) / self.weight


@struct.dataclass
class Loss:
    """The sum of the values of its terms.

    Attributes:
      terms: what is trained, by name.
      metrics: further means for people, by name; nothing is trained on them.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = struct.field(default_factory=dict)

    @property
    def weight(self) -> Float[Array, ""]:
        """Returns the weight that `total` refers to: that of the first term by name."""
        return self.terms[min(self.terms)].weight

    @property
    def total(self) -> Float[Array, ""]:
        """Returns the loss times `weight`.

        Gradients of it, summed over parts of a batch and divided by `weight`, are those of the
        loss. Terms that share one weight are added as they are, so that nothing is rounded twice.
        """
        weight = self.weight
        parts = []
        for _, term in sorted(self.terms.items()):
            part = _scaled(term.sum, term.scale)
            if term.weight is not weight:
                part = jax.lax.stop_gradient(weight / term.weight) * part
            parts.append(part)
        return sum(parts[1:], parts[0])

    @property
    def one_weight(self) -> bool:
        """Returns whether all terms share one weight: the same array, not an equal one."""
        weight = self.weight
        return all(term.weight is weight for term in self.terms.values())

    def plus(self, terms: Mapping[str, Term]) -> Loss:
        """Returns the loss with further terms.

        Raises:
          ValueError: it has a term of that name.
        """
        twice = sorted(self.terms.keys() & terms.keys())
        if twice:
            raise ValueError(f"two terms of one name: {', '.join(twice)}. Cure: rename one.")
        return dataclasses.replace(self, terms={**self.terms, **terms})

    def weighed(self, weights: Mapping[str, Float[Array, ""]]) -> Loss:
        """Returns the loss with these weights in place of those that its terms have."""
        terms = {
            name: dataclasses.replace(term, weight=weights.get(name, term.weight))
            for name, term in self.terms.items()
        }
        return dataclasses.replace(self, terms=terms)

    def values(self) -> dict[str, Float[Array, ""]]:
        """Returns the value of every metric, and of every term as "loss/NAME"."""
        terms = {f"loss/{name}": term.value for name, term in self.terms.items()}
        return {name: term.value for name, term in self.metrics.items()} | terms


def _scaled(value: Float[Array, ""], scale: float) -> Float[Array, ""]:
    """Returns the product; a scale of 1 adds no operation to the program."""
    return value if scale == 1 else scale * value
