"""The options of the verb `convert`; `run` does the work.

JAX is not imported here, so that help is shown at once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

LayoutName = Literal[
    "auto", "m3d_clip", "m3d_vit", "bert", "m3d_lamed", "m3d_lamed_lora", "llm", "m3djax"
]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Published weights to a folder that `evaluate` and `init_from` take, or a run to published.

    Which of the two follows from SOURCE: a file, or a folder of Hugging Face with such files, is
    imported; a run or an imported folder is exported.

    Attributes:
      source: what to read.
      out: folder to write (import); .safetensors file, or folder for shards of 5 GB (export).
      config: the experiment whose model the weights are for (import); its fields are flags too.
      layout: names of tensors; "auto" recognises them (import).
      prefix: read only what starts so, without it; such as "module." or "vision_encoder.".
      positions_from: patches along (D, H, W) that the file's position table is made for, if it is
        to be interpolated to another grid of the config; zeros: the grids must be equal.
      dtype: of exported numbers.
      plan: say what an import would take on host and devices, and load nothing.
    """

    source: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    config: str = "configs/m3d/clip_released.py"
    layout: LayoutName = "auto"
    prefix: str = ""
    positions_from: tuple[int, int, int] = (0, 0, 0)
    dtype: Dtype = "float32"
    plan: bool = False
