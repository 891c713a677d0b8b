"""A small 3D ViT, pretrained by masked autoencoding on one real CT in a few minutes on 2 cores.

    python run.py prepare sample_ct --out data/sample_ct
    python run.py train configs/quickstart.py
    python run.py evaluate runs/quickstart

The model trains on patient B and is evaluated on patients A and C. A is not in the training data. C
is probably a third person, but this is not proven. Expect three minutes of training
and an error of about 347 HU (root mean square) on hidden patches of A. As a baseline, the mean of
the visible voxels has an error of 423 HU.
"""

from data_pipelines.pipeline import Data, Source
from m3djax.evaluate import OrganProbe, Reconstruction
from m3djax.experiment import Experiment
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW
from m3djax.tasks.mae import MAE

CAVEAT = (
    "The probe learns from patient B and is asked about patient C. That these are two people is "
    "likely but not proven. C has contrast agent and B has none. The masks are another network's."
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return Experiment(
        name="quickstart",
        task=MAE(
            vision=ViT3D(
                patch_size=(4, 8, 8),
                hidden_size=192,
                transformer=Transformer(4, Block(Attention(6), Mlp(768))),
            ),
            mae_decoder=MAEDecoder(128, Transformer(2, Block(Attention(4), Mlp(512)))),
        ),
        data=Data((Source("data/sample_ct"),), size=(16, 32, 32), batch_size=32),
        inputs=Inputs(ScaleIntensityRange(-1000, 1000), Augment(flip=(0.5, 0.5, 0.5))),
        optimizer=AdamW(learning_rate=2e-3),
        evaluators={
            "reconstruction": Reconstruction(studies=("A", "C")),
            "probe": OrganProbe(
                train_studies=("B-top",),
                test_studies=("C",),
                groups=(("vertebrae_.*", "vertebrae"), ("autochthon_.*", "back muscles")),
                caveats=(CAVEAT,),
            ),
        },
        steps=400,
        log_every=20,
        save_every=500,
    )
