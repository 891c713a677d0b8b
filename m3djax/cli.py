"""The command line and its verbs."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable

from data_pipelines.errors import ConfigError, UserError
from data_pipelines.program import program
from m3djax import command_line
from m3djax.config import help_texts
from m3djax.config.files import load_config

_CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit status that a shell shows for `yes | head`


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb with its arguments and returns the exit status.

    Args:
      arguments: the verb and its arguments; None takes those of the process.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # an error at the interpreter's exit could not be caught
    except BrokenPipeError:
        if not _drop_closed_pipes():
            raise
        return _CLOSED_PIPE


def _drop_closed_pipes() -> bool:
    """Points standard streams without a reader to the null device; returns whether one was."""
    dropped = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream, 0)  # the end of the pipe is reported in any case
        if poll.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            dropped = True
    return dropped


def _run(arguments: list[str]) -> int:
    """Runs a verb; prints an error of the user's files as one line and returns its status."""
    usage = f"usage: {program()} VERB ... [--allow PACKAGE]\n\n" + "\n".join(
        f"  {name:12}{verb.__doc__}" for name, verb in VERBS.items()
    )
    usage += f"\n\n{command_line.ALLOW}"
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
        return VERBS[name](command_line.allow_packages(rest))
    except KeyboardInterrupt:
        print(f"\n{program()} {name}: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"{program()} {name}: {error}", file=sys.stderr)
        return getattr(error, "status", 1)


def _quickstart(arguments: list[str]) -> int:
    """Runs all stages on real CT: fetch, prepare, pretrain, captions, questions, evaluation."""
    if arguments:
        return command_line.usage("quickstart (it takes no options)", arguments)
    from m3djax import quickstart

    if status := quickstart.prepare_scans():
        return status
    set_up_jax()
    return quickstart.train_all()


def _inspect(arguments: list[str]) -> int:
    """Describes a scan, checks its values, draws it: PATH [--mask PATH] [--units HU] ...."""
    from data_pipelines.inspect_options import InspectOptions

    options = command_line.options(InspectOptions, "inspect", arguments)
    from data_pipelines.inspect_scan import Inspect

    return Inspect(**options).run()


def _prepare(arguments: list[str]) -> int:
    """Makes a dataset of scans: DATASET --source ... --out ...."""
    from data_pipelines.prepare_options import PrepareOptions

    options = command_line.options(PrepareOptions, "prepare", arguments)
    from data_pipelines.prepare import Prepare

    return Prepare(**options).run()


def _train(arguments: list[str]) -> int:
    """Runs or resumes an experiment: CONFIG [--field value ...]."""
    if not arguments or arguments[0].startswith("-"):
        usage = "train CONFIG [--help] [--print-sharding] [--field value ...]"
        return command_line.usage(usage, arguments)
    only_print = "--print-sharding" in arguments
    arguments = [argument for argument in arguments if argument != "--print-sharding"]
    if help_texts.is_asked(arguments):
        return command_line.show_fields("train", arguments[0], arguments[1:])
    config = command_line.with_fields("train", arguments[0], arguments[1:])
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
        return command_line.usage(f"plan {USAGE}", arguments)
    asked = help_texts.is_asked(arguments)
    options, fields = Options.parse(arguments[1:], required=not asked)
    if asked:
        print(f"usage: {program()} plan {USAGE}\n\nThe fields of the config:\n")
        return command_line.show_fields("plan", arguments[0], fields)
    config = command_line.with_fields("plan", arguments[0], fields)
    from m3djax.plan import command

    command.run(config, options)
    return 0


def _evaluate(arguments: list[str]) -> int:
    """Measures a run on held-out scans and writes its report: RUN."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return command_line.usage(
            f"evaluate RUN [--allow PACKAGE]\n\n{command_line.ALLOW}", arguments
        )
    set_up_jax()
    from m3djax.evaluate.run import evaluate
    from m3djax.mesh import distributed

    with distributed.together():
        passed = evaluate(arguments[0]).passed
    return 0 if passed else 1


def _compare(arguments: list[str]) -> int:
    """Shows the differences of two evaluated runs, in pairs of samples: RUN_A RUN_B."""
    if len(arguments) != 2 or help_texts.is_asked(arguments):
        return command_line.usage("compare RUN_A RUN_B", arguments)
    from m3djax.evaluate import compare_command

    first, second = arguments
    compare_command.show(first, second)
    return 0


def _convert(arguments: list[str]) -> int:
    """Converts published weights, in or out: SOURCE OUT [--layout NAME] [--config CONFIG] ...."""
    import tyro

    from m3djax.convert.options import ConvertOptions

    prog = f"{program()} convert"
    options, rest = tyro.cli(
        ConvertOptions,
        args=arguments,
        prog=prog,
        description=command_line.with_allow(ConvertOptions),
        return_unknown_args=True,
    )
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

    options = command_line.options(ChatOptions, "chat", arguments)
    set_up_jax()
    from m3djax.generate.chat import Chat

    return Chat(**options).run()


def _ask(arguments: list[str]) -> int:
    """Asks a model about a scan: RUN SCAN ["QUESTION" ...] [--at ...] [--report FILE] ...."""
    from m3djax.ask.options import AskOptions

    options = command_line.options(
        AskOptions, "ask", arguments, command_line.with_allow(AskOptions)
    )
    set_up_jax()
    from m3djax.ask.command import Ask

    return Ask(**options).answer()


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
    "compare": _compare,
    "convert": _convert,
    "chat": _chat,
    "ask": _ask,
}
