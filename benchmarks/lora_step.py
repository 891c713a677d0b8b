"""Benchmark of a LoRA step with SmolLM2's shapes against transformers and peft in torch.

    python benchmarks/lora_step.py [--json] [--rounds 3]

Both sides have random weights in float32 and adapters of rank 16 at every linear layer of the
blocks. A step is forward, backward and AdamW on the adapters, for 2 texts of 256 tokens. Both sides
keep the logits of all tokens.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from steps import Contest, main

ROWS, LENGTH, RANK = 2, 256, 16
SHAPES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "pad_token_id": None,
}


def ours() -> Any:
    """Returns the experiment; its loss covers the whole text, as in torch."""
    import jax.numpy as jnp

    from data_pipelines.fields.text import Text
    from data_pipelines.pipeline import Data, Source
    from data_pipelines.text.passages import Passage
    from m3djax.adapters import LoRA
    from m3djax.convert import llm_config
    from m3djax.experiment import Experiment
    from m3djax.optim import AdamW
    from m3djax.tasks.language import Language

    @dataclasses.dataclass(frozen=True)
    class Whole(Language):
        """A task whose loss covers all tokens and ignores the random spans of the batch."""

        def loss(self, params: Any, batch: Any, keys: Any, *, train: bool) -> Any:
            spans = jnp.broadcast_to(jnp.array([[[0, LENGTH]]]), (ROWS, 1, 2))
            return super().loss(params, {**batch, "spans": spans}, keys, train=train)

    model = llm_config.decoder(llm_config.make_config("llama", SHAPES, __file__))
    text = Text(Passage("nowhere", LENGTH, SHAPES["vocab_size"]))
    data = Data((Source("nowhere"),), batch_size=ROWS, fields={"text": text})
    adapters, trainable = LoRA(RANK, 2.0 * RANK, dropout=0.0), ".*lora_[ab]"
    task = Whole(model, logits_chunk=LENGTH)
    return Experiment("lora", task, data, AdamW(1e-4), adapters=adapters, trainable=trainable)


def theirs() -> tuple[list[Any], Callable[[], Any]]:
    """Returns the same model and loss in torch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = adapted(LlamaForCausalLM(LlamaConfig(**SHAPES)))
    ids = torch.randint(0, 1000, (ROWS, LENGTH))
    return [model], lambda: model(ids, labels=ids).loss


def adapted(model: Any) -> Any:
    """Returns the model with peft's adapters at every linear layer; only adapters are trained."""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=names)
    return get_peft_model(model, config).train()


CONTESTS = {"smollm2": Contest(f"LoRA of rank {RANK}, {ROWS} x {LENGTH} tokens", ours, theirs)}

if __name__ == "__main__":
    sys.exit(main(__file__, __doc__ or "", CONTESTS, "transformers", "peft"))
