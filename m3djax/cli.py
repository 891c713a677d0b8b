"""The verbs of run.py."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.errors import ConfigError

QUICKSTART = "configs/quickstart.py"


def main(arguments: list[str]) -> int:
    """Runs a verb; returns the exit status."""
    usage = "usage: python run.py VERB ...\n\n" + "\n".join(
        f"  {name:12}{verb.__doc__}" for name, verb in VERBS.items()
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in VERBS:
        print(f"run.py: no verb {name!r}\n\n{usage}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports its own errors twice
    try:
        return VERBS[name](rest)
    except KeyboardInterrupt:
        print(f"\nrun.py {name}: interrupted", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        print(f"run.py {name}: {error}", file=sys.stderr)
        return 1


def load_config(path: str) -> Any:
    """The experiment that a config file's `get_config()` returns.

    Raises:
      ConfigError: there is no such file, or it has no `get_config`.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: there is no such config. Cure: pick one below configs/.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: has no get_config(). Cure: see configs/quickstart.py.")
    return module.get_config()


def _quickstart(arguments: list[str]) -> int:
    """The main job on real CT: fetch, prepare, pretrain, evaluate on patients it never saw."""
    if arguments:
        print("usage: python run.py quickstart (it takes no options)", file=sys.stderr)
        return 2
    print("1/3 scans: fetch and prepare", flush=True)
    if status := _prepare(["sample_ct"]):
        return status
    print("2/3 pretraining: a small 3D ViT by masked autoencoding", flush=True)
    set_up_jax()
    from m3djax.evaluate.run import evaluate
    from m3djax.train import train

    folder = train(load_config(QUICKSTART))
    print("3/3 evaluation on scans that it never saw", flush=True)
    results = evaluate(folder)
    print(f"\n{results.summary()}\n")
    print(f"report:    {results.report}  (open it in a browser)")
    print(f"numbers:   {folder}/evaluation/results.json")
    print(f"curves:    tensorboard --logdir {folder}/tensorboard")
    print("try next:  python run.py train configs/quickstart.py --name mine --task.mask-ratio 0.5")
    print("           python run.py evaluate runs/mine")
    print("           python run.py prepare folder --source YOUR_SCANS --units HU --out data/mine")
    if not results.passed:
        print("FAILED: the model does not beat the mean baseline beyond its interval.")
    return 0 if results.passed else 1


def _inspect(arguments: list[str]) -> int:
    """What one scan is, what is odd about it, a picture: PATH [--mask PATH] [--units HU] ...."""
    import tyro

    from data_pipelines.inspect_scan import Inspect

    return tyro.cli(Inspect, args=arguments, prog="run.py inspect").run()


def _prepare(arguments: list[str]) -> int:
    """Scans to a dataset: DATASET --source ... --out ...."""
    import tyro

    from data_pipelines.prepare import Prepare

    return tyro.cli(Prepare, args=arguments, prog="run.py prepare").run()


def _train(arguments: list[str]) -> int:
    """Run an experiment, or go on with it: CONFIG [--field value ...]."""
    import tyro

    from m3djax.experiment import Experiment

    if not arguments or arguments[0].startswith("-"):
        usage = "CONFIG [--help] [--print-sharding] [--field value ...]"
        print(f"usage: python run.py train {usage}", file=sys.stderr)
        return 2
    only_print = "--print-sharding" in arguments
    arguments = [argument for argument in arguments if argument != "--print-sharding"]
    default = load_config(arguments[0])
    prog = f"run.py train {arguments[0]}"
    config = tyro.cli(Experiment, default=default, args=arguments[1:], prog=prog)
    set_up_jax()
    if only_print:
        from m3djax.sharding_table import sharding_table

        print(sharding_table(config))
        return 0
    from m3djax.train import train

    folder = train(config)
    print(f"run: {folder}\nnext: python run.py evaluate {folder}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    """Measure a run on held-out scans and write its report: RUN."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python run.py evaluate RUN", file=sys.stderr)
        return 2
    set_up_jax()
    from m3djax.evaluate.run import evaluate

    return 0 if evaluate(arguments[0]).passed else 1


def _chat(arguments: list[str]) -> int:
    """Talk with a language model in the terminal: MODEL (a folder or a .gguf file)."""
    import tyro

    set_up_jax()
    from m3djax.generate.chat import Chat

    return tyro.cli(Chat, args=arguments, prog="run.py chat").run()


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
    from m3djax.evaluate.findings import EvaluationError
    from m3djax.run_folder import RunError
    from m3djax.train import Interrupted, NonFiniteError

    return (
        DataError,
        EvaluationError,
        CheckpointError,
        RunError,
        NonFiniteError,
        Interrupted,
        ConfigError,
    )


VERBS: dict[str, Callable[[list[str]], int]] = {
    "quickstart": _quickstart,
    "inspect": _inspect,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "chat": _chat,
}
