"""M3D-LaMed's first stage, corrected: alignment with Llama-2-7B (arXiv 2404.00578).

    T="--table M3D_VQA --out data/m3d_cap"                               # reports and questions
    python run.py prepare m3d_vqa --source M3D_Cap $T
    python run.py convert LLAMA2 weights/llama2_7b --layout llm --config configs/m3d/align.py
    python run.py train configs/m3d/clip.py                              # or another encoder
    python run.py train configs/m3d/align.py
    python run.py train configs/m3d/instruct.py                          # the second stage

As published: a ViT-B on 32 x 256 x 256 voxels and spatial pooling to 256 tokens. The projector and
the whole input embedding are trained for three epochs on reports and questions; everything else is
frozen. Batch and learning rate are the published ones.

Corrected, compared with configs/m3d/align_released.py:
- All trained parameters reach the second stage, including the input embedding.
- Placeholders are found by their id.
- There is no class token.
- Volumes are flipped and turned only if the text stays true.
- Splits are by case.
- One separator stands before all questions.
- Tables are padded to a multiple of 128 rows, so that they can be split over devices.

The config has not been trained here, and no figure is claimed. Expect `loss` to start near 10, and
to fall below 3 when the language model starts to use the volume's tokens.
"""

from data_pipelines import (
    CaptionSource,
    Crop,
    Data,
    Describe,
    DialogueTokens,
    Image,
    Mixture,
    Source,
    Stored,
    Text,
)
from data_pipelines.volume import Units
from m3djax import AdamW, Augment, Experiment, Inputs, ScaleIntensityRange
from m3djax.models import (
    Attention,
    Block,
    CausalAttention,
    Decoder,
    DecoderBlock,
    GatedMlp,
    Mlp,
    Projector,
    Transformer,
    ViT3D,
)
from m3djax.models.patches import Size
from m3djax.tasks import VisionLanguage

BLOCK = DecoderBlock(CausalAttention(32, 32, 128), GatedMlp(11008), norm_eps=1e-5)
# 32,000 words, <im_patch>, <bx_start>, <bx_end> and [SEG]; the other rows are padding.
LLAMA2_7B = Decoder(
    vocab_size=32128,
    num_tokens=32004,
    hidden_size=4096,
    stages=(Transformer(32, BLOCK, remat="full"),),
    norm_eps=1e-5,
    max_position_embeddings=4096,
    dtype="bfloat16",
)
# The encoder of configs/m3d/clip.py.
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
TASK = VisionLanguage(VISION, Projector(4096), LLAMA2_7B, image_token_id=32000)


def texts(split: str = "") -> Mixture:
    """Returns reports and questions in the proportions of M3D-Data.

    These are 120,092 reports and 509,755 questions, each question in two forms.

    Args:
      split: if given, only questions of this split are asked, such as "vqa_train"; see `Stored`.
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
    """Returns data with reports and questions, or with `asked` instead.

    `VisionLanguage` describes the batch.

    Args:
      task: the model, which sets the number of placeholders and of rows in the table.
      batch_size: samples in a batch.
      size: voxels of a crop along (D, H, W).
      crops: recipes of crops.
      units: units of the volumes.
      llm: folder with the tokenizer.
      asked: source of questions and answers; None: `texts()`.
      joined: kinds of questions without a separator; see `DialogueTokens`.
    """
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
    """Returns the config that the module's docstring describes."""
    return experiment("m3d_align", TASK, data(TASK, 128, size=(32, 256, 256)), "runs/m3d_clip")


def experiment(
    name: str, task: VisionLanguage, data: Data, vision: str, inputs: Inputs = INPUTS
) -> Experiment:
    """Returns the same recipe for another encoder, its crops and its projector.

    Args:
      name: name of the run.
      task: the model.
      data: the training data.
      vision: the run or folder with the encoder's weights.
      inputs: windows and augmentation of that run.
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
