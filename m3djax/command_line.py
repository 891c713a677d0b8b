"""Arguments of the command line: usage, options and fields of configs as flags."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from data_pipelines.errors import ConfigError
from data_pipelines.program import program
from m3djax.config import files, help_texts, registry
from m3djax.config.files import load_config

ALLOW = "--allow PACKAGE: load the classes of your own package that a saved config names"


def allow_packages(arguments: list[str]) -> list[str]:
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


def usage(text: str, arguments: list[str]) -> int:
    """Prints the usage of a verb, and returns the exit status: 0 for a request for help, else 2."""
    asked = help_texts.is_asked(arguments)
    print(f"usage: {program()} {text}", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def options(
    cls: type, verb: str, arguments: list[str], description: str | None = None
) -> dict[str, Any]:
    """Returns the values of a verb's options by name. Slow imports come after this call.

    Args:
      cls: the dataclass of the options.
      verb: the verb.
      arguments: the command line after the verb.
      description: text of the help above the options; None takes it from the docstring.
    """
    import tyro

    prog = f"{program()} {verb}"
    found: Any = tyro.cli(cls, args=arguments, prog=prog, description=description)
    return vars(found)


def with_allow(cls: type) -> str:
    """Returns the help of the options of a verb that reads saved configs: with --allow."""
    text, _, _ = (inspect.getdoc(cls) or "").partition("Attributes:")
    return f"{text.strip()}\n\n{ALLOW}"


def with_fields(verb: str, path: str, arguments: list[str]) -> Any:
    """Returns a config with the field values that the flags set."""
    import tyro

    default = load_config(path)
    prog = f"{program()} {verb} {path}"
    return tyro.cli(type(default), default=default, args=arguments, prog=prog)


def show_fields(verb: str, path: str, arguments: list[str]) -> int:
    """Prints the flags of a config's fields, and returns the exit status."""
    call = (program(), verb, path, *arguments)
    file = files.find(path)
    help_texts.show(call, file, lambda: with_fields(verb, path, arguments))
    return 0
