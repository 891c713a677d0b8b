"""What blocks get beside their tokens."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Int

from m3djax.models.patches import Size
from m3djax.models.rotary import Rotation


@struct.dataclass
class Conditions:
    """What all blocks of a stack share beside their tokens; a block takes what it needs.

    Attributes:
      mask: true where a query may look, (B, 1, N or 1, M).
      rotation: rotary positions of the tokens.
      slot: where new tokens go in the caches of keys and values, if there are any.
      grid: patches along (D, H, W), if the tokens are those of a volume; static.
      route: what a mixture of experts chooses by, such as the kind of question per sample (B,).
    """

    mask: Bool[Array, "b 1 #n m"] | None = None
    rotation: Rotation | None = None
    slot: Int[Array, ""] | int | None = None
    grid: Size | None = struct.field(pytree_node=False, default=None)
    route: Any = None


NONE = Conditions()
"""No conditions: what blocks take if they are given none."""
