"""Sessions: questions about scans that are read and encoded once.

A session prints nothing, writes no files and leaves no mesh set. So a terminal, a picture, a draft
or a server can be a view of it, and several sessions can share one process:

    model = Run.open("runs/quickstart_ask").load()
    session = open_scan(model, "scan.nii.gz", units="HU")
    first = session.ask((), "Is the liver there?")
    second = session.ask([Exchange("Is the liver there?", first)], "Where is it?")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from data_pipelines.text.prompts import Turn
from data_pipelines.volume import Units, Volume
from m3djax.ask.field_of_view import CENTRE, FieldOfView
from m3djax.ask.model import AskModel
from m3djax.ask.places import Place, place_boxes, read_boxes
from m3djax.generate.generator import Answer, Ended
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import EncodedVolumes

OnText = Callable[[str], None]
"""Function that is called with every further piece of a reply."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """The reply of the model to one question, with its places in the scan.

    Attributes:
      text: the reply without special tokens.
      places: the places in the reply, in the scan's own coordinates.
      unreadable: texts that look like a box but cannot be read.
      outside: boxes, as written, that are wholly outside of the scan.
      unplaced: boxes, as written, that may be in any of several scans.
      tokens: ids of the reply's tokens; () for a reply that was not generated.
      ended: reason for its end: "eos" (a token), "stop" (a stop string) or "length"
        (`Sampling.max_new_tokens`).
    """

    text: str
    places: tuple[Place, ...] = ()
    unreadable: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    ended: Ended = "eos"


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its reply.

    Attributes:
      question: the question.
      reply: the reply of the model.
      form: form of the question; see `caption.Question`.
    """

    question: str
    reply: Reply
    form: str = ""


class Session:
    """A session of questions about one scan, or about several scans of one prompt."""

    def __init__(
        self, model: AskModel, fovs: Sequence[FieldOfView], sampling: Sampling | None = None
    ):
        """Makes a session; encodes nothing yet.

        Args:
          model: the model; any number of sessions can share it.
          fovs: fields of view of the scans, in the order of their placeholders.
          sampling: options of sampling for the replies; None: the default.

        Raises:
          ConfigError: the scans do not fit the model's context.
        """
        self.model, self.fovs = model, tuple(fovs)
        self._sampling = sampling or Sampling()
        self._prompt = model.run.prompt(len(self.fovs))

    @property
    def turns(self) -> int:
        """Returns the largest number of questions in a conversation of training, at least 1."""
        return self.model.run.tokens.turns

    def encode(self) -> EncodedVolumes:
        """Encodes the scans at the first call; later calls return the same result."""
        return self._encoded

    @functools.cached_property
    def _encoded(self) -> EncodedVolumes:
        image = np.stack([fov.image for fov in self.fovs])[None]
        scale = np.array([[fov.scale for fov in self.fovs]], np.float32)
        offset = np.array([[fov.offset for fov in self.fovs]], np.float32)
        return self.model.reader.read({"image": image, "scale": scale, "offset": offset})

    def ask(
        self,
        history: Sequence[Exchange],
        question: str,
        on_text: OnText | None = None,
        *,
        form: str = "",
    ) -> Reply:
        """Asks one question.

        Args:
          history: earlier exchanges about the same scans, the oldest first, in the prompt format of
            training on conversations; (): a single question. A model with
            data.fields.text.tokens.turns = 1 was trained on single questions.
          question: the question.
          on_text: function that is called with every further piece of the reply.
          form: form of the question; see `caption.Question`.

        Raises:
          ConfigError: history and question do not fit the model's context, or its prompt format
            has no history.
        """
        turns = [self._turn(exchange) for exchange in history]
        prompt = self._prompt(self.model.tokenizer, question, form, turns)
        [answer] = self.model.reader.answer(
            self._encoded,
            [prompt],
            self._sampling,
            on_text=None if on_text is None else lambda _row, text: on_text(text),
        )
        return self._reply(answer)

    def _turn(self, exchange: Exchange) -> Turn:
        """Returns an exchange with the reply as in training, with the tokens of boxes."""
        reply, text = exchange.reply, exchange.reply.text
        if reply.tokens and reply.ended != "stop":  # the tokens would repeat the stop string
            text = self.model.tokenizer.decode(list(reply.tokens))
        return Turn(exchange.question, text, exchange.form)

    def _reply(self, answer: Answer) -> Reply:
        if len(self.fovs) > 1:
            found, unreadable = read_boxes(answer.text)
            return Reply(
                answer.text,
                unreadable=tuple(unreadable),
                unplaced=tuple(text for text, _ in found),
                tokens=answer.tokens,
                ended=answer.ended,
            )
        boxes = place_boxes(answer.text, self.fovs[0], released=self.model.run.released_boxes)
        return Reply(
            answer.text,
            boxes.placed,
            boxes.unreadable,
            boxes.outside,
            tokens=answer.tokens,
            ended=answer.ended,
        )


def open_scan(
    model: AskModel,
    scan: epath.PathLike | Volume,
    *,
    at: str = CENTRE,
    zoom: float | None = None,
    units: Units | None = None,
    series: str | None = None,
    recipe: str | None = None,
    sampling: Sampling | None = None,
) -> Session:
    """Reads and preprocesses a scan; the first question encodes it.

    Args:
      model: the model.
      scan: a volume, a volume file, or a folder of DICOM files or of image slices.
      at: place of the crop; for this and the next four, see `Run.look_at`.
      zoom: zoom of the crop.
      units: units of a file that does not store them.
      series: number of a DICOM series.
      recipe: name of the preprocessing.
      sampling: options of sampling for the replies; None: the default.

    Raises:
      DataError: the scan cannot be read, or is of another kind than the run's data.
      ConfigError: the options do not fit run and scan.
    """
    fov = model.run.look_at(scan, at=at, zoom=zoom, units=units, series=series, recipe=recipe)
    return Session(model, [fov], sampling)
