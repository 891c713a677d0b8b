"""Conversation in the terminal: reads questions, prints answers while they grow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import jax

from data_pipelines.errors import ConfigError, printable
from m3djax.generate.generator import Ended
from m3djax.generate.options import AutoDtype
from m3djax.params import Dtype


def converse(reply: Callable[[str], object], name: str) -> None:
    """Passes every line that is typed to `reply`, until an empty line or the end of the input.

    A question that the model cannot take, such as one that is too long, prints an error.

    Args:
      reply: prints the answer to a question.
      name: of the verb, for messages.
    """
    for question in _typed():
        try:
            reply(question)
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)


def stream(text: str) -> None:
    """Prints a piece of an answer, without characters that would control the terminal."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    print(shown, end="", flush=True)


def end(ended: Ended) -> None:
    """Ends the line of an answer that was streamed; dots show that it was cut off."""
    print(" ..." if ended == "length" else "", flush=True)


def chosen(dtype: AutoDtype) -> Dtype:
    """Returns the dtype; "auto" is float32 on CPUs (bfloat16 is slow there), else bfloat16."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _typed() -> Iterator[str]:
    while sys.stdin is not None:  # some schedulers close it
        typed = sys.stdin.isatty()
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        if not line:
            return
        if not typed:  # so that every answer has its question above it
            print(f"> {printable(line)}", flush=True)
        yield line
