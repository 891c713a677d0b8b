"""E3D-GPT's vision encoder: a ViT-B, pretrained by 3D masked autoencoding (arXiv 2410.14200).

    python run.py prepare folder --source SCANS --units HU --recipe e3d --out data/ct
    python run.py train configs/e3d_gpt/mae.py

Crops have 112 x 224 x 224 voxels of 3 x 1.5 x 1.5 mm. Patches of 8 x 16 x 16 voxels give 2,744
tokens, and 686 of them are visible.

As published: ViT-B, 75 % hidden patches, plain pixel loss, HU clipped to +-1000 and standardised.
Corrected: sin-cos positions by patch index in token order (`sincos_3d` describes the published
ones), decoder heads of 128 numbers instead of 32, which fill a matrix unit, and no class token. The
optimizer settings are those of the MAE paper, because E3D-GPT's are not public.

Planned, not run (docs/plans): a batch of 256 on v5e:4x4 takes 8.5 of 15.75 GiB per chip, and a
batch of 4096 (`--data.batch-size 4096`) on v5e:16x16 takes as much. The chips exchange only
gradients. Padding to the tiles of the matrix unit limits the speed to 75 % of the peak.
"""

from data_pipelines import Crop, Data, Source
from m3djax import AdamW, Augment, Experiment, Inputs, ScaleIntensityRange
from m3djax.evaluate import Reconstruction
from m3djax.models import Attention, Block, LearnedPositions, MAEDecoder, Mlp, Transformer, ViT3D
from m3djax.tasks import MAE

BASE = Transformer(12, Block(Attention(12), Mlp(3072)), remat="dots")


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return experiment("e3d_gpt_mae", 768, BASE)


def experiment(name: str, hidden_size: int, encoder: Transformer) -> Experiment:
    """Returns the same recipe for an encoder of any size; the decoder does not change."""
    return Experiment(
        name=name,
        task=MAE(
            vision=ViT3D(
                patch_size=(8, 16, 16),
                hidden_size=hidden_size,
                transformer=encoder,
                positions=LearnedPositions((14, 14, 14), start="sincos"),
                dtype="bfloat16",
            ),
            mae_decoder=MAEDecoder(
                512, Transformer(8, Block(Attention(4), Mlp(2048)), remat="dots")
            ),
        ),
        data=Data(
            sources=(Source("data/ct"),),
            size=(112, 224, 224),
            batch_size=256,
            # The paper says only "three crops and resolutions, 1:1:2"; the zooms are ours.
            crops=(Crop(0.5, 1.0), Crop(0.75, 1.0), Crop(1.0, 2.0)),
            workers=8,
        ),
        inputs=Inputs(
            ScaleIntensityRange(-1000, 1000, -1, 1, mean=0.4978, std=0.2449),
            Augment(flip=(0.5, 0.5, 0.5)),
        ),
        evaluators={"reconstruction": Reconstruction(draws=1)},
        optimizer=AdamW(learning_rate=1.5e-4, b2=0.95, weight_decay=0.05, warmup=0.05),
        steps=100_000,
        log_every=50,
        save_every=1000,
    )
