"""Questions about volumes: each volume is encoded once, whatever is asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from data_pipelines.errors import ConfigError
from m3djax.generate.generator import Answer, Generator, OnText, Prefix
from m3djax.generate.sampling import Sampling
from m3djax.params import Params
from m3djax.tasks.base import Batch, Task
from m3djax.tasks.vision_language import VisionLanguage

Prompts = Callable[[str, str], Sequence[int]]
"""A question and its form to the tokens of its whole prompt, placeholders of volumes included."""


@dataclasses.dataclass
class Seen:
    """Volumes that were encoded, a row for each sample.

    Attributes:
      tokens: of the volumes, as the language model takes them.
      prefixes: what was read of prompts up to their last placeholder, by the ids and the length of
        text that it was read for; grows with the questions.
    """

    tokens: Float[Array, "b m c"]
    prefixes: dict[tuple[tuple[int, ...], int], Prefix] = dataclasses.field(default_factory=dict)


class VolumeReader:
    """Answers questions about volumes.

    A prompt is cut behind its last placeholder. What is before it, the volume, is the same for all
    questions: it is read once, and every question goes on from there.
    """

    def __init__(
        self,
        task: Task,
        params: Params,
        prompts: Prompts,
        *,
        tokenizer: Any = None,
        eos_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        """Takes a model.

        Args:
          task: a `VisionLanguage`.
          params: its parameters, without adapters.
          prompts: makes the prompt of a question as in training.
          tokenizer: a transformers tokenizer; needed for text and stop strings.
          eos_ids: tokens that end an answer.
          mesh: the devices that hold the parameters, if there are several.

        Raises:
          ConfigError: the task does not see volumes.
        """
        if not isinstance(task, VisionLanguage):
            raise ConfigError(
                f"{type(task).__name__} answers no questions about volumes. "
                "Cure: a run of the task VisionLanguage."
            )
        self.task, self.prompts = task, prompts
        self.generator = Generator(
            task.llm, params["llm"], tokenizer=tokenizer, eos_ids=eos_ids, mesh=mesh
        )
        self._mesh = mesh
        self._parts = {name: params[name] for name in ("vision", "projector")}
        self._encode = jax.jit(lambda parts, batch: task.encode(parts, task.windowed(batch)))

    def read(self, batch: Batch) -> Seen:
        """Encodes volumes.

        Args:
          batch: image (B, D, H, W, 1), or (B, V, D, H, W, 1) where a question is about V volumes;
            scale and offset, as the pipeline makes them.
        """
        fields = {name: jnp.asarray(batch[name]) for name in ("image", "scale", "offset")}
        with self.generator.on_mesh():
            return Seen(self._encode(self._parts, fields))

    def answer(
        self,
        seen: Seen,
        questions: Sequence[str],
        options: Sampling | None = None,
        *,
        rows: Sequence[int] | None = None,
        forms: Sequence[str] = (),
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Answers any number of questions, `batch_size` at a time.

        Args:
          seen: what `read` returned.
          questions: one text each.
          options: how tokens are chosen, and how many.
          rows: which sample of `seen` each question is about; None: question i is about sample i,
            or all are about the only one.
          forms: of the questions, see `captions.Question`; () if they have none.
          batch_size: questions that are answered at once.
          on_text: called with (number of the question, piece of text) while the answers grow.

        Raises:
          ConfigError: a prompt has not as many placeholders as its volumes have tokens, or does not
            fit the model's context; `rows` are not one for each question.
        """
        options = options or Sampling()
        about = self._rows(seen, questions, rows)
        put = zip(questions, forms or [""] * len(questions), strict=True)
        prompts = [tuple(self.prompts(question, form)) for question, form in put]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(prompt[: self._cut(prompt)], []).append(number)
        answers: dict[int, Answer] = {}
        for before, numbers in groups.items():
            for first in range(0, len(numbers), batch_size):
                chosen = numbers[first : first + batch_size]
                rest = [prompts[number][len(before) :] for number in chosen]
                found = self.generator(
                    rest,
                    options,
                    prefix=self._prefix(seen, before, rest, options, about[chosen]),
                    on_text=_numbered(on_text, chosen),
                )
                answers |= dict(zip(chosen, found, strict=True))
        return [answers[number] for number in range(len(questions))]

    def _rows(self, seen: Seen, questions: Sequence[str], rows: Sequence[int] | None) -> np.ndarray:
        held = len(seen.tokens)
        if rows is None:
            rows = [0] * len(questions) if held == 1 else range(held)
        if len(rows) != len(questions) or any(not 0 <= row < held for row in rows):
            raise ConfigError(
                f"there are {len(questions)} questions, {held} samples and the rows {list(rows)}. "
                "Cure: rows with the number of a sample for each question."
            )
        return np.asarray(rows, int)

    def _cut(self, prompt: tuple[int, ...]) -> int:
        """Where the last placeholder ends; what follows must not be empty."""
        here = [at for at, token in enumerate(prompt) if token == self.task.image_token]
        if not here or here[-1] + 1 == len(prompt):
            raise ConfigError(
                "a prompt needs image tokens and text behind them, and has "
                f"{len(here)} of its {len(prompt)} tokens for images. Cure: another question, or "
                "the prompt format that the model was trained with."
            )
        return here[-1] + 1

    def _prefix(
        self,
        seen: Seen,
        before: tuple[int, ...],
        rest: Sequence[Sequence[int]],
        options: Sampling,
        rows: np.ndarray,
    ) -> Prefix:
        """The volume as the questions go on from it, read if that has not been done."""
        reserve = max(map(len, rest)) + options.max_new_tokens
        key = before, self.generator.rotated_for(len(before) + reserve)
        if key not in seen.prefixes:
            held = len(seen.tokens)
            ids = jnp.tile(jnp.asarray(before, jnp.int32), (held, 1))
            embeds = self.task.place(self.generator.embed(ids), seen.tokens, ids)
            seen.prefixes[key] = self.generator.prefix(embeds=embeds, reserve=reserve)
        prefix = seen.prefixes[key]
        if len(seen.tokens) == 1:
            return prefix
        cache = jax.tree.map(lambda leaf: leaf[rows], prefix.cache)
        return dataclasses.replace(prefix, cache=cache)


def _numbered(on_text: OnText | None, numbers: Sequence[int]) -> OnText | None:
    """`on_text` for a batch whose rows are the questions with these numbers."""
    if on_text is None:
        return None
    return lambda row, text: on_text(numbers[row], text)
