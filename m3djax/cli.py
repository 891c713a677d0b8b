"""The verbs of run.py."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

VERBS = {
    "quickstart": "the main job on real CT: fetch, prepare, train, evaluate, report",
    "prepare": "DATASET --source ... --out ...: scans to a dataset",
    "train": "CONFIG [--field value ...]: run an experiment, or go on with it",
    "evaluate": "RUN: measure a run, write its report",
}
USAGE = "usage: python run.py VERB ...\n\n" + "\n".join(f"  {v:12}{t}" for v, t in VERBS.items())


def main(arguments: list[str]) -> int:
    """Runs a verb; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"run.py: no verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return globals()[f"_{verb}"](rest)
    except _expected_errors() as error:
        print(f"run.py {verb}: {error}", file=sys.stderr)
        return 1


def load_config(path: str) -> Any:
    """The experiment that a config file's `get_config()` returns.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no `get_config`.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no such config. Cure: pick one below configs/.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path}: has no get_config(). Cure: see configs/quickstart.py.")
    return module.get_config()


def _train(arguments: list[str]) -> int:
    import tyro

    from m3djax.experiment import Experiment

    if not arguments or arguments[0].startswith("-"):
        print("usage: python run.py train CONFIG [--help] [--field value ...]", file=sys.stderr)
        return 2
    config = load_config(arguments[0])
    prog = f"run.py train {arguments[0]}"
    config = tyro.cli(Experiment, default=config, args=arguments[1:], prog=prog)
    set_up_jax()
    from m3djax.train import train

    folder = train(config)
    print(f"run: {folder}\nnext: python run.py evaluate {folder}")
    return 0


def _prepare(arguments: list[str]) -> int:
    import tyro

    from data_pipelines.prepare import Prepare

    return tyro.cli(Prepare, args=arguments, prog="run.py prepare").run()


def set_up_jax() -> None:
    """A compile cache, so that a second start is quick."""
    import jax

    cache = Path(os.environ.get("M3DJAX_CACHE", "~/.cache/m3djax")).expanduser() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; anything else is ours, and shows its trace."""
    from data_pipelines.errors import DataError
    from m3djax.checkpoint import CheckpointError
    from m3djax.run_folder import RunError
    from m3djax.train import NonFiniteError

    return (DataError, CheckpointError, RunError, NonFiniteError, FileNotFoundError, ValueError)
