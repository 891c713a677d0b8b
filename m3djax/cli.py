"""The verbs of the command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from data_pipelines.errors import ConfigError
from data_pipelines.program import program
from m3djax import config_files, registry
from m3djax.config_files import load_config

QUICKSTART = {
    "configs/quickstart.py": "a small 3D ViT, pretrained by masked autoencoding",
    "configs/quickstart_clip.py": "the same ViT and a text encoder, by contrast of crops and words",
    "configs/quickstart_text_only.py": "SmolLM2-135M, tuned on questions about crops, unseen",
    "configs/quickstart_ask.py": "the same language model joined to the ViT, on the same questions",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb with its arguments, by default those of the process; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    usage = f"usage: {program()} VERB ... [--allow PACKAGE]\n\n" + "\n".join(
        f"  {name:12}{verb.__doc__}" for name, verb in VERBS.items()
    )
    usage += "\n\n--allow PACKAGE: load the classes of your own package that a saved config names"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in VERBS:
        print(f"{program()}: no verb {name!r}\n\n{usage}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it raises, too
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # PyTorch is not missed
    try:
        return VERBS[name](_allow_packages(rest))
    except KeyboardInterrupt:
        print(f"\n{program()} {name}: interrupted", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        print(f"{program()} {name}: {error}", file=sys.stderr)
        return getattr(error, "status", 1)


def _allow_packages(arguments: list[str]) -> list[str]:
    """Allows the packages named by --allow; returns the other arguments.

    Raises:
      ConfigError: --allow stands at the end.
    """
    rest = []
    left = iter(arguments)
    for argument in left:
        if argument != "--allow":
            rest.append(argument)
        elif package := next(left, ""):
            registry.allow(package)
        else:
            raise ConfigError("--allow names no package. Cure: --allow PACKAGE.")
    return rest


def _quickstart(arguments: list[str]) -> int:
    """The main job on real CT: fetch, prepare, pretrain, learn words, evaluate on unseen scans."""
    if arguments:
        print(f"usage: {program()} quickstart (it takes no options)", file=sys.stderr)
        return 2
    count = len(QUICKSTART) + 2
    print(f"1/{count} scans: fetch and prepare", flush=True)
    if status := _prepare(["sample_ct"]):
        return status
    set_up_jax()
    from m3djax.evaluate.run import evaluate
    from m3djax.train import train

    print(f"2/{count} a language model: fetch and convert", flush=True)
    _import_language_model()
    found = []
    for number, (config, what) in enumerate(QUICKSTART.items(), 3):
        print(f"{number}/{count} {what}", flush=True)
        experiment = load_config(config)
        folder = train(experiment)
        found += [evaluate(folder)] if experiment.evaluators else []
    print("\n" + "\n".join(results.summary() for results in found) + "\n")
    print(f"report:    {found[-1].report}  (all stages; open it in a browser)")
    for results in found:
        print(f"numbers:   {results.folder}/evaluation/results.json")
    print(f"curves:    tensorboard --logdir {found[0].folder.parent}")
    call = program()
    print(f'try next:  {call} ask {found[-1].folder} YOUR_SCAN "Does it show the liver?"')
    print(f"           {call} train configs/quickstart.py --name mine --task.mask-ratio 0.5")
    print(f"           {call} evaluate runs/mine")
    print(f"           {call} prepare folder --source YOUR_SCANS --units HU --out data/mine")
    failed = [str(results.folder) for results in found if not results.passed]
    if failed:
        print(f"FAILED: {', '.join(failed)}: not better than the baseline beyond the interval.")
    return 1 if failed else 0


def _import_language_model() -> None:
    """SmolLM2 with M3D's new tokens, where the quickstart's configs look for it; once."""
    from m3djax import weights
    from m3djax.checkpoint import CheckpointError
    from m3djax.convert.run import Convert

    config = config_files.load_module("configs/quickstart_ask.py")
    try:
        weights.newest_readable(config.WEIGHTS)
        print(f"{config.WEIGHTS} is there")
    except CheckpointError:
        print(Convert(config.NAME, config.WEIGHTS).load(config.get_config()))


def _inspect(arguments: list[str]) -> int:
    """What one scan is, what is odd about it, a picture: PATH [--mask PATH] [--units HU] ...."""
    import tyro

    from data_pipelines.inspect_scan import Inspect

    return tyro.cli(Inspect, args=arguments, prog=f"{program()} inspect").run()


def _prepare(arguments: list[str]) -> int:
    """Scans to a dataset: DATASET --source ... --out ...."""
    import tyro

    from data_pipelines.prepare import Prepare

    return tyro.cli(Prepare, args=arguments, prog=f"{program()} prepare").run()


def _train(arguments: list[str]) -> int:
    """Run an experiment, or go on with it: CONFIG [--field value ...]."""
    import tyro

    from m3djax.experiment import Experiment

    if not arguments or arguments[0].startswith("-"):
        usage = "CONFIG [--help] [--print-sharding] [--field value ...]"
        print(f"usage: {program()} train {usage}", file=sys.stderr)
        return 2
    only_print = "--print-sharding" in arguments
    arguments = [argument for argument in arguments if argument != "--print-sharding"]
    default = load_config(arguments[0])
    prog = f"{program()} train {arguments[0]}"
    config = tyro.cli(Experiment, default=default, args=arguments[1:], prog=prog)
    set_up_jax()
    from m3djax import distributed

    with distributed.together():
        if only_print:
            from m3djax.sharding_table import sharding_table

            print(distributed.from_first(lambda: sharding_table(config)))
            return 0
        from m3djax.train import train

        folder = train(config)
        if distributed.is_first():
            print(f"run: {folder}\nnext: {program()} evaluate {folder}")
    return 0


def _plan(arguments: list[str]) -> int:
    """What a config would need on devices that are not there: CONFIG --topology v5e:4x4 ...."""
    # The compiler for devices that are not there needs none that are: JAX must not look for any.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import tyro

    from m3djax.plan import command

    if not arguments or arguments[0].startswith("-"):
        print(f"usage: {program()} plan {command.USAGE}", file=sys.stderr)
        return 2
    default = load_config(arguments[0])
    options, fields = command.options(arguments[1:])
    prog = f"{program()} plan {arguments[0]}"
    command.run(tyro.cli(type(default), default=default, args=fields, prog=prog), options)
    return 0


def _evaluate(arguments: list[str]) -> int:
    """Measure a run on held-out scans and write its report: RUN."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: {program()} evaluate RUN", file=sys.stderr)
        return 2
    set_up_jax()
    from m3djax import distributed
    from m3djax.evaluate.run import evaluate

    with distributed.together():
        passed = evaluate(arguments[0]).passed
    return 0 if passed else 1


