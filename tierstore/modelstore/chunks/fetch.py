"""One read of many chunks: hot tiers first, then runs of frames, one flight per chunk.

::

    wants -> chunks on this node -> frames that nodes share -> runs of frames from durable tiers
           (what another thread or process of this node fetches now is waited for)

Where nodes share frames a read goes window by window, so that what it claims for itself is never
far from being read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.modelstore.chunks.decode import Came, FrameDecoder
from tierstore.modelstore.chunks.packs import Packs
from tierstore.modelstore.chunks.plan import Run, batches, plan_runs
from tierstore.modelstore.chunks.sharing import Sharing, Want
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.hot.flight import Flight, Waiting
from tierstore.tiers.hot.shared import BATCH_BYTES, SharedHot
from tierstore.tiers.hot.tiers import HotTiers

_GAP = 256 << 10
_WINDOW = 512 << 20
_SHORT_RUN = 2 << 20  # of a network

OnChunk = Callable[[int], None]
"""Told the plain bytes of each chunk when it is done, from several threads."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where chunks come from, and by how much memory.

    Attributes:
        packs: the durable tiers.
        decoder: of the version's frames.
        hot: the hot tiers.
        max_run: bytes of the longest run of frames.
        sharing: threads that share a link; 0 where a read costs no network.
        staging: a buffer of at least so many bytes, the calling thread's own.
        each: runs a function for every item, in several threads.
        count: told how many bytes came from a hot tier, by its name.
        tally: told the plain bytes of each chunk and how it came.
    """

    packs: Packs
    decoder: FrameDecoder
    hot: HotTiers
    max_run: int
    sharing: int
    staging: Callable[[int], memoryview]
    each: Callable[[Sequence[object], Callable[..., None]], None]
    count: Callable[[str, int], None]
    tally: Callable[[Came, int], None]


class Fetch:
    """One call of ``ChunkReader.read``.

    Args:
        source: where chunks come from.
        wants: the chunks; one that is wanted several times is read once.
        on_chunk: told about each of ``wants``.
        keep: put all of it into hot tiers, whatever the policy thinks, and wait for room.
        share: wait for room to keep what is read in this node's tier, instead of dropping it.
    """

    def __init__(
        self,
        source: Source,
        wants: Sequence[Want],
        on_chunk: OnChunk | None,
        *,
        keep: bool,
        share: bool = False,
    ) -> None:
        self._source, self._on_chunk = source, on_chunk
        self._keep, self._share = keep, share
        self._hot, self._packs = source.hot, source.packs
        self._wants: dict[bytes, Want] = {}
        self._again: dict[bytes, list[memoryview]] = {}
        for want in wants:
            first = self._wants.setdefault(want.place.digest, want)
            if first is not want:
                self._again.setdefault(want.place.digest, []).append(want.out)
        self._lock = threading.Lock()
        self._led: dict[bytes, Flight] = {}
        self._waiting = Waiting()
        self._seated: set[bytes] = set()
        self._sharing = Sharing(source.hot.local, self._from_local)

    def run(self) -> None:
        """Fill every buffer."""
        todo = list(self._wants.values())
        with self._waiting:
            try:
                while todo:
                    for window in self._windows(todo):
                        self._fetch(window)
                    while left := self._sharing.wait():
                        self._from_durable(left)
                    failed = set(self._waiting.wait())
                    for digest in self._seated - failed:
                        self._done(self._wants[digest], "reused")
                    self._seated.clear()
                    # who fetched these could not: try ourselves, and fail for our own reasons
                    todo = [self._wants[digest] for digest in failed]
            finally:
                self._sharing.end()
                self._hot.flights.fail(self._led.values())
        self._hot.record([
            ChunkRead(want.place.digest, want.place.pack, want.place.plain, want.place.length)
            for want in self._wants.values()
        ])  # fmt: skip

    def _windows(self, wants: list[Want]) -> Iterable[list[Want]]:
        """What is claimed at once: where nodes share frames, what was asked of them; else what is
        read next, whatever the window, and between two windows nothing would be on its way.
        """
        if not self._hot.shared:
            return [wants]
        return batches(wants, lambda want: want.place.length, _WINDOW)

    def _fetch(self, wants: Sequence[Want]) -> None:
        if self._hot:
            wants = self._from_hot(wants)
        self._from_durable(wants)

    def _from_durable(self, wants: Sequence[Want]) -> None:
        self._source.each(self._plan(wants), lambda run: self._read_run(run, wants))

    def _plan(self, wants: Sequence[Want]) -> list[Run]:
        places = [self._packs.current(want.place) for want in wants]
        limit, sharing = self._source.max_run, self._source.sharing
        if sharing:  # of a small model, too, every thread gets some: they end together
            total = sum(place.length for place in places)
            limit = min(limit, max(_SHORT_RUN, total // (3 * sharing)))
        return plan_runs(places, max_gap=_GAP, max_run=limit, tail=limit * sharing)

    # Hot tiers

    def _from_hot(self, wants: Sequence[Want]) -> list[Want]:
        """Read what is hot; returns the others."""
        size = min(BATCH_BYTES, self._source.max_run)
        groups = list(batches(wants, lambda want: want.place.length, size))
        left: list[list[Want]] = [[] for _ in groups]

        def look(number: int) -> None:
            left[number] = self._from_shared(self._from_local(groups[number]))

        self._source.each(range(len(groups)), look)
        return [want for group in left for want in group]

    def _from_local(self, wants: Sequence[Want]) -> Sequence[Want]:
        local = self._hot.local
        if local is None:
            return wants
        found = local.read_into([w.place.digest for w in wants], [w.out for w in wants])
        left = []
        for want, hit in zip(wants, found, strict=True):
            if hit:
                self._source.count(local.name, len(want.out))
                self._done(want, "reused")
            else:
                left.append(want)
        return left

    def _from_shared(self, wants: Sequence[Want]) -> list[Want]:
        if self._hot.shared:
            wants = self._lead(wants)
        for tier in self._hot.shared:
            if not wants:
                break
            frames = tier.get([want.place for want in wants])
            wants = [want for want in wants if not self._from_frame(tier, want, frames)]
        return list(wants)

    def _from_frame(self, tier: SharedHot, want: Want, frames: dict[bytes, memoryview]) -> bool:
        frame = frames.get(want.place.digest)
        if frame is None:
            return False
        try:
            self._source.decoder.decode(want.place, frame, want.out)
        except (Damaged, UnsupportedFormat) as error:
            tier.bad(want.place, error)
            return False
        except (NotFound, BackendError):  # of the base of a delta: say so once all was tried
            return False
        tier.hit(len(want.out))
        self._source.count(tier.name, len(frame))
        self._hot.offer_plain(want.place.digest, want.out, keep=self._keep)
        self._done(want, "reused")
        return True

    # Durable tiers

    def _read_run(self, run: Run, wants: Sequence[Want]) -> None:
        mine = [wants[index] for index in run.items]
        led = self._sharing.claim(self._lead(mine))
        if len(led) == len(mine):
            self._read_led(run, wants)
            return
        for part in self._plan(led):
            self._read_led(part, led)

    def _read_led(self, run: Run, wants: Sequence[Want]) -> None:
        stage = self._source.staging(run.stop - run.start)
        try:
            tier = self._packs.read(run.pack, [(run.start, stage)])
        except NotFound:
            self._packs.follow(run.pack)
            for index in run.items:
                self._source.decoder.read(wants[index].place, wants[index].out)
                self._came(wants[index])
            return
        for index in run.items:
            want = wants[index]
            place = self._packs.current(want.place)
            frame = stage[place.offset - run.start :][: place.length]
            try:
                self._source.decoder.decode(place, frame, want.out)
            except Damaged as error:
                self._source.decoder.read(place, want.out, frozenset([tier]), error)
            else:
                self._hot.offer_frame(place, frame, keep=self._keep)
            self._came(want)

    def _came(self, want: Want) -> None:
        self._sharing.handed_over(want.place.digest)
        self._hot.offer_plain(want.place.digest, want.out, keep=self._keep, wait=self._share)
        self._done(want, "delta" if want.place.bases else "full")

    # One flight per chunk

    def _lead(self, wants: Sequence[Want]) -> list[Want]:
        """Those of the chunks that we fetch ourselves; for the others we wait."""
        with self._lock:
            new = {
                want.place.digest: want.out for want in wants if want.place.digest not in self._led
            }
        flights = self._hot.flights.join(new, self._waiting)
        with self._lock:
            self._led.update(flights)
            self._seated.update(new.keys() - flights.keys())
        return [want for want in wants if want.place.digest in self._led]

    def _done(self, want: Want, came: Came) -> None:
        """The chunk is in its buffer: hand it on."""
        self._source.tally(came, len(want.out))
        flight = self._led.get(want.place.digest)
        if flight is not None:
            self._hot.flights.land(flight, want.out)
        again = self._again.get(want.place.digest, ())
        for out in again:
            out[:] = want.out
        if self._on_chunk:
            for _ in range(1 + len(again)):
                self._on_chunk(len(want.out))
