"""Models that answer questions: with the volume, with a blank volume, or from text alone."""

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
from data_pipelines.pipeline import Data
from data_pipelines.stream import Arrays
from data_pipelines.text.dialogue import DialogueTokens
from m3djax import params as params_lib
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.answers.table import Row
from m3djax.generate.generator import Answer, Generator
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import EncodedVolumes, VolumeReader
from m3djax.inputs.inputs import FieldInputs
from m3djax.mesh import sharding
from m3djax.params import Params
from m3djax.tasks.answering import AnsweringTask


class Answerer(abc.ABC):
    """A model that answers questions about volumes."""

    @abc.abstractmethod
    def look(self, batch: Arrays) -> Any:
        """Encodes volumes; returns the input `seen` of `answer`.

        Args:
          batch: image (B, D, H, W, 1), scale and offset; B is always the same.
        """

    @abc.abstractmethod
    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """Answers some questions as one batch.

        Args:
          seen: the result of `look`.
          questions: rows without answers.
          volumes: for each question, the row of its volume in the batch.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Seeing(Answerer):
    """A model that reads volumes.

    Attributes:
      reader: the model.
      put: function from a question and its kind to the prompt.
      sampling: options of sampling for the answers.
      mesh: the devices; volumes are split over them.
      blind: whether every volume is replaced by a blank one, to measure the answers that need only
        the question.
    """

    reader: VolumeReader
    put: Callable[[str, str], Sequence[int]]
    sampling: Sampling
    mesh: Mesh
    blind: bool = False

    def look(self, batch: Arrays) -> EncodedVolumes:
        """Encodes volumes; see `Answerer.look`."""
        fields = dict(batch)
        if self.blind:
            fields["image"] = np.full_like(fields["image"], fields["image"].min())
        return self.reader.read(jax.device_put(fields, sharding.batch_sharding(self.mesh)))

    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """Answers questions about the volumes; see `Answerer.answer`."""
        return self.reader.answer(
            seen,
            [self.put(row.question, row.kind) for row in questions],
            self.sampling,
            rows=volumes,
            batch_size=len(questions),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TextOnly(Answerer):
    """A language model that does not see the volume.

    Attributes:
      generator: the model.
      tokens: tokenizer that makes prompts without image placeholders.
      sampling: options of sampling for the answers.
    """

    generator: Generator
    tokens: DialogueTokens
    sampling: Sampling

    def look(self, batch: Arrays) -> None:
        """Does nothing; see `Answerer.look`."""

    def answer(self, seen: Any, questions: Sequence[Row], volumes: Sequence[int]) -> list[Answer]:
        """Answers questions without the volumes; see `Answerer.answer`."""
        put = functools.partial(self.tokens.prompt, self.tokens.load())
        prompts = [put(row.question, row.kind) for row in questions]
        return self.generator(prompts, self.sampling)


def answerer(
    task: Any,
    inputs: FieldInputs,
    params: Params,
    data: Data,
    mesh: Mesh,
    *,
    sampling: Sampling,
    blind: bool = False,
) -> Answerer:
    """Makes the answering model of a run.

    Args:
      task: a task with a language model `llm`; an `AnsweringTask` reads the volumes.
      inputs: transform of stored volumes into the inputs of the task.
      params: the parameters of the task, on `mesh`.
      data: data of the run; its tokenizer makes the prompts.
      mesh: the devices.
      sampling: options of sampling for the answers.
      blind: see `Seeing`.

    Raises:
      EvaluationError: the run cannot answer questions.
      ConfigError: its tokenizer does not fit its model.
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
            f"a Language run reads no volumes; its text has image_tokens={tokens.image_tokens}. "
            "Cure: train it with data.fields.text.tokens.image_tokens=0."
        )
    return TextOnly(Generator(task.llm, params["llm"], **model), tokens, sampling)


def placed(params: Params, mesh: Mesh, model: Any) -> Params:
    """Puts parameters on the devices of a mesh, split by the sharding table."""
    flat = params_lib.flatten(params)
    return params_lib.unflatten(jax.device_put(flat, sharding.state_shardings(flat, mesh, model)))
