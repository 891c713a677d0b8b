"""Llama-2-7B with adapters, which alone are trained on reports (v5e:4x4).

    python run.py plan configs/llm/llama2_7b_lora.py --topology v5e:4x4

As configs/llm/llama2_7b.py, but for the adapters: rank 16, alpha 32, dropout 0.05 beside every
linear layer of the blocks, as M3D-LaMed has them. What is frozen has neither gradients nor moments.

It is planned (docs/plans) with a batch of 128, 8 texts on each chip, and has not been trained here:
no figure is claimed.
"""

from configs.llm.llama2_7b import LLAMA2_7B, REPORTS
from m3djax.adapters import LoRA
from m3djax.experiment import Experiment
from m3djax.optim import AdamW
from m3djax.tasks.language import Language


def get_config() -> Experiment:
    """See the module's docstring."""
    return Experiment(
        name="llama2_7b_lora",
        task=Language(LLAMA2_7B),
        adapters=LoRA(),
        data=REPORTS,
        trainable=".*lora_[ab]",
        optimizer=AdamW(learning_rate=5e-5, warmup=0.03, weight_decay=0.0),
        steps=938,  # once through 120,092 reports
        mesh=(1, 16, 1),
    )
