"""Published figures of accelerators; none of them was measured here."""

from __future__ import annotations

import dataclasses

from m3djax.training import flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      device_kind: name of the kind in JAX.
      memory: bytes of HBM that a program may use. For TPUs, this is the limit in the messages of
        libtpu 0.0.52; for an H100, the part of 80 GB that CUDA leaves free.
      bandwidth: bytes per second between HBM and the chip.
      link: bytes per second over one link to a neighbour, one way.
      tile: side of the matrix unit; 0 if padding to it is unknown.
      pod: longest slice along each axis of the network. It is () if a switch connects all chips;
        then `link` is the bytes per second from a chip to the switch.
      wraps: an axis is a ring if its length is a multiple of this, and a line otherwise.
      network: bytes per second and chip between slices (the data centre's network), one way.
    """

    device_kind: str
    memory: int
    bandwidth: float
    link: float
    tile: int
    pod: tuple[int, ...]
    wraps: int
    network: float

    @property
    def peak(self) -> float:
        """Returns the peak of dense bfloat16 products in FLOP/s."""
        return flops.data_sheet(self.device_kind)


def _gib(value: float) -> int:
    return int(value * 2**30)


# Bandwidths: "How to Scale Your Model" (jax-ml.github.io/scaling-book, TPUs and GPUs), which gives
# achievable figures.
CHIPS = {
    "v4": Chip("TPU v4", _gib(30.75), 1.2e12, 4.5e10, 128, (16, 16, 16), 4, 6.25e9),
    "v5e": Chip("TPU v5 lite", _gib(15.75), 8.1e11, 4.5e10, 128, (16, 16), 16, 3.125e9),
    "v5p": Chip("TPU v5", _gib(95.73), 2.8e12, 9e10, 128, (16, 20, 28), 4, 6.25e9),
    "v6e": Chip("TPU v6 lite", _gib(31.24), 1.6e12, 9e10, 256, (16, 16), 16, 12.5e9),
    "h100": Chip("NVIDIA H100", _gib(79.1), 3.35e12, 4.5e11, 0, (), 0, 5e10),
}
