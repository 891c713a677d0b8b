"""What the quickstart's questions tell of their answers: its language model, tuned without volumes.

    python run.py train configs/quickstart_text_only.py

Everything is as in configs/quickstart_ask.py, which sets it beside its own run, but for the volume.
"""

import dataclasses

from configs import quickstart_ask
from configs.llm.smollm2 import SMOLLM2, WEIGHTS
from m3djax.experiment import Experiment
from m3djax.tasks.language import Language


def get_config() -> Experiment:
    """See the module's docstring."""
    seeing = quickstart_ask.get_config()
    text = seeing.data.text
    volume = text.tokens.image_tokens
    tokens = dataclasses.replace(text.tokens, image_tokens=0, length=text.tokens.length - volume)
    return dataclasses.replace(
        seeing,
        name="quickstart_text_only",
        task=dataclasses.replace(seeing.task, task=Language(SMOLLM2, counted=seeing.task.task.counted)),
        data=dataclasses.replace(seeing.data, text=dataclasses.replace(text, tokens=tokens)),
        trainable=".*lora_[ab]",
        groups=(),
        init_from={"llm": WEIGHTS},
        evaluators={},
    )
