"""Reads chunks: hot tiers first, then runs of frames from durable tiers, one flight per chunk.

Nothing is returned that does not match its digest; for parts of chunks see ``decode``.

::

    wants -> chunks on this node -> frames that nodes share -> runs of frames from durable tiers
           (what another thread or process of this node fetches now is waited for)

Where nodes share frames a read goes window by window, so that what it claims for itself is never
far from being read.

A chunk is handed on, to this node's tier and to readers that wait for it, from memory in which it
was verified and that nobody else writes. A buffer of a caller's is no such memory: it gets a copy,
or is copied and verified once more where somebody turns out to wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from tierstore.deferred import np
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import Verified, digest_of
from tierstore.format.frame import FrameHead
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.decode import FrameDecoder, Part, Sink, Unread
from tierstore.modelstore.chunks.frames import read_frames
from tierstore.modelstore.chunks.local import LocalChunks
from tierstore.modelstore.chunks.plan import Run, batches, plan_runs
from tierstore.modelstore.chunks.pool import Came, ReadPool
from tierstore.modelstore.chunks.sharing import Sharing, Want
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.hot.flight import Flight, Waiting
from tierstore.tiers.hot.shared import BATCH_BYTES, SharedHot
from tierstore.tiers.hot.tiers import HotTiers

_GAP_BYTES = 256 << 10
_WINDOW_BYTES = 512 << 20
_SHORT_RUN_BYTES = 2 << 20  # of a network

OnChunk = Callable[[int], None]
"""Called with the number of plain bytes of each finished chunk, from several threads."""


class ChunkReader:
    """Reads the chunks of one version. Thread-safe.

    Args:
        pool: The version's threads, buffers and counters.
        table: The version's layout, for the bases of deltas.
        hot: The hot tiers, asked first.
        whole_parts: Whether to read all of a chunk without a proof where a part of it is wanted.
    """

    _verifies_all = False

    def __init__(
        self,
        pool: ReadPool,
        table: ChunkTable,
        hot: HotTiers | None = None,
        *,
        whole_parts: bool = False,
    ) -> None:
        self.pool, self._table = pool, table
        self._hot = hot if hot is not None else HotTiers()
        self._decoder = FrameDecoder(
            pool,
            table,
            pool.threads,
            self._hot,
            verify_all=self._verifies_all,
            whole_parts=whole_parts,
        )
        self.local = LocalChunks(self._hot, pool, table, usable=not self._verifies_all)

    def verified(self) -> VerifiedReader:
        """Return a reader, with the same counters, of chunks that are to be stored again."""
        return VerifiedReader(self.pool, self._table, self._hot)

    def read(
        self,
        wants: Sequence[Want],
        on_chunk: OnChunk | None = None,
        *,
        keep: bool = False,
        share: bool = False,
        own: bool = False,
    ) -> None:
        """Fill the ``out`` of every want with plain bytes.

        Args:
            wants: The chunks, each with the buffer that its plain bytes go to.
            on_chunk: Called with the number of plain bytes of each finished chunk, from several
                threads.
            keep: Put all chunks into hot tiers, whatever the policy says, and wait for room.
            share: Say that other processes of this node want the same chunks now: wait for room in
                this node's tier.
            own: Say that nobody else can write to the buffers until this returns, so that chunks
                are verified in them and need no copy.
        """
        _Fetch(
            self.pool,
            self._decoder,
            self._hot,
            wants,
            on_chunk,
            keep=keep,
            share=share,
            own=own or self._verifies_all,
            verify_hot=self._verifies_all,
        ).run()

    def read_head(self, place: ChunkPlace) -> FrameHead:
        """Read and verify the head of a chunk's frame, and the proof where it has one."""
        return self._decoder.read_head(place)

    def check_proofs(self, places: Iterable[ChunkPlace]) -> None:
        """Read and verify those of the chunks' proofs that there are.

        Raises:
            Damaged: One is bad in every tier that has it.
        """
        self.pool.each([place for place in places if place.proof_bytes], self._check_proof)

    def _check_proof(self, place: ChunkPlace) -> None:
        self._decoder.read_head(place)

    def read_parts(self, parts: Sequence[tuple[Part, Sink]]) -> None:
        """Read parts of chunks: proof and head of each frame, then just the blocks wanted of it.

        Args:
            parts: Each part with a sink, which gets every decoded block that holds wanted bytes.
        """
        self.pool.each(parts, self._read_part)
        self._hot.record(
            [
                ChunkRead(
                    part.place.digest,
                    self.pool.moves.current(part.place).pack,
                    part.plain_bytes,
                    part.wanted * part.place.frame_bytes // max(1, part.plain_bytes),
                )
                for part, _ in parts
            ]
        )

    def _read_part(self, wanted: tuple[Part, Sink]) -> None:
        part, sink = wanted
        came = self._decoder.read_part(part, sink)
        self.pool.count_plain(came, part.wanted)
        if came == "reused" and self._hot.local is not None:
            self.pool.count_hot(self._hot.local.name, part.wanted)


