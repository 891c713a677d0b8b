"""M3D-CLIP, corrected and large: ViT-B and BERT-base on a global batch of 4096 (v5e:16x16).

    python run.py prepare m3d_cap --source M3D_Cap
    python run.py convert BERT weights/bert_base --layout bert --prefix bert.  # bert-base-uncased
    python run.py train configs/m3d/clip.py
    python run.py evaluate runs/m3d_clip

Differences from configs/m3d/clip_released.py:
- Splits are by case.
- Volumes are scaled by percentiles, with a low-pass filter.
- There is no class token. The mean of all patches replaces it and keeps 2,048 tokens, a multiple of
  every tile.
- Texts have 128 tokens, with their sentences in order.
- Equal captions are equally right.
- Volumes are flipped and turned only if the text stays true.
- The trained scale is the logarithm of the factor on the cosines, and the factor is bounded.
- Each pair is compared with sixteen times as many wrong ones.
- The learning rate is four times the published one: it grows with the square root of the batch.

The config is planned for 256 chips of v5e, 16 pairs per chip (`python run.py plan
configs/m3d/clip.py --topology v5e:16x16`). It has not been trained here, and no figure is claimed.
For fewer chips set `--data.batch-size`. Put the tokenizer's vocab.txt into weights/bert. To start
the towers from other weights, change one line, such as
init_from={"vision": "runs/MAE_RUN", "text": "weights/bert_base"}.
"""

from data_pipelines import Data, Image, ReportTokens, Source, Text
from m3djax import AdamW, Augment, Experiment, Inputs, ScaleIntensityRange
from m3djax.evaluate import Retrieval
from m3djax.models import (
    Attention,
    Bert,
    Block,
    EmbeddingHead,
    Mlp,
    PostNormBlock,
    Transformer,
    ViT3D,
)
from m3djax.tasks import Clip


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    words = PostNormBlock(Attention(12), Mlp(3072))
    return Experiment(
        name="m3d_clip",
        task=Clip(
            vision=ViT3D(
                patch_size=(4, 16, 16),
                hidden_size=768,
                transformer=Transformer(12, Block(Attention(12), Mlp(3072)), remat="dots"),
                dtype="bfloat16",
            ),
            text=Bert(transformer=Transformer(12, words, remat="dots"), dtype="bfloat16"),
            vision_head=EmbeddingHead(768, "mean"),
            text_head=EmbeddingHead(768, "cls"),
        ),
        data=Data(
            (Source("data/m3d_cap"),),
            size=(32, 256, 256),
            batch_size=4096,
            units="unit",
            fields={"image": Image(), "text": Text(ReportTokens("weights/bert", length=128))},
            workers=8,
        ),
        inputs=Inputs(
            ScaleIntensityRange(0, 1),
            Augment(flip=(0.1, 0.1, 0.1), rotate90=0.5, scale=0.1, shift=0.1),
        ),
        optimizer=AdamW(learning_rate=4e-4, warmup=0.1, b2=0.98, weight_decay=0.1),
        init_from={"text": "weights/bert_base"},
        evaluators={"retrieval": Retrieval(pools=(100, 500, 1000, 2000))},
        steps=2_930,  # 100 times 120,092 volumes, as published
        log_every=10,
        save_every=250,
    )
