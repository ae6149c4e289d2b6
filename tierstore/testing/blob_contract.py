"""The contract of a blob store, as tests that a backend inherits.

::

    class TestMyStore(BlobStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

A backend of shared storage also overrides ``other`` (a second client of the same storage, with
nothing in common with the first), and one whose stored bytes can be read otherwise ``raw_get``.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import BackendError, Damaged, InvalidName, NotFound
from tierstore.ids import Buffer, ByteRange
from tierstore.testing.blob_batches import BlobBatches
from tierstore.testing.blob_races import BlobRaces

_BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "./a",
    "a/.",
    "a b",
    "a\\b",
    "a\x00b",
    "a\n",
    "é",
    "a~",
    "a?b",
    "a#b",
    "a" * 241,
    "a/" * 450 + "a",
]
_GOOD_KEYS = [
    "a",
    "a-b/c_d/e.f",
    "...",
    ".hidden/.x",
    ".tmp/x",
    "%2F/%2e%2e/+%25",
    "UPPER/Case",
    "0" * 240,
    "/".join(["k" * 99] * 9),
]
_BIG = 20 << 20


class BlobStoreContract(BlobBatches, BlobRaces):
    """Base of a backend's tests, which give a fixture ``store`` that is fresh for each test."""

    many = 1100
    """Blobs in the test of listing; more than the 1000 that object stores list at once."""

    @pytest.fixture
    def store(self) -> Iterator[BlobStore]:
        """Return a fresh, empty store."""
        raise NotImplementedError("give a fixture that returns a fresh store")

    @pytest.fixture
    def other(self, store: BlobStore) -> BlobStore:
        """Return a second client of the same storage, or the store itself if there can be none."""
        return store

    # Keys

    @pytest.mark.parametrize("key", _BAD_KEYS, ids=lambda key: ascii(key[:20]))
    def test_refuses_a_bad_key_everywhere(self, store: BlobStore, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, b"x"),
            lambda: store.put_if_absent(key, b"x"),
            lambda: store.get(key),
            lambda: store.get(key, ByteRange(0, 1)),
            lambda: store.get_ranges([RangeRead(key, 0, memoryview(bytearray(1)))]),
            lambda: store.info(key),
            lambda: store.delete([key]),
        ]
        for call in calls:
            with pytest.raises(InvalidName):
                call()
        self.check_keys(store, [])

    @pytest.mark.parametrize("prefix", ["a", "/", "//", "a//", "../", "a/../", " /"])
    def test_refuses_a_bad_prefix(self, store: BlobStore, prefix: str) -> None:
        with pytest.raises(InvalidName):
            list(store.list(prefix))
        with pytest.raises(InvalidName):
            list(store.list_folders(prefix))

    def test_takes_every_good_key(self, store: BlobStore, other: BlobStore) -> None:
        for key in _GOOD_KEYS:
            store.put(key, key.encode())
        for key in _GOOD_KEYS:
            assert bytes(other.get(key)) == key.encode(), key
            assert self.raw_get(store, key) == key.encode(), key
            assert store.info(key).size == len(key)
        self.check_keys(store, _GOOD_KEYS)
        store.delete(_GOOD_KEYS)
        self.check_keys(store, [], gone=_GOOD_KEYS)

    # Bytes

    def test_returns_what_was_put(self, store: BlobStore, other: BlobStore) -> None:
        store.put("k", b"one")
        assert bytes(other.get("k")) == b"one"
        other.put("k", b"second, and longer")
        assert bytes(store.get("k")) == b"second, and longer"
        store.put("k", b"3")
        assert bytes(other.get("k")) == self.raw_get(store, "k") == b"3"

    def test_get_is_of_flat_bytes(self, store: BlobStore) -> None:
        store.put("k", b"abc")
        for view in (store.get("k"), store.get("k", ByteRange(1, 2))):
            assert isinstance(view, memoryview)
            assert (view.ndim, view.itemsize, view.contiguous) == (1, 1, True)

    def test_lays_buffers_end_to_end(self, store: BlobStore) -> None:
        grid = cast(Buffer, memoryview(bytes(range(24))).cast("B", (4, 6)))
        words = memoryview(b"12345678").cast("I")  # another item size
        parts: list[Buffer] = [b"ab", bytearray(b"cde"), memoryview(b"xxfgxx")[2:4], b"", grid]
        parts.append(cast(Buffer, words))
        store.put("k", parts)
        expected = b"abcdefg" + bytes(range(24)) + b"12345678"
        assert bytes(store.get("k")) == expected
        many = [bytes([n % 251]) * (n % 7) for n in range(3000)]
        store.put("many", many)
        assert bytes(store.get("many")) == b"".join(many)
        if store.capabilities.put_if_absent:
            assert store.put_if_absent("new", parts)
            assert bytes(store.get("new")) == expected

    @pytest.mark.parametrize("nothing", [b"", bytearray(), [], [b"", b""]], ids=repr)
    def test_empty_blob(self, store: BlobStore, nothing: bytes) -> None:
        store.put("k", nothing)
        assert store.info("k").size == 0
        assert bytes(store.get("k")) == b""
        assert bytes(store.get("k", ByteRange(0, 0))) == b""
        store.get_ranges([RangeRead("k", 0, memoryview(bytearray()))])
        self.check_keys(store, ["k"])
        with pytest.raises(Damaged):
            store.get("k", ByteRange(0, 1))

    def test_keeps_no_buffer(self, store: BlobStore) -> None:
        data = bytearray(b"before" * 1000)
        store.put("k", data)
        made = store.capabilities.put_if_absent and store.put_if_absent("n", [data])
        data[:] = b"AFTER!" * 1000
        data.clear()  # BufferError while somebody holds a view of it
        assert bytes(store.get("k")) == b"before" * 1000
        if made:
            assert bytes(store.get("n")) == b"before" * 1000

    def test_changes_no_buffer(self, store: BlobStore) -> None:
        data = bytearray(random.Random(1).randbytes(5000))
        copy = bytes(data)
        store.put("k", data)
        assert data == copy

    def test_big_blob(self, store: BlobStore, other: BlobStore) -> None:
        size = min(_BIG, store.capabilities.max_blob_bytes or _BIG)
        data = random.Random(2).randbytes(size)
        store.put("big", [data[: size // 3], data[size // 3 :]])
        assert bytes(other.get("big")) == data
        assert bytes(other.get("big", ByteRange(1, size - 1))) == data[1:-1]
        out = bytearray(size)
        other.get_ranges([RangeRead("big", 0, memoryview(out))])
        assert out == data

    # Ranges

    def test_exact_ranges(self, store: BlobStore) -> None:
        data = bytes(range(256)) * 4
        store.put("k", data)
        for start, stop in [(0, 1), (0, 1024), (5, 5), (1023, 1024), (1024, 1024), (300, 700)]:
            assert bytes(store.get("k", ByteRange(start, stop))) == data[start:stop]

    @pytest.mark.parametrize("wanted", [(0, 101), (99, 101), (100, 101), (500, 501), (101, 101)])
    def test_range_past_the_end_is_damaged(self, store: BlobStore, wanted: tuple[int, int]) -> None:
        store.put("k", b"x" * 100)
        start, stop = wanted
        with pytest.raises(Damaged, match="'k'"):
            store.get("k", ByteRange(start, stop))
        with pytest.raises(Damaged, match="'k'"):
            store.get_ranges([RangeRead("k", start, memoryview(bytearray(stop - start)))])

    def test_absurd_range_allocates_nothing(self, store: BlobStore) -> None:
        store.put("k", b"x")
        with pytest.raises(Damaged):
            store.get("k", ByteRange(0, 1 << 60))

    def test_many_ranges_of_many_blobs(self, store: BlobStore, other: BlobStore) -> None:
        rng = random.Random(3)
        blobs = {f"b/{n}": rng.randbytes(200_000 + n) for n in range(3)}
        for key, data in blobs.items():
            store.put(key, data)
        reads, expected = [], []
        for _ in range(120):
            key = rng.choice(list(blobs))
            start = rng.randrange(len(blobs[key]))
            length = rng.choice([0, 1, 100, 5000])
            length = min(length, len(blobs[key]) - start)
            reads.append(RangeRead(key, start, memoryview(bytearray(length))))
            expected.append(blobs[key][start : start + length])
        other.get_ranges(reads)
        for read, wanted in zip(reads, expected, strict=True):
            assert bytes(read.out) == wanted, (read.key, read.start)

    def test_touching_and_overlapping_ranges(self, store: BlobStore) -> None:
        data = random.Random(4).randbytes(3000)
        store.put("k", data)
        out = bytearray(3000)
        view = memoryview(out)
        store.get_ranges([RangeRead("k", n, view[n : n + 1]) for n in reversed(range(3000))])
        assert out == data
        outs = [bytearray(1000) for _ in range(4)]
        starts = [0, 500, 500, 2000]
        pairs = zip(starts, outs, strict=True)
        store.get_ranges([RangeRead("k", at, memoryview(out)) for at, out in pairs])
        for at, got in zip(starts, outs, strict=True):
            assert got == data[at : at + 1000]

    def test_fills_only_what_was_given(self, store: BlobStore) -> None:
        store.put("k", bytes(range(100)))
        out = bytearray(b"#" * 30)
        store.get_ranges([RangeRead("k", 50, memoryview(out)[10:20])])
        assert out == b"#" * 10 + bytes(range(50, 60)) + b"#" * 10

    def test_no_reads_at_all(self, store: BlobStore) -> None:
        store.get_ranges([])

    # Missing, deleted, listed

    def test_missing_key(self, store: BlobStore) -> None:
        store.put("a/b", b"x")
        for key in ("nope", "a", "a/c", "no/pe"):
            one = RangeRead(key, 0, memoryview(bytearray(1)))
            none = RangeRead(key, 0, memoryview(bytearray()))
            calls: list[Callable[[], object]] = [
                lambda key=key: store.get(key),  # type: ignore[misc]
                lambda key=key: store.get(key, ByteRange(0, 1)),  # type: ignore[misc]
                lambda key=key: store.get(key, ByteRange(0, 0)),  # type: ignore[misc]
                lambda one=one: store.get_ranges([one]),  # type: ignore[misc]
                lambda none=none: store.get_ranges([none]),  # type: ignore[misc]
                lambda key=key: store.info(key),  # type: ignore[misc]
            ]
            for call in calls:
                with pytest.raises(NotFound, match=key):
                    call()

    def test_delete(self, store: BlobStore, other: BlobStore) -> None:
        for key in ("a/1", "a/2", "b/1"):
            store.put(key, b"x")
        store.delete(["a/1", "nope", "no/pe", "a"])
        store.delete(["a/1"])
        store.delete([])
        store.delete(key for key in ["b/1"])
        self.check_keys(other, ["a/2"], gone=["a/1", "b/1", "nope"])
        with pytest.raises(NotFound):
            other.get("a/1")
        store.put("a/1", b"again")
        assert bytes(other.get("a/1")) == b"again"

    def test_list_is_ordered_and_by_prefix(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.listable:
            self.check_lists_nothing(store)
            return
        keys = ["a/x/1", "a/x/2", "a/x-y", "a/x.y", "a/x0", "a/y", "ab/1", "a-b", "b", "%/1"]
        for n, key in enumerate(keys):
            store.put(key, b"x" * n)
        for client in (store, other):
            assert [info.key for info in client.list()] == sorted(keys)
            for prefix in ("a/", "a/x/", "ab/", "b/", "nope/", "no/pe/", "%/"):
                wanted = sorted(key for key in keys if key.startswith(prefix))
                assert [info.key for info in client.list(prefix)] == wanted, prefix
        assert {info.key: info.size for info in other.list()} == {
            key: n for n, key in enumerate(keys)
        }

    def test_list_folders(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.listable:
            self.check_lists_nothing(store)
            return
        keys = ["a/x/1", "a/x/2", "a/y/deep/1", "a/z", "ab/1", "gone/1", "gone/deep/1", "%2F/1"]
        for key in keys:
            store.put(key, b"")
        store.delete(["gone/1", "gone/deep/1"])
        for client in (store, other):
            assert list(client.list_folders()) == ["%2F", "a", "ab"]
            assert list(client.list_folders("a/")) == ["x", "y"]
            assert list(client.list_folders("a/y/")) == ["deep"]
            assert list(client.list_folders("a/x/")) == []
            assert list(client.list_folders("nope/")) == []

    def test_list_follows_every_change(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.listable:
            self.check_lists_nothing(store)
            return
        for n in range(10):
            store.put(f"k/{n}", b"x")
            assert [info.key for info in other.list("k/")] == [f"k/{n}"]
            other.delete([f"k/{n}"])
            assert list(store.list("k/")) == []

    def test_lists_and_deletes_many(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.listable:
            self.check_lists_nothing(store)
            return
        keys = [f"many/{n:05d}" for n in range(self.many)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b"x"), keys))
        assert [info.key for info in other.list("many/")] == keys
        assert sum(1 for _ in other.list()) == self.many
        other.delete(keys)
        assert list(store.list()) == []

    def test_info(self, store: BlobStore) -> None:
        before = time.time()
        store.put("a/k", b"12345")
        info = store.info("a/k")
        assert (info.key, info.size) == ("a/k", 5)
        # A storage has its own clock, and some keep whole seconds or less.
        assert before - 120 < info.mtime < time.time() + 120
        if not store.capabilities.listable:
            return
        [listed] = store.list()
        assert (listed.key, listed.size) == ("a/k", 5)
        assert abs(listed.mtime - info.mtime) <= 1

    # Manners

    def test_errors_name_the_key_and_the_store(self, store: BlobStore) -> None:
        with pytest.raises(NotFound) as caught:
            store.get("some/key")
        assert "some/key" in str(caught.value)
        assert store.url in str(caught.value)

    def test_close_twice(self, store: BlobStore) -> None:
        store.put("k", b"x")
        store.get_ranges([RangeRead("k", 0, memoryview(bytearray(1))) for _ in range(3)])
        store.close()
        store.close()

    def test_a_key_below_a_key_is_refused_or_kept(self, store: BlobStore) -> None:
        store.put("a", b"file")
        with contextlib.suppress(BackendError):
            store.put("a/b", b"below")
            assert bytes(store.get("a/b")) == b"below"
        assert bytes(store.get("a")) == b"file"
        if store.capabilities.listable:
            assert [info.key for info in store.list()] in (["a"], ["a", "a/b"])
