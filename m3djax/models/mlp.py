"""What blocks do to every token on its own."""

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
    """Base of all modules that may be the `mlp` of a block.

    A subclass may look at the conditions of the block (a mixture of experts at `route`), and may
    add to the loss with `contracts.sow`.
    """

    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions | None = None
    ) -> Float[Array, "b n c"]:
        """Transforms tokens."""
        raise NotImplementedError


class Mlp(FeedForward):
    """Two linear layers with an activation between them.

    Attributes:
      mlp_dim: width of the middle.
      hidden_act: the activation, by its name in Hugging Face's configs: "gelu" is the exact (erf)
        one, "gelu_pytorch_tanh" its approximation by tanh, "quick_gelu" x sigmoid(1.702 x) (CLIP).
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
    """down(silu(gate(x)) * up(x)).

    Attributes:
      intermediate_size: width of the middle.
      fused: one projection (gate | up), as Phi-3 keeps them.
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
