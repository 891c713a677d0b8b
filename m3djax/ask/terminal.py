"""Output of a session on the terminal."""

from __future__ import annotations

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


def ask(session: Session, question: str, form: str = "") -> Exchange:
    """Asks a single question; streams the reply, then prints its places."""
    reply = session.ask((), question, stream, form=form)
    end(reply.ended)
    for line in about_places(reply):
        print(f"  {line}", flush=True)
    return Exchange(question, reply, form)
