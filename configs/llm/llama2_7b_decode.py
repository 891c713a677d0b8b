"""Generation with Llama-2-7B: 16 prompts, weights and heads split over 16 chips (v5e:4x4).

    python run.py plan configs/llm/llama2_7b_decode.py --topology v5e:4x4

The program is the loop of `m3djax.Generator`; a step is one token of each answer. The loop
is planned (docs/plans) and was not run on these chips, so no speed is claimed.
"""

from configs.llm.llama2_7b import LLAMA2_7B
from m3djax import Decoding


def get_config() -> Decoding:
    """Returns the config that the module's docstring describes."""
    return Decoding(LLAMA2_7B, rows=16, prompt=768, answer=256)
