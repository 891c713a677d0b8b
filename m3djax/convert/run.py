"""The verb `convert`: import of published weights and export of our parameters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import ConfigError, DataError, printable
from m3djax import params
from m3djax.convert import language, layouts, loading, name_map, peft, stream
from m3djax.convert.bert_files import modern_names
from m3djax.convert.files import as_dtype, read_tensors, write_tensors
from m3djax.convert.name_map import Rule
from m3djax.convert.options import ConvertOptions
from m3djax.convert.safetensors_files import (
    INDEX,
    LazyTensor,
    open_checkpoint,
    write_checkpoint,
)
from m3djax.convert.vocabulary import check_vocabulary
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.models.patches import Size
from m3djax.models.positions import LearnedPositions, resize_table
from m3djax.runs import run_folder, weights
from m3djax.runs.checkpoint import CheckpointError
from m3djax.runs.model import Model, read_params
from m3djax.runs.state import abstract_params

_POSITIONS = "vision/positions/table"
_NAMES = ("model.safetensors", INDEX, "pytorch_model.bin", "model_with_lora.bin")
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Convert(ConvertOptions):
    """The import or export that the options describe."""

    @property
    def exports(self) -> bool:
        """Returns whether SOURCE is a run or an imported folder, which is exported."""
        folder = Path(self.source)
        return any((folder / n).is_dir() for n in (weights.FOLDER, "checkpoints", "frozen"))

    def export(self) -> str:
        """Writes a run's components in a layout; returns a summary.

        Raises:
          CheckpointError: the run is not readable, or lacks parameters of the layout.
          ConfigError: no layout is named, or the task lacks components of the layout.
        """
        if self.layout == "auto":
            raise ConfigError(f"export needs --layout: one of {', '.join(layouts.LAYOUTS)}.")
        experiment = run_folder.read_experiment(self.source)
        layout = layouts.layout_of(self.layout)
        rules = layouts.rules_of(self.layout, experiment)
        paths = {path for rule in rules for path in rule.paths}
        shapes = abstract_params(layout.stored(experiment), layout.components)
        problems = [f"not in the layout: {path}" for path in shapes if path not in paths]
        problems += [f"not in the model: {path}" for path in sorted(paths) if path not in shapes]
        if problems:
            raise CheckpointError(report(self.source, problems, self.layout))
        mesh = sharding.make_mesh((1, -1, 1))
        if layout.adapted:
            ours = read_params(self.source, experiment, mesh, components=layout.components)
        else:
            model = Model.open(self.source, mesh, components=layout.components)
            ours = params.flatten(model.params)
        more = _aside(Path(self.source), layout)
        rules = tuple(dataclasses.replace(rule, theirs=self.prefix + rule.theirs) for rule in rules)
        if Path(self.out).suffix == ".safetensors":
            theirs = name_map.save({k: np.asarray(v) for k, v in ours.items()}, rules)
            theirs |= {name: tensor[...] for name, tensor in more.items()}
            write_tensors(Path(self.out), theirs, self.dtype)
        else:
            stream.save(self.out, ours, rules, dtype=as_dtype(self.dtype), more=more)
        count = len(more) + sum(
            len(ours[rule.paths[0]]) if "{i}" in rule.theirs else 1 for rule in rules if rule.paths
        )
        return f"{self.out}: {count} tensors as {self.layout} names them, {self.dtype}"

    def load(self, experiment: Experiment) -> str:
        """Imports published weights for an experiment's task; returns a summary.

        Raises:
          DataError: the file is damaged, has an unknown format, or holds code.
          CheckpointError: the weights do not fit: the message lists missing and unknown tensors and
            wrong shapes, or words of another vocabulary. Also raised if OUT exists.
          ConfigError: the task lacks components of the layout.
        """
        if self.layout in ("auto", "llm") and language.is_language_model(Path(self.source)):
            return language.load(Path(self.source), self.out, experiment)
        path = _find(Path(self.source))
        tensors = self._tensors(path)
        layout = self.layout
        if layout == "auto":
            layout = layouts.recognise(list(tensors), experiment, path)
        known = layouts.layout_of(layout)
        rules = layouts.rules_of(layout, experiment)
        experiment = known.stored(experiment)
        aside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(known.aside)}
        expected = expected_shapes(experiment, known.components)
        if self.plan:
            return loading.plan(path, tensors, expected, experiment.mesh, experiment.task)
        ours, notes = self._ours(path, tensors, rules, experiment, expected, layout)
        parts = sorted({path.split("/")[0] for path in expected})
        if not {"text", "llm"}.isdisjoint(parts):
            notes += filter(None, [check_vocabulary(path, experiment)])
        if aside:
            bare = {name.removeprefix(peft.PREFIX): tensor for name, tensor in aside.items()}
            write_checkpoint(Path(self.out) / weights.ASIDE, stream.copies(bare))
            starts = ", ".join(prefix + "*" for prefix in known.aside)
            notes.append(f"put aside, as no component has them: {len(aside)} tensors, {starts}")
        origin = {
            "file": path.name,
            "sha256": hashlib.file_digest(path.open("rb"), "sha256").hexdigest(),
            "layout": layout,
            "prefix": self.prefix,
            "dtypes": dict(Counter(tensor.dtype for tensor in tensors.values())),
            "notes": notes,
        }
        weights.save(self.out, experiment, ours, origin)
        count = sum(value.size for value in ours.values())
        named = f"{len(ours)} parameters of {', '.join(parts)}"
        lines = [f"{path}: {len(tensors)} tensors, layout {layout}", *notes]
        lines += [f"{self.out}: {named}: {count:,} numbers, float32"]
        return "\n".join(lines)

    def _tensors(self, path: Path) -> dict[str, LazyTensor]:
        found = modern_names(_open(path))
        chosen = {
            name.removeprefix(self.prefix): value
            for name, value in found.items()
            if name.startswith(self.prefix)
        }
        if not chosen:
            start = printable(min(found, default="nothing"))
            cure = f"another --prefix; the first of its {len(found)} names is {start}"
            raise DataError(path, f"no tensor's name starts with {self.prefix!r}", cure)
        return chosen

    def _ours(
        self,
        path: Path,
        tensors: dict[str, LazyTensor],
        rules: tuple[Rule, ...],
        experiment: Experiment,
        expected: dict[str, tuple[int, ...]],
        layout: str,
    ) -> tuple[dict[str, Any], list[str]]:
        """Returns our parameters in float32, and notes for the summary."""
        grid = self._new_grid(experiment, expected)
        if grid:
            width = expected[_POSITIONS][1]
            expected = expected | {_POSITIONS: (int(np.prod(self.positions_from)), width)}
        mesh = sharding.make_mesh((1, -1, 1))
        try:
            ours: dict[str, Any] = dict(
                stream.load(tensors, rules, expected, mesh, experiment.task, dtype=np.float32)
            )
        except name_map.MapError as error:
            raise CheckpointError(report(path, error.problems, layout)) from error
        notes = []
        if unused := [r.theirs for r in rules if not r.paths and r.theirs in tensors]:
            notes.append(f"known and not needed: {', '.join(unused)}")
        if grid:
            table = jnp.asarray(ours[_POSITIONS])
            ours[_POSITIONS] = np.asarray(resize_table(table, self.positions_from, grid))
            notes.append(f"position table interpolated from {self.positions_from} to {grid}")
        return ours, notes

    def _new_grid(self, experiment: Experiment, expected: dict[str, Any]) -> Size | None:
        """Returns the grid to which positions are interpolated; None without interpolation."""
        if not any(self.positions_from):
            return None
        vision = experiment.task.components().get("vision")
        positions = getattr(vision, "positions", None)
        if not isinstance(positions, LearnedPositions) or _POSITIONS not in expected:
            raise ConfigError(
                "positions_from needs a vision tower with learned positions. Cure: leave it out."
            )
        if min(self.positions_from) < 1:
            raise ConfigError(
                f"positions_from={self.positions_from}: a side has no patches. Cure: the grid of "
                "the file's position table."
            )
        return None if self.positions_from == positions.grid else positions.grid


def expected_shapes(
    experiment: Experiment, components: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of some components of a task, by path."""
    leaves = abstract_params(experiment, components)
    return {path: leaf.shape for path, leaf in leaves.items()}


