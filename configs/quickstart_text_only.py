"""What the quickstart's questions tell of their answers: its language model, tuned without volumes.

    python run.py train configs/quickstart_text_only.py

Everything is as in configs/quickstart_ask.py, which sets it beside its own run, but for the volume.
"""

import dataclasses

from configs import quickstart_ask
from configs.quickstart_ask import (
    ADAPTERS,
    COUNTED,
    DATA,
    QUESTIONS,
    SMOLLM2,
    TOKENS,
    WEIGHTS,
)
from data_pipelines.fields.text import Text
from m3djax.adapters import LoRA
from m3djax.experiment import Experiment
from m3djax.inputs import Inputs
from m3djax.tasks.language import Language


def get_config() -> Experiment:
    """See the module's docstring."""
    length = TOKENS.length - TOKENS.image_tokens
    tokens = dataclasses.replace(TOKENS, image_tokens=0, length=length)
    return dataclasses.replace(
        quickstart_ask.get_config(),
        name="quickstart_text_only",
        task=Language(SMOLLM2, counted=COUNTED),
        adapters=LoRA(dropout=0.0, targets=ADAPTERS),
        inputs=Inputs(),
        data=DATA.with_fields(text=Text(tokens, QUESTIONS)),
        trainable=".*lora_[ab]",
        groups=(),
        init_from={"llm": WEIGHTS},
        evaluators={},
    )
