"""Helpers for files on every file system that etils.epath supports, local or gs://."""

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
    """Writes a file so that no reader ever sees it incomplete.

    The content is written into a temporary file in the same folder, which is then renamed.

    Args:
      path: The file; an existing one is replaced.
      content: Bytes, or text, which is written as UTF-8.
      private: Only the owner can read the file, if it is local.

    Returns:
      The path of the file.
    """
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.partial"
    if private and is_local(partial):
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o600))
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return partial.replace(target)


def check_target(path: epath.PathLike) -> None:
    """Checks that a file can be written, before results are computed that could be lost.

    Raises:
      DataError: the path is a folder, or its parent folder is missing or not writable.
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
    """Returns whether the path is on a file system of this machine, not gs:// or similar."""
    return "://" not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the path, made absolute if it is local."""
    return epath.Path(os.path.abspath(path)) if is_local(path) else epath.Path(path)


def shown(path: epath.PathLike) -> str:
    """Returns a local path relative to the working directory, and any other path as it is.

    Absolute paths would tell readers of a log about the user's machine.
    """
    return os.path.relpath(path) if is_local(path) else os.fspath(path)


def leads_out(path: epath.Path, root: epath.Path) -> bool:
    """Returns whether symbolic links lead from this path out of the folder `root`."""
    return is_local(path) and not real(path).is_relative_to(real(root))


def real(path: epath.PathLike) -> Path:
    """Returns a local path with all links resolved, which `epath.Path.resolve` does not do."""
    return Path(os.path.realpath(path))


def below(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields every file of a folder and its subfolders, in alphabetical order.

    Links to folders are not followed, as they may form cycles.

    Raises:
      DataError: A folder cannot be read.
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
    """Returns whether an error means that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def move_folder(source: Path, target: epath.Path, last: str) -> None:
    """Moves a finished local folder to its final path.

    Args:
      source: Local folder without subfolders; on the same file system as a local target.
      target: The final path. A local target must be missing or empty, and appears in one step.
      last: Name of the file that is copied last to a target that is not local. As long as this
        file is missing there, the folder is incomplete.
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
    """Returns a new local folder for temporary files, in the folder `beside` if that is local."""
    return Path(tempfile.mkdtemp(prefix="making-", dir=beside if is_local(beside) else None))


def flush(path: Path) -> None:
    """Flushes a local file or folder to disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sizes(folder: epath.Path, names: Iterable[str]) -> dict[str, int]:
    """Returns {name: size in bytes} of files of a folder."""
    return {name: (folder / name).stat().length for name in names}
