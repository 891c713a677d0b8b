"""What does the model answer when it is asked about volumes, and how much of it is right?"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import jax
import numpy as np
import tyro
from etils import epath
from jax.sharding import Mesh

from data_pipelines.crops import WHOLE, Part
from data_pipelines.datasets import open_dataset
from data_pipelines.errors import ConfigError
from data_pipelines.files import write_whole
from data_pipelines.pipeline import Data, Source
from data_pipelines.text_fields import Text
from m3djax import serialize, sharding
from m3djax.evaluate.answers import scores as answer_scores
from m3djax.evaluate.answers.answerers import answerer, placed
from m3djax.evaluate.answers.answering import answer_all
from m3djax.evaluate.answers.asking import Asked, Enumerates, asked
from m3djax.evaluate.answers.beside import Beside, Model
from m3djax.evaluate.answers.numbers import Kind
from m3djax.evaluate.answers.table import AnswerTable, Row
from m3djax.evaluate.answers.text import present
from m3djax.evaluate.base import Evaluator
from m3djax.evaluate.findings import EvaluationError, Picture
from m3djax.evaluate.fingerprint import fingerprint
from m3djax.evaluate.text.bert_score import BertScore
from m3djax.generate.sampling import Sampling
from m3djax.params import Params
from m3djax.tasks.vision_language import VisionLanguage

OWN = "this run"
_REGIONS = "regions of one patient"
_ONE_PATIENT = (
    "All questions are about one patient. The intervals are over regions of the scan, whose crops "
    "overlap those of their neighbours, and say nothing about other patients."
)
Answered = dict[str, list[Row]]


@dataclasses.dataclass(frozen=True)
class Answers(Evaluator):
    """Asks a run, and others beside it, all questions of a split, and scores what they say.

    Every answer is a line of answers-MODEL-*.jsonl as soon as it is given: an evaluation that was
    interrupted goes on where it stopped, and answers are kept until the parameters, the questions
    or the way of asking change. scores-MODEL.jsonl has every answer with all its scores. Intervals
    are over patients; where all samples are of one, over regions of its scans.

    Attributes:
      dataset: folder that `run.py prepare` wrote.
      size: voxels along (D, H, W) of the network's input: those of training.
      split: whose records are asked about.
      part: share of its volumes along D that crops come from; see `Source`.
      crops: crops of every record.
      per_crop: questions of each kind about a crop, drawn at random; 0 asks all that there are.
      data: how crops are cut and what is asked, the latter in the run's own tokens; None is as in
        training.
      beside: further models that answer the same questions; name -> which.
      sampling: how answers are chosen.
      batch_size: volumes that are encoded at once; more where devices ask for it.
      questions: answers that are written at once.
      bert_score: folder of a BERT or RoBERTa for BERTScore, such as that of roberta-large; "" for
        none.
      bert_layer: see `BertScore.read`.
      pictures: crops that are drawn with their questions and answers.
      mesh: devices along (data, fsdp, tensor), where there is none yet. Over data every device
        holds the whole model; (1, 1, -1) is for one that is too large for that.
      caveats: printed with the result.
      seed: of crops, questions and intervals.
      every: steps between two evaluations during training; 0 evaluates only when asked.
    """

    split: str = "test"
    part: Part = WHOLE
    crops: int = 1
    per_crop: int = 0
    data: Annotated[Data | None, tyro.conf.AvoidSubcommands] = None
    beside: Mapping[str, Beside] = dataclasses.field(default_factory=dict)
    sampling: Sampling = Sampling()
    batch_size: int = 8
    questions: int = 16
    bert_score: str = ""
    bert_layer: int = 0
    pictures: int = 3
    mesh: tuple[int, int, int] = (-1, 1, 1)
    caveats: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for values that mean nothing."""
        if min(self.crops, self.batch_size, self.questions) < 1 or self.per_crop < 0:
            raise ConfigError("crops, batch_size and questions start at 1, per_crop at 0.")
        if OWN in self.beside:
            raise ConfigError(f"beside: {OWN!r} is taken. Cure: another name.")

    def for_data(self, data: Data) -> Self:
        """See `Evaluator.for_data`."""
        bound = super().for_data(self.data or data)
        asks = self.data or data
        reading = dataclasses.replace(asks, size=bound.size, text=_text_of(data, asks.text))
        return dataclasses.replace(bound, data=reading)

    def check(self) -> None:
        """See `Evaluator.check`."""
        assert self.data is not None, "for_data fills it in"
        if self.data.text is None or not isinstance(self.data.text.source, Enumerates):
            raise ConfigError(
                "Answers needs data with questions. Cure: a data.text.source that asks, such as "
                "MaskQuestions."
            )
        self.data.text.tokens.check()
        open_dataset(self.dataset, self.split)

    def mesh_alone(self) -> Mesh:
        """See `Evaluator.mesh_alone`."""
        return sharding.make_mesh(self.mesh, jax.local_devices())

    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """See `Evaluator.run`.

        Raises:
          EvaluationError: the run answers no questions, there is nothing to ask, or all of it is
            about one place.
          DataError: the dataset, or a run beside this one, cannot be read.
        """
        self.check()
        for other in self.beside.values():
            other.check()
        assert self.data is not None
        mesh = jax.sharding.get_mesh()
        mesh = self.mesh_alone() if mesh.empty else mesh
        notes = list(self.caveats)
        own = Model(task, params, self.data)
        answered = {OWN: self._answer(OWN, own, mesh, folder)}
        for name, other in self.beside.items():
            if jax.process_count() > 1:
                notes.append(f"{name}: is measured where one process evaluates: run.py evaluate.")
                continue
            model = other.model(folder, own, mesh)
            answered[name] = self._answer(name, model, mesh, folder, blind=other.blind)
        kinds, units = self._scored(answered)
        _write_scores(kinds, folder)
        numbers = self._measured(kinds, notes)
        if units == _REGIONS:
            notes.append(_ONE_PATIENT)
        shown = self._sheet(task, kinds, folder)
        return present(numbers, units, shown, tuple(notes)).to_json()

    def _source(self) -> Source:
        return Source(self.dataset, self.split, part=self.part)

    def _asked(self) -> Iterator[Asked]:
        assert self.data is not None
        return asked(
            self.data, self._source(), crops=self.crops, seed=self.seed, per_crop=self.per_crop
        )

    def _answer(
        self, name: str, model: Model, mesh: Mesh, folder: epath.Path, *, blind: bool = False
    ) -> list[Row]:
        """One model's answers to all questions, those that were given earlier included."""
        assert self.data is not None
        params = placed(model.params, mesh)
        weights = f"{int(fingerprint(params)):08x}"
        stem = f"answers-{_file_name(name)}-"
        for old in folder.glob(f"{stem}*.jsonl"):
            if not old.name.startswith(f"{stem}{weights}-"):
                old.unlink()
        table = AnswerTable(folder / f"{stem}{weights}-{self._key(model, blind=blind)}.jsonl")
        reading = dataclasses.replace(self.data, text=_text_of(model.data, self.data.text))
        load = functools.partial(
            answerer, model.task, params, reading, mesh, sampling=self.sampling, blind=blind
        )
        over = mesh.shape["data"] * mesh.shape["fsdp"]
        volumes = -(-self.batch_size // over) * over
        rows = answer_all(self._asked(), table, load, batch_size=volumes, questions=self.questions)
        if not rows:
            raise EvaluationError(
                f"{self.dataset}: nothing can be asked about split {self.split!r}. "
                "Cure: another split, more `crops`, or another data.text.source."
            )
        return rows

    def _key(self, model: Model, *, blind: bool) -> str:
        """Of everything but the parameters that answers depend on."""
        assert self.data is not None
        free = ("sources", "batch_size", "workers", "buffer", "cache_gb")
        reading = {n: v for n, v in serialize.to_json(self.data).items() if n not in free}
        tokens = model.data.text and serialize.to_json(model.data.text.tokens)
        metadata = open_dataset(self.dataset, self.split, lazy=True).metadata
        parts = [
            serialize.to_json(model.task), reading, tokens, metadata, self.split, self.part,
            self.crops, self.seed, serialize.to_json(self.sampling), blind,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _scored(self, answered: Answered) -> tuple[list[Kind], str]:
        """Questions by kind with every model's scores, and what intervals are over."""
        rows = answered[OWN]
        unit, units = self._units(rows)
        bert = BertScore.read(self.bert_score, layer=self.bert_layer) if self.bert_score else None
        kinds = []
        for name in dict.fromkeys(row.kind for row in rows):
            which = [number for number, row in enumerate(rows) if row.kind == name]
            said = {model: [theirs[n] for n in which] for model, theirs in answered.items()}
            scores = {model: answer_scores.score(name, some, bert) for model, some in said.items()}
            kinds.append(Kind(name, said, unit[which], scores))
        return kinds, units

    def _units(self, rows: list[Row]) -> tuple[np.ndarray, str]:
        """The independent unit of every question, and what units are."""
        assert self.data is not None
        records = open_dataset(self.dataset, self.split, lazy=True)
        patients = {n: records[n]["patient_id"] for n in {row.record for row in rows}}
        unit = np.unique([patients[row.record] for row in rows], return_inverse=True)[1]
        if len(set(patients.values())) > 1:
            return unit, "patients"
        places = [(row.record, *(np.array(row.place) // self.data.size)) for row in rows]
        return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1), _REGIONS

    def _measured(self, kinds: list[Kind], notes: list[str]) -> dict[str, Any]:
        """The numbers of every kind; one that nothing can be said about leaves a note."""
        found = {}
        for kind in kinds:
            if len(np.unique(kind.unit)) > 1:
                found[kind.name] = kind.numbers(self.seed)
            else:
                notes.append(
                    f"{kind.name}: the {len(kind.rows)} questions are about one place, and an "
                    "interval needs 2: left out."
                )
        if not found:
            raise EvaluationError(
                f"{self.dataset}, split {self.split!r}: all questions are about one place of one "
                "patient, and an interval needs 2. Cure: more `crops`, or more scans."
            )
        return found

    def _sheet(self, task: Any, kinds: list[Kind], folder: epath.Path) -> tuple[Picture, ...]:
        """Some crops with their questions and answers."""
        if not self.pictures or not isinstance(task, VisionLanguage):
            return ()
        # Here, for those who only read a config: drawing takes a second to import.
        from m3djax.evaluate.answers import sheet

        keys = sorted({row.key[:2] for kind in kinds for row in kind.rows})
        order = np.random.default_rng(self.seed).permutation(len(keys))
        picked = {keys[number] for number in order[: self.pictures]}
        crops = [one.sample for one in self._asked() if one.rows[0].key[:2] in picked]
        return sheet.draw(crops, kinds, task.intensity.window, folder)


def _text_of(theirs: Data, ours: Text | None) -> Text | None:
    """Our questions, put as that run was trained to have them put."""
    if theirs.text is None or ours is None:
        return None
    return dataclasses.replace(ours, tokens=theirs.text.tokens)


def _write_scores(kinds: list[Kind], folder: epath.Path) -> None:
    for model in kinds[0].answers:
        lines = [json.dumps(line) + "\n" for kind in kinds for line in kind.table(model)]
        write_whole(folder / f"scores-{_file_name(model)}.jsonl", "".join(lines))


def _file_name(model: str) -> str:
    return re.sub(r"\W+", "_", model)
