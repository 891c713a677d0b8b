"""M3D-CLIP as published (BAAI-DCAI/M3D, script/train_clip.sh): ViT-B and BERT-base, 32x256x256.

    python run.py convert M3D-CLIP/model.safetensors weights/m3d_clip     # GoodBaiBai88/M3D-CLIP
    python run.py convert pretrained_ViT.bin weights/m3d_vit              # its vision tower alone
    python run.py evaluate weights/m3d_clip                               # with data/m3d_cap there

"As published" means: class tokens of both towers, a factor on the cosines that is a plain number,
texts of up to 512 tokens, a batch of 256 (32 on each of 8 devices), volumes of 0..1.
"""

from data_pipelines.pipeline import Data, Source
from m3djax.augment import Augment, Intensity, Window
from m3djax.experiment import Experiment
from m3djax.losses.contrastive import InfoNCE
from m3djax.models.bert import Bert
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.models.positions import LearnedPositions
from m3djax.models.transformer import Attention, Block, Mlp, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW
from m3djax.tasks.clip import Clip


def get_config() -> Experiment:
    """See the module's docstring."""
    block = Block(Attention(12, qkv_bias=False), Mlp(3072), norm_eps=1e-5)
    return Experiment(
        name="m3d_clip_released",
        task=Clip(
            vision=ViT3D(
                patch_size=(4, 16, 16),
                hidden_size=768,
                transformer=Transformer(12, block),
                positions=LearnedPositions((8, 16, 16)),
                cls_token=True,
                norm_eps=1e-5,
            ),
            text=Bert(pooler=True),  # published and not used; kept, so that exports are whole
            vision_head=EmbeddingHead(768, "cls"),
            text_head=EmbeddingHead(768, "cls"),
            objective=InfoNCE(released=True),
            intensity=Intensity(
                Window(0, 1),
                Augment(flip=(0.1, 0.1, 0.1), rotate90=0.5, scale=0.1, shift=0.1),
            ),
        ),
        data=Data((Source("data/m3d_cap"),), size=(32, 256, 256), batch_size=256, units="unit"),
        optimizer=AdamW(learning_rate=1e-4, warmup=0.03, b2=0.999, weight_decay=0.1, clip_norm=1.0),
        trainable=r"(?!text/pooler/)",
        steps=46_900,  # 100 epochs of 120,092 volumes
        log_every=50,
        save_every=1000,
        keep=1,
    )
