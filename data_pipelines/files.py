"""Files on any file system that etils.epath knows, local or gs://."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from data_pipelines.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: epath.PathLike, content: str | bytes, *, private: bool = False) -> epath.Path:
    """Writes a file that is never seen half: into a neighbour first, renamed when complete.

    Args:
      path: The file; one that is there is replaced.
      content: Text is written as UTF-8.
      private: Nobody but its owner may read it, if it is local.

    Returns:
      The file.
    """
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.partial"
    if private and is_local(partial):
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o600))
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return partial.replace(target)


def check_target(path: epath.PathLike) -> None:
    """Checks that a file can be written, before there is something that could be lost.

    Raises:
      DataError: it is a folder, its folder is not there, or may not be written to.
    """
    target = epath.Path(path)
    if not is_local(target):
        return
    if target.is_dir():
        raise DataError(path, "is a folder, and a file is to be written", "name a file in it")
    if not target.parent.is_dir():
        raise DataError(path, "its folder is not there", "make the folder, or name another file")
    if not os.access(target.parent, os.W_OK):
        raise DataError(path, "its folder may not be written to", "name a file in another folder")


def is_local(path: epath.PathLike) -> bool:
    """Whether the path is on a file system of this machine, not gs:// and the like."""
    return "://" not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path, made absolute if it is local."""
    return epath.Path(os.path.abspath(path)) if is_local(path) else epath.Path(path)


def shown(path: epath.PathLike) -> str:
    """A local path from the working directory: absolute ones tell about somebody's machine."""
    return os.path.relpath(path) if is_local(path) else os.fspath(path)


def leads_out(path: epath.Path, root: epath.Path) -> bool:
    """Whether a symbolic link makes this path end outside of the folder `root`."""
    return is_local(path) and not real(path).is_relative_to(real(root))


def real(path: epath.PathLike) -> Path:
    """A local path with all links followed, which `epath.Path.resolve` does not do."""
    return Path(os.path.realpath(path))


def below(folder: epath.Path) -> Iterator[epath.Path]:
    """Every file of a folder and its subfolders, in alphabetical order.

    Links to folders are not followed, as they may lead round in circles.

    Raises:
      DataError: A folder cannot be opened.
    """
    try:
        children = sorted(folder.iterdir())
    except OSError:
        raise DataError(folder, "cannot be read", "check the path and its permissions") from None
    for path in children:
        if not path.is_dir():
            yield path
        elif not os.path.islink(path):
            yield from below(path)


def no_space(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def move_folder(source: Path, target: epath.Path, last: str) -> None:
    """Moves a finished local folder to its place.

    Args:
      source: Local folder without subfolders, on the file system of a local target.
      target: Appears in one step if it is local; must not exist then, or be empty.
      last: Name of the file that is copied last to a target that is not local: as long as it
        is missing there, the folder is not complete.
    """
    if is_local(target):
        for path in [*source.iterdir(), source]:
            flush(path)
        source.rename(target)
        flush(Path(target.parent))
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        epath.Path(path).copy(target / path.name, overwrite=True)
    shutil.rmtree(source)


def working_folder(beside: epath.Path) -> Path:
    """A new local folder to make things in, on the file system of a local path."""
    return Path(tempfile.mkdtemp(prefix="making-", dir=beside if is_local(beside) else None))


def flush(path: Path) -> None:
    """Makes a local file or a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sizes(folder: epath.Path, names: Iterable[str]) -> dict[str, int]:
    """{name: bytes} of files of a folder."""
    return {name: (folder / name).stat().length for name in names}
