"""Conversation in the terminal: reads questions and streams answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import jax

from data_pipelines.errors import ConfigError, printable
from m3djax.generate.generator import Ended
from m3djax.generate.options import AutoDtype
from m3djax.params import Dtype


def converse(reply: Callable[[str], object], name: str) -> None:
    """Passes every typed line to `reply`, until an empty line or the end of the input.

    If the model cannot take a question, for example because it is too long, an error is printed.

    Args:
      reply: function that prints the answer to a question.
      name: name of the verb, for messages.
    """
    for question in _typed():
        try:
            reply(question)
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)


def stream(text: str) -> None:
    """Prints a piece of an answer, without control characters of the terminal."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    print(shown, end="", flush=True)


def end(ended: Ended) -> None:
    """Ends the line of a streamed answer; dots show that it was cut off."""
    print(" ..." if ended == "length" else "", flush=True)


def chosen(dtype: AutoDtype) -> Dtype:
    """Returns the dtype; "auto": float32 on CPUs (bfloat16 is slow there), bfloat16 elsewhere."""
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
        if not typed:  # show the question above its answer
            print(f"> {printable(line)}", flush=True)
        yield line
