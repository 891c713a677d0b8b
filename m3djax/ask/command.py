"""The verb `ask`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from data_pipelines.errors import ConfigError, DataError
from data_pipelines.files import check_target
from m3djax.ask import draft, picture, terminal
from m3djax.ask.describe import counted
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.model import Run
from m3djax.ask.options import AskOptions
from m3djax.ask.session import Session
from m3djax.generate.terminal import chosen, converse


@dataclasses.dataclass(frozen=True)
class Ask(AskOptions):
    """The verb `ask` with its options."""

    def answer(self) -> int:
        """Prints the answers, draws the picture, writes the draft; returns the exit status.

        Raises:
          RunError, CheckpointError: the run cannot be read.
          DataError: a scan or the tokenizer cannot be read, a scan is of another kind than the
            training data, or the picture or the draft cannot be written.
          ConfigError: options, run and scans do not fit together, or a question is empty.
        """
        if not all(map(str.strip, self.questions)):
            raise ConfigError(
                "a question is empty. Cure: write it, or give none and type it in the terminal."
            )
        for target in filter(None, (self.picture, self.report)):
            check_target(target)
        if self.picture and not self.picture.lower().endswith(".png"):
            raise ConfigError(f"--picture {self.picture!r}: is no PNG. Cure: a name in .png.")
        talk = terminal.Conversation(self.open())
        print(picture.NOTICE, flush=True)
        for question in self.questions:
            terminal.show_question(question)
            talk.ask(question)
        status = self._draft(talk) if self.report else 0
        if not self.questions and not self.report:
            new = ", /new starts a new conversation" if talk.session.turns > 1 else ""
            print(f"(an empty line or ctrl-D ends{new})", flush=True)
            converse(lambda question: self._typed(talk, question), "ask")
        if self.picture:
            self._draw(talk)
            print(f"picture: {self.picture}")
        if total := counted([one.reply for one in talk.said]):
            print(total)
        print(picture.NOTICE)
        return status

    def open(self) -> Session:
        """Reads the run and the scans, prints descriptions of them, and encodes the scans."""
        run, dtype = Run.open(self.run), chosen(self.dtype)
        fovs = [self._look_at(run, path) for path in (self.scan, *self.also)]
        terminal.show_scans(fovs)
        run.prompt(len(fovs))  # errors come before the weights, which take long to read
        model = run.load(dtype)
        terminal.show_model(self.run, model, dtype)
        session = Session(model, fovs, self.sampling)
        session.encode()
        return session

    def _look_at(self, run: Run, path: str) -> FieldOfView:
        return run.look_at(
            path,
            at=self.at,
            zoom=self.zoom,
            units=self.units,
            series=self.series,
            recipe=self.recipe,
        )

    def _typed(self, talk: terminal.Conversation, question: str) -> None:
        if question == "/new":
            talk.restart()
            return
        talk.ask(question)
        if self.picture:
            self._draw(talk)

    def _draw(self, talk: terminal.Conversation) -> None:
        assert self.picture
        window = talk.session.model.run.experiment.inputs.window
        with _writing(self.picture):
            picture.draw(self.picture, picture.rows(talk.session.fovs, talk.said), window)

    def _draft(self, talk: terminal.Conversation) -> int:
        assert self.report
        talk.restart()  # a report does not depend on the questions before it
        terminal.show_question(self.report_prompt)
        talk.ask(self.report_prompt, "report")
        if not talk.said[-1].reply.text.strip():
            print("ask: the model said nothing; no draft was written", file=sys.stderr)
            return 1
        with _writing(self.report):
            draft.write(self.report, talk.said[-1], talk.session.fovs, self.run)
        print(f"draft: {self.report}")
        return 0


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns an OSError of a write into a DataError with a cure."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise DataError(path, problem, "name a file elsewhere, or make room") from error
