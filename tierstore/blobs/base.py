"""The contract of a blob store: immutable bytes under a key.

Every implementation MUST hold to this, and ``tierstore.testing.blob_contract`` checks it:

* A key is 1 to 900 ASCII characters from ``[A-Za-z0-9._%+-/]``, made of non-empty segments none of
  which is ``.`` or ``..``, at most 240 characters each. Anything else is ``InvalidName``.
  No key lies below another: with a blob ``a``, a store may refuse ``a/b`` with ``BackendError``.
* ``put`` is all-or-nothing: a reader sees the old bytes, or the new ones, or ``NotFound``, never a
  part. When it returns the bytes survive a power loss, as far as the storage can promise it.
* ``put`` and ``put_if_absent`` keep no reference to the caller's buffers after they return, and
  never change them.
* ``put_if_absent`` is atomic: of any number of racing callers exactly one gets ``True``. A store
  that cannot promise it says so in its capabilities and raises ``BackendError``.
* ``get`` and ``get_ranges`` return exactly what was asked or raise: a range that reaches past the
  end is ``Damaged``, a missing key ``NotFound``, never a short read.
* ``delete`` of a missing key is not an error. Where one of several keys cannot be deleted, the
  others are before that is raised; only ``Unreachable`` ends it.
* ``list`` is consistent: a key whose ``put`` returned is listed, a deleted one is not.
* All methods may be called by many threads at once.
* Errors are those of ``tierstore.errors``, name the key and the store, and never hold credentials.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tierstore.errors import InvalidName, NotFound
from tierstore.ids import Buffer, ByteRange

_KEY = re.compile(r"[A-Za-z0-9._%+\-/]{1,900}\Z")
_MAX_SEGMENT = 240


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Properties of a store that go beyond the contract, or that it lacks.

    Attributes:
        put_if_absent: Whether creation is atomic against every other client of the same storage.
        durable: Whether what ``put`` wrote survives this process (and, on a disk, a power loss).
        atomic_put: Whether ``put`` is all-or-nothing; only a foreign file system may lack this.
        listable: Whether ``list`` and ``list_folders`` work; a cache may lack this and then raises
            ``BackendError``.
        max_blob_bytes: The size of the largest blob; a larger one is refused with ``OutOfSpace``.
        may_keep_versions: Whether what is deleted or written over may stay as an older version;
            ``info`` tells.
    """

    put_if_absent: bool
    durable: bool
    atomic_put: bool = True
    listable: bool = True
    max_blob_bytes: int | None = None
    may_keep_versions: bool = False


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """The key of a stored blob, its size in bytes, and when it was written.

    Attributes:
        key: The key.
        size: Its size in bytes.
        mtime: When it was written, in seconds since the epoch by the storage's own clock.
        version: What the storage calls this version of it, where it keeps the older ones of a key;
            ``None`` where it does not. Only ``BlobStore.info`` knows it.
    """

    key: str
    size: int
    mtime: float
    version: str | None = None


@dataclass(frozen=True, slots=True)
class RangeRead:
    """One part of a ``get_ranges`` call: fill ``out`` with bytes of ``key`` from ``start`` on."""

    key: str
    start: int
    out: memoryview


def check_key(key: str) -> str:
    """Return ``key`` when the contract allows it, else raise ``InvalidName``."""
    if not _KEY.match(key) or any(
        part in {"", ".", ".."} or len(part) > _MAX_SEGMENT for part in key.split("/")
    ):
        raise InvalidName(f"blob key {key[:120]!r} is not allowed")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` when it is empty or a key followed by one slash, else ``InvalidName``."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidName(f"blob prefix {prefix[:120]!r} must be empty or end with '/'")
        check_key(prefix[:-1])
    return prefix


class BlobStore(ABC):
    """A store of immutable bytes under keys; the module's docstring has the contract."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address of the store, for messages; never holds a credential."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """The properties of this store that go beyond the contract."""

    @property
    def bounded(self) -> bool:
        """Whether no call takes much longer than a timeout that the store was given."""
        return True

    @property
    def local(self) -> bool:
        """Whether reads cost no network, so that many small ranges are as good as a few long ones.

        Readers ask this, so it may write nothing; ``capabilities`` may try things out.
        """
        return False

    @abstractmethod
    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Write ``data`` (one buffer, or several to be laid end to end), replacing what was there.

        Raises:
            OutOfSpace, PermissionDenied, Unreachable, BackendError: The blob was not written.
        """

    @abstractmethod
    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """Create ``key`` and return ``True``, or return ``False`` when it exists already.

        A lost response can make a store report ``False`` for its own write: callers for whom that
        matters put a unique id into ``data`` and read it back.
        """

    @abstractmethod
    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        """Return the whole blob, or exactly ``byte_range`` of it.

        Raises:
            NotFound: There is no such key.
            Damaged: The blob ends before ``byte_range`` does.
        """

    @abstractmethod
    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        """Fill every ``out`` completely, in parallel where that helps.

        Raises the same errors as ``get``.
        """

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        """Return those of the blobs that exist, whole; in one round trip where that is possible.

        A missing key is left out; other errors are those of ``get``.
        """
        found = {}
        for key in keys:
            with suppress(NotFound):
                found[key] = self.get(key)
        return found

    def present(self, keys: Sequence[str]) -> set[str]:
        """Return those of ``keys`` that exist; in few round trips where that is possible."""
        found = set()
        for key in keys:
            with suppress(NotFound):
                found.add(self.info(key).key)
        return found

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        """Write every blob as ``put`` does, in few round trips where that is possible.

        After an error some of them may be written, each of them whole.
        """
        for key, data in blobs.items():
            self.put(key, data)

    @abstractmethod
    def info(self, key: str) -> BlobInfo:
        """Return the size and time of one blob; ``NotFound`` when it is missing."""

    def signs(self, key: str) -> frozenset[str]:
        """Return what the storage itself says of one blob, and of none that was copied from it.

        A blob that has one of these signs later is the same one, in the same place. Who reads it
        through another client of the storage gets the same; ``NotFound`` when it is missing.
        """
        return frozenset({f"written {round(self.info(key).mtime * 1e6)}"})

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove every key; a missing one is not an error.

        Raises:
            PermissionDenied, BackendError: One at least was not removed; all others were.
            Unreachable: The rest was not tried.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        """Return every blob whose key begins with ``prefix`` (empty or ending in ``/``), by key."""

    @abstractmethod
    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """Return the distinct next segments under ``prefix`` that have keys below them, in order.

        For ``a/x/1``, ``a/y/2`` and ``a/z`` the folders of ``a/`` are ``x`` and ``y``. The cost is
        that of one level, not of the whole tree.
        """

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Release connections and threads; calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
