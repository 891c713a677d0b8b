"""Text to the tokens that a model was trained to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipelines.errors import ConfigError

Message = dict[str, str]
"""{"role": "user", "content": "..."}, as Hugging Face's chat templates take them."""


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
    if not tokenizer.chat_template:
        raise ConfigError("this tokenizer has no chat template. Cure: plain prompts (--plain).")
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise ConfigError(f"the chat template refuses this conversation: {error}.") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def token_id(tokenizer: Any, token: str) -> int:
    """The one id of a special token.

    Raises:
      ConfigError: the tokenizer does not know it as one token.
    """
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"{token!r} is not a token of this tokenizer, which makes {len(ids)} of it. "
            "Cure: add it (m3djax/convert/new_tokens.py) or use the model's own tokenizer."
        )
    return ids[0]
