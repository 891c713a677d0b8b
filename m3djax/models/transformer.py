"""Transformers: blocks, stacks of equal blocks, and sequences of stacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from m3djax.contracts.sown import TERMS
from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.layers import layer_norm
from m3djax.models.mlp import FeedForward, Mlp
from m3djax.models.multi_head import Attention

Remat = Literal["none", "dots", "full"]
_policies = jax.checkpoint_policies
_KEEP_DOTS = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("attention")
)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      attention: maps tokens to tokens.
      mlp: maps tokens and conditions to tokens.
      norm_eps: epsilon of both norms (timm and MAE: 1e-6, torch's default and M3D: 1e-5).
    """

    attention: Attention = Attention()
    mlp: FeedForward = Mlp()
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions = NONE
    ) -> Float[Array, "b n c"]:
        """Transforms tokens."""
        x = x + self._attend(self._norm(x, "norm1"), conditions)
        x = x + self.mlp(self._norm(x, "norm2"), conditions)
        return constrain(x, ("batch", None, None))

    def _attend(self, x: Array, conditions: Conditions) -> Array:
        return self.attention(
            x, mask=conditions.mask, rotation=conditions.rotation, slot=conditions.slot
        )

    def _norm(self, x: Array, name: str) -> Array:
        return layer_norm(x, epsilon=self.norm_eps, name=name)(x)


register_axes(Block, {"norm[12]/(scale|bias)": (None,)})


class Stack(nn.Module):
    """Base class of stacks of layers, which map tokens to tokens.

    Attributes:
      num_layers: number of layers.
    """

    def __call__(
        self,
        x: Float[Array, "b n c"],
        conditions: Conditions = NONE,
        *,
        hidden: bool = False,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Returns the output of the last layer and, on request, the outputs of all layers.

        Args:
          x: tokens.
          conditions: inputs of all blocks beside their tokens.
          hidden: whether to return the outputs of all layers.
        """
        raise NotImplementedError


class Transformer(Stack):
    """A stack of `num_layers` equal blocks. Their parameters are stacked along a leading axis.

    Attributes:
      num_layers: number of blocks.
      block: the repeated block; it maps (tokens, conditions) to tokens.
      remat: activations to keep for the backward pass, which computes the others again. "none"
        keeps all activations, "dots" keeps the results of matrix products and of attention, "full"
        keeps only the input of each block.
      unroll: blocks per iteration of the loop; more compile time for less loop overhead.
    """

    num_layers: int = 12
    block: nn.Module = Block()
    remat: Remat = "none"
    unroll: int = 1

    def __call__(
        self,
        x: Float[Array, "b n c"],
        conditions: Conditions = NONE,
        *,
        hidden: bool = False,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Runs the blocks; see `Stack`. Terms that blocks sow are stacked like the parameters."""

        def layer(block: nn.Module, x: Array, conditions: Conditions) -> tuple[Array, Array | None]:
            x = block(x, conditions)
            return x, x if hidden else None

        if self.remat != "none":
            # prevent_cse is needed only outside of a scan.
            layer = nn.remat(
                layer, prevent_cse=False, policy=_KEEP_DOTS if self.remat == "dots" else None
            )
        scan = nn.scan(
            layer,
            variable_axes={"params": 0, TERMS: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,),
            length=self.num_layers,
            unroll=self.unroll,
        )
        return scan(self.block, x, conditions)


register_axes(Transformer, stacked={"block": "layers"})


class Stages(Stack):
    """A sequence of stacks, such as attention within slices followed by attention in 3D.

    Attributes:
      stages: the stacks; all have the same width.
    """

    stages: tuple[Stack, ...] = (Transformer(),)

    def __post_init__(self) -> None:
        """Gives each stage its own modules."""
        object.__setattr__(self, "stages", own_stages(self.stages))
        super().__post_init__()

    @property
    def num_layers(self) -> int:
        """Returns the number of layers of all stages together."""
        return sum(stage.num_layers for stage in self.stages)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        conditions: Conditions = NONE,
        *,
        hidden: bool = False,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Runs the stages; see `Stack`."""
        layers: list[Any] = []
        for stage in self.stages:
            x, outputs = stage(x, conditions, hidden=hidden)
            layers.append(outputs)
        return x, jnp.concatenate(layers) if hidden else None


def own_stages(stages: Iterable[Any]) -> tuple[Any, ...]:
    """Returns copies of stages, so that none shares its parameters with another one.

    Flax shares the parameters of two stages that are the same object. A saved config is read back
    as two objects, without sharing.
    """
    return tuple(_own(stage) for stage in stages)


def _own(module: Any) -> Any:
    """Returns a copy of a module and its submodules. A bound module is returned unchanged."""
    if not isinstance(module, nn.Module) or module.parent is not None:
        return module
    fields = (field.name for field in dataclasses.fields(module) if field.init)
    held = {name: _own(getattr(module, name)) for name in fields if name not in ("parent", "name")}
    return type(module)(**held, parent=None)
