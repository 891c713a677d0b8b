"""Text generation around the compiled loop: buckets, batches, stop strings and streaming."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from data_pipelines.errors import ConfigError
from m3djax.generate import decode
from m3djax.generate.chooser import Chooser
from m3djax.generate.sampling import Sampling
from m3djax.generate.text import RowText
from m3djax.models.llm.decoder import Decoder

PromptIds = Sequence[int]
OnText = Callable[[int, str], None]
Ended = Literal["eos", "stop", "length"]
_SMALLEST = 32  # slots
_CHUNK = 8  # tokens between two updates of the text, for stop strings and `on_text`


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
      tokens: its tokens, with those of a stop string but without the final EOS token.
      text: its text, without a stop string; "" without a tokenizer.
      ended: reason for its end: "eos" (a token), "stop" (a stop string) or "length"
        (`max_new_tokens`).
    """

    tokens: tuple[int, ...]
    text: str
    ended: Ended


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Tokens that come before every prompt; the model reads them once.

    Attributes:
      cache: keys and values of the tokens.
      length: number of the tokens.
      rotated_for: length of the text for which their rotations were computed; see `Rotary`.
    """

    cache: decode.Cache
    length: int
    rotated_for: int


class Generator:
    """Generator of text with one model.

    Lengths and numbers of prompts are rounded up, so that few shapes are compiled. Sampling options
    are traced, so new values need no compilation.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict[str, Any],
        *,
        tokenizer: Any = None,
        eos_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        """Unstacks the weights by layer.

        Args:
          model: the decoder.
          params: its parameters (component "llm"), with LoRA merged.
          tokenizer: a transformers tokenizer; needed for text and stop strings.
          eos_ids: tokens that end an answer.
          mesh: the mesh of the parameters; None: a single device.
        """
        self.model, self.tokenizer, self.mesh = model, tokenizer, mesh
        with self.on_mesh():
            self.weights = decode.unstack(model, params)
        self._eos = jnp.asarray(tuple(eos_ids) or (-1,), jnp.int32)

    def embed(self, token_ids: Any) -> Float[Array, "b n c"]:
        """Embeds tokens, for prompts that are not only tokens."""
        with self.on_mesh():
            return decode.embed(self.model, self.weights.outer, jnp.asarray(token_ids))

    def prefix(
        self,
        prompt: PromptIds | None = None,
        *,
        embeds: Float[Array, "b n c"] | None = None,
        reserve: int = 1024,
    ) -> Prefix:
        """Reads the common first tokens of many prompts.

        Args:
          prompt: the token ids; None if `embeds` is given.
          embeds: the embedded tokens instead, one row for all prompts or a row for each.
          reserve: number of tokens of prompt and answer that will follow. Some models need it,
            because their rotations depend on the length of the text.

        Raises:
          ConfigError: the prefix leaves no room for a prompt.
        """
        if embeds is None:
            ids, lengths = self._batch([prompt or ()])
            embeds, length = self.embed(np.maximum(ids, 0)), int(lengths[0])
        else:
            length = embeds.shape[1]
        if length >= self.model.max_position_embeddings:
            raise ConfigError(
                f"the prefix has {length} tokens and the model's context only "
                f"{self.model.max_position_embeddings}."
            )
        slots = bucket(length)
        embeds, valid = _padded(embeds, np.full(len(embeds), length), slots)
        total = self.rotated_for(min(length + reserve, self.model.max_position_embeddings))
        with self.on_mesh():
            _, cache = decode.prefill(
                self.model, self.weights, embeds, valid, None, slots=slots, length=total
            )
        return Prefix(cache, length, total)

    def __call__(
        self,
        prompts: Sequence[PromptIds] | None = None,
        options: Sampling | None = None,
        *,
        embeds: Float[Array, "b n c"] | None = None,
        valid: Bool[Array, "b n"] | None = None,
        prefix: Prefix | None = None,
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Answers prompts as one batch.

        Args:
          prompts: token ids, of any lengths; None if `embeds` is given.
          embeds: embedded tokens instead, padded on the left.
          valid: False at padding of `embeds`.
          options: options of sampling.
          prefix: the tokens before every prompt.
          on_text: function that is called with (row, piece of text) during generation.

        Raises:
          ConfigError: a prompt is empty, too long for the context or has a token outside the
            vocabulary; or there is no tokenizer for stop strings and `on_text`.
        """
        options = options or Sampling()
        if (options.stop or on_text) and self.tokenizer is None:
            raise ConfigError("stop strings and streaming need a tokenizer.")
        if prompts is not None:
            ids, lengths = self._batch(prompts)
            embeds = self.embed(np.maximum(ids, 0))
            rows = len(prompts)
        elif embeds is not None:
            ids, rows = None, len(embeds)
            lengths = np.full(rows, embeds.shape[1]) if valid is None else np.sum(valid, axis=1)
        else:
            raise ConfigError("there is no prompt.")
        total = self._checked_length(int(lengths.max()), options, prefix)
        with self.on_mesh():
            state, chooser = self._begin(embeds, ids, lengths, rows, options, prefix, total)
        return self._run(state, chooser, rows, options, on_text, total)

    def _begin(
        self,
        embeds: Array,
        ids: np.ndarray | None,
        lengths: np.ndarray,
        rows: int,
        options: Sampling,
        prefix: Prefix | None,
        total: int,
    ) -> tuple[decode.State, Chooser]:
        room, slots = bucket(options.max_new_tokens), bucket(embeds.shape[1])
        chosen = _repeated(rows)
        if ids is None:
            embeds, lengths = embeds[chosen], np.asarray(lengths)[chosen]
        embeds, valid = _padded(embeds, lengths, slots)
        before = prefix.cache if prefix else None
        if before is not None and len(before.valid) > 1:
            before = jax.tree.map(lambda leaf: leaf[chosen], before)
        total_slots = slots + room + (before.valid.shape[1] if before is not None else 0)
        last, cache = decode.prefill(
            self.model, self.weights, embeds, valid, before, slots=total_slots, length=total
        )
        chooser = Chooser.of(options, self.model.vocab_size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(options.seed), np.arange(len(chosen))
        )
        state = decode.begin(
            self.model,
            self.weights,
            last,
            cache,
            ids if chooser.penalised else None,
            np.arange(len(chosen)) >= rows,
            keys,
            chooser,
            self._eos,
            room=room,
        )
        return state, chooser

    def _run(
        self,
        state: decode.State,
        chooser: Chooser,
        rows: int,
        options: Sampling,
        on_text: OnText | None,
        total: int,
    ) -> list[Answer]:
        texts = [self._row_text(row, options, on_text) for row in range(rows)]
        limit = options.max_new_tokens
        look = bool(options.stop) or on_text is not None
        eos = set(np.asarray(self._eos).tolist())
        step = 1
        while True:
            tokens, done = np.asarray(state.tokens)[:rows, :step], np.asarray(state.done)[:rows]
            answers = [_until(row, eos) for row in tokens.tolist()]
            finished = step >= limit or bool(done.all())
            for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
                if self.tokenizer is not None and (look or finished):
                    text.feed(answer, last=finished or bool(done[row]))
            stopped = np.array([text.stopped for text in texts])
            if finished or bool((done | stopped).all()):
                break
            if stopped.any():
                ended = np.ones(len(state.done), bool)
                ended[:rows] = done | stopped
                state = dataclasses.replace(state, done=jax.device_put(ended, state.done.sharding))
            until = min(step + _CHUNK, limit) if look else limit
            # Only here: `on_text` must not run inside the mesh of this model.
            with self.on_mesh():
                state = decode.decode(
                    self.model,
                    self.weights,
                    state,
                    chooser,
                    self._eos,
                    jnp.int32(until),
                    length=total,
                )
            step = int(state.step)
        return [
            Answer(tuple(answer), text.text, _ended(text, len(answer), len(row)))
            for answer, text, row in zip(answers, texts, tokens, strict=True)
        ]

    def _row_text(self, row: int, options: Sampling, on_text: OnText | None) -> RowText:
        emit = None if on_text is None else lambda piece: on_text(row, piece)
        return RowText(self._decode, options.stop, emit)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _batch(self, prompts: Sequence[PromptIds]) -> tuple[np.ndarray, np.ndarray]:
        """Pads prompts on the left with -1, repeats them to full buckets; returns ids, lengths."""
        if not prompts:
            raise ConfigError("there is no prompt.")
        prompts = [self._checked(prompts[row]) for row in _repeated(len(prompts))]
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.full((len(prompts), bucket(int(lengths.max()))), -1, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[len(row) - len(prompt) :] = prompt
        return ids, lengths

    def _checked(self, prompt: PromptIds) -> PromptIds:
        if not len(prompt):
            raise ConfigError("a prompt is empty. Cure: give it at least one token.")
        size = self.model.num_tokens or self.model.vocab_size
        if bad := [token for token in prompt if not 0 <= token < size]:
            raise ConfigError(
                f"token {bad[0]} is not in the vocabulary of {size}. "
                "Cure: use the tokenizer that the weights were trained with."
            )
        return prompt

    def _checked_length(self, longest: int, options: Sampling, prefix: Prefix | None) -> int:
        """Returns `rotated_for` of the whole text, or raises ConfigError if it is too long."""
        before = prefix.length if prefix else 0
        total = before + longest + options.max_new_tokens
        if total > self.model.max_position_embeddings:
            room = self.model.max_position_embeddings - before - longest
            cure = f"max_new_tokens <= {room}" if room > 0 else "a shorter prompt"
            raise ConfigError(
                f"a prompt of {before + longest} tokens and max_new_tokens="
                f"{options.max_new_tokens} do not fit the context of "
                f"{self.model.max_position_embeddings}. Cure: {cure}."
            )
        rotated_for = self.rotated_for(total)
        if prefix and rotated_for != prefix.rotated_for:
            raise ConfigError(
                f"the prefix was read for texts of another length than {total} positions. "
                f"Cure: reserve={longest + options.max_new_tokens} when it is read."
            )
        return rotated_for

    def rotated_for(self, total: int) -> int:
        """Returns one of few lengths with the same rotations as `total`, to compile little."""
        rotary, dim = self.model.rotary, self.model.head_dim
        same = np.array_equal(rotary.frequencies(dim, 1), rotary.frequencies(dim, total))
        return 1 if same else bucket(total)

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which code runs on the devices that hold the parameters."""
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()


def bucket(size: int) -> int:
    """Rounds a length up to one of four sizes per doubling, so that at most a fifth is padding."""
    step = max(8, 2 ** ((size - 1).bit_length() - 3))
    return max(_SMALLEST, -(-size // step) * step)


def _repeated(rows: int) -> np.ndarray:
    """Returns row indices repeated to a power of two; the repeated rows start as finished."""
    return np.resize(np.arange(rows), 2 ** (rows - 1).bit_length())


def _padded(
    embeds: Array, lengths: np.ndarray, slots: int
) -> tuple[Float[Array, "b s c"], Bool[Array, "b s"]]:
    """Pads on the left to `slots`; only the last `lengths` tokens of a row are valid."""
    if embeds.shape[1] < slots:
        embeds = jnp.pad(embeds, ((0, 0), (slots - embeds.shape[1], 0), (0, 0)))
    return embeds, jnp.asarray(np.arange(slots)[None] >= slots - np.asarray(lengths)[:, None])


def _until(tokens: list[int], eos: set[int]) -> list[int]:
    """Returns the tokens before the first EOS token."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in eos), len(tokens))]


def _ended(text: RowText, length: int, chosen: int) -> Ended:
    if text.stopped:
        return "stop"
    return "eos" if length < chosen else "length"
