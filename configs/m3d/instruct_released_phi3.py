"""M3D-LaMed's second stage with Phi-3-mini, as published (script/finetune_lora_phi3.sh).

    python run.py convert M3D-LaMed-Phi-3-4B weights/m3d_lamed_phi3 \\
        --config configs/m3d/instruct_released_phi3.py

As configs/m3d/instruct_released.py, but for the language model: 32,015 rows, which are the 32,011
tokens of Phi-3 and four new ones, and fused projections. Five epochs. It has not been trained here;
the first stage is align_released.py's recipe with this model.
"""

import dataclasses

from configs.m3d import align, align_released, instruct
from data_pipelines.pipeline import Source
from m3djax.experiment import Experiment
from m3djax.models.llm.decoder import CausalAttention, DecoderBlock, GatedMlp
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Transformer

BLOCK = DecoderBlock(
    CausalAttention(32, 32, 96, fused=True, window=2047), GatedMlp(8192, fused=True), norm_eps=1e-5
)
PHI3 = align_released.LLM.clone(
    vocab_size=32015, hidden_size=3072, stages=(Transformer(32, BLOCK, remat="full"),)
)
TASK = dataclasses.replace(
    align_released.TASK, llm=PHI3, projector=Projector(3072), image_token=32011
)


def get_config() -> Experiment:
    """See the module's docstring."""
    data = align.data(TASK, 64, size=(32, 256, 256), llm="weights/phi3_released")
    data = dataclasses.replace(data, sources=(Source("data/m3d_cap", "released_train"),))
    start = "runs/m3d_align_released_phi3"
    found = instruct.experiment("m3d_instruct_released_phi3", TASK, data, start)
    parts = {"vision": "weights/m3d_clip", "projector": start, "llm": "weights/phi3_released"}
    return dataclasses.replace(found, init_from=parts, steps=89_000)
