"""M3D-LaMed's first stage as published (BAAI-DCAI/M3D, script/pretrain_llama2.sh): Llama-2-7B.

    python run.py convert M3D-CLIP weights/m3d_clip                      # GoodBaiBai88/M3D-CLIP
    C=configs/m3d/align_released.py                                      # Llama-2-7b-chat:
    python run.py convert LLAMA2 weights/llama2_7b_released --layout llm --config $C
    python run.py train configs/m3d/align_released.py

"As published" means: the tower with its class token, which the projector does not get; a table of
32,004 rows; the released splits with their leaks; nothing between volume and question where a
report is asked for, a blank elsewhere. Projector and the whole input embedding are
trained, but only the projector reaches the second stage: see configs/m3d/instruct_released.py. The
batch is 128, 16 on each of the original's 8 GPUs. It has not been trained here.
"""

import dataclasses

from configs.m3d import align, clip_released
from data_pipelines.pipeline import Source
from m3djax.experiment import Experiment
from m3djax.tasks.vision_language import VisionLanguage

VISION = clip_released.get_config().task.vision  # type: ignore[attr-defined]
LLM = align.LLAMA2_7B.clone(vocab_size=32004, num_tokens=None)
TASK: VisionLanguage = dataclasses.replace(align.TASK, vision=VISION, llm=LLM)


def get_config() -> Experiment:
    """See the module's docstring."""
    return experiment("m3d_align_released", TASK, "weights/llama2_7b_released")


def experiment(name: str, task: VisionLanguage, llm: str) -> Experiment:
    """The same recipe for another language model, whose weights are in the folder `llm`."""
    asked = align.texts("vqa_train")
    data = align.data(task, 128, size=(32, 256, 256), llm=llm, asked=asked, joined=("report",))
    data = dataclasses.replace(data, sources=(Source("data/m3d_cap", "released_train"),))
    found = align.experiment(name, task, data, "weights/m3d_clip")
    return dataclasses.replace(found, init_from={"vision": "weights/m3d_clip", "llm": llm})
