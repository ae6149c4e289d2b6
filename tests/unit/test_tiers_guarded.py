"""A guarded store: the contract as ever, everything counted, and what fails skipped in time."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

import pytest

from tests.waiting import wait_until
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    Unreachable,
)
from tierstore.ids import ByteRange
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.guard.guarded import GuardedStore
from tierstore.tiers.stats import TierStats

DOWN = Unreachable("no answer")


class TestGuardedStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> BlobStore:
        return GuardedStore(MemoryStore(), "t", TierStats())


class Tier:
    """A guarded store that fails as told."""

    def __init__(self, retry_s: float = 60.0) -> None:
        self.fault: Callable[[str, str, int], Fault] = lambda op, key, n: None
        self.inner = FaultyStore(MemoryStore("m"), lambda op, key, n: self.fault(op, key, n))
        self.stats = TierStats()
        self.store = GuardedStore(self.inner, "t", self.stats, retry_s=retry_s)
        self.inner.inner.put("a", b"abcd")

    def fail(self, error: Exception | None, *ops: str) -> None:
        self.fault = lambda op, key, n: error if not ops or op in ops else None

    @property
    def calls(self) -> list[str]:
        found = [op for op, _ in self.inner.calls]
        self.inner.calls.clear()
        return found


def test_every_call_is_counted() -> None:
    tier = Tier()
    tier.store.put("b", b"12")
    tier.store.put("b", [b"12", b"3"])
    tier.store.put_many({"c": b"x", "d": b"yz"})
    assert not tier.store.put_if_absent("b", b"")
    tier.store.get("a")
    tier.store.get("a", ByteRange(1, 3))
    tier.store.get_many(["a", "b", "none"])
    tier.store.info("a")
    tier.store.delete(["a"])
    list(tier.store.list())
    with pytest.raises(NotFound):
        tier.store.get("a")
    counted = {op: (s.calls, s.errors, s.bytes) for op, s in tier.stats.ops.items()}
    assert counted == {
        "put": (4, 0, 8),
        "get": (4, 0, 4 + 2 + 7),
        "info": (1, 0, 0),
        "delete": (1, 0, 0),
        "list": (1, 0, 0),
    }
    assert all(sum(s.buckets) == s.calls and s.seconds > 0 for s in tier.stats.ops.values())


def test_two_failures_in_a_row_and_nobody_waits_any_more(caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier()
    tier.fail(DOWN)
    for _ in range(20):
        with pytest.raises(Unreachable):
            tier.store.get("a")
    assert tier.calls == ["get", "get"]
    with pytest.raises(Unreachable, match=r"tier t is not read for a while.*no answer"):
        list(tier.store.list())
    with pytest.raises(Unreachable, match="not written to"):
        tier.store.put("b", b"")
    assert tier.calls == []
    assert (tier.stats.breaker_opened, tier.stats.breaker_open) == (1, True)
    assert tier.stats.ops["get"].errors == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "tierstore store validate memory://m" in warnings[0]


def test_a_success_or_an_answer_in_between_keeps_it_in_use() -> None:
    tier = Tier()
    for error in (None, NotFound("x"), Damaged("x")):
        for fault in (DOWN, error) * 4:
            tier.fail(fault)
            with contextlib.suppress(Unreachable, NotFound, Damaged):
                tier.store.get("a")
    assert tier.stats.breaker_opened == 0


@pytest.mark.parametrize("refusal", [OutOfSpace("full"), PermissionDenied("read-only")])
def test_what_is_full_or_read_only_is_still_read(refusal: BackendError) -> None:
    tier = Tier()
    tier.fail(refusal, "put", "delete")
    for _ in range(9):
        with pytest.raises(BackendError):
            tier.store.put("b", b"")
        assert bytes(tier.store.get("a")) == b"abcd"
    assert tier.calls.count("put") == 2
    assert tier.stats.breaker_open


def test_it_is_used_again_once_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier(retry_s=0.05)
    tier.fail(DOWN)
    for _ in range(2):
        with pytest.raises(Unreachable):
            tier.store.get("a")
    tier.fail(None)

    def read() -> bool:
        try:
            return bytes(tier.store.get("a")) == b"abcd"
        except Unreachable:
            return False

    wait_until(read, "the tier was never tried again")
    with caplog.at_level(logging.WARNING):
        tier.store.put("b", b"")
    assert not tier.stats.breaker_open


def test_finding_out_whether_it_is_back_costs_no_caller_anything() -> None:
    tier = Tier(retry_s=0.02)
    tier.fail(DOWN)
    for _ in range(2):
        with pytest.raises(Unreachable):
            tier.store.get("a")
    hang, asked = threading.Event(), threading.Event()

    def hung(op: str, key: str, n: int) -> Fault:
        asked.set()
        hang.wait(60)
        return DOWN

    tier.fault = hung
    until = time.monotonic() + 60
    while not asked.is_set() and time.monotonic() < until:
        with pytest.raises(Unreachable, match="for a while"):
            tier.store.get("a")
    with pytest.raises(Unreachable, match="for a while"):
        tier.store.get("a")
    hang.set()
    assert "get" not in tier.calls[2:]


def test_what_answers_a_small_question_but_never_a_read_is_skipped_for_longer() -> None:
    tier = Tier(retry_s=0.02)
    tier.fail(DOWN, "get")
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        with pytest.raises(Unreachable):
            tier.store.get("a")
        time.sleep(0.001)
    # 2 at first, then one after pauses of 20, 40, 80 ... ms
    assert 3 <= tier.calls.count("get") <= 9


def test_a_forked_child_begins_anew() -> None:
    tier = Tier()
    tier.fail(DOWN)
    for _ in range(2):
        with pytest.raises(Unreachable):
            tier.store.get("a")
    with tier.store._reading._lock:  # as if another thread held it while we fork
        pid = os.fork()
        if not pid:
            tier.fail(None)
            os._exit(0 if bytes(tier.store.get("a")) == b"abcd" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
