"""M3D-LaMed's first stage as published (BAAI-DCAI/M3D, script/pretrain_llama2.sh): Llama-2-7B.

    python run.py convert M3D-CLIP weights/m3d_clip                      # GoodBaiBai88/M3D-CLIP
    C=configs/m3d/align_released.py                                      # Llama-2-7b-chat:
    python run.py convert LLAMA2 weights/llama2_7b_released --layout llm --config $C
    python run.py train configs/m3d/align_released.py

"As published" means:
- The vision tower has a class token, which does not go to the projector.
- The table has 32,004 rows.
- The splits are the released ones, with their leaks.
- There is no separator between volume and question in requests for reports, and a blank in all
  other questions.
- The projector and the whole input embedding are trained, but only the projector reaches the second
  stage; see configs/m3d/instruct_released.py.
- The batch is 128, 16 on each of the original's 8 GPUs.

The config has not been trained here.
"""

import dataclasses

from configs.m3d import align, clip_released
from data_pipelines import Source
from m3djax import Experiment
from m3djax.tasks import VisionLanguage

VISION = clip_released.get_config().task.vision  # type: ignore[attr-defined]
LLM = align.LLAMA2_7B.clone(vocab_size=32004, num_tokens=None)
TASK: VisionLanguage = dataclasses.replace(align.TASK, vision=VISION, llm=LLM)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return experiment("m3d_align_released", TASK, "weights/llama2_7b_released")


def experiment(name: str, task: VisionLanguage, llm: str) -> Experiment:
    """Returns the same recipe for another language model; its weights are in the folder `llm`."""
    asked = align.texts("vqa_train")
    data = align.data(task, 128, size=(32, 256, 256), llm=llm, asked=asked, joined=("report",))
    data = dataclasses.replace(data, sources=(Source("data/m3d_cap", "released_train"),))
    found = align.experiment(name, task, data, "weights/m3d_clip")
    return dataclasses.replace(found, init_from={"vision": "weights/m3d_clip", "llm": llm})
