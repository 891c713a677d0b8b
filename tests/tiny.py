"""A tiny experiment for tests of everything around the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data_pipelines.pipeline import Data, Source
from m3djax.experiment import Experiment
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import IMAGE, Inputs, ScaleIntensityRange
from m3djax.losses.contrastive import InfoNCE
from m3djax.mesh import sharding
from m3djax.models.bert import Bert, PostNormBlock, TextEmbeddings
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.mlp import GatedMlp, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.positions import LearnedPositions
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW
from m3djax.runs.state import abstract_state, trainer_of
from m3djax.step import TrainState, compile_step
from m3djax.tasks.clip import Clip
from m3djax.tasks.mae import MAE
from m3djax.tasks.vision_language import VisionLanguage
from m3djax.training.train import to_devices

INPUTS = Inputs(ScaleIntensityRange(), Augment((0.5, 0.5, 0.5), scale=0.1, shift=0.1))


def mae(**changes: Any) -> MAE:
    """Two layers of width 16 over 2 x 4 x 4 patches of 4 x 4 x 4 voxels."""
    block = Block(Attention(2), Mlp(32))
    vision = ViT3D(
        (4, 4, 4), 16, Transformer(2, block), LearnedPositions((2, 4, 4)), cls_token=True
    )
    return dataclasses.replace(MAE(vision, MAEDecoder(16, Transformer(1, block))), **changes)


def clip(**changes: Any) -> Clip:
    """`mae`'s encoder and two layers of BERT of width 24 over 50 words, M3D's way in all."""
    released = Block(Attention(2, qkv_bias=False), Mlp(32), norm_eps=1e-5)
    vision = ViT3D(
        (4, 4, 4), 16, Transformer(2, released), LearnedPositions((2, 4, 4)), cls_token=True
    )
    text = Bert(
        TextEmbeddings(vocab_size=50, hidden_size=24, max_length=16),
        Transformer(2, PostNormBlock(Attention(3), Mlp(40))),
        pooler=True,
    )
    head, objective = EmbeddingHead(12), InfoNCE(released=True)
    return dataclasses.replace(Clip(vision, text, head, head, objective), **changes)


def vision_language(**changes: Any) -> VisionLanguage:
    """`mae`'s encoder, four tokens per volume, and two layers of a decoder over 64 words."""
    block = DecoderBlock(CausalAttention(4, 2, 8), GatedMlp(48))
    llm = Decoder(64, None, 32, (Transformer(2, block),), max_position_embeddings=256)
    default = VisionLanguage(mae().vision, Projector(32), llm, image_token_id=60, logits_chunk=7)
    return dataclasses.replace(default, **changes)


def experiment(path: str = "nowhere", **changes: Any) -> Experiment:
    """The tiny task on crops of 8 x 16 x 16 voxels, 8 at a time; others without augmentation."""
    data = Data((Source(path),), size=(8, 16, 16), batch_size=8)
    default = Experiment("tiny", mae(), data, AdamW(1e-2), steps=6, log_every=1, save_every=3)
    inputs = INPUTS if isinstance(changes.get("task", default.task), MAE) else Inputs()
    return dataclasses.replace(default, **{"inputs": inputs, **changes})


def network(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as tasks take it, without augmentation."""
    return Inputs()(batch, None, IMAGE)


def batch(number: int = 0, rows: int = 8) -> dict[str, np.ndarray]:
    """A random batch as the pipeline makes them."""
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(-1000, 1000, (rows, 8, 16, 16, 1)).astype(np.int16),
        "scale": np.ones(rows, np.float32),
        "offset": np.zeros(rows, np.float32),
        "spacing": np.ones((rows, 3), np.float32),
    }


def text_batch(number: int = 0, rows: int = 8) -> dict[str, np.ndarray]:
    """`batch` with captions of 3 to 10 of 50 words; the last two samples have the same one."""
    rng = np.random.default_rng(number + 1000)
    ids = rng.integers(1, 50, (rows, 10)).astype(np.int32)
    ids[-1] = ids[-2]
    lengths = rng.integers(3, 11, rows)
    lengths[-1] = lengths[-2]
    mask = np.arange(10) < lengths[:, None]
    text_id = np.append(np.arange(rows - 1), rows - 2).astype(np.int32)
    return batch(number, rows) | {
        "token_ids": ids * mask,
        "attention_mask": mask,
        "text_id": text_id,
    }


def dialogue_batch(number: int = 0, rows: int = 8) -> dict[str, np.ndarray]:
    """`batch` with a question and an answer about each volume: four placeholders behind bos (1),
    five words, two to six words and eos (2), of which the answer is learned.
    """
    rng = np.random.default_rng(number + 2000)
    ids = rng.integers(3, 60, (rows, 20)).astype(np.int32)
    ends = rng.integers(12, 17, rows)
    ids[:, 0], ids[:, 1:5] = 1, 60
    ids[np.arange(rows), ends] = 2
    valid = np.arange(20) <= ends[:, None]
    spans = np.stack([np.full(rows, 10), ends + 1], axis=1).astype(np.int32)[:, None]
    fields = {"token_ids": ids * valid, "attention_mask": valid, "spans": spans}
    return batch(number, rows) | fields


def updates(
    config: Experiment,
    mesh: jax.sharding.Mesh,
    batches: Callable[[int], dict[str, np.ndarray]] = batch,
    *,
    start: TrainState | None = None,
    steps: int = 5,
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Trains on a mesh, from fresh parameters or `start`: the state, and every step's metrics."""
    history = []
    with jax.set_mesh(mesh):
        if start is None:
            state = sharding.sharded(mesh, config.task, trainer_of(config).init, jax.random.key(0))
        else:
            where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
            state = jax.device_put(start, where)
        step = compile_step(trainer_of(config), mesh)
        for number in range(steps):
            placed = to_devices(batches(number), mesh)
            state, metrics = step(state, placed, jax.random.key(1))
            history.append({name: np.asarray(value) for name, value in metrics.items()})
        assert step._cache_size() == 1, "the step compiled more than once"
    return state, history


def largest_difference(one: Any, two: Any) -> float:
    """Largest absolute difference between two trees of arrays."""
    differences = jax.tree.map(
        lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))), one, two
    )
    return max(jax.tree.leaves(differences))
