"""M3D-CLIP as published (BAAI-DCAI/M3D, script/train_clip.sh): ViT-B and BERT-base, 32x256x256.

    python run.py prepare m3d_cap --source M3D_Cap --recipe m3d_cap
    python run.py convert BERT weights/bert_base --layout bert --prefix bert.  # bert-base-uncased
    python run.py train configs/m3d/clip_released.py
    python run.py evaluate runs/m3d_clip_released               # the four released pools
    python run.py convert M3D-CLIP weights/m3d_clip             # GoodBaiBai88/M3D-CLIP, its folder
    python run.py convert pretrained_ViT.bin weights/m3d_vit    # the vision tower alone
    python run.py evaluate weights/m3d_clip                     # instead of training

"As published" means:
- Both towers use class tokens.
- The factor on the cosines is a plain number.
- Texts have up to 512 tokens.
- The splits are the released ones, with their leaks.
- The text tower starts from BERT's weights.
- The batch is 256: 32 on each of the original's 8 GPUs, here 16 on each chip of a v5e:4x4.

`remat` is ours: it saves memory and changes numbers only by rounding. Put the tokenizer's vocab.txt
(bert-base-uncased) into weights/bert. Expect image_to_text and text_to_image, the share of right
pairs within a batch, to start near 1/256. The config has not been trained here, and no figure is
claimed.
"""

from data_pipelines import Data, Image, ReportTokens, Source, Text
from m3djax import AdamW, Augment, Experiment, Inputs, ScaleIntensityRange
from m3djax.evaluate import Retrieval
from m3djax.losses import InfoNCE
from m3djax.models import (
    Attention,
    Bert,
    Block,
    EmbeddingHead,
    LearnedPositions,
    Mlp,
    PostNormBlock,
    Transformer,
    ViT3D,
)
from m3djax.tasks import Clip


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    block = Block(Attention(12, qkv_bias=False), Mlp(3072), norm_eps=1e-5)
    words = PostNormBlock(Attention(12), Mlp(3072))
    return Experiment(
        name="m3d_clip_released",
        task=Clip(
            vision=ViT3D(
                patch_size=(4, 16, 16),
                hidden_size=768,
                transformer=Transformer(12, block, remat="dots"),
                positions=LearnedPositions((8, 16, 16)),
                cls_token=True,
                norm_eps=1e-5,
                dtype="bfloat16",
            ),
            # The published pooler is not used; it is kept so that exports are whole.
            text=Bert(
                transformer=Transformer(12, words, remat="dots"), pooler=True, dtype="bfloat16"
            ),
            vision_head=EmbeddingHead(768, "cls"),
            text_head=EmbeddingHead(768, "cls"),
            objective=InfoNCE(released=True),
        ),
        data=Data(
            (Source("data/m3d_cap", "released_train"),),
            size=(32, 256, 256),
            batch_size=256,
            units="unit",
            fields={
                "image": Image(),
                "text": Text(ReportTokens("weights/bert", length=512, shorten="released")),
            },
            workers=16,
        ),
        inputs=Inputs(
            ScaleIntensityRange(0, 1),
            Augment(flip=(0.1, 0.1, 0.1), rotate90=0.5, scale=0.1, shift=0.1),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup=0.03, b2=0.999, weight_decay=0.1, clip_norm=1.0),
        trainable=r"(?!text/pooler/)",
        init_from={"text": "weights/bert_base"},
        evaluators={
            "retrieval": Retrieval(splits=("test100", "test500", "test1k", "released_test"))
        },
        steps=46_900,  # 100 epochs of 120,092 volumes
        log_every=50,
        save_every=1000,
        keep=1,
    )
