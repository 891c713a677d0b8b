"""The command line and its verbs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from data_pipelines.errors import ConfigError, UserError
from data_pipelines.program import program
from m3djax.config import files, help_texts, registry
from m3djax.config.files import load_config

QUICKSTART = {
    "configs/quickstart.py": "a small 3D ViT, pretrained by masked autoencoding",
    "configs/quickstart_clip.py": "the same ViT and a text encoder, trained contrastively",
    "configs/quickstart_text_only.py": "SmolLM2-135M, tuned on questions about crops, no images",
    "configs/quickstart_ask.py": "the same language model with the ViT, on the same questions",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb with its arguments and returns the exit status.

    Args:
      arguments: the verb and its arguments; None takes those of the process.
    """
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
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax also raises what it logs
    # No warning about missing PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return VERBS[name](_allow_packages(rest))
    except KeyboardInterrupt:
        print(f"\n{program()} {name}: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"{program()} {name}: {error}", file=sys.stderr)
        return getattr(error, "status", 1)


def _allow_packages(arguments: list[str]) -> list[str]:
    """Allows the packages that --allow names, and returns the other arguments.

    Raises:
      ConfigError: no package follows --allow.
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
    """Runs all stages on real CT: fetch, prepare, pretrain, captions, questions, evaluation."""
    if arguments:
        return _usage("quickstart (it takes no options)", arguments)
    count = len(QUICKSTART) + 2
    print(f"1/{count} scans: fetch and prepare", flush=True)
    if status := _prepare(["sample_ct"]):
        return status
    set_up_jax()
    from m3djax.evaluate.run import evaluate
    from m3djax.training.train import train

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
    """Converts SmolLM2 with M3D's new tokens for the quickstart, unless that is already done."""
    from m3djax.convert.run import Convert
    from m3djax.runs import weights
    from m3djax.runs.checkpoint import CheckpointError

    config = files.load_module("configs/quickstart_ask.py")
    try:
        weights.newest_readable(config.WEIGHTS)
        print(f"{config.WEIGHTS} is there")
    except CheckpointError:
        print(Convert(config.NAME, config.WEIGHTS).load(config.get_config()))


def _inspect(arguments: list[str]) -> int:
    """Describes a scan, checks its values, draws it: PATH [--mask PATH] [--units HU] ...."""
    from data_pipelines.inspect_options import InspectOptions

    options = _options(InspectOptions, "inspect", arguments)
    from data_pipelines.inspect_scan import Inspect

    return Inspect(**options).run()


def _prepare(arguments: list[str]) -> int:
    """Makes a dataset of scans: DATASET --source ... --out ...."""
    from data_pipelines.prepare_options import PrepareOptions

    options = _options(PrepareOptions, "prepare", arguments)
    from data_pipelines.prepare import Prepare

    return Prepare(**options).run()


def _train(arguments: list[str]) -> int:
    """Runs or resumes an experiment: CONFIG [--field value ...]."""
    if not arguments or arguments[0].startswith("-"):
        usage = "train CONFIG [--help] [--print-sharding] [--field value ...]"
        return _usage(usage, arguments)
    only_print = "--print-sharding" in arguments
    arguments = [argument for argument in arguments if argument != "--print-sharding"]
    if help_texts.is_asked(arguments):
        return _show_fields("train", arguments[0], arguments[1:])
    config = _with_fields("train", arguments[0], arguments[1:])
    from m3djax.experiment import Experiment

    if not isinstance(config, Experiment):
        raise ConfigError(
            f"{arguments[0]}: is not an experiment, and `train` needs one. "
            f"Cure: {program()} plan {arguments[0]}."
        )
    set_up_jax()
    from m3djax.mesh import distributed

    with distributed.together():
        if only_print:
            from m3djax.runs.sharding_table import sharding_table

            print(distributed.from_first(lambda: sharding_table(config)))
            return 0
        from m3djax.training.train import train

        folder = train(config)
        if distributed.is_first():
            print(f"run: {folder}\nnext: {program()} evaluate {folder}")
    return 0


def _plan(arguments: list[str]) -> int:
    """Estimates the needs of a config on other devices: CONFIG --topology v5e:4x4 ...."""
    # Compilation for absent devices needs no accelerator, so JAX must not search for one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from m3djax.plan.options import USAGE, Options

    if not arguments or arguments[0].startswith("-"):
        return _usage(f"plan {USAGE}", arguments)
    asked = help_texts.is_asked(arguments)
    options, fields = Options.parse(arguments[1:], required=not asked)
    if asked:
        print(f"usage: {program()} plan {USAGE}\n\nThe fields of the config:\n")
        return _show_fields("plan", arguments[0], fields)
    config = _with_fields("plan", arguments[0], fields)
    from m3djax.plan import command

    command.run(config, options)
    return 0


def _evaluate(arguments: list[str]) -> int:
    """Measures a run on held-out scans and writes its report: RUN."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return _usage("evaluate RUN", arguments)
    set_up_jax()
    from m3djax.evaluate.run import evaluate
    from m3djax.mesh import distributed

    with distributed.together():
        passed = evaluate(arguments[0]).passed
    return 0 if passed else 1


def _convert(arguments: list[str]) -> int:
    """Converts published weights, in or out: SOURCE OUT [--layout NAME] [--config CONFIG] ...."""
    import tyro

    from m3djax.convert.options import ConvertOptions

    prog = f"{program()} convert"
    options, rest = tyro.cli(ConvertOptions, args=arguments, prog=prog, return_unknown_args=True)
    set_up_jax()
    from m3djax.convert.run import Convert

    convert = Convert(**vars(options))
    if convert.exports:
        if rest:
            raise ConfigError(
                f"{' '.join(rest)}: a run is exported without changes. Cure: remove this argument."
            )
        print(convert.export())
        return 0
    default = load_config(convert.config)
    print(convert.load(tyro.cli(type(default), default=default, args=rest, prog=prog)))
    return 0


def _chat(arguments: list[str]) -> int:
    """Starts a chat with a language model in the terminal: MODEL (a folder or a .gguf file)."""
    from m3djax.generate.options import ChatOptions

    options = _options(ChatOptions, "chat", arguments)
    set_up_jax()
    from m3djax.generate.chat import Chat

    return Chat(**options).run()


def _ask(arguments: list[str]) -> int:
    """Asks a model about a scan: RUN SCAN ["QUESTION" ...] [--at ...] [--report FILE] ...."""
    from m3djax.ask.options import AskOptions

    options = _options(AskOptions, "ask", arguments)
    set_up_jax()
    from m3djax.ask.command import Ask

    return Ask(**options).answer()


def _usage(text: str, arguments: list[str]) -> int:
    """Prints the usage of a verb, and returns the exit status: 0 for a request for help, else 2."""
    asked = help_texts.is_asked(arguments)
    print(f"usage: {program()} {text}", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _options(cls: type, verb: str, arguments: list[str]) -> dict[str, Any]:
    """Returns the values of a verb's options by name. Slow imports come after this call."""
    import tyro

    found: Any = tyro.cli(cls, args=arguments, prog=f"{program()} {verb}")
    return vars(found)


def _with_fields(verb: str, path: str, arguments: list[str]) -> Any:
    """Returns a config with the field values that the flags set."""
    import tyro

    default = load_config(path)
    prog = f"{program()} {verb} {path}"
    return tyro.cli(type(default), default=default, args=arguments, prog=prog)


def _show_fields(verb: str, path: str, arguments: list[str]) -> int:
    """Prints the flags of a config's fields, and returns the exit status."""
    call = (program(), verb, path, *arguments)
    file = files.find(path)
    help_texts.show(call, file, lambda: _with_fields(verb, path, arguments))
    return 0


def set_up_jax() -> None:
    """Sets up JAX's compilation cache on disk, so that a second start is fast."""
    import jax

    from data_pipelines import fetch

    jax.config.update("jax_compilation_cache_dir", str(fetch.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
