"""One flight for each chunk: of all threads that want the same chunk now, one fetches it.

The leader copies the chunk into the buffers of all that wait for it, from memory in which it was
verified and that nobody else writes. When the leader fails, each of the others tries for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from tierstore.forks import begin
from tierstore.format.checks import Verified


class Flight:
    """One chunk that is being fetched; its leader makes and ends the flight."""

    __slots__ = ("boarding", "digest", "seats")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.boarding = True
        self.seats: list[tuple[Waiting, Sequence[memoryview]]] = []


class Waiting:
    """A caller that waits for chunks which others fetch; leaving its context gives up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: set[bytes] = set()
        self._failed: list[bytes] = []
        self._gone = False

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:  # from here on nobody writes into our buffers
            self._gone = True

    def add(self, digest: bytes) -> None:
        """Add a chunk to wait for."""
        with self._changed:
            self._left.add(digest)

    def arrived(self, digest: bytes, outs: Sequence[memoryview], plain: Verified | None) -> None:
        """Deliver a chunk from its leader, or ``None`` when the leader failed."""
        with self._changed:
            if self._gone:
                return
            if plain is None:
                self._failed.append(digest)
            else:
                for out in outs:
                    out[:] = plain
            self._left.discard(digest)
            if not self._left:
                self._changed.notify_all()

    def wait(self) -> list[bytes]:
        """Block until every chunk has arrived or failed, and return those that failed."""
        with self._changed:
            while self._left:
                self._changed.wait()
            failed, self._failed = self._failed, []
            return failed


class Flights:
    """The chunks that threads of this process are fetching now."""

    def __init__(self) -> None:
        begin(self._begin)

    def _begin(self) -> None:
        # the leaders are in the parent
        self._lock = threading.Lock()
        self._flights: dict[bytes, Flight] = {}

    def join(
        self, wanted: Mapping[bytes, Sequence[memoryview]], waiting: Waiting
    ) -> dict[bytes, Flight]:
        """Lead the flights of chunks that nobody fetches yet, and wait for the others.

        Args:
            wanted: For each digest, the buffers that the chunk is to be copied into.
            waiting: Told when the chunks that others fetch arrive.

        Returns:
            The flights to lead; each must be ended by ``land`` or ``fail``.
        """
        led = {}
        with self._lock:
            for digest, outs in wanted.items():
                flight = self._flights.get(digest)
                if flight is None or not flight.boarding:
                    flight = self._flights[digest] = led[digest] = Flight(digest)
                else:
                    waiting.add(digest)
                    flight.seats.append((waiting, outs))
        return led

    def land(self, flight: Flight, take: Callable[[], Verified | None]) -> None:
        """Give a chunk to all that wait for it.

        Args:
            flight: The flight of the chunk.
            take: Returns the chunk, or ``None`` to let them try for themselves; called only if
                somebody waits.
        """
        self._end(flight, take)

    def fail(self, flights: Iterable[Flight]) -> None:
        """Let all that wait for these chunks try for themselves; ended flights are left alone."""
        for flight in flights:
            self._end(flight, lambda: None)

    def _end(self, flight: Flight, take: Callable[[], Verified | None]) -> None:
        with self._lock:
            if not flight.boarding:
                return
            flight.boarding = False
            if self._flights.get(flight.digest) is flight:
                del self._flights[flight.digest]
        plain = take() if flight.seats else None
        for waiting, outs in flight.seats:
            waiting.arrived(flight.digest, outs, plain)
        flight.seats.clear()
