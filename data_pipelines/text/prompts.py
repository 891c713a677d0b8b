"""Prompts as tokens, in the same way for training and for inference."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from data_pipelines.errors import ConfigError
from data_pipelines.text.learned import Span
from data_pipelines.text.llm_tokenizer import BOX_END, BOX_START, IMAGE

Message = dict[str, str]
"""{"role": "user", "content": "..."}, the format of Hugging Face's chat templates."""


class Turn(NamedTuple):
    """A question, its answer, and the question's form; see `caption.Question`."""

    question: str
    answer: str
    form: str = ""


def plain(tokenizer: Any, text: str) -> list[int]:
    """Tokenises a text, after a begin-of-text token if the tokenizer has one (M3D)."""
    ids = list(tokenizer(text)["input_ids"])
    bos = tokenizer.bos_token_id
    # Some revisions of a tokenizer add it themselves, others do not.
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Tokenises a conversation in the tokenizer's chat template, up to the start of the answer.

    Raises:
      ConfigError: the tokenizer has no template, or the template refuses the conversation.
    """
    text = _conversation(tokenizer, messages, add_generation_prompt=True)
    return _tokens(tokenizer, text)


def token_id(tokenizer: Any, token: str) -> int:
    """Returns the id of a special token.

    Raises:
      ConfigError: the tokenizer does not have it as a single token.
    """
    ids = _tokens(tokenizer, token)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"{token!r} is not a token of this tokenizer, which splits it into {len(ids)}. "
            "Cure: add it (m3djax/convert/new_tokens.py) or use the model's own tokenizer."
        )
    return ids[0]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The format of a question about volumes for a language model.

    Attributes:
      image_tokens: number of placeholders, which the tokens of all volumes replace.
      format: "m3d": begin of text, placeholders, separator, question; then a space and the
        answer. "chat": placeholders, separator and question are the user's message in the
        tokenizer's chat template.
      separator: text before a question.
      joined: forms of questions without a separator, see `caption.Question`. M3D was trained
        with ("report",).
    """

    image_tokens: int
    format: Literal["m3d", "chat"] = "m3d"
    separator: str = " "
    joined: tuple[str, ...] = ()

    def __call__(
        self, tokenizer: Any, question: str, form: str = "", history: Sequence[Turn] = ()
    ) -> list[int]:
        """Returns the tokens up to the start of the answer.

        Special tokens in the texts become plain text, except those of boxes.

        Args:
          tokenizer: a transformers tokenizer with the new tokens.
          question: the question.
          form: form of the question; see `caption.Question`.
          history: earlier questions about the same volumes with their answers, in order and in
            the format of `conversation`.

        Raises:
          ConfigError: the tokenizer has no placeholder or no chat template, or the template
            changes the user's message.
        """
        ids, _, messages = self._converse(tokenizer, history)
        ids, _ = self._ask(tokenizer, ids, messages, question, form)
        self._check_images(tokenizer, ids)
        return ids

    def conversation(self, tokenizer: Any, turns: Sequence[Turn]) -> tuple[list[int], list[Span]]:
        """Tokenises questions about the same volumes, each with its answer and an end token.

        Returns:
          The tokens, and the first and past-the-last token of every answer with its end token. The
          tokens before the first answer are equal to those of the prompt alone.

        Raises:
          ConfigError: for the same reasons as `__call__`.
        """
        ids, spans, _ = self._converse(tokenizer, turns)
        self._check_images(tokenizer, ids)
        return ids, spans

    def end(self, tokenizer: Any) -> int:
        """Returns the token that ends an answer.

        Raises:
          ConfigError: the tokenizer has no such token.
        """
        found = tokenizer.eos_token_id
        if self.format == "chat":
            found = _end_of_turn(tokenizer) or found
        if found is None:
            raise ConfigError("this tokenizer has no token that ends a text (eos_token).")
        return found

    def _converse(
        self, tokenizer: Any, turns: Sequence[Turn]
    ) -> tuple[list[int], list[Span], list[Message]]:
        """Returns the tokens of a conversation, the spans of its answers, and its messages."""
        ids, spans, messages = list[int](), list[Span](), list[Message]()
        for question, answer, form in turns:
            prompt, text = self._ask(tokenizer, ids, messages, question, form)
            answer = as_text(tokenizer, answer).strip()
            if self.format == "m3d":
                # Tokenised together: the space and the word after it may be one token.
                whole = self._append(tokenizer, ids, f"{text} {answer}")
            else:
                whole = [*prompt, *_tokens(tokenizer, answer)]
            if whole[: len(prompt)] != prompt:
                raise ConfigError(
                    "this tokenizer joins question and answer. Cure: set format=chat."
                )
            user, assistant = ("user", text), ("assistant", answer)
            messages += [{"role": role, "content": said} for role, said in (user, assistant)]
            ids = [*whole, self.end(tokenizer)]
            spans.append((len(prompt), len(ids)))
        return ids, spans, messages

    def _ask(
        self,
        tokenizer: Any,
        ids: list[int],
        messages: Sequence[Message],
        question: str,
        form: str,
    ) -> tuple[list[int], str]:
        """Returns tokens of a conversation with a new question, and the text of the question."""
        text = "" if form in self.joined else self.separator
        text += as_text(tokenizer, question).strip()
        if not ids:
            text = IMAGE * self.image_tokens + text
        if self.format == "m3d":
            return self._append(tokenizer, ids, text), text
        prompt = chat(tokenizer, [*messages, {"role": "user", "content": text}])
        if prompt[: len(ids)] != ids:
            raise ConfigError(
                "the chat template changes earlier messages when others follow, so a conversation "
                "cannot go on. Cure: use single questions."
            )
        return prompt, text

    def _append(self, tokenizer: Any, ids: list[int], text: str) -> list[int]:
        return [*ids, *_tokens(tokenizer, text)] if ids else plain(tokenizer, text)

    def _check_images(self, tokenizer: Any, ids: list[int]) -> None:
        if (count := ids.count(token_id(tokenizer, IMAGE))) != self.image_tokens:
            raise ConfigError(
                f"the prompt has {count} image tokens instead of {self.image_tokens}: the chat "
                "template changes the messages. Cure: set format=m3d."
            )


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def as_text(tokenizer: Any, text: str) -> str:
    """Makes special tokens in a text plain text, except those of boxes.

    A space is added within each of them.
    """
    return _special(tokenizer).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@functools.lru_cache(8)
def _special(tokenizer: Any) -> re.Pattern[str]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*added, IMAGE} - {BOX_START, BOX_END}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


@functools.lru_cache(8)
def _end_of_turn(tokenizer: Any) -> int | None:
    """Returns the token after an answer in the chat template; None if it is not special."""
    mark = "ANSWER"
    said = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": mark}]
    text = _conversation(tokenizer, said, add_generation_prompt=False)
    behind = _tokens(tokenizer, text.rpartition(mark)[2].lstrip())
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return behind[0] if behind and behind[0] in special else None


def _conversation(tokenizer: Any, messages: Sequence[Message], **options: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError("this tokenizer has no chat template. Cure: use plain prompts (--plain).")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        raise ConfigError(f"the chat template refuses this conversation: {error}.") from error
