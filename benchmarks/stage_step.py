"""Benchmark of M3D-LaMed's two stages against the same model from transformers, peft and MONAI.

    pip install -r requirements-peers.txt
    python benchmarks/stage_step.py [--json] [--rounds 3] [--only align]

The model is M3D's ViT-B on 32 x 256 x 256 voxels, its spatial pooling and two linear layers, and a
language model of SmolLM2-135M's shapes with a separate output layer. Both sides have random weights
in float32, batch 1 and no recomputation. A text has 512 tokens: 256 of the volume and 128 of the
answer among them. "align" trains the projector and the input embedding. "instruct" trains the
encoder, the projector, both tables, and adapters of rank 16 (dropout 0) at all linear layers of the
language model's blocks.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
from lora_step import RANK, SHAPES, adapted
from steps import Contest, main

LENGTH, VOLUME, ANSWER = 512, 256, 128
IMAGE_TOKEN = SHAPES["vocab_size"] - 1
SIZE = (32, 256, 256)
UNTIED = SHAPES | {"tie_word_embeddings": False}


def token_ids() -> np.ndarray:
    """Returns ids (1, LENGTH): a first token, the volume's placeholders, words."""
    ids = np.random.default_rng(0).integers(1, 1000, (1, LENGTH), np.int32)
    ids[:, 1 : 1 + VOLUME] = IMAGE_TOKEN
    return ids


def ours(stage: str) -> Any:
    """Returns the stage of the config in float32, with another language model."""
    import jax.numpy as jnp

    from configs.m3d import align, align_released, instruct
    from data_pipelines.fields.image import Image
    from data_pipelines.fields.text import Text
    from data_pipelines.pipeline import Data, Source
    from data_pipelines.text.passages import Passage
    from m3djax.adapters import LoRA
    from m3djax.convert import llm_config
    from m3djax.experiment import Experiment
    from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
    from m3djax.models.projectors import Projector
    from m3djax.optim import AdamW
    from m3djax.tasks.vision_language import VisionLanguage

    @dataclasses.dataclass(frozen=True)
    class Asked(VisionLanguage):
        """A task with a fixed question, which replaces the random tokens of the batch."""

        def loss(self, params: Any, batch: Any, keys: Any, *, train: bool) -> Any:
            spans = jnp.array([[[LENGTH - ANSWER, LENGTH]]])
            batch = {**batch, "token_ids": jnp.asarray(token_ids()), "spans": spans}
            return super().loss(params, batch, keys, train=train)

    tower = align_released.VISION
    task: Any = Asked(
        tower.clone(dtype="float32", transformer=tower.transformer.clone(remat="none")),
        Projector(SHAPES["hidden_size"]),
        llm_config.decoder(llm_config.make_config("llama", UNTIED, __file__)),
        IMAGE_TOKEN,
    )
    adapters, trainable = None, align.get_config().trainable
    if stage == "instruct":
        adapters, trainable = LoRA(RANK, 2.0 * RANK, dropout=0.0), instruct.TRAINABLE
    text = Text(Passage("nowhere", LENGTH, SHAPES["vocab_size"]))
    fields = {"image": Image(), "text": text}
    data = Data((Source("nowhere"),), size=SIZE, batch_size=1, units="unit", fields=fields)
    inputs = Inputs(ScaleIntensityRange(0, 1))
    return Experiment(stage, task, data, AdamW(1e-4), inputs, adapters, trainable)


def theirs(stage: str) -> tuple[list[Any], Callable[[], Any]]:
    """Returns the same model and loss in torch; frozen parts have no gradients."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tower, projector, encode = peers.m3d_encoder(SHAPES["hidden_size"])
    llm: Any = LlamaForCausalLM(LlamaConfig(**UNTIED)).train()
    if stage == "align":
        tower.requires_grad_(False)
        llm.requires_grad_(False)
        llm.get_input_embeddings().requires_grad_(True)
    else:
        llm = adapted(llm)
        llm.get_input_embeddings().requires_grad_(True)
        llm.get_output_embeddings().requires_grad_(True)
    images = torch.rand(1, 1, *SIZE)
    ids = torch.from_numpy(token_ids()).long()
    labels = torch.where(torch.arange(LENGTH) < LENGTH - ANSWER, -100, ids)

    def loss() -> Any:
        words = llm.get_input_embeddings()(ids)
        embeds = torch.cat([words[:, :1], encode(images), words[:, 1 + VOLUME :]], 1)
        return llm(inputs_embeds=embeds, labels=labels).loss

    return [tower, projector, llm], loss


CONTESTS = {
    stage: Contest(
        f"M3D-LaMed, {stage}", functools.partial(ours, stage), functools.partial(theirs, stage)
    )
    for stage in ("align", "instruct")
}

if __name__ == "__main__":
    sys.exit(main(__file__, __doc__ or "", CONTESTS, "monai", "transformers", "peft"))
