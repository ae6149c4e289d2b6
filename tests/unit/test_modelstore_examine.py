"""Examining storage: what it does not do is seen, whatever it claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from tierstore.admin.examine import Examination, examine
from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, NotFound, PermissionDenied
from tierstore.ids import Buffer, ByteRange


class Disk(MemoryStore):
    """Says that it is durable."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=True)


class Overwrites(Disk):
    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        self.put(key, data)
        return True


class LooksThenWrites(Disk):
    """As a backend without a conditional put would do it: a race has two winners."""

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        try:
            self.info(key)
            return False
        except NotFound:
            if "race" in key:
                import time

                time.sleep(0.01)
            self.put(key, data)
            return True


class StaleList(Disk):
    """Lists what was there a moment ago."""

    old: list[BlobInfo]

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        found = list(super().list(prefix))
        shown, self.old = getattr(self, "old", []), found
        return iter(shown)


class KeepsDeleted(Disk):
    def delete(self, keys: Iterable[str]) -> None:
        pass


class WrongRange(Disk):
    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        super().get_ranges([RangeRead(read.key, read.start + 1, read.out) for read in reads])


class EmptyForMissing(Disk):
    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        try:
            return super().get(key, byte_range)
        except NotFound:
            return memoryview(b"")


class OldValue(Disk):
    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        if not key.endswith("replaced") or not self.put_if_absent(key, data):
            super().put(key, data)
        if key.endswith("replaced"):
            super().put(key, b"old")


class NoLarge(Disk):
    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        if key.endswith("large"):
            raise BackendError("413 too large")
        super().put(key, data)


def examined(kind: type[BlobStore]) -> tuple[Examination, list[str]]:
    store = kind("x")  # type: ignore[call-arg]
    found = examine([store])
    return found, [check.what for check in found.checks if check.ok is False]


def test_a_good_store_can_be_everything_and_is_left_empty() -> None:
    store = Disk("x")
    found = examine([store, store])
    assert (found.home, found.durable, found.shared, found.broken) == (True, True, True, False)
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("kind", "failed", "home", "durable"),
    [
        (Overwrites, ["create only if absent", "race to create"], False, True),
        (LooksThenWrites, ["race to create"], False, True),
        (StaleList, ["list"], False, False),
        (KeepsDeleted, ["delete", "list"], False, False),
        (WrongRange, ["read a range"], False, False),
        (EmptyForMissing, ["missing objects", "delete"], False, False),
        (OldValue, ["replace"], False, False),
        (NoLarge, ["large objects"], False, False),
    ],
)
def test_what_is_broken_is_seen(
    kind: type[BlobStore], failed: list[str], home: bool, durable: bool
) -> None:
    found, seen = examined(kind)
    assert seen == failed
    assert (found.home, found.durable, found.broken) == (home, durable, True)


def test_a_cache_can_be_shared_only() -> None:
    found, failed = examined(MemoryStore)
    assert (found.home, found.durable, found.shared, failed) == (False, False, True, [])


def test_what_cannot_be_written_to_is_an_error() -> None:
    class ReadOnly(Disk):
        def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
            raise PermissionDenied("403")

    with pytest.raises(PermissionDenied, match="403"):
        examined(ReadOnly)
