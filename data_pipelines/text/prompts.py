"""Text to the tokens that a model was trained to answer: one way for training and for asking."""

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
"""{"role": "user", "content": "..."}, as Hugging Face's chat templates take them."""


class Turn(NamedTuple):
    """A question, its answer, and the question's form; see `captions.Question`."""

    question: str
    answer: str
    form: str = ""


def plain(tokenizer: Any, text: str) -> list[int]:
    """The text's tokens behind the begin-of-text token, if the tokenizer has one (M3D)."""
    ids = list(tokenizer(text)["input_ids"])
    bos = tokenizer.bos_token_id
    # Some revisions of a tokenizer put it there themselves, others do not.
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """A conversation in the tokenizer's own template, up to where the answer begins.

    Raises:
      ConfigError: the tokenizer has no template, or the template refuses the conversation.
    """
    text = _conversation(tokenizer, messages, add_generation_prompt=True)
    return _tokens(tokenizer, text)


def token_id(tokenizer: Any, token: str) -> int:
    """The one id of a special token.

    Raises:
      ConfigError: the tokenizer does not know it as one token.
    """
    ids = _tokens(tokenizer, token)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"{token!r} is not a token of this tokenizer, which makes {len(ids)} of it. "
            "Cure: add it (m3djax/convert/new_tokens.py) or use the model's own tokenizer."
        )
    return ids[0]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a question about volumes is put to a model.

    Attributes:
      image_tokens: placeholders that the tokens of all volumes take the places of.
      format: "m3d": begin of text, placeholders, separator, question; a blank and the answer
        follow. "chat": placeholders, separator and question are what the user says, in the
        tokenizer's own template.
      separator: what is before a question.
      joined: forms of questions, see `captions.Question`, that have no separator: ("report",) is
        how M3D was trained.
    """

    image_tokens: int
    format: Literal["m3d", "chat"] = "m3d"
    separator: str = " "
    joined: tuple[str, ...] = ()

    def __call__(
        self, tokenizer: Any, question: str, form: str = "", history: Sequence[Turn] = ()
    ) -> list[int]:
        """Returns the tokens up to where the answer begins.

        Special tokens in the texts are taken as text, but for those of boxes.

        Args:
          tokenizer: a transformers tokenizer with the new tokens.
          question: the question.
          form: its form; see `captions.Question`.
          history: earlier questions about the same volumes with their answers, in their order, put
            as `conversation` puts them.

        Raises:
          ConfigError: the tokenizer has no placeholder, no template, or a template that changes
            what the user says.
        """
        ids, _, messages = self._converse(tokenizer, history)
        ids, _ = self._ask(tokenizer, ids, messages, question, form)
        self._check_images(tokenizer, ids)
        return ids

    def conversation(self, tokenizer: Any, turns: Sequence[Turn]) -> tuple[list[int], list[Span]]:
        """Puts questions about the same volumes, each with its answer and the token that ends it.

        Returns:
          The tokens, and of every answer the first and the past-the-last one, the token that ends
          it included; before the first answer they are those of the prompt alone.

        Raises:
          ConfigError: as for the prompt alone.
        """
        ids, spans, _ = self._converse(tokenizer, turns)
        self._check_images(tokenizer, ids)
        return ids, spans

    def end(self, tokenizer: Any) -> int:
        """The token that ends an answer.

        Raises:
          ConfigError: there is none.
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
                # Together, as a tokenizer may put the blank and the word behind it into one token.
                whole = self._append(tokenizer, ids, f"{text} {answer}")
            else:
                whole = [*prompt, *_tokens(tokenizer, answer)]
            if whole[: len(prompt)] != prompt:
                raise ConfigError("this tokenizer joins question and answer. Cure: format=chat.")
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
        """Returns a conversation and the question behind it as tokens, and the question's text."""
        text = "" if form in self.joined else self.separator
        text += as_text(tokenizer, question).strip()
        if not ids:
            text = IMAGE * self.image_tokens + text
        if self.format == "m3d":
            return self._append(tokenizer, ids, text), text
        prompt = chat(tokenizer, [*messages, {"role": "user", "content": text}])
        if prompt[: len(ids)] != ids:
            raise ConfigError(
                "the chat template puts earlier messages in another way once others follow, so a "
                "conversation cannot go on. Cure: single questions."
            )
        return prompt, text

    def _append(self, tokenizer: Any, ids: list[int], text: str) -> list[int]:
        return [*ids, *_tokens(tokenizer, text)] if ids else plain(tokenizer, text)

    def _check_images(self, tokenizer: Any, ids: list[int]) -> None:
        if (count := ids.count(token_id(tokenizer, IMAGE))) != self.image_tokens:
            raise ConfigError(
                f"the prompt has {count} image tokens instead of {self.image_tokens}: the chat "
                "template changes what it is given. Cure: format=m3d."
            )


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def as_text(tokenizer: Any, text: str) -> str:
    """The text with a blank in all special tokens but those of boxes: they become mere text."""
    return _special(tokenizer).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@functools.lru_cache(8)
def _special(tokenizer: Any) -> re.Pattern[str]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*added, IMAGE} - {BOX_START, BOX_END}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


@functools.lru_cache(8)
def _end_of_turn(tokenizer: Any) -> int | None:
    """What the template puts behind what the assistant said, if that is a special token."""
    mark = "ANSWER"
    said = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": mark}]
    text = _conversation(tokenizer, said, add_generation_prompt=False)
    behind = _tokens(tokenizer, text.rpartition(mark)[2].lstrip())
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return behind[0] if behind and behind[0] in special else None


def _conversation(tokenizer: Any, messages: Sequence[Message], **options: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError("this tokenizer has no chat template. Cure: plain prompts (--plain).")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        raise ConfigError(f"the chat template refuses this conversation: {error}.") from error
