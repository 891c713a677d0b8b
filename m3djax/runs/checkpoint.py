"""Checkpoints with a manifest: damage is detected, and they can be read on another mesh.

Orbax writes the arrays; every process writes its shards. After the commit of a step, process 0
adds a manifest with the sha256 of every file. A step does not count as a checkpoint if it has no
manifest, differs from its manifest, or belongs to another run.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from data_pipelines.errors import UserError
from data_pipelines.files import no_space
from m3djax import params as params_lib
from m3djax.config import serialize
from m3djax.mesh import distributed
from m3djax.runs import manifest, run_folder
from m3djax.step import TrainState

log = logging.getLogger(__name__)
# Words in the errors of TensorStore for a full disk; TensorStore gives no errno.
_FULL = ("No space left", "File too large", "Disk quota exceeded")
# Replicas share the writing of an array, in slices. Smaller ones take longer to cut than to write.
_SLICE_BYTES = 1 << 20


class CheckpointError(UserError, RuntimeError):
    """Error for a checkpoint that is absent, unreadable, of another model, or not written."""


class Checkpointer:
    """Writer and reader of a run's checkpoints; it saves in the background.

    Frozen parameters never change, so they are written once per run. Every process has a
    checkpointer, and all processes must call its methods in the same order.

    Args:
      folder: the run's folder; checkpoints are in its `checkpoints` and `frozen`.
      keep: how many steps are kept.

    Raises:
      CheckpointError: there are steps and none is readable.
    """

    def __init__(self, folder: epath.Path, *, keep: int = 2) -> None:
        self._folder = epath.Path(folder).resolve()  # Orbax refuses relative paths
        self._steps = self._folder / "checkpoints"
        self._keep = keep
        self._newest = distributed.from_first(lambda: _settle(self._folder))
        self._orbax = ocp.training.Checkpointer(
            self._steps,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            # `_commit` deletes older steps, after the new one has its manifest.
            preservation_policy=ocp.training.preservation_policies.PreserveAll(),
            cleanup_tmp_directories=True,
            context=_saving(),
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future[None] | None = None
        self._failed = False

    def save(self, state: TrainState, config: str) -> None:
        """Starts to save; returns after the arrays are copied.

        Args:
          state: the training state.
          config: the experiment as JSON, stored with the step.

        Raises:
          CheckpointError: this step or the one before cannot be written; the disk may be full.
        """
        self.wait()
        step, about = int(state.step), {"config": json.loads(config)}
        try:
            lacks_frozen = distributed.from_first(self._lacks_frozen) if state.frozen else False
            if lacks_frozen:
                self._save_frozen(state.frozen, about)
            response = self._orbax.save_async(
                step, _stored(state), custom_metadata={"config": config}, overwrite=True
            )
        except Exception as error:
            raise self._not_saved(step, error) from error
        if response is None:
            raise CheckpointError(f"{self._steps}: step {step} was not saved.")
        self._pending = self._pool.submit(self._commit, response, step, about)

    def check(self) -> None:
        """Raises the error of the last save if it has failed already; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the end of the last save, and raises its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits for the last save, and frees the threads."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            try:
                self._orbax.close()
            except Exception:
                if not self._failed:  # otherwise Orbax repeats an error that was raised already
                    raise

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Reads the newest readable state onto the shardings of `abstract`.

        Returns None if nothing was ever saved.

        Args:
          abstract: shapes, dtypes and shardings; the mesh may differ from that of the save.

        Raises:
          CheckpointError: the newest readable step belongs to another model.
        """
        if self._newest is None:
            return None
        stored = _stored(abstract)
        check_shapes(self._steps / str(self._newest), "state", stored)
        loaded = self._orbax.load(self._newest, stored)
        frozen = _load_frozen(self._folder, abstract.frozen) if abstract.frozen else {}
        return TrainState(loaded["step"], loaded["trainable"], loaded["opt_state"], frozen)

    def _commit(self, response: Any, step: int, about: dict[str, Any]) -> None:
        """Writes the manifest and deletes old steps; runs in a thread.

        `response` is done when all processes have written their shards.
        """
        try:
            response.result()
            if distributed.is_first():
                manifest.write(self._steps / str(step), {"step": step, **about})
                for old in run_folder.steps_in(self._folder)[self._keep :]:
                    (self._steps / str(old)).rmtree()
        except Exception as error:
            raise self._not_saved(step, error) from error

    def _lacks_frozen(self) -> bool:
        folder = self._folder / "frozen"
        if (folder / manifest.NAME).exists():
            return False
        if folder.exists():  # left by a run that was killed while writing it
            folder.rmtree()
        return True

    def _save_frozen(self, frozen: params_lib.FlatParams, about: dict[str, Any]) -> None:
        folder = self._folder / "frozen"
        with _saving():
            ocp.save(folder, frozen)
        if distributed.is_first():
            manifest.write(folder, about)

    def _not_saved(self, step: int, error: Exception) -> CheckpointError:
        self._failed = True
        full = no_space(error) or any(word in str(error) for word in _FULL)
        why = "the disk or quota is full" if full else f"{type(error).__name__}: {error}"
        cure = "make room" if full else "remove the cause"
        return CheckpointError(
            f"{self._steps}: step {step} was not saved: {why}. Earlier checkpoints are unchanged. "
            f"Cure: {cure}, and run the same command: it resumes from the last checkpoint."
        )


def _saving() -> ocp.Context:
    saving = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=_SLICE_BYTES)
    return ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving))


def load_params(
    folder: epath.PathLike,
    wanted: Mapping[str, Any],
    step: int | None = None,
    *,
    fresh_adapters: bool = False,
) -> params_lib.FlatParams:
    """Reads parameters from a run's checkpoint, without the rest of the training state.

    Args:
      folder: the run's folder.
      wanted: path -> jax.ShapeDtypeStruct with a sharding. With several processes, all of them
        must call this, unless all shardings are on devices of this process.
      step: a step from `newest_readable`; None: the newest readable step.
      fresh_adapters: whether to leave out adapters that the checkpoint does not have.

    Raises:
      CheckpointError: there is no readable checkpoint, it lacks a path, a shape differs, or it has
        adapters of a wanted component that `wanted` does not have.
    """
    folder = epath.Path(folder).resolve()
    if step is None:
        step = distributed.from_first(lambda: newest_readable(folder))
    with _processes_that_load(wanted):
        return _load_params(folder, wanted, _step(folder, step), fresh_adapters)


def _load_params(
    folder: epath.Path, wanted: Mapping[str, Any], step: epath.Path, fresh_adapters: bool
) -> params_lib.FlatParams:
    saved = ocp.metadata(step, checkpointable_name="state").metadata
    if fresh_adapters:
        wanted = without_fresh_adapters(wanted, saved["trainable"])
    _check_adapters(step, saved["trainable"], wanted)
    trainable = {path: leaf for path, leaf in wanted.items() if path in saved["trainable"]}
    loaded: params_lib.FlatParams = {}
    if trainable:
        abstract = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved) | {
            "trainable": dict.fromkeys(saved["trainable"], ocp.PLACEHOLDER) | trainable
        }
        check_shapes(step, "state", {"trainable": trainable})
        loaded = ocp.load(step, abstract, checkpointable_name="state")["trainable"]
    frozen = {path: leaf for path, leaf in wanted.items() if path not in trainable}
    if frozen:
        loaded |= _load_frozen(folder, frozen)
    return {path: loaded[path] for path in wanted}


def newest_readable(folder: epath.PathLike) -> int:
    """Returns the newest step that is complete, unchanged and of this run.

    Raises:
      CheckpointError: there is none, and the message gives a reason for each step; or the only
        copy of the frozen parameters is damaged.
    """
    folder, reasons = epath.Path(folder), []
    for step in run_folder.steps_in(folder):
        reason = _unreadable(folder, _step(folder, step))
        if not reason:
            _check_frozen(folder)
            return step
        reasons.append(f"step {step}: {reason}")
        log.warning("%s: checkpoint skipped: %s", folder, reasons[-1])
    why = "; ".join(reasons) or "nothing was saved"
    raise CheckpointError(
        f"{folder}: no readable checkpoint ({why}). Cure: train first, or restore the folder."
    )


def _settle(folder: epath.Path) -> int | None:
    """Returns the newest readable step, and moves newer steps aside.

    Orbax refuses to save a step that is older than one in its folder. A run whose first save was
    interrupted starts again from step 0.
    """
    steps = run_folder.steps_in(folder)
    first_cut_off = len(steps) == 1 and not (_step(folder, steps[0]) / manifest.NAME).exists()
    newest = newest_readable(folder) if steps and not first_cut_off else None
    if first_cut_off:
        log.warning("%s: its first checkpoint was never finished: starts from step 0", folder)
    for step in steps:
        if newest is None or step > newest:
            _step(folder, step).rename(folder / f"damaged-{step}-{time.time_ns()}")
    return newest


def _step(folder: epath.Path, step: int) -> epath.Path:
    return folder / "checkpoints" / str(step)


def _check_frozen(folder: epath.Path) -> None:
    frozen = folder / "frozen"
    if frozen.exists() and (reason := _unreadable(folder, frozen)):
        raise CheckpointError(
            f"{frozen}: {reason}. Cure: restore the folder from a copy, or start a run with "
            "another --name."
        )


def _unreadable(run: epath.Path, folder: epath.Path) -> str:
    """Returns why a folder of arrays is damaged or of another run; "" if it is readable."""
    if reason := manifest.damage(folder):
        return reason
    about = manifest.about(folder)
    if "step" in about and str(about["step"]) != folder.name:
        return f"it is step {about['step']} under another name"
    if (run / run_folder.CONFIG).exists():
        own = run_folder.read_config(run)
        try:
            saved = serialize.upgrade(about.get("config"))
        except ValueError as error:
            return f"its manifest is damaged, or of another version: {error}".rstrip(".")
        fields = [name for name in run_folder.differences(saved, own) if name != "name"]
        if fields:
            return f"it belongs to a run with another {', '.join(filter(None, fields)) or 'config'}"
    return ""


def _processes_that_load(wanted: Mapping[str, Any]) -> ocp.Context:
    """Returns the Orbax context: all processes load together, or only this one.

    Only this one loads if all shardings are on its own devices.
    """
    placed = [leaf.sharding for leaf in wanted.values() if leaf.sharding]
    if jax.process_count() == 1 or not all(where.is_fully_addressable for where in placed):
        return ocp.Context()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.Context(multiprocessing_options=options)


def _stored(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}


def _load_frozen(folder: epath.Path, wanted: Mapping[str, Any]) -> params_lib.FlatParams:
    frozen = folder / "frozen"
    if not frozen.exists():
        raise CheckpointError(f"{folder}: has no parameters {sorted(wanted)[:3]}.")
    return read_arrays(frozen, wanted, ocp.metadata(frozen).metadata)


def read_arrays(
    place: epath.Path, wanted: Mapping[str, Any], saved: Iterable[str]
) -> params_lib.FlatParams:
    """Reads some of the arrays in a folder that Orbax wrote from a flat dict.

    Args:
      place: the folder.
      wanted: path -> jax.ShapeDtypeStruct with a sharding.
      saved: all paths in the folder.

    Raises:
      CheckpointError: the folder lacks a path, or a shape differs.
    """
    check_shapes(place, None, dict(wanted))
    loaded = ocp.load(place, dict.fromkeys(saved, ocp.PLACEHOLDER) | dict(wanted))
    return {path: loaded[path] for path in wanted}


def without_fresh_adapters(wanted: Mapping[str, Any], saved: Iterable[str]) -> dict[str, Any]:
    """Returns `wanted` without the adapters that were not saved; those are initialised."""
    saved = set(saved)
    return {path: leaf for path, leaf in wanted.items() if path in saved or not _adapter(path)}


def _adapter(path: str) -> bool:
    return "/lora_" in path


def _check_adapters(step: epath.Path, saved: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises CheckpointError if `wanted` lacks saved adapters of one of its components.

    Without these adapters, the layers would compute wrong values without an error.
    """
    components = {path.split("/")[0] for path in wanted}
    ignored = {p for p in saved if _adapter(p) and p.split("/")[0] in components} - set(wanted)
    if ignored:
        raise CheckpointError(
            f"{step}: adapters would be ignored, {min(ignored)} among them.\n"
            "Cure: give the experiment the same adapters=LoRA(...)."
        )


