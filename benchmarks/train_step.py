"""Benchmark of training steps of the ViT and the masked autoencoder against MONAI in torch.

    pip install -r requirements-peers.txt
    python benchmarks/train_step.py [--json] [--rounds 3] [--only vit]

vit: M3D's ViT-B on one volume of 32 x 256 x 256 voxels (2,048 tokens), with a squared error of all
tokens as the loss.
mae: E3D-GPT's masked autoencoder on one volume of 112 x 224 x 224 voxels, with 686 of 2,744 tokens
visible. The decoder has 8 layers, width 512 and 16 heads. The loss is that of the hidden patches.
Both sides have the same widths, depths, heads and tokens. Torch runs in float32 and in bfloat16.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import steps


def vit_ours() -> Any:
    """Returns an experiment with the ViT in a task made for this benchmark."""
    import jax.numpy as jnp

    from data_pipelines.pipeline import Data, Source
    from m3djax.contracts.task import Task, apply
    from m3djax.contracts.terms import Loss, Term
    from m3djax.experiment import Experiment
    from m3djax.models.encoder import Encoder
    from m3djax.models.mlp import Mlp
    from m3djax.models.multi_head import Attention
    from m3djax.models.positions import LearnedPositions
    from m3djax.models.transformer import Block, Transformer
    from m3djax.models.vit import ViT3D

    @dataclasses.dataclass(frozen=True)
    class Regression(Task):
        vision: Encoder

        def init(self, rng: Any, batch: Any) -> Any:
            images = jnp.zeros((1, *batch["image"].shape[1:]))
            return {"vision": self.vision.init(rng, images)["params"]}

        def loss(self, params: Any, batch: Any, keys: Any, *, train: bool) -> Loss:
            tokens = apply(self.vision, params["vision"], batch["image"]).tokens
            return Loss({"square": Term(jnp.mean((tokens - 1) ** 2), jnp.ones(()))})

    block = Block(Attention(12, qkv_bias=False), Mlp(3072))
    positions = LearnedPositions((8, 16, 16))
    vision = ViT3D((4, 16, 16), 768, Transformer(12, block), positions)
    data = Data((Source("nowhere"),), size=(32, 256, 256), batch_size=1)
    return Experiment("bench", Regression(vision), data)


def vit_theirs() -> Any:
    """Returns MONAI's ViT and its loss."""
    import torch
    from monai.networks.nets import ViT

    model = ViT(1, (32, 256, 256), (4, 16, 16), 768, 3072, 12, 12, proj_type="perceptron")
    images = torch.rand(1, 1, 32, 256, 256)
    return [model], lambda: ((model(images)[0] - 1) ** 2).mean()


def mae_ours() -> Any:
    """Returns E3D-GPT's config with the published heads, in float32, with batch 1 and no remat."""
    from configs.e3d_gpt import mae
    from data_pipelines.pipeline import Data, Source
    from m3djax.inputs.inputs import Inputs
    from m3djax.models.mae_decoder import MAEDecoder
    from m3djax.models.mlp import Mlp
    from m3djax.models.multi_head import Attention
    from m3djax.models.transformer import Block, Transformer

    config = mae.get_config()
    vision = config.task.vision.clone(
        dtype="float32", transformer=Transformer(12, Block(Attention(12), Mlp(3072)))
    )
    decoder = MAEDecoder(512, Transformer(8, Block(Attention(16), Mlp(2048))))
    task = dataclasses.replace(config.task, vision=vision, mae_decoder=decoder)
    data = Data((Source("nowhere"),), size=(112, 224, 224), batch_size=1)
    return dataclasses.replace(config, task=task, data=data, inputs=Inputs(), evaluators={})


def mae_theirs() -> Any:
    """Returns MONAI's masked autoencoder with the loss of the MAE, which MONAI does not have."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    patch = (8, 16, 16)
    model = MaskedAutoEncoderViT(
        1,
        (112, 224, 224),
        patch,
        hidden_size=768,
        mlp_dim=3072,
        num_layers=12,
        num_heads=12,
        masking_ratio=0.75,
        decoder_hidden_size=512,
        decoder_mlp_dim=2048,
        decoder_num_layers=8,
        decoder_num_heads=16,
        proj_type="perceptron",
        decoder_pos_embed_type="learnable",  # MONAI's sin-cos table does not support a width of 512
        qkv_bias=True,
    )
    images = torch.rand(1, 1, 112, 224, 224)
    target = images.reshape(1, 14, 8, 14, 16, 14, 16).permute(0, 1, 3, 5, 2, 4, 6)
    target = target.reshape(1, 2744, 2048)

    def loss() -> Any:
        prediction, mask = model(images)
        return (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    return [model], loss


CONTESTS = {
    "vit": steps.Contest("ViT-B, 1 x 32 x 256 x 256", vit_ours, vit_theirs),
    "mae": steps.Contest("MAE ViT-B, 1 x 112 x 224 x 224", mae_ours, mae_theirs),
}

if __name__ == "__main__":
    steps.main(__file__, __doc__.splitlines()[0], CONTESTS, "monai")
