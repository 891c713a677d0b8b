"""Questions about volumes and their answers as token ids, for tuning a language model."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from data_pipelines.caption import Caption, Question
from data_pipelines.errors import ConfigError, DataError, TextError
from data_pipelines.specs import ArraySpec
from data_pipelines.text import llm_tokenizer
from data_pipelines.text.base import Tokens
from data_pipelines.text.learned import Span, learned_fields, learned_spec
from data_pipelines.text.prompts import Prompt, Turn
from data_pipelines.text.reports import clean_report, is_missing
from data_pipelines.text.sentences import split_sentences
from data_pipelines.text.shorten import choose_sentences
from data_pipelines.text.tokenizer_files import rows_fit


@dataclasses.dataclass(frozen=True)
class DialogueTokens(Tokens):
    """A tokenizer of a question, the placeholders of its volumes, and its answer.

    Attributes:
      tokenizer: folder with tokenizer.json, or a GGUF file, or "SmolLM2-135M-Instruct", which is
        downloaded (93 MB). <im_patch>, <bx_start>, <bx_end> and [SEG] are added if missing.
      image_tokens: number of placeholders, equal to the number of image tokens of the volumes.
      length: tokens of prompt and answer together; shorter texts are padded.
      vocab_size: rows of the language model's token embedding; the tokenizer must fit them.
      format: format of the prompt; see `Prompt`.
      separator: see `Prompt`.
      joined: see `Prompt`.
      turns: maximum number of questions in a conversation; see `instructions.Conversation`.
    """

    tokenizer: str
    image_tokens: int = 256
    length: int = 512
    vocab_size: int = 32004
    format: Literal["m3d", "chat"] = "m3d"
    separator: str = " "
    joined: tuple[str, ...] = ()
    turns: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError if `length` leaves no room for words."""
        if not 0 <= self.image_tokens < self.length - 4:
            raise ConfigError(
                f"length={self.length} leaves no room for words beside image_tokens="
                f"{self.image_tokens}. Cure: increase length."
            )

    @property
    def prompt(self) -> Prompt:
        """Returns the prompt, which is the same in training and in inference."""
        return Prompt(self.image_tokens, self.format, self.separator, self.joined)

    def spec(self) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one text; see `__call__`."""
        return learned_spec(self.length, self.turns)

    def check(self) -> None:
        """Reads the tokenizer, so that errors appear before compilation.

        Raises:
          DataError: the tokenizer is missing, not readable, or made for another vocabulary.
          ConfigError: the tokenizer cannot make such prompts.
        """
        self.prompt.conversation(self.load(), [Turn("Why?", "Because.")] * self.turns)

    def load(self) -> Any:
        """Returns the transformers tokenizer with all new tokens. It is shared: do not change it.

        Raises:
          DataError: the tokenizer is missing, not readable, or made for another vocabulary.
        """
        tokenizer = llm_tokenizer.load(self.tokenizer)
        if not rows_fit(len(tokenizer), self.vocab_size):
            raise DataError(
                self.tokenizer,
                f"has {len(tokenizer)} tokens with the new ones, but the language model's token "
                f"embedding has {self.vocab_size} rows",
                "use the tokenizer and weights of the same model, with the new tokens, and set "
                "vocab_size to the rows of its token embedding",
            )
        return tokenizer

    def of(self, caption: Caption, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a caption; see `Tokens.of`.

        A conversation keeps its first question and further ones that fit.
        """
        if not isinstance(caption, Question):
            return self(caption.text, rng, caption.question)
        later = [Turn(q.question, q.text, q.form) for q in caption.later]
        return self(caption.text, rng, caption.question, later, caption.form)

    def __call__(
        self,
        text: str,
        rng: np.random.Generator | None = None,
        question: str = "",
        later: Sequence[Turn] = (),
        form: str = "",
    ) -> Mapping[str, np.ndarray]:
        """Tokenises a question and its answer.

        An answer that does not fit keeps its first sentence and a random choice of the others. No
        sentence is cut.

        Args:
          text: the answer.
          rng: chooses the sentences of long answers; with None the choice is always the same.
          question: the question.
          later: further questions and answers; those that do not fit are left out.
          form: form of the question; see `caption.Question`.

        Returns:
          token_ids: int32 (length,), padded at the end.
          attention_mask: bool (length,), False for padding.
          spans: int32 (turns, 2), first and past-the-last token of every answer, with the token
            that ends the answer. Rows without an answer are zero.

        Raises:
          TextError: the question or the answer has no words or does not fit.
          ConfigError: the tokenizer cannot make such prompts.
        """
        tokenizer = self.load()
        first, ids, spans = self._fitting(tokenizer, _clean(Turn(question, text, form)), rng)
        turns = [first]
        for turn in list(map(_clean, later)):  # also cleans (checks) turns that do not fit
            if len(turns) == self.turns:
                break
            longer = self.prompt.conversation(tokenizer, [*turns, turn])
            if len(longer[0]) <= self.length:
                turns.append(turn)
                ids, spans = longer
        pad = tokenizer.pad_token_id
        pad = tokenizer.eos_token_id if pad is None else pad
        return learned_fields(ids, spans, self.length, pad, self.turns)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids; see `Tokens.decode`."""
        return self.load().decode(list(token_ids), skip_special_tokens=True)

    def _fitting(
        self, tokenizer: Any, turn: Turn, rng: np.random.Generator | None
    ) -> tuple[Turn, list[int], list[Span]]:
        """Tokenises a question and its answer; a long answer keeps the sentences that fit."""
        ids, spans = self.prompt.conversation(tokenizer, [turn])
        if len(ids) <= self.length:
            return turn, ids, spans
        start, _ = spans[0]
        sentences = split_sentences(turn.answer)
        counts = np.array(
            [len(tokenizer(s, add_special_tokens=False).input_ids) for s in sentences]
        )
        whole = turn.answer
        budget, chosen = self.length - start - 1, np.ones(len(counts), bool)
        while len(ids) > self.length and chosen.sum() > 1 and budget > 0:
            fixed = np.random.default_rng(zlib.crc32(whole.encode()))
            chosen = choose_sentences(counts, budget, rng or fixed)
            kept = " ".join(s for s, keep in zip(sentences, chosen, strict=True) if keep)
            turn = turn._replace(answer=kept)
            ids, spans = self.prompt.conversation(tokenizer, [turn])
            # Joined sentences may have more tokens than the sum of the single ones.
            budget -= max(len(ids) - self.length, 0)
        if len(ids) <= self.length:
            return turn, ids, spans
        what = "the answer's first sentence" if start < self.length else "the question"
        raise TextError(
            "text",
            f"does not fit: {what} is too long, prompt {start} and answer {len(ids) - start} "
            f"tokens of {self.length}",
            "increase data.fields.text.tokens.length, or leave the text out",
        )


def _clean(turn: Turn) -> Turn:
    answer = clean_report(turn.answer, "answer", empty=is_missing)
    question = clean_report(turn.question, "question", empty=is_missing)
    return turn._replace(question=question, answer=answer)