def _convert(arguments: list[str]) -> int:
    """Published weights in or out: SOURCE OUT [--layout NAME] [--config CONFIG] ...."""
    import tyro

    from m3djax.convert.run import Convert
    from m3djax.experiment import Experiment

    prog = f"{program()} convert"
    convert, rest = tyro.cli(Convert, args=arguments, prog=prog, return_unknown_args=True)
    set_up_jax()
    if convert.exports:
        if rest:
            raise ConfigError(f"{' '.join(rest)}: a run is exported as it is. Cure: leave it out.")
        print(convert.export())
        return 0
    default = load_config(convert.config)
    print(convert.load(tyro.cli(Experiment, default=default, args=rest, prog=prog)))
    return 0


def _chat(arguments: list[str]) -> int:
    """Talk with a language model in the terminal: MODEL (a folder or a .gguf file)."""
    import tyro

    set_up_jax()
    from m3djax.generate.chat import Chat

    return tyro.cli(Chat, args=arguments, prog=f"{program()} chat").run()


def _ask(arguments: list[str]) -> int:
    """Ask a model about a scan: RUN SCAN ["QUESTION" ...] [--at ...] [--report FILE] ...."""
    import tyro

    set_up_jax()
    from m3djax.ask.command import Ask

    return tyro.cli(Ask, args=arguments, prog=f"{program()} ask").answer()


def set_up_jax() -> None:
    """A compile cache, so that a second start is quick."""
    import jax

    from data_pipelines import fetch

    jax.config.update("jax_compilation_cache_dir", str(fetch.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
    "plan": _plan,
    "evaluate": _evaluate,
    "convert": _convert,
    "chat": _chat,
    "ask": _ask,
}
