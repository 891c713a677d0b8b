"""The run's report: one self-contained HTML page without scripts."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import shlex
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from data_pipelines.files import write_whole
from m3djax.config import serialize
from m3djax.experiment import Experiment
from m3djax.runs import run_folder, training_curves
from m3djax.runs.metrics import METRICS, read_metrics
from m3djax.runs.results import FOLDER, REPORT, RESULTS
from m3djax.runs.state import abstract_params

_TEMPLATE = Path(__file__).with_name("report_template.html")


def write(folder: epath.PathLike) -> epath.Path:
    """Writes `report.html` from the files of a run's folder, atomically.

    Raises:
      RunError: the folder is not a run.
    """
    folder = epath.Path(folder)
    return write_whole(folder / REPORT, render(folder))


def render(folder: epath.Path) -> str:
    """Returns the page as text; everything from files is escaped."""
    stages = [*_earlier(folder, {str(folder)}), stage(folder)]
    paths = dict.fromkeys(source.path for each in stages for source in each["config"].data.sources)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text()).render(
        name=stages[-1]["name"],
        folder=str(folder),
        stages=stages,
        environment=_json(folder / "environment.json") or {},
        cards=[card for path in paths if (card := _card(path))],
    )


def stage(folder: epath.Path) -> dict[str, Any]:
    """Returns the values of the page's template for one run."""
    config = run_folder.read_experiment(folder)
    rows = read_metrics(folder) if (folder / METRICS).exists() else []
    results = _json(folder / FOLDER / RESULTS) or {}
    return {
        "name": config.name,
        "folder": str(folder),
        "config": config,
        "text": serialize.dumps(config),
        "summary": summary(config, rows),
        "command": _command(folder),
        "curves": [
            (c.title, svg)
            for c in training_curves.of(rows)
            if (svg := training_curves.draw(c, rows))
        ],
        "results": results,
        "sections": [
            _section(folder / FOLDER / name, findings)
            for name, findings in results.get("found", {}).items()
        ],
    }


def _earlier(folder: epath.Path, seen: set[str]) -> list[dict[str, Any]]:
    """Returns the runs from which this one was initialised, the earliest first.

    Runs that cannot be read are left out.
    """
    stages = []
    for source in run_folder.read_experiment(folder).init_from.values():
        place = epath.Path(source)
        if str(place) in seen or not (place / METRICS).exists():
            continue
        seen.add(str(place))
        with contextlib.suppress(run_folder.RunError):
            stages += [*_earlier(place, seen), stage(place)]
    return stages


def summary(config: Experiment, rows: list[dict[str, float]]) -> dict[str, str]:
    """Returns a summary of the run: a few lines by title."""
    optimizer = config.optimizer
    speeds = [row["volumes_per_second"] for row in rows if "volumes_per_second" in row]
    done = f"{int(rows[-1]['step']) + 1:,} of " if rows else ""
    seen = "image" in config.data.fields
    lines = {
        "task": type(config.task).__name__,
        "parameters": f"{_parameters(config):,}",
        "input": f"{' x '.join(map(str, config.data.size))} voxels" if seen else "text",
        "steps": f"{done}{config.steps:,}, batch {config.data.batch_size}",
        "optimizer": f"{type(optimizer).__name__}, learning rate {optimizer.learning_rate:g}",
        "seed": str(config.seed),
    }
    if rows:
        lines["loss"] = _loss(rows)
    if speeds:
        lines["speed"] = f"{sorted(speeds)[len(speeds) // 2]:.3g} crops per second (median)"
    return lines


def _loss(rows: list[dict[str, float]]) -> str:
    """Returns the last loss and, by name, the values of its terms, which add up to it."""
    last = next((row for row in reversed(rows) if "loss" in row), {})
    terms = [
        f"{name} {last[training_curves.TERM + name]:.4g}" for name in training_curves.terms([last])
    ]
    value = f"{last['loss']:.4g}" if last else "not recorded"
    return f"{value} = {' + '.join(terms)}" if terms else value


def _parameters(config: Experiment) -> int:
    return sum(math.prod(leaf.shape) for leaf in abstract_params(config).values())


def _section(folder: epath.Path, findings: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluator's section of the page, with every picture of its folder."""
    report = findings["report"]
    captions = {picture["file"]: picture["caption"] for picture in report["pictures"]}
    files = [*captions, *sorted(p.name for p in folder.glob("*.png") if p.name not in captions)]
    pictures = [
        {"caption": captions.get(file, file), "data": _base64(folder / file)} for file in files
    ]
    return {**report, "pictures": pictures, "seconds": findings.get("seconds")}


def _base64(path: epath.Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _command(folder: epath.Path) -> str:
    """Returns the command of a run without the folders of Python and of the program."""
    path = folder / "command.txt"
    if not path.exists():
        return ""
    python, script, *rest = shlex.split(path.read_text())
    called = [Path(script).name]
    return shlex.join([*([Path(python).name] if script.endswith(".py") else []), *called, *rest])


def _card(path: str) -> dict[str, Any] | None:
    return _json(epath.Path(path) / "card.json")


def _json(path: epath.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
