"""The quickstart's third stage: its encoder and a language model answer questions about a CT.

    python run.py convert SmolLM2-135M-Instruct runs/smollm2 --config configs/quickstart_ask.py
    python run.py train configs/quickstart_text_only.py
    python run.py train configs/quickstart_ask.py
    python run.py evaluate runs/quickstart_ask

The data are crops of the lower two thirds of a scan of patient B, as in configs/quickstart_clip.py.
Questions and answers come from the crops' masks: which organs are there, whether an organ is there,
and where it is. The encoder, the projector and adapters in the attention of the language model
(SmolLM2, 135 M) are trained. The evaluation uses patient C. It compares the model with itself
before training, and with a language model that had the same training without volumes.

These choices make the answers depend on the volume after so few steps:
- Half of the samples ask for the organs that are there; the answer has one wording and order. (With
  yes-no questions alone, the accuracy was that of chance.)
- The projector has six times the learning rate of the adapters.
- The encoder has 0.3 times that rate. (At the full rate, the answer is always yes.)
- The batch is only 8.
- Boxes have 13 tokens, none of them new, and are in a sixth of the samples. (With more boxes, fewer
  of the other answers were right.)

The result depends on the seed, because there are few steps: with `seed=1`, nearly all answers are
no. The boxes have the right form, but hardly depend on the volume yet.
"""

import dataclasses

from configs.quickstart_clip import LEARNED
from data_pipelines.captions import MaskCaption
from data_pipelines.captions.instructions import Describe, Mixture
from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.dialogue import DialogueTokens
from m3djax.adapters import LoRA
from m3djax.evaluate import Answers, Beside
from m3djax.experiment import Experiment
from m3djax.generate.sampling import Sampling
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock
from m3djax.models.mlp import GatedMlp, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.projectors import Projector
from m3djax.models.rotary import Rotary
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW, Group
from m3djax.tasks.vision_language import VisionLanguage

NAME = "SmolLM2-135M-Instruct"
WEIGHTS = "runs/smollm2"
IMAGE_TOKEN = 49152  # the first new token
BLOCK = DecoderBlock(CausalAttention(9, 3, 64, norm_eps=1e-5), GatedMlp(1536), 1e-5)
SMOLLM2 = Decoder(
    vocab_size=IMAGE_TOKEN + 4,
    hidden_size=576,
    stages=(Transformer(30, BLOCK),),
    rotary=Rotary(100000.0),
    tie_word_embeddings=True,
    norm_eps=1e-5,
    max_position_embeddings=8192,
)
TOKENS = DialogueTokens(WEIGHTS, image_tokens=9, length=42, vocab_size=SMOLLM2.vocab_size)
ANSWER_LENGTH = 25  # tokens of the longest answer, with its end token
ADAPTERS = r"llm/.*block/attention/\w+"
LABELS = ("spleen|liver|stomach|pancreas|colon|aorta",)
ASK = MaskQuestions(LABELS, yes_no=1, choice=0, rec=1, reg=0, short=True)
QUESTIONS = Mixture(
    {
        "tell": Describe(MaskCaption(LABELS), varied=False),
        "ask": dataclasses.replace(ASK, rec=0),
        "find": dataclasses.replace(ASK, yes_no=0),
    },
    {"tell": 3.0, "ask": 2.0, "find": 1.0},
)
DATA = Data(
    (Source("data/sample_ct", "train_organs", part=LEARNED),),
    size=(8, 48, 48),
    batch_size=8,
    fields={"image": Image(), "text": Text(TOKENS, QUESTIONS)},
)
CAVEAT = (
    "Patient C, whom no training saw, is likely, but not provably, another person than B. The "
    "masks that the answers come from are another network's."
)
ANSWERS = Answers(
    split="test_organs",
    crops=32,
    per_crop=2,
    data=Data(DATA.sources, DATA.size, fields={"image": Image(), "text": Text(TOKENS, ASK)}),
    beside={
        "text only": Beside("runs/quickstart_text_only"),
        "before training": Beside(untrained=True),
    },
    sampling=Sampling(16),
    questions=32,
    caveats=(CAVEAT,),
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return Experiment(
        name="quickstart_ask",
        task=VisionLanguage(
            vision=ViT3D(
                patch_size=(4, 8, 8),
                hidden_size=192,
                transformer=Transformer(4, Block(Attention(6), Mlp(768))),
            ),
            projector=Projector(SMOLLM2.hidden_size, "concat", (2, 2, 2)),
            llm=SMOLLM2,
            image_token_id=IMAGE_TOKEN,
            counted=ANSWER_LENGTH,
        ),
        adapters=LoRA(dropout=0.0, targets=ADAPTERS),
        data=DATA,
        inputs=Inputs(ScaleIntensityRange(-1000, 1000), Augment(scale=0.1, shift=0.05)),
        trainable="vision/.*|projector/.*|.*lora_[ab]",
        optimizer=AdamW(learning_rate=2e-3, schedule="linear"),
        groups=(Group("vision/", lr_scale=0.3), Group("projector/", lr_scale=6)),
        init_from={"vision": "runs/quickstart_clip", "llm": WEIGHTS},
        evaluators={"answers": ANSWERS},
        steps=80,
        log_every=10,
        save_every=80,
    )
