"""Models that answer: one that sees the volume, the same one blind, and one of text alone."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Batch, Data
from data_pipelines.text.dialogue import DialogueTokens
from m3djax import params as params_lib
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.answers.table import Row
from m3djax.generate.generator import Answer, Generator
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import EncodedVolumes, VolumeReader
from m3djax.inputs.inputs import Inputs
from m3djax.mesh import sharding
from m3djax.params import Params
from m3djax.tasks.answering import AnsweringTask


class Answerer(abc.ABC):
    """Answers questions about volumes."""

    @abc.abstractmethod
    def look(self, batch: Batch) -> Any:
        """What `answer` needs of volumes.

        Args:
          batch: image (B, D, H, W, 1), scale and offset, always of one B.
        """

    @abc.abstractmethod
    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """The answers, given at once.

        Args:
          seen: what `look` returned.
          questions: rows without answers.
          volumes: which one each question is about.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Seeing(Answerer):
    """A model that sees.

    Attributes:
      reader: the model.
      put: makes the prompt of a question and its form.
      sampling: how its answers are chosen.
      mesh: devices that volumes are split over.
      blind: show it volumes without content: how much is known from the question alone?
    """

    reader: VolumeReader
    put: Callable[[str, str], Sequence[int]]
    sampling: Sampling
    mesh: Mesh
    blind: bool = False

    def look(self, batch: Batch) -> EncodedVolumes:
        """See `Answerer`."""
        fields = dict(batch)
        if self.blind:
            fields["image"] = np.full_like(fields["image"], fields["image"].min())
        return self.reader.read(jax.device_put(fields, sharding.batch_sharding(self.mesh)))

    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """See `Answerer`."""
        return self.reader.answer(
            seen,
            [self.put(row.question, row.kind) for row in questions],
            self.sampling,
            rows=volumes,
            batch_size=len(questions),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TextOnly(Answerer):
    """A language model, which knows nothing of the volume.

    Attributes:
      generator: the model.
      tokens: puts questions to it, without placeholders.
      sampling: how its answers are chosen.
    """

    generator: Generator
    tokens: DialogueTokens
    sampling: Sampling

    def look(self, batch: Batch) -> None:
        """See `Answerer`."""

    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """See `Answerer`."""
        put = functools.partial(self.tokens.prompt, self.tokens.load())
        prompts = [put(row.question, row.kind) for row in questions]
        return self.generator(prompts, self.sampling)


def answerer(
    task: Any,
    inputs: Inputs,
    params: Params,
    data: Data,
    mesh: Mesh,
    *,
    sampling: Sampling,
    blind: bool = False,
) -> Answerer:
    """The model of a run.

    Args:
      task: one with a language model `llm`; an `AnsweringTask` sees the volumes.
      inputs: turns stored volumes into those of the task.
      params: its parameters, on `mesh`.
      data: of the run; its tokenizer puts the questions.
      mesh: the devices.
      sampling: how answers are chosen.
      blind: see `Seeing`.

    Raises:
      EvaluationError: the run answers no questions.
      ConfigError: its tokenizer and its model do not fit.
      DataError: its tokenizer cannot be read.
    """
    text = data.find("text", Text)
    tokens = text.tokens if text else None
    if "llm" not in task.components() or not isinstance(tokens, DialogueTokens):
        raise EvaluationError(
            f"Answers measures VisionLanguage and Language runs with DialogueTokens; this one has "
            f"the task {type(task).__name__} and {type(tokens).__name__}. "
            "Cure: leave this evaluator out of the config, or name another run."
        )
    if isinstance(task, AnsweringTask):
        task.check(data)
    tokenizer = tokens.load()
    model = {"tokenizer": tokenizer, "eos_ids": (tokens.prompt.end(tokenizer),), "mesh": mesh}
    if isinstance(task, AnsweringTask):
        put = functools.partial(tokens.prompt, tokenizer)
        return Seeing(VolumeReader(task, inputs, params, **model), put, sampling, mesh, blind)
    if tokens.image_tokens:
        raise EvaluationError(
            f"a Language run sees no volumes, and its text has image_tokens={tokens.image_tokens}. "
            "Cure: train it with data.fields.text.tokens.image_tokens=0."
        )
    return TextOnly(Generator(task.llm, params["llm"], **model), tokens, sampling)


def placed(params: Params, mesh: Mesh, model: Any) -> Params:
    """Parameters on the devices of a mesh, where the sharding table puts them."""
    flat = params_lib.flatten(params)
    return params_lib.unflatten(jax.device_put(flat, sharding.state_shardings(flat, mesh, model)))
