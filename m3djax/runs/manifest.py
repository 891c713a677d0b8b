"""Manifests: lists of the files of a folder with their hashes, to detect damage.

The manifest is written last, so a folder without one was never finished.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from typing import Any

from etils import epath

from data_pipelines.files import write_whole

NAME = "manifest.json"
_READERS = 8


def write(folder: epath.Path, about: dict[str, Any]) -> None:
    """Writes the manifest: the sha256 of every file below `folder`.

    Args:
      folder: a complete folder, into which nothing else will be written.
      about: facts about the folder, stored with the hashes; JSON-able.
    """
    content = {"about": about, "files": _hashes(folder)}
    write_whole(folder / NAME, json.dumps(content, indent=1))


def about(folder: epath.Path) -> dict[str, Any]:
    """Returns the facts that `write` stored; `damage` must have found the folder intact."""
    return json.loads((folder / NAME).read_text())["about"]


def damage(folder: epath.Path) -> str:
    """Compares a folder with its manifest; returns what is wrong, or "" if nothing is."""
    if not (folder / NAME).exists():
        return "it was never finished (no manifest)"
    try:
        content = json.loads((folder / NAME).read_text())
        expected = dict(content["files"])
        dict(content["about"])
    except (ValueError, KeyError, TypeError):
        return "its manifest is damaged, or of another version"
    if not expected:
        return "its manifest lists no files"
    found = _hashes(folder)
    changed = sorted(name for name in expected if found.get(name) != expected[name])
    return f"files missing or changed: {', '.join(changed)}" if changed else ""


def _hashes(folder: epath.Path) -> dict[str, str]:
    names = (parent / file for parent, _, files in folder.walk() for file in files)
    files = [path for path in names if NAME not in path.name]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        hashes = pool.map(_hash, files)
    return {
        str(path.relative_to(folder)): digest for path, digest in zip(files, hashes, strict=True)
    }


def _hash(path: epath.Path) -> str:
    """Returns the sha256 of a file, read in pieces because it may not fit into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
