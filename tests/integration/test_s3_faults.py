"""A network that breaks between a store and a real S3 server: no wrong byte, no lost version, and
no waiting without end.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tierstore
from tests.integration.kit import MIB, equal, tensors
from tests.servers.ceph import Ceph
from tests.servers.proxy import Faults, Proxy, proxying
from tierstore.blobs.base import RangeRead
from tierstore.blobs.objects.store import ObjectStore
from tierstore.errors import Damaged, NotFound, TierstoreError, Unreachable
from tierstore.ids import ByteRange

_TIMEOUT_S = 1.0
_BOUND_S = 2 * _TIMEOUT_S + 3.0  # slack of a busy machine
_BLOBS = {f"b/{n}": random.Random(n).randbytes(300_000 + n) for n in range(8)}


@pytest.fixture
def proxy(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    with proxying(ceph.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture
def blobs(ceph: Ceph, proxy: Proxy) -> Iterator[ObjectStore]:
    url = f"s3://{ceph.bucket()}/{uuid.uuid4().hex}"
    with ObjectStore(url, allow_http=True, timeout_s=_TIMEOUT_S) as store:
        yield store


@pytest.fixture
def url(ceph: Ceph, proxy: Proxy, cache: Path) -> str:
    return f"s3://{ceph.bucket()}/store"


# One blob at a time


@pytest.mark.parametrize("fault", ["reset", "lose", "half", "unavailable"])
def test_some_faults_are_outlived(blobs: ObjectStore, proxy: Proxy, fault: str) -> None:
    """Each of them in one request of four: what is tried again works."""
    for key, data in _BLOBS.items():
        blobs.put(key, data)
    chance: dict[str, Any] = {fault: 0.25}
    proxy.faults = Faults(**chance)
    good = 0
    for key, data in list(_BLOBS.items()) * 4:
        try:
            assert blobs.get(key) == data
            assert blobs.get(key, ByteRange(1000, 200_000)) == data[1000:200_000]
            blobs.put(key, data)
            good += 1
        except Unreachable:  # four times in a row
            continue
    assert proxy.done[fault] >= 5
    assert good >= 16, f"only {good} of 32 turns worked with {proxy.done}"


def test_a_large_blob_goes_up_in_parts_through_faults(blobs: ObjectStore, proxy: Proxy) -> None:
    data = [random.Random(n).randbytes(5 * MIB + n) for n in range(4)]
    for fault in ("reset", "unavailable", "lose"):
        chance: dict[str, Any] = {fault: 0.3}
        proxy.faults = Faults(only=(b"partNumber",), **chance)
        try:
            blobs.put(fault, data)
        except Unreachable:
            proxy.faults = Faults()
            with pytest.raises(NotFound):
                blobs.info(fault)
        else:
            proxy.faults = Faults()
            assert blobs.get(fault) == b"".join(data)
    assert sum(proxy.done.values()) >= 3


def test_the_lost_answer_of_the_last_request_of_an_upload(blobs: ObjectStore, proxy: Proxy) -> None:
    """It was put together, and whoever asks again hears that there is no such upload."""
    data = random.Random(1).randbytes(20 * MIB)
    proxy.faults = Faults(only=(b"POST ", b"uploadId="), lose=1.0, most=1)
    blobs.put("k", data)
    assert proxy.done == {"lose": 1}
    assert blobs.get("k") == data


def _all_reads(blobs: ObjectStore) -> list[Callable[[], object]]:
    out = memoryview(bytearray(100_000))
    return [
        lambda: blobs.get("b/1"),
        lambda: blobs.get("b/1", ByteRange(5, 250_000)),
        lambda: blobs.get_ranges([RangeRead("b/2", 9, out), RangeRead("b/3", 0, out)]),
        lambda: blobs.info("b/1"),
        lambda: list(blobs.list("b/")),
    ]


@pytest.mark.parametrize(
    "faults",
    [Faults(hang=True), Faults(stall=1.0), Faults(bytes_per_s=2000), Faults(unavailable=1.0),
     Faults(reset=1.0), Faults(lose=1.0), Faults(half=1.0)],
    ids=["hang", "stall", "trickle", "503", "reset", "lost", "half"],
)  # fmt: skip
def test_nothing_waits_without_end(blobs: ObjectStore, proxy: Proxy, faults: Faults) -> None:
    blobs.put_many(_BLOBS)
    proxy.faults = faults
    for call in _all_reads(blobs)[:3]:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            call()
        assert time.monotonic() - begun < _BOUND_S
    if faults.bytes_per_s or faults.stall or faults.half:
        return  # an answer without a body comes through
    for call in [*_all_reads(blobs)[3:], lambda: blobs.put("b/1", _BLOBS["b/1"])]:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            call()
        assert time.monotonic() - begun < _BOUND_S
    proxy.faults = Faults()
    assert blobs.get("b/1") == _BLOBS["b/1"]


def test_a_slow_link_that_brings_something_is_waited_for(blobs: ObjectStore, proxy: Proxy) -> None:
    data = random.Random(3).randbytes(MIB)
    blobs.put("k", data)
    proxy.faults = Faults(bytes_per_s=300_000, latency_s=0.1)
    assert blobs.get("k", ByteRange(0, MIB)) == data  # three times the timeout


# Whole versions


@pytest.mark.parametrize(
    "faults",
    [Faults(latency_s=0.02), Faults(bytes_per_s=8 * MIB), Faults(reset=0.1), Faults(lose=0.1),
     Faults(half=0.1), Faults(unavailable=0.2), Faults(flip=0.2)],
    ids=["latency", "cap", "reset", "lost", "half", "503", "flip"],
)  # fmt: skip
def test_no_wrong_byte_and_no_lost_version(url: str, proxy: Proxy, faults: Faults) -> None:
    saved: dict[int, int] = {}  # versions by number: the seed of what was saved
    with tierstore.init(url, chunk_size=MIB) as store:
        saved[store.save("m", tensors(0)).number] = 0
    proxy.faults = faults
    for seed in range(1, 4):
        try:
            with tierstore.open(url) as store:
                saved[store.save("m", tensors(seed)).number] = seed
                equal(store.load(f"m@{min(saved)}").load(), tensors(saved[min(saved)]))
        except (TierstoreError, Damaged):
            continue
    proxy.faults = Faults()
    with tierstore.open(url) as store:
        for number, seed in saved.items():
            equal(store.load(f"m@{number}").load(), tensors(seed))
        for version in store.versions("m"):  # a save that failed may have come to its end
            found = store.load(f"m@{version.number}").load()
            seeds = [seed for seed in range(4) if (found["bias"] == tensors(seed)["bias"]).all()]
            assert len(seeds) == 1
            equal(found, tensors(seeds[0]))
        found_by_check = store.check(read_data=True).findings
        # what a save that failed had written by then is in nobody's way
        assert [one for one in found_by_check if one.severity != "garbage"] == []
    if not (faults.latency_s or faults.bytes_per_s):
        assert sum(proxy.done.values()) >= 3, proxy.done
    if faults.latency_s or faults.bytes_per_s or faults.unavailable:
        assert len(saved) == 4, "what is only slow or busy fails nothing"


def test_a_save_whose_last_answer_is_lost_happens_once(url: str, proxy: Proxy) -> None:
    with tierstore.init(url, chunk_size=MIB) as store:
        store.save("m", tensors(0))
        proxy.faults = Faults(only=(b"PUT ", b"/refs/"), lose=1.0, most=1)
        version = store.save("m", tensors(1))
        proxy.faults = Faults()
        assert proxy.done == {"lose": 1}
        assert [one.number for one in store.versions("m")] in ([1, 2], [2, 1])
        assert version.number == 2
        equal(store.load("m").load(), tensors(1))
