"""The options of the verb `chat`, which the module `chat` implements.

This module does not import JAX, so that help appears at once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

from m3djax.generate.sampling import Sampling

AutoDtype = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """Talk with a language model.

    Attributes:
      model: a folder in Hugging Face's layout, or a .gguf file.
      system: the system message; "": the default of the chat template.
      plain: prompts without chat template and history, as M3D's models expect them.
      sampling: options of sampling for the answers.
      dtype: dtype of the computation; "auto": float32 on CPUs and bfloat16 elsewhere.
    """

    model: tyro.conf.Positional[str]
    system: str = ""
    plain: bool = False
    sampling: Sampling = Sampling()
    dtype: AutoDtype = "auto"