def report(source: object, problems: tuple[str, ...] | list[str], layout: str) -> str:
    """Returns an error text with problems by kind: their number and the first ones."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind, _, what = problem.partition(": ")
        kinds.setdefault(kind, []).append(printable(what))
    lines = [f"{source}: it does not fit the model of the config, with layout {layout}:"]
    for kind, found in kinds.items():
        lines.append(f"  {kind} ({len(found)}):")
        lines += [f"    {what}" for what in found[:_SHOWN]]
        lines += [f"    and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    lines.append("Nothing was written. Cure: a --config with these sizes, or its fields as flags.")
    return "\n".join(lines)


def _find(source: Path) -> Path:
    """Returns the weight file in a folder with Hugging Face's layout, or the file itself."""
    if not source.is_dir():
        return source
    found = [source / name for name in _NAMES if (source / name).is_file()]
    if not found:
        cure = f"name the file, or a folder with one of {', '.join(_NAMES)}"
        raise DataError(source, "is neither a run nor a folder with weights", cure)
    return found[0]


def _open(path: Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a file, or of the shards of an index, which are read lazily."""
    if path.name == INDEX:
        return open_checkpoint(path.parent)
    arrays = read_tensors(path)
    return {
        name: LazyTensor(array.shape, array.__getitem__, str(array.dtype))
        for name, array in arrays.items()
    }


def _aside(source: Path, layout: layouts.Layout) -> dict[str, LazyTensor]:
    """Returns the tensors that an import of the same layout put aside, by published name."""
    folder = source / weights.ASIDE
    if not layout.aside or not folder.is_dir():
        return {}
    prefix = peft.PREFIX if layout.adapted else ""
    return {prefix + name: tensor for name, tensor in open_checkpoint(folder).items()}
