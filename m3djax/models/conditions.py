"""The inputs of blocks beside their tokens."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from m3djax.models.patches import Size
from m3djax.models.rotary import Rotation


@struct.dataclass
class Conditions:
    """Inputs that all blocks of a stack share. Each block uses the ones that it needs.

    Attributes:
      mask: True where a query may attend to a key, (B, 1, N or 1, M).
      rotation: rotary positions of the tokens.
      slot: first position of the new tokens in the caches of keys and values, if there are caches.
      grid: patches along (D, H, W), if the tokens are patches of a volume; static.
      route: input of the router of a mixture of experts, such as the kind of question of each
        sample (B,), or a vector of its text (B, K).
      context: tokens for blocks with cross-attention, such as those of a text.
      context_mask: False for padding of `context`; None: there is no padding.
    """

    mask: Bool[Array, "b 1 #n m"] | None = None
    rotation: Rotation | None = None
    slot: Int[Array, ""] | int | None = None
    grid: Size | None = struct.field(pytree_node=False, default=None)
    route: Any = None
    context: Float[Array, "b m k"] | None = None
    context_mask: Bool[Array, "b m"] | None = None


NONE = Conditions()
"""The default of blocks: no conditions."""


def given(conditions: Conditions) -> dict[str, Any]:
    """Returns the keyword argument `conditions`, or no argument if there are none.

    So an encoder or a task without such blocks need not take the argument.
    """
    return {"conditions": conditions} if jax.tree.leaves(conditions) else {}
