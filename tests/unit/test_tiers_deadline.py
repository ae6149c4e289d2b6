"""A store that hangs is left behind in time, and what it does later harms nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tierstore.blobs.base import BlobInfo, BlobStore, RangeRead
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import NotFound, Unreachable
from tierstore.ids import Buffer, ByteRange
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.tiers.guard.deadline import DeadlineStore, within

_LIMIT_S = 0.2


class Hanging(MemoryStore):
    """Hangs in every call, before it does what it should, until it is let go."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.go = threading.Event()
        self.go.set()
        self.has_read = threading.Event()

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        self.go.wait()
        super().get_ranges(reads)
        self.has_read.set()

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        self.go.wait()
        return super().get(key, byte_range)

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self.go.wait()
        super().put(key, data)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        for n, info in enumerate(super().list(prefix)):
            if n == 2:
                self.go.wait()
            yield info


class TestDeadlineStore(BlobStoreContract):
    many = 300

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return DeadlineStore(LocalStore(tmp_path / "store", create=True), 30.0)


@pytest.fixture
def inner() -> Iterator[Hanging]:
    inner = Hanging()
    yield inner
    inner.go.set()


def test_every_call_ends_in_time(inner: Hanging) -> None:
    store = DeadlineStore(inner, _LIMIT_S)
    store.put("k", b"x")
    inner.go.clear()
    for call in (
        lambda: store.get("k"),
        lambda: store.get_ranges([RangeRead("k", 0, memoryview(bytearray(1)))]),
        lambda: store.put("k", b"y"),
        lambda: store.get_many(["k"]),
    ):
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="did not end"):
            call()
        assert time.monotonic() - begun < 20 * _LIMIT_S


def test_what_comes_late_reaches_no_buffer_of_the_caller(inner: Hanging) -> None:
    store = DeadlineStore(inner, _LIMIT_S)
    store.put("k", b"late")
    inner.go.clear()
    out, data = bytearray(b"mine"), bytearray(b"first")
    with pytest.raises(Unreachable):
        store.get_ranges([RangeRead("k", 0, memoryview(out))])
    with pytest.raises(Unreachable):
        store.put("late", data)
    data[:] = b"OTHER"  # the caller uses its buffer again
    inner.go.set()
    wait_until(lambda: any(info.key == "late" for info in inner.list()), "the late blob comes")
    assert inner.get("late") == b"first"
    assert inner.has_read.wait(60)
    assert out == b"mine"


def test_a_listing_that_stalls_ends(inner: Hanging) -> None:
    store = DeadlineStore(inner, _LIMIT_S)
    for n in range(5):
        store.put(f"k/{n}", b"x")
    inner.go.clear()
    listing = store.list("k/")
    assert [next(listing).key, next(listing).key] == ["k/0", "k/1"]
    with pytest.raises(Unreachable, match="listing"):
        next(listing)


def test_a_listing_that_is_given_up_leaves_no_thread(inner: Hanging) -> None:
    store = DeadlineStore(inner, 5.0)
    store.put_many({f"k/{n}": b"" for n in range(1500)})
    before = threading.active_count()
    listing = store.list()
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    wait_until(lambda: threading.active_count() <= before, "its thread ends")


def test_calls_that_hang_use_up_their_threads_and_no_more(inner: Hanging) -> None:
    store = DeadlineStore(inner, 0.02)
    store.put("k", b"x")
    inner.go.clear()
    before = threading.active_count()
    for _ in range(80):
        with pytest.raises(Unreachable):
            store.get("k")
    assert threading.active_count() - before <= 64
    with pytest.raises(Unreachable, match="64 earlier calls hang"):
        store.get("k")


def test_errors_pass_through(inner: Hanging) -> None:
    with pytest.raises(NotFound):
        DeadlineStore(inner, 5.0).get("none")
    with pytest.raises(KeyError):
        within(5.0, "it", lambda: dict[str, int]()["x"])


def test_a_long_call_has_its_limit_for_each_part(inner: Hanging) -> None:
    store = DeadlineStore(inner, _LIMIT_S)
    inner.go.clear()
    threading.Timer(2 * _LIMIT_S, inner.go.set).start()
    store.put("k", bytes(40 << 20))
    assert store.info("k").size == 40 << 20


def test_it_is_bounded_and_else_what_it_wraps(inner: Hanging) -> None:
    store = DeadlineStore(inner, _LIMIT_S)
    assert store.bounded
    assert store.capabilities == inner.capabilities
