"""M3D-LaMed's second stage, corrected: Llama-2-7B answers about volumes (arXiv 2404.00578).

    python run.py train configs/m3d/align.py                             # the first stage
    python run.py train configs/m3d/instruct.py
    python run.py evaluate runs/m3d_instruct
    python run.py plan configs/m3d/instruct.py --topology v5e:4x4

As published: adapters (rank 16, alpha 32, dropout 0.05) at every linear layer of the language
model's blocks. Encoder, projector, input embedding and output layer are trained whole. The texts
are reports, questions with and without choices, questions for yes or no, and boxes. Training takes
four epochs with the published learning rate.

Corrected, compared with configs/m3d/instruct_released.py: all components start from the first
stage, and boxes end one voxel past the last one they enclose. A batch of 128 is 8 volumes on each
chip of a v5e:4x4; the original has 8 on each of 8 GPUs.

The evaluation scores the reports of test cases, questions of M3D-VQA's test tables, and boxes. As
in M3D, closed questions come from vqa_test and open ones from vqa_test5k. Closed questions are also
asked without the volume.

Planned on a v5e:4x4 (docs/plans): 6.3 GiB of a chip's memory, 60 % free, bound by computation. The
config was not trained here.
"""

import dataclasses
from typing import Any

from configs.m3d import align
from data_pipelines import (
    CaptionSource,
    Data,
    Describe,
    MaskQuestions,
    Mixture,
    Source,
    Stored,
    Text,
)
from m3djax import AdamW, Experiment, Inputs, LoRA, Sampling
from m3djax.contracts import Evaluator
from m3djax.evaluate import Answers, Beside
from m3djax.tasks import VisionLanguage

SOURCES = (Source("data/m3d_cap", weight=0.9), Source("data/m3d_seg", weight=0.1))
TRAINABLE = r"vision/|projector/|llm/(token_embed|head)/|.*/lora_[ab]$"


def boxes(*, released: bool = False) -> MaskQuestions:
    """Returns questions about boxes, by name and by description; `released` uses M3D's boxes."""
    return MaskQuestions(
        yes_no=0, choice=0, rec_described=1, reg_described=1, absent=0.1, released=released
    )


def asked(*, released: bool = False) -> Mixture:
    """Returns all kinds of questions that M3D asks.

    Records with masks only have the source "boxes"; other records have all other sources.

    Args:
      released: use M3D's boxes and its splits of questions.
    """
    tables = ("vqa_train", "vqa_yn_train") if released else ("", "")
    return Mixture(
        {
            "reports": Describe(),
            "questions": Stored(yes_no=0, split=tables[0]),
            "yes_no": Stored(closed=0, open=0, split=tables[1]),
            "boxes": boxes(released=released),
        },
        {"reports": 0.12, "questions": 0.68, "yes_no": 0.34, "boxes": 100.0},
    )


def measured(data: Data, *, reports: str = "test", released: bool = False) -> dict[str, Evaluator]:
    """Returns evaluators of reports, questions and boxes of the test splits.

    Args:
      data: the training data.
      reports: the split of the reports.
      released: see `boxes`.
    """
    closed = Stored(open=0, yes_no=0, split="vqa_test")
    opened = Stored(closed=0, yes_no=0, split="vqa_test5k")
    blind = {"without the volume": Beside(blind=True)}
    return {
        "reports": answers(data, Describe(), reports, 256),
        "closed": answers(data, closed, "vqa_test", 64, beside=blind),
        "open": answers(data, opened, "vqa_test5k", 128),
        "boxes": answers(data, boxes(released=released), "test", 128, dataset="data/m3d_seg"),
    }


def answers(data: Data, asked: CaptionSource, split: str, longest: int, **fields: Any) -> Answers:
    """Returns the evaluator of a split; answers have at most `longest` tokens."""
    data = data.with_fields(text=Text(data.field("text", Text).tokens, asked))
    return Answers(split=split, data=data, sampling=Sampling(longest), **fields)


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    data = align.data(align.TASK, 128, size=(32, 256, 256), asked=asked())
    data = dataclasses.replace(data, sources=SOURCES)
    found = experiment("m3d_instruct", align.TASK, data, "runs/m3d_align")
    return dataclasses.replace(found, evaluators=measured(data))


def experiment(
    name: str, task: VisionLanguage, data: Data, start: str, inputs: Inputs = align.INPUTS
) -> Experiment:
    """Returns the same recipe for another encoder, its crops and its projector.

    Args:
      name: name of the run.
      task: the model, without adapters.
      data: the training data.
      start: the run of the first stage.
      inputs: windows and augmentation of that run.
    """
    return Experiment(
        name=name,
        task=task,
        adapters=LoRA(rank=16, alpha=32.0, dropout=0.05),
        data=data,
        inputs=inputs,
        trainable=TRAINABLE,
        init_from=dict.fromkeys(("vision", "projector", "llm"), start),
        optimizer=AdamW(learning_rate=5e-5, warmup=0.03, b2=0.999, weight_decay=0.0),
        steps=35_500,  # four epochs of 120,092 reports and twice 509,755 questions
        mesh=(1, -1, 1),
        log_every=10,
        save_every=500,
    )
