"""Help texts of configs, cached between calls.

The flags of a config are the fields of its modules, so its help needs Flax. The import of Flax
takes many times longer than all the rest. A cached text stores the time and size of each file that
was imported to make it. It is made again when one of them differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipelines import fetch

_ASKS = {"-h", "--help"}
_COLOURS = ("TERM", "NO_COLOR", "FORCE_COLOR")
Stamp = list[int]


def is_asked(arguments: Sequence[str]) -> bool:
    """Returns whether the arguments of a verb have a flag for help."""
    return not _ASKS.isdisjoint(arguments)


def show(call: Sequence[str], config: Path, print_help: Callable[[], object]) -> None:
    """Prints the help of a config's flags.

    Args:
      call: the command with all arguments, part of the cache key.
      config: the config's file.
      print_help: prints the text to standard output, and may end the process as argparse does.
    """
    path = _place(call, config)
    text = _kept(path)
    if text is None:
        with contextlib.redirect_stdout(_Like(sys.stdout)) as written:
            try:
                print_help()
            except SystemExit as end:
                if end.code:
                    raise
        text = written.getvalue()
        _keep(path, text, [str(config.resolve()), *_imported()])
    print(text, end="")


class _Like(io.StringIO):
    """Text buffer with the `isatty` of another stream, so that the text keeps its colours."""

    def __init__(self, stream: io.TextIOBase | object):
        super().__init__()
        self._terminal = bool(getattr(stream, "isatty", lambda: False)())

    def isatty(self) -> bool:
        """Returns whether the other stream is a terminal."""
        return self._terminal


def _place(call: Sequence[str], config: Path) -> Path:
    """Returns the file of a text: one for each call, width and kind of terminal."""
    shown = [shutil.get_terminal_size().columns, sys.stdout.isatty(), *map(os.getenv, _COLOURS)]
    key = json.dumps([sys.prefix, str(config.resolve()), *call, *shown])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Path(fetch.cache_dir()) / "help" / f"{name}.json"


def _kept(path: Path) -> str | None:
    """Returns the cached text; None if there is none or a file that it depends on differs."""
    try:
        page = json.loads(path.read_text())
        return page["text"] if _stamps(page["files"]) == page["files"] else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or cut off
        return None


def _keep(path: Path, text: str, files: Iterable[str]) -> None:
    with contextlib.suppress(OSError):  # without a cache, help only takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": text, "files": _stamps(files)}))


def _imported() -> Iterable[str]:
    """Returns the files of all modules that this process has imported, and the facades' stubs."""
    modules = list(sys.modules.values())
    named = (getattr(module, "__dict__", {}).get("__file__") for module in modules)
    files = [os.path.abspath(file) for file in named if file]
    return [file for name in files for file in (name, f"{name}i") if os.path.exists(file)]


def _stamps(files: Iterable[str]) -> dict[str, Stamp]:
    """Returns the time and size of each file."""
    return {file: [(s := os.stat(file)).st_mtime_ns, s.st_size] for file in files}
