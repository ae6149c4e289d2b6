"""The part of the contract about many blobs at once, and about features that a store lacks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, InvalidName, NotFound, OutOfSpace
from tierstore.ids import Buffer

_MANY = 40
_MEDIUM = 1 << 20  # 40 of these are more than one batch of any store


class BlobBatches:
    """Tests of ``BlobStoreContract`` about many blobs; the fixtures are there."""

    many_at_once = 100
    """Small blobs in one call; more than fit into one batch of a store that cuts calls."""

    def check_keys(self, store: BlobStore, keys: Sequence[str], gone: Sequence[str] = ()) -> None:
        """Check that a store has exactly these keys; one that cannot list must not have ``gone``.

        Args:
            store: Store to check.
            keys: All keys that it has.
            gone: Keys that it had and no longer has.
        """
        if store.capabilities.listable:
            assert [info.key for info in store.list()] == sorted(keys)
        assert sorted(store.get_many([*keys, *gone])) == sorted(keys)

    def check_lists_nothing(self, store: BlobStore) -> None:
        """Check that a store that cannot list raises, empty or not."""
        for _ in range(2):
            calls: list[Callable[[], object]] = [
                lambda: list(store.list()),
                lambda: list(store.list("a/")),
                lambda: list(store.list_folders()),
            ]
            for call in calls:
                with pytest.raises(BackendError, match="list"):
                    call()
            store.put("a/b", b"x")

    def _medium(self, store: BlobStore) -> int:
        return min(_MEDIUM, store.capabilities.max_blob_bytes or _MEDIUM)

    # Many at once

    def test_get_many_gives_what_is_there(self, store: BlobStore, other: BlobStore) -> None:
        blobs = {f"m/{n}": bytes([n]) * (1000 * n) for n in range(20)}  # one of them is empty
        for key, data in blobs.items():
            store.put(key, data)
        wanted = [*blobs, "nope", "no/pe", "m"]
        random.Random(6).shuffle(wanted)
        found = other.get_many(wanted)
        assert {key: bytes(view) for key, view in found.items()} == blobs
        assert all(isinstance(view, memoryview) for view in found.values())
        assert store.get_many([]) == {}
        assert store.get_many(["nope"]) == {}
        assert store.get_many(["m/3"]) == {"m/3": blobs["m/3"]}
        assert store.get_many(["m/3", "m/4", "m/3"]) == {key: blobs[key] for key in ("m/3", "m/4")}

    def test_present(self, store: BlobStore, other: BlobStore) -> None:
        keys = [f"p/{n}" for n in range(self.many_at_once)]
        store.put_many({key: b"" if n % 7 else b"x" for n, key in enumerate(keys)})
        assert other.present([*keys, "nope", "no/pe", "p"]) == set(keys)
        assert other.present([]) == set()
        with pytest.raises(InvalidName):
            other.present(["p/1", "a//b"])

    def test_put_many(self, store: BlobStore, other: BlobStore) -> None:
        store.put("m/1", b"before")
        parts: list[Buffer] = [b"ab", bytearray(b"cde"), memoryview(b"fg")]
        store.put_many({"m/1": b"after", "m/2": parts, "m/3": b"", "m/4": [], "n": bytearray(b"x")})
        expected = {"m/1": b"after", "m/2": b"abcdefg", "m/3": b"", "m/4": b"", "n": b"x"}
        self.check_keys(other, list(expected))
        assert {key: bytes(other.get(key)) for key in expected} == expected
        store.put_many({})
        self.check_keys(other, list(expected))

    def test_many_bytes_at_once(self, store: BlobStore, other: BlobStore) -> None:
        rng = random.Random(7)
        size = self._medium(store)
        blobs = {f"m/{n}": rng.randbytes(size - rng.randrange(1000)) for n in range(_MANY)}
        store.put_many(blobs)
        found = other.get_many(list(blobs))
        assert sorted(found) == sorted(blobs)
        for key, data in blobs.items():
            assert found[key] == data, key

    def test_many_small_ones_at_once(self, store: BlobStore, other: BlobStore) -> None:
        blobs = {f"s/{n}": str(n).encode() for n in range(self.many_at_once)}
        store.put_many(blobs)
        found = other.get_many([*blobs, *(f"none/{n}" for n in range(self.many_at_once))])
        assert {key: bytes(view) for key, view in found.items()} == blobs

    def test_many_at_once_refuse_a_bad_key(self, store: BlobStore) -> None:
        store.put("a", b"x")
        with pytest.raises(InvalidName):
            store.get_many(["a", "a//b"])
        with pytest.raises(InvalidName):
            store.put_many({"a//b": b"x"})

    def test_put_many_keeps_no_buffer(self, store: BlobStore) -> None:
        data = bytearray(b"before" * 1000)
        store.put_many({"k": data, "l": [data]})
        data[:] = b"AFTER!" * 1000
        data.clear()  # BufferError while somebody holds a view of it
        assert store.get_many(["k", "l"]) == {"k": b"before" * 1000, "l": b"before" * 1000}

    # The largest

    def test_a_blob_that_is_too_large_is_refused(self, store: BlobStore) -> None:
        most = store.capabilities.max_blob_bytes
        if most is None:
            return
        store.put("k", b"before")
        part = bytes(1 << 20)
        data = [part] * (most // len(part) + 1)  # the same bytes again: it costs no memory
        calls: list[Callable[[], object]] = [
            lambda: store.put("k", data),
            lambda: store.put_if_absent("new", data),
            lambda: store.put_many({"k": data}),
        ]
        for call in calls:
            with pytest.raises(OutOfSpace, match=str(most)):
                call()
        assert bytes(store.get("k")) == b"before"
        with pytest.raises(NotFound):
            store.get("new")

    def test_the_largest_blob_is_taken(self, store: BlobStore, other: BlobStore) -> None:
        most = store.capabilities.max_blob_bytes
        if most is None or most > 64 << 20:  # what takes gigabytes is no test
            return
        data = random.Random(8).randbytes(most)
        store.put("k", data)
        assert other.get("k") == data
