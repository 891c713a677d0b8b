"""Output of a session on the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.errors import printable
from m3djax.ask.describe import about_places, describe, measured
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.model import AskModel
from m3djax.ask.session import Exchange, Session
from m3djax.generate.terminal import end, stream
from m3djax.params import Dtype


def show_scans(fovs: Sequence[FieldOfView]) -> None:
    """Prints descriptions of the scans, and of the parts that the model sees."""
    for fov in fovs:
        print("\n".join(describe(fov)), flush=True)


def show_model(name: str, model: AskModel, dtype: Dtype) -> None:
    """Prints the size of a model, and the results of its last evaluation."""
    task = model.run.task
    layers = task.vision.depth, task.llm.num_layers
    print(f"{name}: {layers[0]} layers see, {layers[1]} speak, {dtype}")
    print("\n".join(measured(model.run.folder)), flush=True)


def show_question(question: str) -> None:
    """Prints a question that was not typed in the terminal."""
    print(f"\n> {printable(question)}", flush=True)


@dataclasses.dataclass
class Conversation:
    """A session in the terminal, with all exchanges so far.

    A question sees the earlier exchanges, as many as conversations of training had. A model that
    was trained on single questions sees none.

    Attributes:
      session: the session.
      said: all exchanges, the oldest first.
    """

    session: Session
    said: list[Exchange] = dataclasses.field(default_factory=list)
    _start: int = 0

    def ask(self, question: str, form: str = "") -> None:
        """Asks a question; streams the reply, then prints its places."""
        earlier = self.session.turns - 1
        history = self.said[self._start :][-earlier:] if earlier else ()
        reply = self.session.ask(history, question, stream, form=form)
        end(reply.ended)
        for line in about_places(reply):
            print(f"  {line}", flush=True)
        self.said.append(Exchange(question, reply, form))

    def restart(self) -> None:
        """Starts a new conversation: later questions do not see the exchanges so far."""
        self._start = len(self.said)
