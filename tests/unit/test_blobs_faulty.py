"""FaultyStore does to a store what its plan says, and nothing else."""

from __future__ import annotations

import pytest

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, OutOfSpace, Unreachable
from tierstore.ids import ByteRange
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.testing.faulty import Crashed, Fault, FaultyStore


class TestWithoutFaults(BlobStoreContract):
    many = 10

    @pytest.fixture
    def store(self) -> BlobStore:
        return FaultyStore(MemoryStore())


def _only(wanted_op: str, fault: Fault) -> FaultyStore:
    inner = MemoryStore()
    inner.put("k", b"0123456789")
    return FaultyStore(inner, lambda op, key, n: fault if op == wanted_op else None)


def test_an_exception_stops_the_call_before_it_does_anything() -> None:
    store = _only("put", OutOfSpace("full"))
    with pytest.raises(OutOfSpace, match="full"):
        store.put("new", b"x")
    assert [info.key for info in store.list()] == ["k"]
    assert store.calls == [("put", "new"), ("list", "")]
    assert store.mutations == 0


@pytest.mark.parametrize(
    ("fault", "expected"), [("truncate", b"01234"), ("flip", b"0123456789".replace(b"5", b"4"))]
)
def test_spoiled_writes_and_reads(fault: Fault, expected: bytes) -> None:
    store = _only("put", fault)
    store.put("new", [b"0123", b"456789"])
    assert bytes(store.get("new")) == expected
    store = _only("put_if_absent", fault)
    assert store.put_if_absent("new", b"0123456789")
    assert bytes(store.get("new")) == expected
    store = _only("get", fault)
    assert bytes(store.get("k")) == expected
    assert bytes(store.inner.get("k")) == b"0123456789"


def test_spoiled_ranges() -> None:
    out = bytearray(4)
    read = RangeRead("k", 0, memoryview(out))
    with pytest.raises(Damaged):
        _only("get_ranges", "truncate").get_ranges([read])
    with pytest.raises(Damaged):
        _only("get", "truncate").get("k", ByteRange(2, 4))
    _only("get_ranges", "flip").get_ranges([read])
    assert out == b"0133"


def test_a_lost_response_comes_after_the_deed() -> None:
    store = _only("put_if_absent", "lose-response")
    with pytest.raises(Unreachable):
        store.put_if_absent("new", b"x")
    assert bytes(store.get("new")) == b"x"
    store = _only("delete", "lose-response")
    with pytest.raises(Unreachable):
        store.delete(["k", "other"])
    assert list(store.list()) == []


def test_every_crash_point_of_an_operation() -> None:
    def operation(store: BlobStore) -> None:
        store.put("a", b"1")
        store.get("a")
        store.put_if_absent("b", b"2")
        store.delete(["a", "b"])

    whole = FaultyStore(MemoryStore())
    operation(whole)
    assert whole.mutations == 4
    left = []
    for point in range(whole.mutations):
        store = FaultyStore(MemoryStore(), crash_after=point)
        with pytest.raises(Crashed):
            operation(store)
        with pytest.raises(Crashed):
            list(store.list())
        left.append([info.key for info in store.inner.list()])
    assert left == [[], ["a"], ["a", "b"], ["b"]]
