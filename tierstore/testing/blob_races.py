"""The part of the contract about several callers at once."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import BackendError, NotFound

_RACERS = 8


class BlobRaces:
    """Tests of ``BlobStoreContract`` about several callers; the fixtures are there."""

    turns = 20
    """Number of races; fewer for a store whose writes take long."""

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        """Return the stored bytes, if possible without the store's own methods."""
        return bytes(store.get(key))

    # Creation

    def test_put_if_absent(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.put_if_absent:
            with pytest.raises(BackendError, match="'a/k'"):
                store.put_if_absent("a/k", b"x")
            with pytest.raises(NotFound):
                store.get("a/k")
            return
        assert store.put_if_absent("a/k", b"first") is True
        assert other.put_if_absent("a/k", b"second, longer") is False
        assert bytes(other.get("a/k")) == self.raw_get(store, "a/k") == b"first"
        store.put("a/k", b"put")
        assert store.put_if_absent("a/k", b"third") is False
        assert bytes(store.get("a/k")) == b"put"
        store.delete(["a/k"])
        assert store.put_if_absent("a/k", b"") is True
        assert other.put_if_absent("a/k", b"x") is False

    def test_put_if_absent_has_one_winner(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.put_if_absent:
            with pytest.raises(BackendError):
                store.put_if_absent("k", b"x")
            return
        for turn in range(self.turns):
            key = f"race/{turn}"
            ready = threading.Barrier(_RACERS)

            def create(n: int, key: str = key, ready: threading.Barrier = ready) -> bool:
                client = other if n % 2 else store
                ready.wait()
                return client.put_if_absent(key, bytes([n]) * 100_000)

            with ThreadPoolExecutor(_RACERS) as pool:
                won = list(pool.map(create, range(_RACERS)))
            assert won.count(True) == 1, f"turn {turn}: {won.count(True)} writers created {key}"
            content = bytes(store.get(key))
            assert content == bytes([won.index(True)]) * 100_000, f"turn {turn}: not the winner's"

    def test_all_may_be_the_first_below_a_prefix(self, store: BlobStore, other: BlobStore) -> None:
        for turn in range(self.turns // 4 + 1):
            keys = [f"new/{turn}/{'deep/' * 20}{n}" for n in range(_RACERS)]
            ready = threading.Barrier(_RACERS)

            def write(n: int, key: str, ready: threading.Barrier = ready) -> None:
                ready.wait()
                (other if n % 2 else store).put(key, b"x")

            with ThreadPoolExecutor(_RACERS) as pool:
                list(pool.map(write, range(_RACERS), keys))
            assert store.get_many(keys).keys() == set(keys)

    # Threads

    def test_put_is_all_or_nothing_to_readers(self, store: BlobStore, other: BlobStore) -> None:
        if not store.capabilities.atomic_put:
            store.put("k", b"x")
            assert bytes(other.get("k")) == b"x"
            return
        versions = [bytes([n]) * (300_000 + 1000 * n) for n in range(8)]
        store.put("k", versions[0])
        done = threading.Event()

        def read() -> int:
            seen = 0
            while not done.is_set():
                content = bytes(other.get("k"))
                assert content in versions, f"{len(content)} bytes of {set(content)}"
                part = bytearray(200_000)
                other.get_ranges([RangeRead("k", 50_000, memoryview(part))])
                assert len(set(part)) == 1, f"one read returned parts of versions {set(part)}"
                seen += 1
            return seen

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read) for _ in range(4)]
            try:
                for turn in range(2 * self.turns):
                    store.put("k", versions[turn % len(versions)])
            finally:
                done.set()
            assert all(reader.result() > 0 for reader in readers)

    def test_threads_do_not_disturb_each_other(self, store: BlobStore, other: BlobStore) -> None:
        shared = random.Random(5).randbytes(50_000)
        store.put("shared", shared)

        def work(n: int) -> None:
            client = other if n % 2 else store
            rng = random.Random(n)
            mine: dict[str, bytes] = {}
            for _ in range(self.turns):
                key = f"t/{n}/{rng.randrange(5)}"
                if rng.random() < 0.5:
                    mine[key] = rng.randbytes(rng.randrange(2000))
                    client.put(key, mine[key])
                elif key in mine:
                    assert bytes(client.get(key)) == mine[key]
                    assert client.info(key).size == len(mine[key])
                    if rng.random() < 0.3:
                        client.delete([key])
                        del mine[key]
                out = bytearray(1000)
                start = rng.randrange(49_000)
                client.get_ranges([RangeRead("shared", start, memoryview(out))])
                assert out == shared[start : start + 1000]
            assert client.get_many(list(mine)) == mine
            if client.capabilities.listable:
                found = {info.key: info.size for info in client.list(f"t/{n}/")}
                assert found == {key: len(data) for key, data in mine.items()}

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
