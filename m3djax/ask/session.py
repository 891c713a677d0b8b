"""Questions about scans that are opened once.

A session prints nothing, writes no files and leaves no mesh behind, so that a terminal, a picture,
a draft or a server can be a view of it, and several sessions can share one process:

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
"""Called with every further piece of a reply."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model said to one question, and where in the scan.

    Attributes:
      text: the reply without special tokens.
      places: what it names in the scan, in the scan's own coordinates.
      unreadable: texts that look like a box and are none.
      outside: boxes, as written, of which nothing lies in the scan.
      unplaced: boxes, as written, that may lie in any of several scans.
      tokens: ids of the reply's tokens; () for a reply that was not generated.
      ended: by a token, by a stop string, or by `Sampling.max_new_tokens`.
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
    """A question and the reply to it.

    Attributes:
      question: as it was put.
      reply: of the model.
      form: of the question; see `captions.Question`.
    """

    question: str
    reply: Reply
    form: str = ""


class Session:
    """Questions about one scan, or about several scans of one prompt."""

    def __init__(
        self, model: AskModel, fovs: Sequence[FieldOfView], sampling: Sampling | None = None
    ):
        """Takes what the model sees of the scans; encodes nothing yet.

        Args:
          model: a model; it may serve any number of sessions.
          fovs: of the scans, in the order of their placeholders.
          sampling: how replies are chosen; None: the default.

        Raises:
          ConfigError: the scans do not fit the model's context.
        """
        self.model, self.fovs = model, tuple(fovs)
        self._sampling = sampling or Sampling()
        self._prompt = model.run.prompt(len(self.fovs))

    def encode(self) -> EncodedVolumes:
        """Encodes the scans once, at the first question or before it."""
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
          history: earlier exchanges about the same scans, oldest first, put as in training on
            conversations; () asks the question on its own. A model whose
            data.fields.text.tokens.turns is 1 was trained on single questions.
          question: the question.
          on_text: called with every further piece of the reply.
          form: of the question; see `captions.Question`.

        Raises:
          ConfigError: history and question do not fit the model's context, or its prompt format
            takes no history.
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
        """Returns an exchange with the reply as training has it: tokens of boxes included."""
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
      model: the model that is asked.
      scan: a volume, a volume file, or a folder of DICOM files or of image slices.
      at: see `Run.look_at`, as for the next four.
      zoom: of the crop.
      units: of a file that cannot tell.
      series: number of a DICOM series.
      recipe: name of the preprocessing.
      sampling: how replies are chosen; None: the default.

    Raises:
      DataError: the scan cannot be read, or is of another kind than the run's data.
      ConfigError: the options do not fit run and scan.
    """
    fov = model.run.look_at(scan, at=at, zoom=zoom, units=units, series=series, recipe=recipe)
    return Session(model, [fov], sampling)
