"""`python run.py convert SOURCE OUT`: published weights in, and our parameters out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from data_pipelines.errors import ConfigError, DataError, printable
from m3djax import params, run_folder, train, weights
from m3djax.checkpoint import CheckpointError
from m3djax.convert import language, layouts, name_map
from m3djax.convert.bert_files import modern_names
from m3djax.convert.files import Dtype, read_tensors, write_tensors
from m3djax.convert.name_map import Rule
from m3djax.convert.vocabulary import check_vocabulary
from m3djax.experiment import Experiment
from m3djax.models.patches import Size
from m3djax.models.positions import resize_table

_POSITIONS = "vision/positions/table"
_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Convert:
    """Published weights to a folder that `evaluate` and `init_from` take, or a run to published.

    Which of the two follows from SOURCE: a file, or a folder of Hugging Face with one, is imported;
    a run or an imported folder is exported.

    Attributes:
      source: what to read.
      out: folder to write (import), or .safetensors file (export).
      config: the experiment whose model the weights are for (import); its fields are flags too.
      layout: names of tensors; "auto" recognises them (import).
      prefix: read only what starts so, without it; such as "module." or "vision_encoder.".
      positions_from: patches along (D, H, W) that the file's position table is made for, if it is
        to be interpolated to another grid of the config; zeros: the grids must be equal.
      dtype: of exported numbers.
    """

    source: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    config: str = "configs/m3d/clip_released.py"
    layout: layouts.Name = "auto"
    prefix: str = ""
    positions_from: Size = (0, 0, 0)
    dtype: Dtype = "float32"

    @property
    def exports(self) -> bool:
        """Whether SOURCE is ours."""
        folder = Path(self.source)
        return any((folder / n).is_dir() for n in (weights.FOLDER, "checkpoints", "frozen"))

    def export(self) -> str:
        """Writes a run's components in a published layout; returns what was done.

        Raises:
          CheckpointError: the run is not readable, or lacks what the layout needs.
          ConfigError: no layout is named, or the task has not its components.
        """
        if self.layout == "auto":
            raise ConfigError(f"export needs --layout: one of {', '.join(layouts.LAYOUTS)}.")
        task = (experiment := run_folder.read_experiment(self.source)).task
        rules = layouts.rules_of(self.layout, task)
        paths = {path for rule in rules for path in rule.paths}
        shapes = expected_shapes(experiment, layouts.LAYOUTS[self.layout].components)
        problems = [f"not in the layout: {path}" for path in shapes if path not in paths]
        problems += [f"not in the model: {path}" for path in sorted(paths) if path not in shapes]
        if problems:
            raise CheckpointError(report(self.source, problems, self.layout))
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            path: jax.ShapeDtypeStruct(shape, "float32", sharding=place)
            for path, shape in shapes.items()
        }
        ours = {k: np.asarray(v) for k, v in weights.load_params(self.source, wanted).items()}
        theirs = {self.prefix + k: v for k, v in name_map.save(ours, rules).items()}
        write_tensors(Path(self.out), theirs, self.dtype)
        return f"{self.out}: {len(theirs)} tensors as {self.layout} names them, {self.dtype}"

    def load(self, experiment: Experiment) -> str:
        """Imports published weights for an experiment's task; returns what was done.

        Raises:
          DataError: the file is damaged, of no known format, or asks to run code.
          CheckpointError: it is of another model: lists what is missing, left over or of another
            shape, or says that its vocabulary is another one; or OUT exists.
          ConfigError: the task has not the components of the layout.
        """
        if self.layout == "auto" and language.is_language_model(Path(self.source)):
            return self._language(experiment)
        path = _find(Path(self.source))
        tensors = self._tensors(path)
        layout: str = self.layout
        if layout == "auto":
            layout = layouts.recognise(list(tensors), experiment.task, path)
        rules = layouts.rules_of(layout, experiment.task)
        ours, notes = self._ours(path, tensors, rules, experiment, layout)
        if "text" in layouts.LAYOUTS[layout].components:
            notes += filter(None, [check_vocabulary(path, experiment)])
        origin = {
            "file": path.name,
            "sha256": hashlib.file_digest(path.open("rb"), "sha256").hexdigest(),
            "layout": layout,
            "prefix": self.prefix,
            "dtypes": dict(Counter(str(tensor.dtype) for tensor in tensors.values())),
            "notes": notes,
        }
        weights.save(self.out, experiment, ours, origin)
        count = sum(value.size for value in ours.values())
        parts = ", ".join(sorted({name.split("/")[0] for name in ours}))
        lines = [f"{path}: {len(tensors)} tensors, layout {layout}", *notes]
        lines += [f"{self.out}: {len(ours)} parameters of {parts}: {count:,} numbers, float32"]
        return "\n".join(lines)

    def _language(self, experiment: Experiment) -> str:
        """Imports a language model; returns what was done."""
        ours, notes = language.load(Path(self.source), experiment.task)
        weights.save(self.out, experiment, ours, {"source": self.source, "notes": notes})
        count = sum(value.size for value in ours.values())
        return "\n".join([*notes, f"{self.out}: language model, {count:,} numbers, float32"])

    def _tensors(self, path: Path) -> dict[str, np.ndarray]:
        found = modern_names(read_tensors(path))
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
        tensors: dict[str, np.ndarray],
        rules: tuple[Rule, ...],
        experiment: Experiment,
        layout: str,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Our parameters in float32, and what there is to say about them."""
        expected = expected_shapes(experiment, layouts.LAYOUTS[layout].components)
        grid = self._new_grid(experiment, expected)
        if grid:
            width = expected[_POSITIONS][1]
            expected = expected | {_POSITIONS: (int(np.prod(self.positions_from)), width)}
        try:
            loaded = name_map.load(tensors, rules, expected)
        except name_map.MapError as error:
            raise CheckpointError(report(path, error.problems, layout)) from error
        ours = {name: np.asarray(value, np.float32) for name, value in loaded.items()}
        notes = []
        if unused := [r.theirs for r in rules if not r.paths and r.theirs in tensors]:
            notes.append(f"known and not needed: {', '.join(unused)}")
        if grid:
            table = jnp.asarray(ours[_POSITIONS])
            ours[_POSITIONS] = np.asarray(resize_table(table, self.positions_from, grid))
            notes.append(f"position table interpolated from {self.positions_from} to {grid}")
        return ours, notes

    def _new_grid(self, experiment: Experiment, expected: dict[str, Any]) -> Size | None:
        """The grid that positions are interpolated to, if that is asked for."""
        if not any(self.positions_from):
            return None
        if _POSITIONS not in expected or min(self.positions_from) < 1:
            raise ConfigError("positions_from needs a vision tower with learned positions.")
        depth, height, width = experiment.task.vision.positions.grid  # type: ignore[attr-defined]
        grid = (depth, height, width)
        return None if self.positions_from == grid else grid


