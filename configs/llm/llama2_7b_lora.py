"""Llama-2-7B with LoRA adapters trained on reports (v5e:4x4).

    python run.py plan configs/llm/llama2_7b_lora.py --topology v5e:4x4

The config is that of configs/llm/llama2_7b.py with M3D-LaMed's adapters: rank 16, alpha 32, dropout
0.05, at every linear layer of the blocks. Only the adapters are trained; frozen weights have
neither gradients nor moments.

The config is planned (docs/plans) with a batch of 128, 8 texts per chip. It has not been trained
here, and no figure is claimed.
"""

from configs.llm.llama2_7b import LLAMA2_7B, REPORTS
from m3djax import AdamW, Experiment, LoRA
from m3djax.tasks import Language


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
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
