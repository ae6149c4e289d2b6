"""One flight per chunk: who leads, who waits, and what becomes of both when one fails."""

from __future__ import annotations

import os
import threading
from functools import partial

from tierstore.format.checks import Verified
from tierstore.tiers.hot.flight import Flights, Waiting

D = [bytes([n]) * 32 for n in range(4)]
DATA = Verified(memoryview(b"data"))


def buffers(*digests: bytes) -> dict[bytes, list[memoryview]]:
    """Two buffers for each."""
    return {digest: [memoryview(bytearray(4)) for _ in range(2)] for digest in digests}


def held(outs: list[memoryview]) -> bytes:
    """What both buffers hold."""
    [found] = {bytes(out) for out in outs}
    return found


def test_the_leader_fills_the_buffers_of_all_that_wait() -> None:
    flights, waiting = Flights(), [Waiting() for _ in range(3)]
    led = flights.join(buffers(D[0], D[1]), Waiting())
    assert set(led) == {D[0], D[1]}
    seats = [buffers(D[1], D[2]) for _ in waiting]
    assert set(flights.join(seats[0], waiting[0])) == {D[2]}
    assert flights.join(seats[1], waiting[1]) == {}
    flights.land(led[D[1]], lambda: DATA)
    assert (held(seats[0][D[1]]), waiting[0].wait()) == (b"data", [])
    assert held(seats[1][D[1]]) == b"data"
    assert set(flights.join(seats[2], waiting[2])) == {D[1]}, "it has landed: a new flight"


def test_who_waits_is_told_that_the_leader_failed() -> None:
    flights, waiting = Flights(), Waiting()
    led = flights.join(buffers(*D), Waiting())
    assert flights.join(buffers(*D), waiting) == {}
    flights.land(led[D[0]], lambda: DATA)
    flights.fail(led.values())
    assert sorted(waiting.wait()) == D[1:]
    assert waiting.wait() == []
    assert set(flights.join(buffers(*D[1:]), waiting)) == set(D[1:])


def test_a_caller_that_gives_up_is_never_written_to() -> None:
    flights, waiting, seats = Flights(), Waiting(), buffers(D[0])
    led = flights.join(buffers(D[0]), Waiting())
    with waiting:
        flights.join(seats, waiting)
    flights.land(led[D[0]], lambda: DATA)
    assert held(seats[D[0]]) == bytes(4)


def test_many_threads_lead_each_chunk_once() -> None:
    flights, threads = Flights(), 16
    ready, lock = threading.Barrier(threads), threading.Lock()
    led: list[bytes] = []
    results: list[bytes] = []

    def one() -> None:
        mine, waiting = buffers(*D), Waiting()
        ready.wait(60)
        own = flights.join(mine, waiting)
        ready.wait(60)  # all have joined: nothing has landed yet
        with lock:
            led.extend(own)
        for digest, flight in own.items():
            for out in mine[digest]:
                out[:] = digest[:4]
            flights.land(flight, partial(Verified, mine[digest][0]))
        assert waiting.wait() == []
        with lock:
            results.append(b"".join(held(mine[digest]) for digest in D))

    pool = [threading.Thread(target=one) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join(60)
    assert sorted(led) == D
    assert results == [b"".join(digest[:4] for digest in D)] * threads


def test_a_forked_child_does_not_wait_for_threads_of_its_parent() -> None:
    flights = Flights()
    flights.join(buffers(D[0]), Waiting())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if set(flights.join(buffers(D[0]), Waiting())) == {D[0]} else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_chunk_is_taken_only_for_somebody_who_waits() -> None:
    flights, waiting, seats = Flights(), Waiting(), buffers(D[0])
    led = flights.join(buffers(*D[:2]), Waiting())
    flights.join(seats, waiting)
    taken: list[bytes] = []

    def take(digest: bytes) -> None:
        taken.append(digest)

    for digest, flight in led.items():
        flights.land(flight, partial(take, digest))
    assert taken == [D[0]]
    assert waiting.wait() == [D[0]], "there was none to give: it tries for itself"
