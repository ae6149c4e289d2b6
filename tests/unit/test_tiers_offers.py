"""The filler: bounded, in order, off the path, and never in the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import pytest

from tierstore.tiers.hot.offers import Filler


class Tier:
    """Takes batches when it is allowed to."""

    def __init__(self, *, open_: bool = True) -> None:
        self.gate = threading.Event()
        self.taken: list[Sequence[tuple[str, memoryview]]] = []
        self.error: Exception | None = None
        if open_:
            self.gate.set()

    def take(self, batch: Sequence[tuple[str, memoryview]]) -> None:
        assert self.gate.wait(60)
        self.taken.append(batch)
        if self.error:
            raise self.error


def test_what_is_offered_is_copied_and_written_in_order() -> None:
    tier = Tier(open_=False)
    filler = Filler(tier.take, 1000, 8)
    buffer = bytearray(b"abc")
    for number in range(5):
        buffer[0] = number
        assert filler.offer(str(number), buffer)
    buffer[:] = b"xyz"
    assert not filler.flush(0)
    tier.gate.set()
    assert filler.flush(60)
    written = [item for batch in tier.taken for item in batch]
    assert written == [(str(number), bytes([number]) + b"bc") for number in range(5)]
    assert all(sum(len(data) for _, data in batch) <= 8 for batch in tier.taken)
    assert len(tier.taken) < 5
    filler.close(60)


def test_what_does_not_fit_in_is_dropped_at_once() -> None:
    tier = Tier(open_=False)
    filler = Filler(tier.take, 10, 100)
    assert filler.offer("a", bytes(6))
    assert not filler.offer("b", bytes(5))
    assert filler.offer("c", bytes(4))
    assert not filler.offer("d", bytes(1))
    tier.gate.set()
    assert filler.flush(60)
    assert filler.offer("e", bytes(10))
    assert not filler.offer("f", bytes(11), wait=True), "it would never fit"
    filler.close(60)
    assert not filler.offer("g", b"")


def test_a_warm_up_waits_for_room() -> None:
    tier = Tier(open_=False)
    filler = Filler(tier.take, 10, 10)
    assert filler.offer("a", bytes(8))
    done = threading.Event()

    def warm() -> None:
        assert filler.offer("b", bytes(8), wait=True)
        done.set()

    thread = threading.Thread(target=warm)
    thread.start()
    assert not done.is_set()
    tier.gate.set()
    assert done.wait(60)
    assert filler.flush(60)
    thread.join()
    filler.close(60)
    assert [key for batch in tier.taken for key, _ in batch] == ["a", "b"]


def test_a_tier_that_raises_loses_its_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier()
    tier.error = ValueError("bug")
    filler = Filler(tier.take, 10, 10)
    filler.offer("a", bytes(8))
    assert filler.flush(60)
    tier.error = None
    filler.offer("b", bytes(8))
    assert filler.flush(60)
    filler.close(60)
    assert [batch[0][0] for batch in tier.taken] == ["a", "b"]
    assert "could not be filled" in caplog.text


def test_close_gives_up_on_a_tier_that_hangs() -> None:
    tier = Tier(open_=False)
    filler = Filler(tier.take, 100, 1)
    for key in "abc":
        filler.offer(key, bytes(8))
    filler.close(0)
    tier.gate.set()
    assert filler.flush(60)
    assert [batch[0][0] for batch in tier.taken] in ([], ["a"])


def test_a_forked_child_has_a_filler_of_its_own() -> None:
    tier = Tier()
    filler = Filler(tier.take, 100, 100)
    filler.offer("a", b"1")
    assert filler.flush(60)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert filler.flush(0)
            assert filler.offer("b", b"2")
            assert filler.flush(60)
            code = 0 if tier.taken[-1] == [("b", b"2")] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    filler.close(60)
