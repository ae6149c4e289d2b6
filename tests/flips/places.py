"""Where bytes of a store lie: they are read, flipped and put back beneath it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from tierstore.blobs.base import BlobStore


def kind_of(key: str) -> str:
    """The kind of a stored object, by its key."""
    parts = key.split("/")
    if parts[0] != "refs":
        return parts[0]
    return f"refs {parts[2]}" + (" HEAD" if key.endswith("/HEAD") else "")


class Place(ABC):
    """One tier of a store.

    Attributes:
        name: Of the tier, for the table.
        node: Of the node file with which it is read.
        lies: Whether what is there may change after it was verified, and is returned then.
    """

    lies = False

    def __init__(self, name: str, node: str) -> None:
        self.name, self.node = name, node

    @abstractmethod
    def objects(self) -> dict[str, bytes]:
        """Every object as it is now."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Put bytes in the place of an object."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object."""

    def restore(self, good: dict[str, bytes], key: str) -> None:
        """Put everything back after ``key`` was changed and the store was read."""
        self.put(key, good[key])

    def kind(self, key: str) -> str:
        """The kind of an object, for the table."""
        return kind_of(key)


class FilePlace(Place):
    """A directory."""

    def __init__(self, name: str, root: Path, node: str) -> None:
        super().__init__(name, node)
        self._root = root

    def objects(self) -> dict[str, bytes]:
        return {
            path.relative_to(self._root).as_posix(): path.read_bytes()
            for path in sorted(self._root.rglob("*"))
            if path.is_file() and "probes" not in path.parts
        }

    def put(self, key: str, data: bytes) -> None:
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".flip").write_bytes(data)
        path.with_name(path.name + ".flip").replace(path)

    def remove(self, key: str) -> None:
        (self._root / key).unlink()


class BlobPlace(Place):
    """What is reached through a client: a bucket, or a cache whose ``keys`` are known."""

    def __init__(
        self, name: str, blobs: BlobStore, node: str, keys: list[str] | None = None
    ) -> None:
        super().__init__(name, node)
        self._blobs = blobs
        self._keys = keys

    def objects(self) -> dict[str, bytes]:
        keys = self._keys or [info.key for info in self._blobs.list("packs/")]
        return {key: bytes(self._blobs.get(key)) for key in keys}

    def put(self, key: str, data: bytes) -> None:
        self._blobs.put(key, data)

    def remove(self, key: str) -> None:
        self._blobs.delete([key])

    def kind(self, key: str) -> str:
        return kind_of(key) if self._keys is None else "frames"


class HotPlace(FilePlace):
    """The chunk files of a hot tier; ``before_a_start`` as if the machine was started since."""

    def __init__(self, name: str, root: Path, node: str, *, before_a_start: bool = False) -> None:
        super().__init__(name, root, node)
        self._before = before_a_start
        self.lies = node == "hot-boot" and not before_a_start

    def objects(self) -> dict[str, bytes]:
        return {key: data for key, data in super().objects().items() if _is_chunk(key)}

    def put(self, key: str, data: bytes) -> None:
        path = self._root / key
        if self._before:
            (self._root / key).unlink(missing_ok=True)
            path = path.parent.with_name("an-earlier-start") / path.name
            path.parent.mkdir(exist_ok=True)
        path.with_name("flip").write_bytes(data)
        path.with_name("flip").chmod(0o444)
        path.with_name("flip").replace(path)

    def restore(self, good: dict[str, bytes], key: str) -> None:
        for path in self._root.glob("*/an-earlier-start/*"):
            path.unlink()
        for key, data in good.items():
            path = self._root / key
            if not path.exists() or path.read_bytes() != data:
                FilePlace.put(self, key, data)
                path.chmod(0o444)

    def kind(self, key: str) -> str:
        return "hot files"


def _is_chunk(key: str) -> bool:
    name = key.rpartition("/")[2]
    return len(name) == 64 and "tmp~" not in key
