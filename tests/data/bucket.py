"""A remote file system in memory."""

from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """A stand-in for Google storage: etils finds it through fsspec, as the real one.

    It has no renames of folders, no locks and no local paths.
    """

    protocol = ("gcs", "gs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").strip("/")

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        Bucket.opened += [path] if mode == "rb" else []
        return super().open(path, mode, **options)
