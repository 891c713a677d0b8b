"""Questions about volumes; each volume is encoded once for any number of questions."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from data_pipelines.errors import ConfigError
from m3djax.contracts.task import Batch, Task
from m3djax.generate.generator import Answer, Generator, OnText, Prefix, PromptIds
from m3djax.generate.sampling import Sampling
from m3djax.inputs.inputs import FieldInputs
from m3djax.models.conditions import given
from m3djax.params import Params
from m3djax.tasks.answering import AnsweringTask

MOST_PREFIXES = 4
"""Largest number of cached prompt prefixes per batch of volumes."""

_Key = tuple[tuple[int, ...], int]


class EncodedVolumes:
    """Encoded volumes, a row for each sample, and cached prefixes of prompts about them.

    Attributes:
      tokens: embeddings of the volumes, as inputs of the language model.
    """

    def __init__(self, tokens: Float[Array, "b m c"]):
        """Starts without cached prefixes."""
        self.tokens = tokens
        self._prefixes: OrderedDict[_Key, Prefix] = OrderedDict()

    def prefix(self, key: _Key, read: Callable[[], Prefix]) -> Prefix:
        """Returns the prefix of a prompt from a cache that drops the least recently used one.

        Args:
          key: its token ids, and the length of the text for which it was read.
          read: function that reads it if it is not cached.
        """
        if key not in self._prefixes:
            # Drop before reading, so that memory never holds one more.
            while len(self._prefixes) >= MOST_PREFIXES:
                self._prefixes.popitem(last=False)
            self._prefixes[key] = read()
        self._prefixes.move_to_end(key)
        return self._prefixes[key]


class VolumeReader:
    """A model that answers questions about volumes.

    A prompt is split after its last image placeholder. The first part, the volume, is the same for
    all questions. It is read once, and every question continues from it.
    """

    def __init__(
        self,
        task: Task,
        inputs: FieldInputs,
        params: Params,
        *,
        tokenizer: Any = None,
        eos_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        """Makes a reader from a model.

        Args:
          task: an `AnsweringTask`.
          inputs: transform of stored volumes into the inputs of the task.
          params: the parameters of the task, without adapters.
          tokenizer: a transformers tokenizer; needed for text and stop strings.
          eos_ids: tokens that end an answer.
          mesh: the mesh of the parameters; None: a single device.

        Raises:
          ConfigError: the task does not answer questions about volumes.
        """
        if not isinstance(task, AnsweringTask):
            raise ConfigError(
                f"{type(task).__name__} answers no questions about volumes. "
                "Cure: a run of the task VisionLanguage."
            )
        self.task = task
        self.generator = Generator(
            task.llm, params["llm"], tokenizer=tokenizer, eos_ids=eos_ids, mesh=mesh
        )
        self._parts = {name: leaves for name, leaves in params.items() if name != "llm"}
        self._encode = jax.jit(
            lambda parts, batch: task.encode(
                parts, inputs(batch)["image"], **given(task.conditions(parts, batch))
            )
        )

    def read(self, batch: Batch) -> EncodedVolumes:
        """Encodes volumes.

        Args:
          batch: image (B, D, H, W, 1), or (B, V, D, H, W, 1) if a question is about V volumes;
            scale and offset, as in the pipeline's batches, and the fields of the task's conditions.

        Raises:
          ConfigError: the batch lacks a field of the task's conditions.
        """
        names = ("image", "scale", "offset", *self.task.condition_fields)
        if missing := [name for name in names if name not in batch]:
            raise ConfigError(
                f"{type(self.task).__name__} needs the field {missing[0]!r} of a volume's batch, "
                f"and the batch has {sorted(batch)}. Cure: add the field to the batch."
            )
        fields = {name: jnp.asarray(batch[name]) for name in names}
        with self.generator.on_mesh():
            return EncodedVolumes(self._encode(self._parts, fields))

    def answer(
        self,
        encoded: EncodedVolumes,
        prompts: Sequence[PromptIds],
        options: Sampling | None = None,
        *,
        rows: Sequence[int] | None = None,
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Answers any number of prompts, `batch_size` at a time.

        Args:
          encoded: the volumes from `read`.
          prompts: token ids, with a placeholder for each token of their volumes.
          options: options of sampling.
          rows: for each prompt, its sample in `encoded`; None: sample i for prompt i, or the only
            sample for all prompts.
          batch_size: prompts per batch.
          on_text: function that is called with (number of the prompt, piece of text) during
            generation.

        Raises:
          ConfigError: the number of placeholders in a prompt is not the number of its volumes'
            tokens, a prompt does not fit the model's context, or `rows` does not have one row for
            each prompt.
        """
        options = options or Sampling()
        about = self._rows(encoded, prompts, rows)
        ids = [tuple(prompt) for prompt in prompts]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(ids):
            groups.setdefault(prompt[: self._cut(prompt)], []).append(number)
        answers: dict[int, Answer] = {}
        for before, numbers in groups.items():
            for first in range(0, len(numbers), batch_size):
                chosen = numbers[first : first + batch_size]
                rest = [ids[number][len(before) :] for number in chosen]
                found = self.generator(
                    rest,
                    options,
                    prefix=self._prefix(encoded, before, rest, options, about[chosen]),
                    on_text=_numbered(on_text, chosen),
                )
                answers |= dict(zip(chosen, found, strict=True))
        return [answers[number] for number in range(len(prompts))]

    def _rows(
        self, encoded: EncodedVolumes, prompts: Sequence[PromptIds], rows: Sequence[int] | None
    ) -> np.ndarray:
        held = len(encoded.tokens)
        if rows is None:
            rows = [0] * len(prompts) if held == 1 else range(held)
        if len(rows) != len(prompts) or any(not 0 <= row < held for row in rows):
            raise ConfigError(
                f"there are {len(prompts)} questions, {held} samples and the rows {list(rows)}. "
                "Cure: rows with the number of a sample for each question."
            )
        return np.asarray(rows, int)

    def _cut(self, prompt: tuple[int, ...]) -> int:
        """Returns the position after the last placeholder; raises if no text follows."""
        here = [at for at, token in enumerate(prompt) if token == self.task.image_token_id]
        if not here or here[-1] + 1 == len(prompt):
            raise ConfigError(
                "a prompt needs image tokens and text after them: "
                f"{len(here)} of its {len(prompt)} tokens are image tokens. Cure: another "
                "question, or the prompt format of the model's training."
            )
        return here[-1] + 1

    def _prefix(
        self,
        encoded: EncodedVolumes,
        before: tuple[int, ...],
        rest: Sequence[PromptIds],
        options: Sampling,
        rows: np.ndarray,
    ) -> Prefix:
        """Returns the prefix of these prompts: the volumes with the text before them."""
        reserve = max(map(len, rest)) + options.max_new_tokens

        def read() -> Prefix:
            ids = jnp.tile(jnp.asarray(before, jnp.int32), (len(encoded.tokens), 1))
            embeds = self.task.merge_image_features(self.generator.embed(ids), encoded.tokens, ids)
            return self.generator.prefix(embeds=embeds, reserve=reserve)

        key = before, self.generator.rotated_for(len(before) + reserve)
        prefix = encoded.prefix(key, read)
        if len(encoded.tokens) == 1:
            return prefix
        cache = jax.tree.map(lambda leaf: leaf[rows], prefix.cache)
        return dataclasses.replace(prefix, cache=cache)


def _numbered(on_text: OnText | None, numbers: Sequence[int]) -> OnText | None:
    """Returns `on_text` for a batch; `numbers` are the numbers of its prompts."""
    if on_text is None:
        return None
    return lambda row, text: on_text(numbers[row], text)
