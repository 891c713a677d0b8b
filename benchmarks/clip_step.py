"""Benchmark of M3D-CLIP's training step against MONAI's ViT and transformers' BertModel in torch.

    pip install -r requirements-peers.txt
    python benchmarks/clip_step.py [--json] [--rounds 3] [--only batch_1]

Our side is configs/m3d/clip_released.py in float32, with all activations kept and batches of 1 and
2: ViT-B on 32 x 256 x 256 voxels with a class token, BERT-base on texts of 512 tokens, linear
projections and InfoNCE as published. The peer combines the same libraries as M3D. Torch runs in
float32 and in bfloat16. At batch 1 the loss is constant, but the towers do the same work.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import peers
import steps


def ours(batch_size: int) -> Any:
    """Returns the released config with another batch size, in float32, without recomputation."""
    from configs.m3d import clip_released
    from m3djax.inputs.inputs import Inputs, ScaleIntensityRange

    config = clip_released.get_config()
    task = config.task
    towers = {
        name: getattr(task, name).clone(
            dtype="float32", transformer=getattr(task, name).transformer.clone(remat="none")
        )
        for name in ("vision", "text")
    }
    task = dataclasses.replace(task, **towers)
    data = dataclasses.replace(config.data, batch_size=batch_size)
    inputs = Inputs(ScaleIntensityRange(0, 1))
    changes = {"task": task, "data": data, "inputs": inputs, "init_from": {}, "evaluators": {}}
    return dataclasses.replace(config, **changes)


def theirs(batch_size: int) -> Any:
    """Returns MONAI's ViT and transformers' BERT with M3D-CLIP's loss."""
    import torch
    from torch.nn import functional
    from transformers import BertConfig, BertModel

    vision = peers.m3d_tower()
    text = BertModel(BertConfig(), add_pooling_layer=False)
    heads = torch.nn.ModuleDict(
        {"vision": torch.nn.Linear(768, 768), "text": torch.nn.Linear(768, 768)}
    )
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07))
    heads.register_parameter("scale", scale)
    vision.classification_head = torch.nn.Identity()
    images = torch.rand(batch_size, 1, 32, 256, 256)
    ids = torch.randint(0, 1000, (batch_size, 512))
    mask = torch.ones_like(ids)
    right = torch.arange(batch_size)

    def loss() -> Any:
        image_vectors = functional.normalize(heads["vision"](vision(images)[0]), dim=-1)
        tokens = text(input_ids=ids, attention_mask=mask).last_hidden_state
        text_vectors = functional.normalize(heads["text"](tokens[:, 0]), dim=-1)
        logits = scale * image_vectors @ text_vectors.T
        both = functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)
        return both / 2

    return [vision, text, heads], loss


CONTESTS = {
    f"batch_{size}": steps.Contest(
        f"M3D-CLIP, batch {size}", functools.partial(ours, size), functools.partial(theirs, size)
    )
    for size in (1, 2)
}

if __name__ == "__main__":
    steps.main(__file__, __doc__.splitlines()[0], CONTESTS, "monai", "transformers")
