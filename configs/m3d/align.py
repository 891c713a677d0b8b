"""M3D-LaMed's first stage, corrected: volumes become words of Llama-2-7B (arXiv 2404.00578).

    T="--table M3D_VQA --out data/m3d_cap"                               # reports and questions
    python run.py prepare m3d_vqa --source M3D_Cap $T
    python run.py convert LLAMA2 weights/llama2_7b --layout llm --config configs/m3d/align.py
    python run.py train configs/m3d/clip.py                              # or another encoder
    python run.py train configs/m3d/align.py
    python run.py train configs/m3d/instruct.py                          # the second stage

As published: ViT-B on 32 x 256 x 256, spatial pooling to 256 tokens, projector and the whole input
embedding trained for three epochs on reports and questions, all else frozen. Corrected, against
configs/m3d/align_released.py: what is learned here does reach the second stage, embedding included;
placeholders are found by their id; no class token; flips and turns only where the text stays true;
splits by case; one separator for all questions; tables padded to a multiple of 128 rows, so that
they can be split. The batch and its learning rate are the published ones.

It has not been trained here: no figure is claimed. Expect `loss` to begin near 10 and to fall below
3 when the language model begins to read the volume's tokens.
"""

from data_pipelines.captions import CaptionSource
from data_pipelines.captions.instructions import Describe, Mixture, Stored
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Crop, Data, Source
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.volume import Units
from m3djax.augment import Augment
from m3djax.experiment import Experiment
from m3djax.inputs import Inputs, ScaleIntensityRange
from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock
from m3djax.models.mlp import GatedMlp, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.patches import Size
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from m3djax.optim import AdamW
from m3djax.tasks.vision_language import VisionLanguage

BLOCK = DecoderBlock(CausalAttention(32, 32, 128), GatedMlp(11008), norm_eps=1e-5)
# 32,000 words, <im_patch>, <bx_start>, <bx_end> and [SEG]; the other rows are no tokens.
LLAMA2_7B = Decoder(
    vocab_size=32128,
    num_tokens=32004,
    hidden_size=4096,
    stages=(Transformer(32, BLOCK, remat="full"),),
    norm_eps=1e-5,
    context=4096,
    dtype="bfloat16",
)
# As configs/m3d/clip.py leaves it.
VISION = ViT3D(
    patch_size=(4, 16, 16),
    hidden_size=768,
    transformer=Transformer(12, Block(Attention(12), Mlp(3072)), remat="full"),
    dtype="bfloat16",
)
INPUTS = Inputs(
    ScaleIntensityRange(0, 1),
    Augment(flip=(0.1, 0.1, 0.1), rotate90=0.5, scale=0.1, shift=0.1),
)
TASK = VisionLanguage(VISION, Projector(4096), LLAMA2_7B, image_token=32000)


def texts(split: str = "") -> Mixture:
    """In the proportions of M3D-Data: 120,092 reports, 509,755 questions, each put in two ways.

    Args:
      split: whose questions alone are asked, such as "vqa_train"; see `Stored`.
    """
    return Mixture(
        {"reports": Describe(), "questions": Stored(yes_no=0, split=split)},
        {"reports": 0.12, "questions": 1.02},
    )


def data(
    task: VisionLanguage,
    batch_size: int,
    *,
    size: Size,
    crops: tuple[Crop, ...] = (Crop(),),
    units: Units = "unit",
    llm: str = "weights/llama2_7b",
    asked: CaptionSource | None = None,
    joined: tuple[str, ...] = (),
) -> Data:
    """Reports and questions, or what is `asked`; see `VisionLanguage` for the batch."""
    tokens = DialogueTokens(
        llm,
        image_tokens=task.tokens_per_volume(size),
        length=512,
        vocab_size=task.llm.vocab_size,
        joined=joined,
    )
    return Data(
        (Source("data/m3d_cap"),),
        size=size,
        batch_size=batch_size,
        units=units,
        crops=crops,
        fields={"image": Image(), "text": Text(tokens, asked or texts())},
        workers=8,
    )


def get_config() -> Experiment:
    """See the module's docstring."""
    return experiment("m3d_align", TASK, data(TASK, 128, size=(32, 256, 256)), "runs/m3d_clip")


def experiment(
    name: str, task: VisionLanguage, data: Data, vision: str, inputs: Inputs = INPUTS
) -> Experiment:
    """Returns the same recipe for another encoder, its crops and its projector.

    Args:
      name: of the run.
      task: the model.
      data: its batches.
      vision: the run that the encoder is taken from.
      inputs: as in that run.
    """
    return Experiment(
        name=name,
        task=task,
        data=data,
        inputs=inputs,
        trainable="projector/|llm/token_embed/",
        init_from={"vision": vision, "llm": "weights/llama2_7b"},
        optimizer=AdamW(learning_rate=1e-4, warmup=0.03, b2=0.999, weight_decay=0.0),
        steps=26_600,  # three epochs of 120,092 reports and twice 509,755 questions
        mesh=(1, -1, 1),
        log_every=10,
        save_every=500,
    )
