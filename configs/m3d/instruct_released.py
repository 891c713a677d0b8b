"""M3D-LaMed's second stage as published (script/finetune_lora_llama2.sh), without masks.

    python run.py train configs/m3d/align_released.py                    # the first stage
    python run.py train configs/m3d/instruct_released.py
    python run.py convert M3D-LaMed-Llama-2-7B weights/m3d_lamed_llama2 \\
        --config configs/m3d/instruct_released.py

"As published" means: of the first stage only the projector is taken. The input embedding that it
trained is lost, because the original assigns it to a name that nothing reads; so it and all else
start from the base models. Adapters beside the language model's linear layers; encoder, projector,
input embedding and output layer are trained whole. The batch is 64, 8 on each of the original's 8
GPUs. The published weights are this task's with merged adapters; what belongs to the mask decoder
is put aside on import. It has not been trained here.
"""

import dataclasses

from configs.m3d import align, align_released, instruct
from data_pipelines.pipeline import Source
from m3djax.experiment import Experiment


def get_config() -> Experiment:
    """See the module's docstring."""
    task, llm = align_released.TASK, "weights/llama2_7b_released"
    data = align.data(task, 64, size=(32, 256, 256), llm=llm)
    data = dataclasses.replace(data, sources=(Source("data/m3d_cap", "released_train"),))
    found = instruct.experiment("m3d_instruct_released", task, data, "runs/m3d_align_released")
    start = {"vision": "weights/m3d_clip", "projector": "runs/m3d_align_released", "llm": llm}
    return dataclasses.replace(found, init_from=start, steps=71_000)
