"""A loss as named terms. Each term has its own sum, weight and scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Term:
    """A mean, stored as a sum and a weight so that parts of a batch can be added.

    Attributes:
      sum: sum over the batch, float32.
      weight: divisor of the sum (number of samples, patches or tokens), float32. It depends on the
        batch alone: no gradient passes through it. If a batch may have nothing to count, the
        weight is 1 instead of 0. `Task.weights` must then return it, because with gradient
        accumulation each part of a batch would add its own 1.
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
    """A loss: the sum of the values of its terms.

    Attributes:
      terms: the terms by name; training minimises their sum.
      metrics: further means by name, for logs only.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = struct.field(default_factory=dict)

    @property
    def weight(self) -> Float[Array, ""]:
        """Returns the weight that `total` is multiplied by: the first term's, in name order."""
        return self.terms[min(self.terms)].weight

    @property
    def total(self) -> Float[Array, ""]:
        """Returns the loss times `weight`.

        The sum of its gradients over the parts of a batch, divided by `weight`, is the gradient of
        the loss. Terms that share one weight are added without division, to avoid a second
        rounding.
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
        """Returns whether all terms share one weight: the same array object."""
        weight = self.weight
        return all(term.weight is weight for term in self.terms.values())

    def plus(self, terms: Mapping[str, Term]) -> Loss:
        """Returns the loss with further terms.

        Raises:
          ValueError: the loss already has a term of that name.
        """
        twice = sorted(self.terms.keys() & terms.keys())
        if twice:
            raise ValueError(f"two terms of one name: {', '.join(twice)}. Cure: rename one.")
        return dataclasses.replace(self, terms={**self.terms, **terms})

    def weighed(self, weights: Mapping[str, Float[Array, ""]]) -> Loss:
        """Returns the loss with the weights of the named terms replaced."""
        terms = {
            name: dataclasses.replace(term, weight=weights.get(name, term.weight))
            for name, term in self.terms.items()
        }
        return dataclasses.replace(self, terms=terms)

    def values(self) -> dict[str, Float[Array, ""]]:
        """Returns the values of the metrics by name, and of the terms as "loss/NAME"."""
        terms = {f"loss/{name}": term.value for name, term in self.terms.items()}
        return {name: term.value for name, term in self.metrics.items()} | terms


def _scaled(value: Float[Array, ""], scale: float) -> Float[Array, ""]:
    """Returns value * scale. A scale of 1 adds no operation to the program."""
    return value if scale == 1 else scale * value
