"""The quickstart's third stage: its encoder is joined to a language model that answers questions.

    python run.py convert SmolLM2-135M-Instruct runs/smollm2 --config configs/quickstart_ask.py
    python run.py train configs/quickstart_ask.py
    python run.py evaluate runs/quickstart_ask
"""

from configs.llm.smollm2 import IMAGE_TOKEN, NAME, SMOLLM2
from configs.quickstart_clip import LABELS, LEARNED
from data_pipelines.captions import MaskCaption
from data_pipelines.instructions import Describe, Mixture
from data_pipelines.pipeline import Data, Source
from data_pipelines.questions import MaskQuestions
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text_fields import Text
from m3djax.augment import Augment, Intensity, Window
from m3djax.experiment import Experiment
from m3djax.lora import LoRA
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Attention, Block, Mlp, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW, Group
from m3djax.tasks.vision_language import VisionLanguage


FEW = ('spleen|liver|stomach|pancreas|colon|aorta|spinal_cord|costal_cartilages',)


def get_config() -> Experiment:
    """See the module's docstring."""
    return Experiment(
        name="quickstart_ask",
        task=LoRA(
            VisionLanguage(
                vision=ViT3D(
                    patch_size=(4, 8, 8),
                    hidden_size=192,
                    transformer=Transformer(4, Block(Attention(6), Mlp(768))),
                ),
                projector=Projector(576, "concat", (2, 2, 2)),
                llm=SMOLLM2,
                image_token=IMAGE_TOKEN,
                counted=50,
                intensity=Intensity(Window(-1000, 1000), Augment(scale=0.1, shift=0.05)),
            ),
            dropout=0.0,
            targets=r"llm/.*block/attention/\w+",
        ),
        data=Data(
            (Source("data/sample_ct", "train_organs", part=LEARNED),),
            size=(8, 48, 48),
            batch_size=8,
            text=Text(
                DialogueTokens(NAME, image_tokens=9, length=72, vocab_size=IMAGE_TOKEN + 4),
                Mixture({'tell': Describe(MaskCaption(FEW)), 'ask': MaskQuestions(FEW, yes_no=1, choice=0, rec=0, reg=0)}),
            ),
        ),
        trainable="vision/.*|projector/.*|.*lora_[ab]",
        optimizer=AdamW(learning_rate=1e-3, warmup=0.05),
        groups=(Group("vision/", lr_scale=0.3),),
        init_from={"vision": "runs/quickstart_clip", "llm": "runs/smollm2"},
        steps=100,
        log_every=10,
        save_every=100,
    )