class VerifiedReader(ChunkReader):
    """Reads the chunks of one version in order to store them again. Thread-safe.

    Every byte is compared with the digest of its chunk, whatever tier it comes from: a chunk of
    this node that proves wrong is dropped and read from elsewhere, files of this node are never
    mapped, and of a chunk of which a part is wanted all is read. The buffers that it fills are
    those of the code that stores them, so that nobody else writes there. Made by
    ``ChunkReader.verified``.
    """

    _verifies_all = True

    def chunk(self, place: ChunkPlace) -> Verified:
        """Read one whole chunk into memory of its own."""
        out = memoryview(bytearray(place.plain_bytes))
        self.read([Want(place, out)])
        return Verified(out)

    def frames(self, places: Sequence[ChunkPlace]) -> Iterator[tuple[ChunkPlace, bytes]]:
        """Read frames as they lie, each with the proof before it, verified; see ``read_frames``."""
        return read_frames(self.pool, self._decoder, places)


class _Fetch:
    """One call of ``ChunkReader.read``; a chunk that is wanted several times is read once."""

    def __init__(
        self,
        pool: ReadPool,
        decoder: FrameDecoder,
        hot: HotTiers,
        wants: Sequence[Want],
        on_chunk: OnChunk | None,
        *,
        keep: bool,
        share: bool,
        own: bool,
        verify_hot: bool,
    ) -> None:
        self._pool, self._decoder, self._hot = pool, decoder, hot
        self._on_chunk = on_chunk
        self._keep, self._share, self._own, self._verify_hot = keep, share, own, verify_hot
        self._wants: dict[bytes, Want] = {}
        self._outs: dict[bytes, list[memoryview]] = {}
        """All buffers for a chunk; the first one is that of its want."""
        for want in wants:
            self._wants.setdefault(want.place.digest, want)
            self._outs.setdefault(want.place.digest, []).append(want.out)
        self._lock = threading.Lock()
        self._led: dict[bytes, Flight] = {}
        self._waiting = Waiting()
        self._seated: set[bytes] = set()
        self._sharing = Sharing(hot.local)

    def run(self) -> None:
        """Fill every buffer."""
        todo = list(self._wants.values())
        with self._waiting:
            try:
                while todo:
                    for window in self._windows(todo):
                        self._from_durable(self._from_hot(window) if self._hot else window)
                    while left := self._sharing.wait(self._from_local):
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
        places = [self._pool.moves.current(want.place) for want in self._wants.values()]
        self._hot.record(
            [ChunkRead(p.digest, p.pack, p.plain_bytes, p.frame_bytes) for p in places]
        )

    def _windows(self, wants: list[Want]) -> Iterable[list[Want]]:
        """Return the groups of wants that are claimed at once.

        Where nodes share frames, these are windows of the frames asked for; else all at once, as
        nothing would be on its way between two windows.
        """
        if not self._hot.shared:
            return [wants]
        return batches(wants, lambda want: want.place.frame_bytes, _WINDOW_BYTES)

    def _from_durable(self, wants: Sequence[Want]) -> None:
        moves = self._pool.moves
        if moves.any_known:  # those of now: a run is decoded where it was planned
            wants = [Want(moves.current(want.place), want.out) for want in wants]
        self._pool.each(self._plan(wants), partial(self._read_run, wants))

    def _plan(self, wants: Sequence[Want]) -> list[Run]:
        places = [want.place for want in wants]
        limit_bytes = self._pool.max_run_bytes
        threads = self._pool.threads if self._pool.shares_link else 0
        if threads:  # of a small model, too, every thread gets some: they end together
            total = sum(place.frame_bytes for place in places)
            limit_bytes = min(limit_bytes, max(_SHORT_RUN_BYTES, total // (3 * threads)))
        return plan_runs(
            places,
            max_gap_bytes=_GAP_BYTES,
            max_run_bytes=limit_bytes,
            tail_bytes=limit_bytes * threads,
        )

    # Hot tiers

    def _from_hot(self, wants: Sequence[Want]) -> list[Want]:
        """Read what is in hot tiers; return the rest."""
        size = min(BATCH_BYTES, self._pool.max_run_bytes)
        groups = list(batches(wants, lambda want: want.place.frame_bytes, size))
        left: list[list[Want]] = [[] for _ in groups]

        def look(number: int) -> None:
            left[number] = self._from_shared(self._from_local(groups[number]))

        self._pool.each(range(len(groups)), look)
        return [want for group in left for want in group]

    def _from_local(self, wants: Sequence[Want]) -> Sequence[Want]:
        local = self._hot.local
        if local is None:
            return wants
        pairs = [(w.place.digest, out) for w in wants for out in self._outs[w.place.digest]]
        found = local.read_into(
            [digest for digest, _ in pairs],
            [out for _, out in pairs],
            verify=self._verify_hot,
        )
        missing = {digest for (digest, _), hit in zip(pairs, found, strict=True) if not hit}
        for want in wants:
            if want.place.digest not in missing:
                self._pool.count_hot(local.name, len(want.out))
                self._look_there(want.place.digest)
                self._done(want, "reused")
        return [want for want in wants if want.place.digest in missing]

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
            plain = self._decoder.decode(want.place, frame, self._room(want))
        except (Damaged, UnsupportedFormat) as error:
            tier.bad(want.place, error)
            return False
        except (NotFound, BackendError):  # of the base of a delta: say so once all was tried
            return False
        tier.hit(len(want.out))
        self._pool.count_hot(tier.name, len(frame))
        self._hot.offer_plain(want.place.digest, plain, keep=self._keep)
        self._hand_on(want, plain)
        self._done(want, "reused")
        return True

    # Durable tiers

    def _read_run(self, wants: Sequence[Want], run: Run) -> None:
        """Read those chunks of a run of frames that nobody else is reading."""
        mine = [wants[index] for index in run.items]
        led = self._sharing.claim(self._lead(mine), self._from_local)
        alone = len(led) == len(mine)  # else what others read leaves gaps
        for part in [run] if alone else self._plan(led):
            wanted = mine if alone else [led[index] for index in part.items]
            stage = self._pool.staging(part.stop - part.start)
            try:
                tier = self._pool.read(part.pack, [(part.start, stage)])
            except Damaged:  # cut short: not every frame has to be
                self._read_each(wanted)
            except (NotFound, BackendError) as error:
                self._read_each(wanted, error)
            else:
                self._decode_run(wanted, stage, part.start, tier)

    def _read_each(self, wants: Sequence[Want], error: Unread | None = None) -> None:
        for want in wants:
            self._came(want, self._decoder.read(want.place, self._room(want), error=error))

    def _decode_run(self, wants: Sequence[Want], stage: memoryview, start: int, tier: str) -> None:
        """Decode the frames in ``stage``, which begins at ``start`` of its pack in ``tier``."""
        for want in wants:
            place, room = want.place, self._room(want)
            frame = stage[place.offset - start :][: place.frame_bytes]
            try:
                plain = self._decoder.decode(place, frame, room)
            except Damaged as error:
                plain = self._decoder.read(place, room, frozenset([tier]), error)
            except (NotFound, BackendError) as error:  # of a base
                plain = self._decoder.read(place, room, error=error)
            else:
                self._hot.offer_frame(place, frame, keep=self._keep)
            self._came(want, plain)

    def _came(self, want: Want, plain: Verified) -> None:
        self._sharing.handed_over(want.place.digest)
        self._hot.offer_plain(want.place.digest, plain, keep=self._keep, wait=self._share)
        self._hand_on(want, plain)
        self._done(want, "delta" if want.place.bases else "full")

    # Memory

    def _room(self, want: Want) -> memoryview:
        """Return where a chunk is decoded and verified.

        A caller's buffer will do for a chunk that nothing here is to copy from there.
        """
        copied = self._hot.local is not None or len(self._outs[want.place.digest]) > 1
        return want.out if self._own or not copied else self._pool.chunk_room(len(want.out))

    def _hand_on(self, want: Want, plain: Verified) -> None:
        """Copy a chunk to the buffers for it, and to readers that wait for it."""
        digest = want.place.digest
        flight = self._led.get(digest)
        if flight is not None:
            callers = plain is want.out and not self._own
            self._hot.flights.land(flight, lambda: self._taken(want) if callers else plain)
        for out in self._outs[digest]:
            if out is not plain:
                np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(plain, np.uint8))

    def _taken(self, want: Want) -> Verified | None:
        """Return a copy of a caller's buffer, unless that was written to meanwhile."""
        room = self._pool.chunk_room(len(want.out))
        np.copyto(np.frombuffer(room, np.uint8), np.frombuffer(want.out, np.uint8))
        return Verified(room) if digest_of(room).raw == want.place.digest else None

    def _look_there(self, digest: bytes) -> None:
        """Have readers that wait for a chunk look for it on this node, where it was found."""
        flight = self._led.get(digest)
        if flight is not None:
            self._hot.flights.fail([flight])

    # One flight per chunk

    def _lead(self, wants: Sequence[Want]) -> list[Want]:
        """Return those of the chunks that this call fetches itself; the others are waited for."""
        with self._lock:
            new = {
                want.place.digest: self._outs[want.place.digest]
                for want in wants
                if want.place.digest not in self._led
            }
        flights = self._hot.flights.join(new, self._waiting)
        with self._lock:
            self._led.update(flights)
            self._seated.update(new.keys() - flights.keys())
        return [want for want in wants if want.place.digest in self._led]

    def _done(self, want: Want, came: Came) -> None:
        """Count a chunk that is in all buffers for it."""
        self._pool.count_plain(came, len(want.out))
        if self._on_chunk:
            for _ in self._outs[want.place.digest]:
                self._on_chunk(len(want.out))
