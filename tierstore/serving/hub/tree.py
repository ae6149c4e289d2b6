"""Files of a version as the Hub lists them, with the object ids that git and git-lfs give them.

A safetensors file, and any file of 1 MiB or more, is treated as one of git-lfs: its ETag is its
SHA-256. The ETag of other files is the SHA-1 of git's blob. Folders have the id of git's tree, so
equal ids mean equal content, as clients expect.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tierstore.format.manifest import FileEntry
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.saving.source import SUFFIX

LFS_FROM_BYTES = 1 << 20
"""Size in bytes from which on a file belongs to git-lfs."""

_KNOWN_IDS = 1 << 16


def is_lfs(path: str, size: int) -> bool:
    """Return whether git-lfs would hold a file; it never holds empty ones."""
    return size >= LFS_FROM_BYTES or (size > 0 and path.endswith(SUFFIX))


def blob_id(data: bytes) -> str:
    """Return git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer_of(sha256: str, size: int) -> bytes:
    """Return the pointer file that git-lfs commits in place of a file (git-lfs, docs/spec.md)."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        sha256.encode(),
        size,
    )


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of a version.

    Attributes:
        path: Path in the version.
        size: Size in bytes.
        oid: Git's id of the blob, or of the pointer file.
        sha256: SHA-256 of the file if it belongs to git-lfs, else ``None``.
        pointer_size: Size of the pointer file, in bytes.
    """

    path: str
    size: int
    oid: str
    sha256: str | None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        """The ``ETag`` of the file, without quotes."""
        return self.sha256 or self.oid

    def listed(self) -> dict[str, Any]:
        """Return the file as in answers of ``tree`` and ``paths-info``."""
        found: dict[str, Any] = {
            "type": "file",
            "path": self.path,
            "size": self.size,
            "oid": self.oid,
        }
        if self.sha256 is not None:
            found["lfs"] = {
                "oid": self.sha256,
                "size": self.size,
                "pointerSize": self.pointer_size,
            }
        return found

    def sibling(self, *, blobs: bool) -> dict[str, Any]:
        """Return the file as in the info of a model."""
        found: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            found |= {"size": self.size, "blobId": self.oid}
            if self.sha256 is not None:
                found["lfs"] = {
                    "sha256": self.sha256,
                    "size": self.size,
                    "pointerSize": self.pointer_size,
                }
        return found


@dataclass(slots=True)
class _Folder:
    folders: dict[str, _Folder] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    oid: str = ""


class Blobs:
    """The ids of files; a small file is read once to compute its id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[bytes, str] = OrderedDict()

    def of_file(self, model: Model, file: FileEntry) -> Blob:
        """Return one file of a version with its id."""
        sha256 = file.sha256.hex()
        if is_lfs(file.path, file.size):
            pointer = pointer_of(sha256, file.size)
            return Blob(file.path, file.size, blob_id(pointer), sha256, len(pointer))
        with self._lock:
            oid = self._ids.get(file.sha256)
        if oid is None:
            # an id is kept and believed: it is made of bytes that were compared just now
            oid = blob_id(FileView(model._opened.content.verified(), file).read())
            with self._lock:
                self._ids[file.sha256] = oid
                while len(self._ids) > _KNOWN_IDS:
                    self._ids.popitem(last=False)
        return Blob(file.path, file.size, oid, None)

    def all_of(self, model: Model) -> list[Blob]:
        """Return every file of a version, by path."""
        return [self.of_file(model, file) for file in model._opened.manifest.files]


class Tree:
    """The folders of a version.

    Args:
        blobs: All files of the version.
    """

    def __init__(self, blobs: list[Blob]) -> None:
        self._root = _Folder()
        for blob in blobs:
            at = self._root
            *folders, name = blob.path.split("/")
            for folder in folders:
                at = at.folders.setdefault(folder, _Folder())
            at.blobs[name] = blob
        _sign(self._root)

    def below(self, path: str, *, recursive: bool) -> Iterator[dict[str, Any]] | None:
        """Return what is in a folder (``""`` is the root); ``None`` if there is no such folder."""
        folder = self._find(path)
        if folder is None:
            return None
        return _walk(folder, f"{path}/" if path else "", recursive)

    def one(self, path: str) -> dict[str, Any] | None:
        """Return a file or folder; ``None`` if there is none."""
        above = self._find(path.rpartition("/")[0])
        name = path.rpartition("/")[2]
        if above is not None and name in above.blobs:
            return above.blobs[name].listed()
        folder = self._find(path) if path else None
        return None if folder is None else _listed(path, folder)

    def _find(self, path: str) -> _Folder | None:
        at: _Folder | None = self._root
        for part in path.split("/") if path else ():
            at = at.folders.get(part) if at is not None else None
        return at


def _listed(path: str, folder: _Folder) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": folder.oid}


def _walk(folder: _Folder, prefix: str, recursive: bool) -> Iterator[dict[str, Any]]:
    for name, below in sorted(folder.folders.items()):
        yield _listed(prefix + name, below)
        if recursive:
            yield from _walk(below, f"{prefix}{name}/", recursive)
    for _, blob in sorted(folder.blobs.items()):
        yield blob.listed()


def _sign(folder: _Folder) -> None:
    """Set the ids of git's trees in a folder and all folders below it."""
    rows = []
    for name, below in folder.folders.items():
        _sign(below)
        # git sorts a tree as if its name ended with a slash
        rows.append((name.encode() + b"/", b"40000 " + name.encode(), below.oid))
    for name, blob in folder.blobs.items():
        rows.append((name.encode(), b"100644 " + name.encode(), blob.oid))
    body = b"".join(row + b"\0" + bytes.fromhex(oid) for _, row, oid in sorted(rows))
    folder.oid = hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
