"""A folder of small crops of a real CT, and how tests prepare it."""

from pathlib import Path
from typing import Any

from data_pipelines.prepare import Prepare


def prepare_crops(scans: Path, **options: Any) -> Prepare:
    """The options that prepare the crops beside their folder, in this process."""
    fixed: dict[str, Any] = {"units": "HU", "test_fraction": 0.0, "workers": 0}
    fixed["out"] = str(scans.parent / "data")
    return Prepare("folder", str(scans), **(fixed | options))


def truncate(path: Path) -> None:
    """Cuts a file in half, as a broken copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
