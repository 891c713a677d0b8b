"""Linear layers and norms of all blocks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array

from m3djax.mesh.sharding import gather

_dense_init = nn.initializers.xavier_uniform()


class Dense(nn.Dense):
    """A linear layer that casts its kernel before the gather, which moves fewer bytes."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Returns the parameter `name`, cast and gathered."""
        value = super().param(name, *args, **kwargs)
        return gather(self, name, value.astype(self.dtype))


def dense(features: int, like: Array, *, name: str, use_bias: bool = True) -> Dense:
    """Returns a linear layer with a 2-D kernel that computes in the dtype of `like`."""
    return Dense(features, use_bias, like.dtype, kernel_init=_dense_init, name=name)


def layer_norm(like: Array, *, epsilon: float, name: str) -> nn.LayerNorm:
    """Returns a layer norm in the dtype of `like`, with float32 statistics in two passes."""
    # One pass (E[x^2] - E[x]^2) loses digits if the mean is large compared with the deviation.
    return nn.LayerNorm(epsilon, like.dtype, use_fast_variance=False, name=name)


def rms_norm(like: Array, *, epsilon: float, name: str) -> nn.RMSNorm:
    """Returns a root-mean-square norm in the dtype of `like`, with float32 statistics."""
    return nn.RMSNorm(epsilon, like.dtype, name=name)
