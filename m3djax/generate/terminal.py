"""What talking in the terminal takes: questions come in, answers stream out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Literal

import jax

from data_pipelines.errors import ConfigError, printable
from m3djax.generate.generator import Answer
from m3djax.params import Dtype

AutoDtype = Literal["auto", "float32", "bfloat16"]


def converse(reply: Callable[[str], object], name: str) -> None:
    """Passes what is typed on to `reply`, until an empty line or the end of the input.

    What a model cannot answer, a question that is too long for it, say, is told, and it goes on.

    Args:
      reply: answers on the screen.
      name: of the verb, for messages.
    """
    for question in _typed():
        try:
            reply(question)
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)


def stream(_row: int, text: str) -> None:
    """Prints a piece of an answer; an `OnText` for one question at a time.

    What would control the terminal instead of being read is left out.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    print(shown, end="", flush=True)


def end(answer: Answer) -> None:
    """Ends the line of an answer that was streamed, and shows if it was cut off."""
    print(" ..." if answer.ended == "length" else "", flush=True)


def chosen(dtype: AutoDtype) -> Dtype:
    """The dtype; "auto" is float32 on CPUs, whose bfloat16 is slow, and bfloat16 elsewhere."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _typed() -> Iterator[str]:
    while sys.stdin is not None:  # closed by who started this, as some schedulers do
        typed = sys.stdin.isatty()
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        if not line:
            return
        if not typed:  # so that the answers have their questions above them
            print(f"> {printable(line)}", flush=True)
        yield line
