"""The options of the verb `chat`; `chat` does the work.

JAX is not imported here, so that help is shown at once.
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
      model: a folder as Hugging Face keeps it, or a .gguf file.
      system: what the model is told first; "" leaves that to its chat template.
      plain: prompts without a chat template, each for itself, as M3D's models take them.
      sampling: how answers are chosen.
      dtype: what is computed in; "auto" is float32 on CPUs and bfloat16 elsewhere.
    """

    model: tyro.conf.Positional[str]
    system: str = ""
    plain: bool = False
    sampling: Sampling = Sampling()
    dtype: AutoDtype = "auto"
