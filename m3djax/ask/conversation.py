"""Questions about scans that were encoded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.errors import printable
from m3djax.ask.part import Part
from m3djax.ask.picture import Row
from m3djax.ask.places import Boxes, place_boxes, read_boxes
from m3djax.generate import terminal
from m3djax.generate.generator import Answer, OnText
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import VolumeReader


@dataclasses.dataclass(frozen=True)
class Said:
    """A question and its answer.

    Attributes:
      question: as it was put.
      answer: of the model.
      boxes: of the answer, in the scan.
      unplaced: boxes that could mean any of several scans.
    """

    question: str
    answer: Answer
    boxes: Boxes
    unplaced: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """What there is to say about the boxes of the answer."""
        for place in self.boxes.places:
            yield f"box {place.text}: {place}"
        for text in self.boxes.unreadable:
            yield f"not a readable box, left out: {printable(text)}"
        for text in self.boxes.outside:
            yield f"box {text} lies outside of the scan, left out"
        for text in self.unplaced:
            yield f"box {text} is not placed: the answer does not say in which of the scans"


class Conversation:
    """Answers questions about scans, on the screen as they come."""

    def __init__(
        self,
        reader: VolumeReader,
        parts: Sequence[Part],
        sampling: Sampling,
        *,
        released: bool = False,
    ):
        """Encodes the scans.

        Args:
          reader: the model; its prompts have placeholders for all scans.
          parts: of the scans of a prompt, in their order.
          sampling: how answers are chosen.
          released: see `place_boxes`.
        """
        self.reader, self.parts = reader, parts
        self._sampling, self._released = sampling, released
        images = np.stack([part.image for part in parts])[None]
        scale = np.array([[part.scale for part in parts]], np.float32)
        offset = np.array([[part.offset for part in parts]], np.float32)
        self._seen = reader.read({"image": images, "scale": scale, "offset": offset})

    def ask(self, question: str, on_text: OnText = terminal.stream, *, form: str = "") -> Said:
        """The answer to one question, which is printed piece by piece.

        Args:
          question: the question.
          on_text: called with every piece.
          form: of the question; see `captions.Question`.

        Raises:
          ConfigError: the prompt does not fit the model.
        """
        [answer] = self.reader.answer(
            self._seen, [question], self._sampling, forms=[form], on_text=on_text
        )
        terminal.end(answer)
        if len(self.parts) == 1:
            boxes = place_boxes(answer.text, self.parts[0], released=self._released)
            return Said(question, answer, boxes)
        found, unreadable = read_boxes(answer.text)
        texts = tuple(text for text, _ in found)
        return Said(question, answer, Boxes(unreadable=tuple(unreadable)), texts)

    def rows(self, said: Sequence[Said]) -> list[Row]:
        """What to draw: every box that was placed; without any, what was looked at."""
        rows = [
            Row(f"{one.question}  >  {one.answer.text.strip()}", self.parts[0], place.voxels)
            for one in said
            for place in one.boxes.places
        ]
        texts = "; ".join(f"{one.question}  >  {one.answer.text.strip()}" for one in said)
        texts = texts or "What the model looks at"
        several = len(self.parts) > 1
        return rows or [
            Row(f"{part.scan.source}: {texts}" if several else texts, part) for part in self.parts
        ]
