"""A pre-norm transformer: one block, scanned over the depth."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float

from data_pipelines.errors import ConfigError
from m3djax.models.attention import Implementation, dot_product_attention
from m3djax.parameter_axes import register_axes
from m3djax.sharding import constrain, gather

Remat = Literal["none", "dots", "full"]
_dense_init = nn.initializers.xavier_uniform()
_policies = jax.checkpoint_policies
_KEEP_DOTS = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("attention")
)


class Dense(nn.Dense):
    """A linear layer whose kernel is cast first and then gathered, so that less is moved."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The parameter `name`, ready for use."""
        value = super().param(name, *args, **kwargs)
        return gather(self, name, value.astype(self.dtype))


def dense(features: int, like: Array, *, name: str, use_bias: bool = True) -> Dense:
    """A linear layer with a 2-D kernel that computes in the dtype of `like`."""
    return Dense(features, use_bias, like.dtype, kernel_init=_dense_init, name=name)


def layer_norm(like: Array, *, epsilon: float, name: str) -> nn.LayerNorm:
    """Layer norm in the dtype of `like`, its statistics in float32 and in two passes."""
    # One pass (E[x^2] - E[x]^2) loses digits where the mean is large against the deviation.
    return nn.LayerNorm(epsilon, like.dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention.

    Attributes:
      num_heads: heads; must divide the width.
      qkv_bias: whether queries, keys and values have a bias (M3D: no, E3D-GPT: yes).
      implementation: how attention is computed; "auto" picks what suits device and length.
    """

    num_heads: int = 12
    qkv_bias: bool = True
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b 1 n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """Attends; `mask` is true where a query may look. Raises ValueError on a wrong width."""
        b, n, c = x.shape
        if c % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} does not divide the width {c}.")
        query, key, value = (
            constrain(
                dense(c, x, name=name, use_bias=self.qkv_bias)(x).reshape(b, n, self.num_heads, -1),
                ("batch", None, "heads", None),
            )
            for name in ("query", "key", "value")
        )
        out = dot_product_attention(query, key, value, mask, implementation=self.implementation)
        return dense(c, x, name="out")(out.reshape(b, n, c))


register_axes(
    Attention,
    {
        "(query|key|value)/kernel": ("embed", "heads"),
        "(query|key|value)/bias": ("heads",),
        "out/kernel": ("heads", "embed"),
        "out/bias": (None,),
    },
)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them.

    Attributes:
      mlp_dim: width of the middle.
    """

    mlp_dim: int = 3072

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transforms every token on its own."""
        hidden = nn.gelu(dense(self.mlp_dim, x, name="fc1")(x), approximate=False)
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


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      attention: maps (tokens, mask) to tokens.
      mlp: maps tokens to tokens.
      norm_eps: epsilon of both norms (timm and MAE: 1e-6, torch's default and M3D: 1e-5).
    """

    attention: Attention = Attention()
    mlp: Mlp = Mlp()
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b 1 n n"] | None = None
    ) -> Float[Array, "b n c"]:
        """Transforms tokens; `mask` goes to the attention."""
        x = x + self.attention(layer_norm(x, epsilon=self.norm_eps, name="norm1")(x), mask)
        x = x + self.mlp(layer_norm(x, epsilon=self.norm_eps, name="norm2")(x))
        return constrain(x, ("batch", None, None))


register_axes(Block, {"norm[12]/(scale|bias)": (None,)})


class Transformer(nn.Module):
    """`num_layers` equal blocks; their parameters are stacked along a leading axis.

    Attributes:
      num_layers: depth.
      block: the block that is repeated; maps (tokens, further arguments) to tokens.
      remat: what the backward pass computes again: "none" keeps all activations, "dots" keeps the
        results of matrix products and of attention, "full" keeps the input of each block only.
      unroll: blocks per turn of the loop; more compile time for less loop overhead.
    """

    num_layers: int = 12
    block: nn.Module = Block()
    remat: Remat = "none"
    unroll: int = 1

    def __call__(
        self,
        x: Float[Array, "b n c"],
        *args: Any,
        hidden: bool = False,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Returns the last block's output and, if asked for, the outputs of all blocks.

        Args:
          x: tokens.
          *args: what every block gets beside its tokens, such as a mask.
          hidden: whether to return the outputs of all blocks.
        """

        def layer(block: nn.Module, x: Array, *args: Any) -> tuple[Array, Array | None]:
            x = block(x, *args)
            return x, x if hidden else None

        if self.remat != "none":
            # prevent_cse is only needed outside of a scan.
            layer = nn.remat(
                layer, prevent_cse=False, policy=_KEEP_DOTS if self.remat == "dots" else None
            )
        scan = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * len(args),
            length=self.num_layers,
            unroll=self.unroll,
        )
        return scan(self.block, x, *args)


register_axes(Transformer, stacked={"block": "layers"})
