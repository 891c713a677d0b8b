"""The quickstart's second stage: its encoder learns to match crops of a CT with captions.

    python run.py prepare sample_ct --out data/sample_ct
    python run.py train configs/quickstart.py
    python run.py train configs/quickstart_clip.py
    python run.py evaluate runs/quickstart_clip

The data are crops (24 x 144 x 144 mm) of the lower two thirds of a scan of patient B. Captions name
the organs, sides and levels in the crop's mask. A BERT of two layers is trained from random
weights. The evaluation uses crops of the upper third, whose voxels were not in this training, and
patient C. Expect R@1 of 5 to 8 % among 192 crops of that third (chance 1.3 %), and 3 to 12 % on C
(chance 1.5 %).
"""

from data_pipelines.captions import MaskCaption
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Part
from data_pipelines.text.tokens import ReportTokens
from m3djax.evaluate import Retrieval
from m3djax.experiment import Experiment
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
from m3djax.models.bert import Bert, PostNormBlock, TextEmbeddings
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW, Group
from m3djax.tasks.clip import Clip

LEARNED: Part = (0.0, 0.67)
HELD_BACK: Part = (0.67, 1.0)
# Labels that the masks of B and C both have.
LABELS = (
    "spleen|liver|stomach|pancreas|colon|adrenal_gland_right|aorta|inferior_vena_cava",
    "portal_vein_and_splenic_vein|spinal_cord|autochthon_.*|costal_cartilages",
    "vertebrae_T1[12]|rib_(left|right)_([789]|1[012])",
)
CAVEATS = (
    "train_organs: crops of the upper third of B's scan. Their voxels were held back from this "
    "training, captions and all; the masked autoencoding before it saw them, without words. They "
    "show the same person, and organs that reach into both parts.",
    "test_organs: crops of patient C, whom no training saw, and who is likely, but not provably, "
    "another person than B. The masks that the captions come from are another network's.",
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return Experiment(
        name="quickstart_clip",
        task=Clip(
            vision=ViT3D(
                patch_size=(4, 8, 8),
                hidden_size=192,
                transformer=Transformer(4, Block(Attention(6), Mlp(768))),
            ),
            text=Bert(
                TextEmbeddings(hidden_size=128, max_length=128),
                Transformer(2, PostNormBlock(Attention(4), Mlp(512))),
            ),
            vision_head=EmbeddingHead(128, "mean"),
            text_head=EmbeddingHead(128, "mean"),
        ),
        data=Data(
            (Source("data/sample_ct", "train_organs", part=LEARNED),),
            size=(8, 48, 48),
            batch_size=32,
            fields={
                "image": Image(),
                "text": Text(ReportTokens("all-MiniLM-L6-v2", 64), MaskCaption(LABELS)),
            },
        ),
        inputs=Inputs(ScaleIntensityRange(-1000, 1000), Augment(scale=0.1, shift=0.05)),
        optimizer=AdamW(learning_rate=1e-3),
        groups=(Group("vision/", lr_scale=0.5),),
        init_from={"vision": "runs/quickstart"},
        evaluators={
            "retrieval": Retrieval(
                splits=("train_organs", "test_organs"),
                parts={"train_organs": HELD_BACK},
                at=(1, 5, 10),
                pass_at=1,
                crops=192,
                caveats=CAVEATS,
            )
        },
        steps=180,
        log_every=10,
        save_every=180,
    )