def check_shapes(path: epath.Path, name: str | None, wanted: Any) -> None:
    """Raises CheckpointError unless all wanted paths are saved with the same shapes.

    Orbax's own error names neither the file nor a cure.
    """
    metadata = ocp.metadata(path, checkpointable_name=name) if name else ocp.metadata(path)
    saved, asked, problems = _shapes(metadata.metadata), _shapes(wanted), []
    if absent := sorted(_components(asked) - _components(saved)):
        raise CheckpointError(
            f"{path}: holds no weights of {', '.join(absent)}, only of "
            f"{', '.join(sorted(_components(saved)))}.\n"
            "Cure: a run, or a folder of weights, that has all of them."
        )
    for key, shape in asked.items():
        if key not in saved:
            problems.append(f"{key} is missing")
        elif saved[key] != shape:
            problems.append(f"{key}: {saved[key]} there, {shape} here")
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{path}: a checkpoint of another model:\n  {shown}{more}\n"
            "Cure: use the run's own config, or another name for a new run."
        )


def _components(keys: Iterable[str]) -> set[str]:
    """Returns the components of parameters; other leaves of a state have no "/" in their names."""
    paths = (key.split(" ")[-1] for key in keys)
    return {path.split("/")[0] for path in paths if "/" in path}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(key, simple=True, separator=" "): tuple(leaf.shape)
        for key, leaf in leaves
    }
