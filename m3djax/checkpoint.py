"""Checkpoints that say what they are, are found out when damaged, and move between meshes.

Orbax writes the arrays; once it has committed a step, a manifest with the sha256 of every file is
added. A step without a manifest, or one that does not agree, does not count as a checkpoint.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from data_pipelines.files import write_whole
from m3djax import params as params_lib
from m3djax.step import TrainState

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """No readable checkpoint, or one of another model."""


class Checkpointer:
    """Saves in the background and restores the newest readable step.

    Frozen parameters never change, so they are written once per run.

    Args:
      folder: the run's folder; checkpoints live in its `checkpoints` and `frozen`.
      keep: how many steps are kept.
    """

    def __init__(self, folder: epath.Path, *, keep: int = 2) -> None:
        self._folder = epath.Path(folder).resolve()  # Orbax refuses relative paths
        self._steps = self._folder / "checkpoints"
        self._keep = keep
        self._orbax = self._open()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, state: TrainState, config: str) -> None:
        """Starts to save; returns once the arrays are copied.

        Args:
          state: what to save.
          config: the experiment as JSON, stored with the step.
        """
        self.wait()
        if state.frozen and not (self._folder / "frozen" / MANIFEST).exists():
            self._save_frozen(state.frozen)
        step = int(state.step)
        response = self._orbax.save_async(
            step, _stored(state), custom_metadata={"config": config}, overwrite=True
        )
        if response is None:
            raise CheckpointError(f"{self._steps}: step {step} was not saved.")
        self._pending = self._pool.submit(self._commit, response, step)

    def wait(self) -> None:
        """Until the last save is whole; raises what went wrong in it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self.wait()
        self._pool.shutdown()
        self._orbax.close()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest readable state, placed as `abstract` says; None if nothing was ever saved.

        Args:
          abstract: shapes, dtypes and shardings; the mesh may differ from the one that saved.

        Raises:
          CheckpointError: if there are steps and none is readable, or they are of another model.
        """
        if not steps_in(self._folder):
            return None
        step = newest_readable(self._folder)
        self._put_aside_after(step)
        stored = _stored(abstract)
        _check_shapes(self._steps / str(step), "state", stored)
        loaded = self._orbax.load(step, stored)
        frozen = _load_frozen(self._folder, abstract.frozen) if abstract.frozen else {}
        return TrainState(loaded["step"], loaded["trainable"], loaded["opt_state"], frozen)

    def _put_aside_after(self, step: int) -> None:
        """Moves damaged newer steps out of the way: Orbax saves no step below one that it sees."""
        damaged = [newer for newer in steps_in(self._folder) if newer > step]
        for newer in damaged:
            (self._steps / str(newer)).rename(self._folder / f"damaged-{newer}-{time.time_ns()}")
        if damaged:
            self._orbax.close()
            self._orbax = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._steps,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
        )

    def _commit(self, response: Any, step: int) -> None:
        response.result()
        write_manifest(self._steps / str(step))

    def _save_frozen(self, frozen: params_lib.FlatParams) -> None:
        folder = self._folder / "frozen"
        if folder.exists():  # left by a run that was killed while writing it
            folder.rmtree()
        ocp.save(folder, frozen)
        write_manifest(folder)


def load_params(
    folder: epath.PathLike, wanted: Mapping[str, Any], *, fresh_adapters: bool = False
) -> params_lib.FlatParams:
    """Parameters of a run's newest readable checkpoint, and nothing else of it.

    Args:
      folder: the run's folder.
      wanted: path -> jax.ShapeDtypeStruct with a sharding.
      fresh_adapters: whether adapters are left out that the checkpoint does not have.

    Raises:
      CheckpointError: if there is no readable checkpoint, it lacks a path, a shape differs, or it
        has adapters in a wanted component that would be ignored.
    """
    folder = epath.Path(folder).resolve()
    step = folder / "checkpoints" / str(newest_readable(folder))
    saved = ocp.metadata(step, checkpointable_name="state").metadata
    if fresh_adapters:
        wanted = {p: x for p, x in wanted.items() if p in saved["trainable"] or not _adapter(p)}
    _check_adapters(step, saved["trainable"], wanted)
    trainable = {path: leaf for path, leaf in wanted.items() if path in saved["trainable"]}
    loaded: params_lib.FlatParams = {}
    if trainable:
        abstract = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved) | {
            "trainable": dict.fromkeys(saved["trainable"], ocp.PLACEHOLDER) | trainable
        }
        _check_shapes(step, "state", {"trainable": trainable})
        loaded = ocp.load(step, abstract, checkpointable_name="state")["trainable"]
    frozen = {path: leaf for path, leaf in wanted.items() if path not in trainable}
    if frozen:
        loaded |= _load_frozen(folder, frozen)
    return {path: loaded[path] for path in wanted}


def steps_in(folder: epath.PathLike) -> list[int]:
    """Steps that lie in a run's folder, readable or not, newest first."""
    checkpoints = epath.Path(folder) / "checkpoints"
    if not checkpoints.exists():
        return []
    return sorted((int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()), reverse=True)


