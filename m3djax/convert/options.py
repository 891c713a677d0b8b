"""The options of the verb `convert`; `run` does the work.

JAX is not imported here, so that the help text appears at once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Imports published weights for `evaluate` and `init_from`, or exports the weights of a run.

    SOURCE decides which. A file, or a folder with files in Hugging Face's layout, is imported. A
    run or an imported folder is exported.

    Attributes:
      source: the file or folder to read.
      out: import: the folder to write. Export: a .safetensors file, or a folder for shards of 5 GB.
      config: import: the experiment that gets the weights; its fields are flags, too.
      layout: layout of the names: "m3d_clip", "m3d_vit", "bert", "m3d_lamed", "m3d_lamed_lora",
        "llm", "m3djax", or one that the package of the config adds to `convert.layouts.LAYOUTS`.
        "auto" recognises it (import only).
      prefix: read only names with this prefix, such as "module.", and remove it from them.
      positions_from: number of patches (D, H, W) of the file's position table. The table is
        interpolated to the grid of the config. Zeros: both grids must be equal.
      dtype: dtype of exported tensors.
      plan: print the memory that an import needs on host and devices, and load nothing.
    """

    source: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    config: str = "configs/m3d/clip_released.py"
    layout: str = "auto"
    prefix: str = ""
    positions_from: tuple[int, int, int] = (0, 0, 0)
    dtype: Dtype = "float32"
    plan: bool = False
