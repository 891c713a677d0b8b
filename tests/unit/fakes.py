"""A tiny masked autoencoder and prepared datasets that live in memory."""

import jax
import numpy as np

from data_pipelines.datasets.records import encode
from data_pipelines.volume import Volume
from m3djax.augment import Intensity, Window
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.transformer import Attention, Block, Mlp, Transformer
from m3djax.models.vit import ViT3D
from m3djax.tasks.mae import MAE

SIZE = (4, 16, 16)
PATCH = (2, 4, 4)
AFFINE = np.array([[0, 0, -3.0, 0], [0, -3.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])


def tiny_mae(cls=MAE, **fields):
    blocks = Transformer(1, Block(Attention(2), Mlp(48)), unroll=1)
    return cls(
        vision=ViT3D(patch_size=PATCH, hidden_size=24, transformer=blocks),
        mae_decoder=MAEDecoder(24, blocks),
        intensity=Intensity(Window(-1000, 1000)),
        **fields,
    )


def tiny_params(task):
    return task.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((1, *SIZE, 1), np.int16)})


def scan(shape, seed=0):
    """Smooth shapes of -1000 to 1000 HU with some noise."""
    axes = np.meshgrid(*(np.linspace(0, 3, side) for side in shape), indexing="ij")
    waves = sum(np.sin(axis + seed + number) for number, axis in enumerate(axes))
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.rint(300 * waves + 30 * noise).astype(np.int16)


def record(image, study="S", mask=None, annotated=None):
    volume = Volume(image, "HU", AFFINE, mask=mask, patient_id=f"P-{study}", study_id=study)
    return encode(volume, annotated=annotated)


class Records(list):
    """What `open_dataset` returns."""

    def __init__(self, records, mask_names=None):
        super().__init__(records)
        self.mask_names = mask_names or {}