def expected_shapes(
    experiment: Experiment, components: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of some components of an experiment's task; nothing is allocated."""
    spec = train.specification(experiment)
    flat = params.flatten(jax.eval_shape(experiment.task.init, jax.random.key(0), spec))
    return {path: leaf.shape for path, leaf in flat.items() if path.split("/")[0] in components}


def report(source: object, problems: tuple[str, ...] | list[str], layout: str) -> str:
    """What does not fit, by kind: how many, and the first of each."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind, _, what = problem.partition(": ")
        kinds.setdefault(kind, []).append(printable(what))
    lines = [f"{source}: does not fit the model of the config, as layout {layout}:"]
    for kind, found in kinds.items():
        lines.append(f"  {kind} ({len(found)}):")
        lines += [f"    {what}" for what in found[:_SHOWN]]
        lines += [f"    and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    lines.append("Nothing was written. Cure: a --config with these sizes, or its fields as flags.")
    return "\n".join(lines)


def _find(source: Path) -> Path:
    """The weights in a folder of Hugging Face, or the file itself."""
    if not source.is_dir():
        return source
    found = [source / name for name in _NAMES if (source / name).is_file()]
    if not found:
        cure = f"name the file, or a folder with one of {', '.join(_NAMES)}"
        raise DataError(source, "is neither a run nor a folder with weights", cure)
    return found[0]
