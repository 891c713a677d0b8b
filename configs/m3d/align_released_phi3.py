"""M3D-LaMed's first stage with Phi-3-mini, as published (script/pretrain_phi3.sh).

    python run.py convert M3D-CLIP weights/m3d_clip                      # GoodBaiBai88/M3D-CLIP
    C=configs/m3d/align_released_phi3.py                                 # Phi-3-mini-4k-instruct:
    python run.py convert PHI3 weights/phi3_released --layout llm --config $C
    python run.py train configs/m3d/align_released_phi3.py

The config is that of configs/m3d/align_released.py with another language model. Its table has
32,015 rows: the 32,011 tokens of Phi-3 and four new ones. Its projections are fused. The config has
not been trained here.
"""

import dataclasses

from configs.m3d import align_released
from m3djax import Experiment
from m3djax.models import CausalAttention, DecoderBlock, GatedMlp, Projector, Transformer

BLOCK = DecoderBlock(
    CausalAttention(32, 32, 96, fused=True, window=2047), GatedMlp(8192, fused=True), norm_eps=1e-5
)
PHI3 = align_released.LLM.clone(
    vocab_size=32015, hidden_size=3072, stages=(Transformer(32, BLOCK, remat="full"),)
)
TASK = dataclasses.replace(
    align_released.TASK, llm=PHI3, projector=Projector(3072), image_token_id=32011
)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return align_released.experiment("m3d_align_released_phi3", TASK, "weights/phi3_released")