def newest_readable(folder: epath.PathLike) -> int:
    """The newest step whose files are all there and unchanged.

    Raises:
      CheckpointError: if there is none; says why each was passed over.
    """
    reasons = []
    for step in steps_in(folder):
        reason = damage(epath.Path(folder) / "checkpoints" / str(step))
        if not reason:
            return step
        reasons.append(f"step {step}: {reason}")
        log.warning("%s: checkpoint passed over: %s", folder, reasons[-1])
    why = "; ".join(reasons) or "nothing was saved"
    raise CheckpointError(
        f"{folder}: no readable checkpoint ({why}). Cure: train first, or restore the folder."
    )


def write_manifest(folder: epath.Path) -> None:
    """Notes the sha256 of every file below `folder`."""
    write_whole(folder / MANIFEST, json.dumps(_hashes(folder), indent=1))


def damage(folder: epath.Path) -> str:
    """What is wrong with a folder that should agree with its manifest; "" if nothing is."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return "it was never finished (no manifest)"
    try:
        expected = json.loads(manifest.read_text())
    except ValueError:
        return "its manifest is not JSON"
    found = _hashes(folder)
    changed = sorted(name for name in expected if found.get(name) != expected[name])
    return f"files missing or changed: {', '.join(changed)}" if changed else ""


def _hashes(folder: epath.Path) -> dict[str, str]:
    names = (parent / file for parent, _, files in folder.walk() for file in files)
    files = (path for path in names if MANIFEST not in path.name)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _stored(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}


def _load_frozen(folder: epath.Path, wanted: Mapping[str, Any]) -> params_lib.FlatParams:
    frozen = folder / "frozen"
    if not frozen.exists():
        raise CheckpointError(f"{folder}: has no parameters {sorted(wanted)[:3]}.")
    if reason := damage(frozen):
        raise CheckpointError(f"{frozen}: {reason}.")
    saved = ocp.metadata(frozen).metadata
    _check_shapes(frozen, None, dict(wanted))
    return ocp.load(frozen, dict.fromkeys(saved, ocp.PLACEHOLDER) | dict(wanted))


def _adapter(path: str) -> bool:
    return "/lora_" in path


def _check_adapters(step: epath.Path, saved: Iterable[str], wanted: Iterable[str]) -> None:
    """Half of a layer would be wrong without an error."""
    components = {path.split("/")[0] for path in wanted}
    ignored = {p for p in saved if _adapter(p) and p.split("/")[0] in components} - set(wanted)
    if ignored:
        raise CheckpointError(
            f"{step}: adapters would be ignored, {min(ignored)} among them.\n"
            "Cure: wrap the task in the same LoRA."
        )


def _check_shapes(path: epath.Path, name: str | None, wanted: Any) -> None:
    """Compares all shapes first: Orbax's own error names neither the file nor the cure."""
    metadata = ocp.metadata(path, checkpointable_name=name) if name else ocp.metadata(path)
    saved, problems = _shapes(metadata.metadata), []
    for key, shape in _shapes(wanted).items():
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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(key, simple=True, separator=" "): tuple(leaf.shape)
        for key, leaf in leaves
    }
