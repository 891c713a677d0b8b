"""The feed-forward layers of blocks, which transform each token on its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import Conditions
from m3djax.models.layers import dense

Activation = Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"]
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class FeedForward(nn.Module):
    """Base class of modules for the field `mlp` of a block.

    A subclass may use the conditions of the block, as a mixture of experts uses `route`. It may add
    a term to the loss with `m3djax.contracts.sow`.
    """

    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions | None = None
    ) -> Float[Array, "b n c"]:
        """Transforms tokens."""
        raise NotImplementedError


class Mlp(FeedForward):
    """Two linear layers with an activation between them.

    Attributes:
      mlp_dim: width of the hidden layer.
      hidden_act: activation, by its name in Hugging Face's configs. "gelu" is the exact (erf) GELU,
        "gelu_pytorch_tanh" its tanh approximation, and "quick_gelu" is x sigmoid(1.702 x) (CLIP).
    """

    mlp_dim: int = 3072
    hidden_act: Activation = "gelu"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions | None = None
    ) -> Float[Array, "b n c"]:
        """Transforms every token on its own."""
        hidden = _ACTIVATIONS[self.hidden_act](dense(self.mlp_dim, x, name="fc1")(x))
        hidden = constrain(hidden, ("batch", None, "mlp"))
        return dense(x.shape[-1], x, name="fc2")(hidden)


register_axes(
    Mlp,
    {
        "fc1/kernel": ("embed", "mlp"),
        "fc1/bias": ("mlp",),
        "fc2/kernel": ("mlp", "embed"),
        "fc2/bias": (None,),
    },
)


class GatedMlp(FeedForward):
    """A gated MLP: down(silu(gate(x)) * up(x)).

    Attributes:
      intermediate_size: width of the hidden layer.
      fused: whether gate and up are one projection (gate | up), as in Phi-3.
      use_bias: whether the projections have biases.
    """

    intermediate_size: int = 11008
    fused: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions | None = None
    ) -> Float[Array, "b n c"]:
        """Transforms every token on its own."""
        if self.fused:
            joined = dense(2 * self.intermediate_size, x, name="gate_up", use_bias=self.use_bias)(x)
            gate, up = jnp.split(joined, 2, axis=-1)
        else:
            gate, up = (
                dense(self.intermediate_size, x, name=name, use_bias=self.use_bias)(x)
                for name in ("gate", "up")
            )
        hidden = constrain(nn.silu(gate) * up, ("batch", None, "mlp"))
        return dense(x.shape[-1], x, name="down", use_bias=self.use_bias)(hidden)


register_axes(
    GatedMlp,
    {
        "(gate|up|gate_up)/kernel": ("embed", "mlp"),
        "(gate|up|gate_up)/bias": ("mlp",),
        "down/kernel": ("mlp", "embed"),
        "down/bias": (None,),
    },
)
