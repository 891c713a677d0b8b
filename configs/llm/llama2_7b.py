"""Llama-2-7B with all weights trained on reports (v5e:4x4).

    python run.py plan configs/llm/llama2_7b.py --topology v5e:4x4

The shapes are those of M3D-LaMed's language model (arXiv 2404.00578). The recipe is ours: reports
of M3D-Cap as plain text, 768 tokens each. Weights and moments are split over 16 chips, and weights
are gathered layer by layer. The backward pass computes each block again. A batch has only texts, so
no volume is decoded. Put Llama's tokenizer.json into weights/llama2_7b.

The config is planned (docs/plans) with a batch of 128, 8 texts per chip. It has not been trained
here, and no figure is claimed.
"""

from data_pipelines import Data, Passage, Source, Text
from m3djax import AdamW, Experiment
from m3djax.models import CausalAttention, Decoder, DecoderBlock, GatedMlp, Transformer
from m3djax.tasks import Language

BLOCK = DecoderBlock(CausalAttention(32, 32, 128), GatedMlp(11008), norm_eps=1e-5)
LLAMA2_7B = Decoder(
    vocab_size=32000,
    hidden_size=4096,
    stages=(Transformer(32, BLOCK, remat="full"),),
    norm_eps=1e-5,
    max_position_embeddings=4096,
    dtype="bfloat16",
)
REPORTS = Data(
    (Source("data/m3d_cap"),),
    batch_size=128,
    units="unit",
    fields={"text": Text(Passage("weights/llama2_7b", length=768))},
    workers=8,
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return Experiment(
        name="llama2_7b",
        task=Language(LLAMA2_7B),
        data=REPORTS,
        optimizer=AdamW(learning_rate=2e-5, warmup=0.03, weight_decay=0.0),
        steps=938,  # once through 120,092 reports
        mesh=(1, 16, 1),
    )
