"""Llama-2-7B answering 16 prompts at once, weights and heads split over 16 chips (v5e:4x4).

    python run.py plan configs/llm/llama2_7b_decode.py --topology v5e:4x4

The loop is the one that `m3djax.generate.Generator` runs; a step is one token of each answer. It
is planned (docs/plans) and was not run there: no speed is claimed.
"""

from configs.llm.llama2_7b import LLAMA2_7B
from m3djax.plan.targets import Decoding


def get_config() -> Decoding:
    """See the module's docstring."""
    return Decoding(LLAMA2_7B, rows=16, prompt=768, answer=256)
