"""The evaluator of answers to questions about the crops of a split."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from data_pipelines.errors import ConfigError
from data_pipelines.fields.text import Text
from data_pipelines.files import write_whole
from data_pipelines.pipeline import Data
from m3djax.config import serialize
from m3djax.contracts.evaluator import Batch, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError, Findings, Picture
from m3djax.contracts.scores import OWN, Scores
from m3djax.contracts.units import REGIONS, Units, independent
from m3djax.evaluate.answers.answerers import answerer, placed
from m3djax.evaluate.answers.answering import Questioned, Respondent, answer, read_answers
from m3djax.evaluate.answers.asking import Enumerates, QuestionedCrop, asked
from m3djax.evaluate.answers.beside import Beside
from m3djax.evaluate.answers.numbers import Kind
from m3djax.evaluate.answers.present import present
from m3djax.evaluate.answers.scoring import kind_of, numbers_of, score_answers
from m3djax.evaluate.answers.table import AnswerTable, Row
from m3djax.evaluate.fingerprint import PredictionFiles, reading_parts
from m3djax.evaluate.split import SplitEvaluator, patients
from m3djax.evaluate.text.bert_score import BertScore
from m3djax.generate.sampling import Sampling
from m3djax.tasks.answering import AnsweringTask

_ONE_PATIENT = (
    "All questions are about one patient. The intervals are over regions of the scan, whose crops "
    "overlap those of their neighbours, and say nothing about other patients."
)


@dataclasses.dataclass(frozen=True)
class Answers(SplitEvaluator):
    """Evaluator that asks a run and its baselines all questions of a split, and scores the answers.

    Every answer is written at once as a line of answers-MODEL-*.jsonl. So an interrupted evaluation
    resumes where it stopped. Answers are kept until the parameters, the questions or the prompts
    change. scores-MODEL.jsonl has every answer with all its scores. Intervals are over patients;
    with only one patient, over regions of the scans.

    Attributes:
      dataset: folder that the verb `prepare` wrote.
      size: size of the network's input in voxels along (D, H, W), as in training.
      split: the split of the records.
      part: part of each volume along D from which crops come; see `Source`.
      crops: crops per record.
      per_crop: questions of each kind about a crop, drawn at random; 0: all questions.
      data: config of crops and questions; None: as in training. Its tokenizer is replaced by the
        run's own.
      beside: baselines, which answer the same questions; name -> baseline.
      sampling: options of sampling for the answers.
      batch_size: volumes that a process encodes as one batch.
      questions: answers that are generated as one batch.
      bert_score: folder of a BERT or RoBERTa for BERTScore, such as roberta-large; "": none.
      bert_layer: see `BertScore.read`.
      pictures: number of crops to draw with their questions and answers.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
      caveats: sentences that are printed with the result.
      seed: seed of crops, questions and intervals.
      every: steps between two evaluations during training; 0: only the verb `evaluate`.
    """

    per_crop: int = 0
    data: Annotated[Data | None, tyro.conf.AvoidSubcommands] = None
    beside: Mapping[str, Beside] = dataclasses.field(default_factory=dict)
    sampling: Sampling = Sampling()
    questions: int = 16
    bert_score: str = ""
    bert_layer: int = 0
    pictures: int = 3
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for impossible values."""
        if min(self.crops, self.batch_size, self.questions) < 1 or self.per_crop < 0:
            raise ConfigError("crops, batch_size and questions start at 1, per_crop at 0.")
        if OWN in self.beside:
            raise ConfigError(f"beside: {OWN!r} is taken. Cure: another name.")

    def reading(self, data: Data) -> Data:
        """Returns the data to read, with the tokenizer of the run; see `Evaluator.reading`."""
        return _spoken(super().reading(self.data or data), data)

    def check(self, data: Data) -> None:
        """Raises if the data has no questions; see `Evaluator.check`."""
        text = self.reading(data).find("text", Text)
        if text is None or not isinstance(text.source, Enumerates):
            raise ConfigError(
                "Answers needs data with questions. Cure: a data.fields.text.source of questions, "
                "such as MaskQuestions."
            )
        text.tokens.check()
        super().check(data)

    def check_task(self, task: Any) -> None:
        """Raises if the task has no language model `llm`; see `Evaluator.check_task`."""
        if "llm" not in task.components():
            raise EvaluationError(
                "Answers measures tasks with a language model, such as VisionLanguage and "
                f"Language, and {type(task).__name__} has none. "
                "Cure: leave this evaluator out of the config."
            )

    def passes(self, subject: Subject) -> Iterator[Pass]:
        """Yields a pass of the run and one of each baseline; see `Evaluator.passes`.

        Raises:
          EvaluationError: the run cannot answer questions.
          RunError: the run of a baseline does not exist.
        """
        for other in self.beside.values():
            other.check()
        yield self._pass(OWN, subject, subject)
        for name, other in self.beside.items():
            yield self._pass(name, other.open(subject), subject, blind=other.blind)

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Any]:
        """Returns the answers to the questions about each crop; see `Evaluator.predict`."""
        assert isinstance(subject, Respondent)
        return answer(subject, batch, self.questions)

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Scores each answer by the metrics of its kind of question; see `Evaluator.score`.

        Raises:
          EvaluationError: there are no questions.
        """
        answered = {model: read_answers(given) for model, given in predictions.items()}
        if not answered[OWN]:
            raise EvaluationError(
                f"{self.source(subject.data).path}: split {self.split!r} has no questions. "
                "Cure: another split, more `crops`, or another data.fields.text.source."
            )
        bert = BertScore.read(self.bert_score, layer=self.bert_layer) if self.bert_score else None
        return score_answers(answered, self._units(subject, answered[OWN]), bert)

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Makes the report, and writes the scores of each model; see `Evaluator.present`.

        Raises:
          EvaluationError: all questions are about one place of one patient.
        """
        answered = {model: read_answers(given) for model, given in predictions.items()}
        kinds = [kind_of(name, answered, scores) for name in scores.groups()]
        for model in answered:
            lines = [json.dumps(line) + "\n" for kind in kinds for line in kind.table(model)]
            write_whole(subject.folder / f"scores-{_file_name(model)}.jsonl", "".join(lines))
        numbers, notes = numbers_of(kinds, self.seed)
        if not numbers:
            raise EvaluationError(
                f"{self.source(subject.data).path}, split {self.split!r}: all questions are about "
                "one place of one patient, and an interval needs 2. Cure: more `crops`, or more "
                "scans."
            )
        units = scores.columns[0].units.kind
        if units == REGIONS:
            notes.append(_ONE_PATIENT)
        shown = self._sheet(subject, kinds)
        return present(numbers, units, shown, (*self.caveats, *notes))

    def _pass(self, name: str, model: Subject, subject: Subject, *, blind: bool = False) -> Pass:
        """Returns the pass in which a model answers all questions; earlier answers are kept."""
        reading, mesh = self.reading(subject.data), subject.mesh
        params = placed(model.params, mesh, model.task)
        table = self._table(name, dataclasses.replace(model, params=params), subject, blind=blind)
        put = _spoken(reading, model.data)
        load = functools.partial(
            answerer,
            model.task,
            model.inputs,
            params,
            put,
            mesh,
            sampling=self.sampling,
            blind=blind,
        )
        respondent = Respondent(
            model.task,
            model.inputs,
            params,
            model.data,
            mesh,
            subject.run,
            subject.folder,
            load,
            table,
        )
        crops = functools.partial(self._asked, subject)
        return Pass(name, respondent, Questioned(crops, self.crops, table))

    def _table(self, name: str, model: Subject, subject: Subject, *, blind: bool) -> AnswerTable:
        """Opens the answers of a model, and removes answers of other parameters."""
        reading, source = self.reading(subject.data), self.source(subject.data)
        text = model.data.find("text", Text)
        tokens = text and serialize.to_json(text.tokens)
        parts = reading_parts(model, reading, source, self.crops, self.seed)
        parts += [tokens, serialize.to_json(self.sampling), blind]
        stem = f"answers-{_file_name(name)}"
        files = PredictionFiles.of(subject.folder, stem, model.params, parts)
        files.remove_others()
        number = jax.process_index()
        own = files.file(f".{number}.jsonl" if number else ".jsonl")
        return AnswerTable(own, files.files())

    def _asked(self, subject: Subject, part: slice = slice(None)) -> Iterator[QuestionedCrop]:
        return asked(
            self.reading(subject.data), self.source(subject.data), crops=self.crops,
            seed=self.seed, per_crop=self.per_crop, part=part,
        )  # fmt: skip

    def _units(self, subject: Subject, rows: list[Row]) -> Units:
        """Returns the independent unit of every question."""
        record = np.array([row.record for row in rows])
        patient = patients(self.source(subject.data), record)
        places = np.array([row.place for row in rows])
        return independent(patient, record, places, self.reading(subject.data).size)

    def _sheet(self, subject: Subject, kinds: list[Kind]) -> tuple[Picture, ...]:
        """Draws some crops with their questions and answers."""
        if not self.pictures or not isinstance(subject.task, AnsweringTask):
            return ()
        # Imported late: it takes a second to import, and configs import this module.
        from m3djax.evaluate.answers import sheet

        keys = sorted({row.key[:2] for kind in kinds for row in kind.rows})
        order = np.random.default_rng(self.seed).permutation(len(keys))
        picked = {keys[number] for number in order[: self.pictures]}
        crops = [one.sample for one in self._asked(subject) if one.rows[0].key[:2] in picked]
        return sheet.draw(crops, kinds, subject.inputs.window, subject.folder)


def _spoken(ours: Data, theirs: Data) -> Data:
    """Returns `ours` with the tokenizer of `theirs`; without text if one of them has no text."""
    own, other = ours.find("text", Text), theirs.find("text", Text)
    fields = {name: field for name, field in ours.fields.items() if name != "text"}
    if own is not None and other is not None:
        fields["text"] = dataclasses.replace(own, tokens=other.tokens)
    return dataclasses.replace(ours, fields=fields)


def _file_name(model: str) -> str:
    return re.sub(r"\W+", "_", model)
