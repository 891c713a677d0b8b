"""`python run.py ask RUN SCAN "question" ...`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import tyro

from data_pipelines import readers
from data_pipelines.captions import templates
from data_pipelines.errors import ConfigError, DataError, printable
from data_pipelines.files import check_target
from data_pipelines.plausible import check_values
from data_pipelines.volume import Units, Volume
from m3djax.ask import draft, picture
from m3djax.ask.conversation import Conversation, Said
from m3djax.ask.describe import describe, measured
from m3djax.ask.model import Run
from m3djax.ask.part import At, Part, take
from m3djax.ask.places import counted
from m3djax.generate import terminal
from m3djax.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Ask:
    """Asks a model about a scan.

    Without questions it reads them from the terminal. Boxes in answers are given in voxels of the
    file (first:past-the-last, along its own axes) and in RAS+ millimetres, and drawn. Nothing that
    it says is for clinical use.

    Attributes:
      run: a run of the task VisionLanguage, or a folder of `run.py convert`.
      scan: a volume file, or a folder of DICOM files or of image slices.
      questions: one text each.
      also: further scans of the same prompt, behind the first. Boxes are then not placed, as
        answers do not say which scan they mean.
      at: what is looked at where training cut crops: around the "centre" of the scan, a voxel of
        the file ("30,200,180"), or RAS+ millimetres ("-12,40,1310mm"; write --at=-12,...).
        "whole" resamples the whole scan to the size of the crop, as training did not.
      zoom: of the crop, see `Crop`; None is the one that training cut most often.
      units: of files that cannot tell: "HU" for CT.
      series: the number of a series in a DICOM folder with several.
      recipe: preprocessing of the training data, such as "m3d", where that is not at hand.
      picture: the PNG to draw; None draws nothing.
      report: a file for a draft of the findings; None writes none.
      report_prompt: what is asked for it.
      sampling: how answers are chosen.
      dtype: what is computed in; "auto" is float32 on CPUs and bfloat16 elsewhere.
    """

    run: tyro.conf.Positional[str]
    scan: tyro.conf.Positional[str]
    questions: tyro.conf.Positional[tuple[str, ...]] = ()
    also: tuple[str, ...] = ()
    at: str = "centre"
    zoom: float | None = None
    units: Units | None = None
    series: str | None = None
    recipe: str | None = None
    picture: str | None = "ask.png"
    report: str | None = None
    report_prompt: str = templates.REPORT[0]
    sampling: Sampling = Sampling()
    dtype: terminal.AutoDtype = "auto"

    def answer(self) -> int:
        """Answers on the screen, draws and writes; returns the exit status.

        Raises:
          RunError, CheckpointError: the run cannot be read.
          DataError: a scan or the tokenizer cannot be read, a scan is of another kind, or the
            picture or the draft cannot be written.
          ConfigError: options, run and scans do not fit together, or a question is empty.
        """
        if not all(map(str.strip, self.questions)):
            raise ConfigError(
                "an empty question. Cure: words in it; no question at all lets you type them."
            )
        for target in filter(None, (self.picture, self.report)):
            check_target(target)
        if self.picture and not self.picture.lower().endswith(".png"):
            raise ConfigError(f"--picture {self.picture!r}: a PNG is drawn. Cure: a name in .png.")
        talk = self.conversation()
        print(picture.NOTICE, flush=True)
        said: list[Said] = []
        for question in self.questions:
            print(f"\n> {printable(question)}", flush=True)
            said.append(self._reply(talk, question))
        status = self._draft(talk, said) if self.report else 0
        if not self.questions and not self.report:
            print("(an empty line or ctrl-D ends)", flush=True)
            terminal.converse(lambda question: self._typed(talk, question, said), "ask")
        if self.picture:
            self._draw(talk, said)
            print(f"picture: {self.picture}")
        if total := counted([one.boxes for one in said]):
            print(total)
        print(picture.NOTICE)
        return status

    def conversation(self) -> Conversation:
        """Reads the run and the scans, says what they are, and encodes the scans."""
        run = Run.open(self.run)
        dtype = terminal.chosen(self.dtype)
        parts = self._parts(run)
        for part in parts:
            print("\n".join(describe(part)), flush=True)
        reader = run.reader(len(parts), dtype)
        layers = run.task.vision.transformer.num_layers, run.task.llm.num_layers
        print(f"{self.run}: {layers[0]} layers see, {layers[1]} speak, {dtype}")
        print("\n".join(measured(self.run)), flush=True)
        return Conversation(reader, parts, self.sampling, released=run.released_boxes)

    def _parts(self, run: Run) -> list[Part]:
        recipe, at, crop = run.recipe(self.recipe), At.read(self.at), run.crop(self.zoom)
        data = run.experiment.data
        return [take(self._read(path), data, recipe, at, crop) for path in (self.scan, *self.also)]

    def _read(self, path: str) -> Volume:
        volume = readers.read(path, units=self.units, series=self.series)
        volume = dataclasses.replace(volume, source=path)
        check_values(volume)
        return volume

    def _reply(self, talk: Conversation, question: str, form: str = "") -> Said:
        said = talk.ask(question, form=form)
        for line in said.lines():
            print(f"  {line}", flush=True)
        return said

    def _typed(self, talk: Conversation, question: str, said: list[Said]) -> None:
        said.append(self._reply(talk, question))
        if self.picture:
            self._draw(talk, said)

    def _draw(self, talk: Conversation, said: list[Said]) -> None:
        assert self.picture
        with _writing(self.picture):
            picture.draw(self.picture, talk.rows(said), talk.reader.task.intensity.window)

    def _draft(self, talk: Conversation, said: list[Said]) -> int:
        assert self.report
        print(f"\n> {self.report_prompt}", flush=True)
        said.append(self._reply(talk, self.report_prompt, "report"))
        if not said[-1].answer.text.strip():
            print("ask: the model said nothing; no draft was written", file=sys.stderr)
            return 1
        with _writing(self.report):
            draft.write(self.report, said[-1], talk.parts, self.run)
        print(f"draft: {self.report}")
        return 0


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Tells what the file system refuses as what a user can mend."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise DataError(path, problem, "name a file elsewhere, or make room") from error
