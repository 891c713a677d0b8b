"""The loop of evaluators: every process predicts for its samples; process 0 scores them."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipelines.files import write_whole
from m3djax.contracts.evaluator import Batch, Evaluator, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.share import Share
from m3djax.evaluate.fingerprint import PredictionFiles
from m3djax.mesh import distributed, sharding
from m3djax.runs.results import FOLDER

if TYPE_CHECKING:
    from m3djax.runs.model import Model

log = logging.getLogger(__name__)


def own_mesh(evaluator: Evaluator) -> Mesh:
    """Returns the evaluator's mesh of this process's devices, for the evaluation of stored runs."""
    return sharding.make_mesh(evaluator.mesh, jax.local_devices())


def place(mesh: Mesh, batch: Batch, names: Iterable[str]) -> dict[str, jax.Array]:
    """Puts some fields of a batch on the devices; rows are split as in training.

    Raises:
      EvaluationError: the batch lacks a field.
    """
    names = tuple(names)
    if missing := [name for name in names if name not in batch]:
        raise EvaluationError(
            f"the samples of this evaluator have no field {missing[0]!r}, which the model needs. "
            "Cure: add it to data.fields, or leave this evaluator out of the config."
        )
    fields = {name: batch[name] for name in names}
    return jax.device_put(fields, sharding.batch_sharding(mesh))


def split_rows(rows: int, mesh: Mesh) -> int:
    """Rounds a number of rows up to a multiple of data x fsdp."""
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // split) * split


def subject_of(model: Model, mesh: Mesh, run: epath.Path, name: str) -> Subject:
    """Makes the subject of an evaluator, and its folder `evaluation/NAME` in the run's folder.

    Args:
      model: the model, with parameters on `mesh`.
      mesh: devices of this process.
      run: folder of the run.
      name: name of the evaluator in the config.
    """
    folder = run / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    return Subject(model.task, model.inputs, model.params, model.data, mesh, run, folder)


def measure(evaluator: Evaluator, subject: Subject) -> dict[str, Any]:
    """Evaluates a model; all processes must call this, and all get the result.

    The scores of all samples are written to `scores.jsonl` in the evaluator's folder.

    Args:
      evaluator: the evaluator.
      subject: the model, on devices of this process.

    Returns:
      See `Findings.to_json`.

    Raises:
      EvaluationError: the evaluator does not fit the run or the data.
      DataError: a dataset cannot be read.
    """
    evaluator.check(subject.data)
    evaluator.check_task(subject.task)
    with jax.set_mesh(subject.mesh):
        predictions = {one.name: predict(evaluator, one) for one in evaluator.passes(subject)}

        def findings() -> dict[str, Any]:
            scores = evaluator.score(subject, predictions)
            scores.write(subject.folder)
            return evaluator.present(subject, predictions, scores).to_json()

        return distributed.from_first(findings)


def predict(evaluator: Evaluator, one: Pass) -> Predictions:
    """Returns the predictions of a pass from all processes, in the order of the samples.

    Predictions with a key are cached in a file. Processes other than the first may get none.
    """
    if one.key is None:
        return _predict(evaluator, one)
    stored = PredictionFiles.of(
        one.subject.folder, _file_name(one.name), one.subject.params, one.key
    )
    file = stored.file(".npz")
    found: list[Predictions] = []
    if distributed.from_first(lambda: bool(_load_into(found, file))):
        return found[0] if found else {}
    predictions = _predict(evaluator, one)
    if distributed.is_first():
        write_whole(file, _packed(predictions))
        stored.remove_others()
    return predictions


def _predict(evaluator: Evaluator, one: Pass) -> Predictions:
    own = _joined([part for part in _parts(evaluator, one) if len(part["number"])])
    everything = _joined(list(filter(None, map(_unpacked, distributed.gather(_packed(own))))))
    if not everything:
        return {}
    order = np.argsort(everything["number"], kind="stable")
    return {name: values[order] for name, values in everything.items()}


def _parts(evaluator: Evaluator, one: Pass) -> Iterable[Predictions]:
    rows = split_rows(evaluator.rows, one.subject.mesh)
    for batch in one.samples.batches(Share(rows, jax.process_index(), jax.process_count())):
        kept = {name: batch[name] for name in ("number", *one.kept)}
        fields = {**kept, **evaluator.predict(one.subject, batch)}
        yield {name: np.asarray(values)[batch["counts"]] for name, values in fields.items()}


def _joined(parts: list[Predictions]) -> Predictions:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {}


def _packed(arrays: Predictions) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _unpacked(content: bytes) -> Predictions:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _load_into(found: list[Predictions], file: epath.Path) -> list[Predictions]:
    """Adds the predictions in a file to `found`, unless the file is absent or damaged."""
    if file.exists():
        try:
            found.append(_unpacked(file.read_bytes()))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s: is damaged (%s): computed again", file, error)
    return found


def _file_name(name: str) -> str:
    return "predictions-" + "".join(c if c.isalnum() else "_" for c in name)
