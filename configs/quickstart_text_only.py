"""The quickstart's language model, tuned on the same questions without volumes.

    python run.py train configs/quickstart_text_only.py

This is a baseline for the run of configs/quickstart_ask.py: it shows how much the questions alone
reveal of the answers. Apart from the volume, everything is as in that config.
"""

import dataclasses

from configs import quickstart_ask
from configs.quickstart_ask import (
    ADAPTERS,
    ANSWER_LENGTH,
    DATA,
    QUESTIONS,
    SMOLLM2,
    TOKENS,
    WEIGHTS,
)
from data_pipelines.fields.text import Text
from m3djax.adapters import LoRA
from m3djax.experiment import Experiment
from m3djax.inputs.inputs import Inputs
from m3djax.tasks.language import Language


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    length = TOKENS.length - TOKENS.image_tokens
    tokens = dataclasses.replace(TOKENS, image_tokens=0, length=length)
    return dataclasses.replace(
        quickstart_ask.get_config(),
        name="quickstart_text_only",
        task=Language(SMOLLM2, counted=ANSWER_LENGTH),
        adapters=LoRA(dropout=0.0, targets=ADAPTERS),
        inputs=Inputs(),
        # The task does not use the image. It stays, because a run can only be resumed with the same
        # fields as before. Without it, the texts of all batches would be the same.
        data=DATA.with_fields(text=Text(tokens, QUESTIONS)),
        trainable=".*lora_[ab]",
        groups=(),
        init_from={"llm": WEIGHTS},
        evaluators={},
    )
