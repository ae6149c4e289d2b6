"""From frames in packs to verified plain bytes: bases, blocks, and copies in other tiers.

Nothing is returned that does not match its digest. A block is a subtree of it, which a proof binds
to it; blocks of chunks that were stored without a proof are compared with their checksums alone,
unless all of such a chunk is to be read.
A frame whose copy in one tier is damaged is read from another tier that has it, and one that cannot
be read from any tier from the pack that a move names. What is hot on this node was verified when
it was written there; it is compared again where it is to be stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tierstore.codecs import decode, decode_block
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import Verified, damaged, digest_of, xxh3
from tierstore.format.frame import FrameHead, frame_payload, parse_frame_head
from tierstore.format.proof import can_prove, check_block, parse_proof
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.plan import blocks_of_spans
from tierstore.modelstore.chunks.pool import Came, ReadPool
from tierstore.modelstore.chunks.recent import Recent
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import MIN_MAPPED_BYTES

Sink = Callable[[int, memoryview], None]
"""Takes verified plain bytes and their offset in the tensor; called from several threads."""

Attempt: TypeAlias = Callable[[ChunkPlace, frozenset[str], set[str]], None]
"""One try to read a frame at a place: avoids these tiers, and adds those that it read from."""


Unread: TypeAlias = Damaged | NotFound | BackendError
"""Why a frame could not be read from its pack, or a base of it from that one's."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one chunk of a tensor.

    Attributes:
        place: Place of the chunk's frame.
        begin: Offset of the chunk in the tensor, in bytes.
        plain_bytes: Plain bytes of the chunk.
        spans: Byte ranges of the tensor that are wanted, ascending; what lies outside the chunk is
            ignored.
    """

    place: ChunkPlace
    begin: int
    plain_bytes: int
    spans: Sequence[tuple[int, int]]

    @property
    def wanted(self) -> int:
        """Number of wanted bytes that lie in the chunk."""
        end = self.begin + self.plain_bytes
        return sum(max(0, min(stop, end) - max(start, self.begin)) for start, stop in self.spans)


class FrameDecoder:
    """Decodes the frames of one version. Thread-safe.

    Args:
        pool: Reads the frames.
        table: The version's layout, for the bases of deltas.
        keep_chunks: How many plain base chunks are kept in memory: neighbours often share one.
        hot: The hot tiers, asked first for parts of chunks and for the bases of deltas.
        verify_all: Whether to compare everything with its digest: what is hot on this node as well,
            and of a chunk of which a part is wanted all.
        whole_parts: Whether to read all of a chunk without a proof where a part of it is wanted.
    """

    def __init__(
        self,
        pool: ReadPool,
        table: ChunkTable,
        keep_chunks: int,
        hot: HotTiers,
        *,
        verify_all: bool = False,
        whole_parts: bool = False,
    ) -> None:
        self._pool, self._table = pool, table
        self._hot = hot
        self._verify_all, self._whole_parts = verify_all, whole_parts
        self._bases: Recent[memoryview] = Recent(keep_chunks)
        self._wholes: Recent[tuple[Verified, Came]] = Recent(keep_chunks)

    def decode(self, place: ChunkPlace, frame: memoryview | bytearray, out: memoryview) -> Verified:
        """Decode the frame of a chunk into ``out`` and verify it there.

        Args:
            place: Place of the frame.
            frame: All bytes of the frame.
            out: Memory that nobody else writes; exactly as long as the chunk.

        Raises:
            Damaged: The frame is bad, or not of this chunk.
        """
        try:
            return self._decode(place, frame, out)
        except Damaged:
            if not self._drop_bad_bases(place):
                raise
            return self._decode(place, frame, out)

    def _decode(
        self, place: ChunkPlace, frame: memoryview | bytearray, out: memoryview
    ) -> Verified:
        name = _frame_name(place)
        head = _head_of(frame, place)
        if head.plain_bytes != len(out):
            damaged(name, f"it holds {head.plain_bytes} plain bytes instead of {len(out)}")
        payload = frame_payload(head, frame, name)
        base = self._base(head)
        try:
            decode(
                head.codec,
                head.codec_head,
                head.ends,
                payload,
                out,
                head.dtype,
                block_size=head.block_size,
                base=base,
            )
        except Damaged as error:
            damaged(name, str(error))
        _check_digest(head, out, name)
        self._pool.count_decoded(len(out))
        return Verified(out)

    def read(
        self,
        place: ChunkPlace,
        out: memoryview,
        bad: frozenset[str] = frozenset(),
        error: Unread | None = None,
    ) -> Verified:
        """Fetch a frame and decode it into ``out``, from wherever a good copy of it is.

        Args:
            place: Place of the frame, as the layout has it.
            out: Memory that nobody else writes; exactly as long as the chunk.
            bad: Names of tiers whose copy was found damaged already.
            error: What was wrong with the copies in ``bad``, or why no tier gave any.
        """

        def attempt(at: ChunkPlace, avoid: frozenset[str], used: set[str]) -> None:
            frame, tier = self._pool.read_frame(at, 0, at.frame_bytes, avoid)
            used.add(tier)
            self.decode(at, frame, out)

        try:
            self._from_good_copy(place, attempt, bad, error)
        except (NotFound, Damaged):
            compute = self._pool.compute
            if compute is None or not compute(place.digest, out):
                raise
        return Verified(out)

    def copy(
        self,
        place: ChunkPlace,
        bad: frozenset[str] = frozenset(),
        error: Unread | None = None,
    ) -> tuple[ChunkPlace, bytes]:
        """Fetch a frame as it lies, with the proof before it, from wherever a good copy of it is.

        Args:
            place: Place of the frame, as the layout has it.
            bad: Names of tiers whose copy was found damaged already.
            error: What was wrong with the copies in ``bad``, or why no tier gave any.

        Returns:
            The place where it was found, and the bytes of proof and frame.
        """
        found: list[tuple[ChunkPlace, bytes]] = []

        def attempt(at: ChunkPlace, avoid: frozenset[str], used: set[str]) -> None:
            data, tier = self._pool.read_frame(at, -at.proof_bytes, at.frame_bytes, avoid)
            used.add(tier)
            self.check(at, memoryview(data))
            found.append((at, bytes(data)))

        self._from_good_copy(place, attempt, bad, error)
        return found[0]

    def check(self, place: ChunkPlace, data: memoryview) -> None:
        """Raise ``Damaged`` unless a frame gives its chunk, and the proof before it proves that.

        Args:
            place: Place of the frame.
            data: The bytes of proof and frame, in memory that nobody else writes.
        """
        self.decode(place, data[place.proof_bytes :], self._pool.chunk_room(place.plain_bytes))
        _checked(place, data[: place.proof_bytes + place.head_bytes])

    def read_head(self, place: ChunkPlace) -> FrameHead:
        """Fetch and check the head of a frame, and the proof where it has one."""
        heads: list[FrameHead] = []

        def attempt(at: ChunkPlace, avoid: frozenset[str], used: set[str]) -> None:
            start, tier = self._pool.read_head(at, avoid)
            used.add(tier)
            heads.append(_checked(at, start)[0])

        self._from_good_copy(place, attempt)
        return heads[0]

    def read_part(self, part: Part, sink: Sink) -> Came:
        """Give ``sink`` the wanted bytes and return how they came.

        They come from this node's tier, or else from the head of the frame and just the blocks that
        hold them; from the whole chunk where nothing less shows that they are the chunk's.
        """
        if self._verify_all:
            return self._give_whole(part, sink)
        here = self._on_this_node(part.place)
        if here is not None:
            _give(part, here, sink)
            return "reused"
        if self._only_whole(part.place):
            return self._give_whole(part, sink)

        def attempt(at: ChunkPlace, avoid: frozenset[str], used: set[str]) -> None:
            try:
                self._read_part(part, at, sink, avoid, used)
            except Damaged:
                if not at.bases:
                    raise
                self._give_whole(part, sink)  # a part of a base may be bad: whole ones are verified

        try:
            self._from_good_copy(part.place, attempt)
        except (NotFound, Damaged):
            if self._pool.compute is None:
                raise
            return self._give_whole(part, sink)
        return _came(part.place)

    def _only_whole(self, place: ChunkPlace) -> bool:
        """Return whether nothing but the whole chunk shows that a part of it is right."""
        return not can_prove() if place.proof_bytes else self._whole_parts

    def _give_whole(self, part: Part, sink: Sink) -> Came:
        """Give ``sink`` the wanted bytes of a chunk that is read whole; return how it came."""
        plain, came = self._wholes.get(part.place.digest, self._whole_chunk)
        _give(part, plain, sink)
        return came

    def _whole_chunk(self, digest: bytes) -> tuple[Verified, Came]:
        """Return a chunk of the version, compared with its digest, and how it came."""
        place = self._table.find(digest)
        assert place is not None  # whoever asks for a part of it has its place from there
        here = self._on_this_node(place)
        if here is not None:
            return Verified(here), "reused"
        return self.read(place, memoryview(bytearray(place.plain_bytes))), _came(place)

    def _on_this_node(self, place: ChunkPlace) -> memoryview | None:
        """Return the plain bytes of a chunk that is hot on this node.

        Large ones are mapped, so that only the pages in use are read, unless all are verified: a
        file may change under its mapping.
        """
        local = self._hot.local
        if local is None:
            return None
        if place.plain_bytes >= MIN_MAPPED_BYTES and not self._verify_all:
            mapped = local.map_tensor([place.digest], place.plain_bytes, place.plain_bytes)
            if mapped is not None:
                return mapped.data
        out = memoryview(bytearray(place.plain_bytes))
        found = local.read_into([place.digest], [out], verify=self._verify_all)
        return out if found[0] else None

    def _from_good_copy(
        self,
        place: ChunkPlace,
        attempt: Attempt,
        bad: frozenset[str] = frozenset(),
        failed: Unread | None = None,
    ) -> None:
        """Run ``attempt``, and as long as it finds damage, again on the copies in other tiers.

        Where none of them can be read, the moves of the pack are followed. In the end what was
        wrong at first is raised.
        """
        moves = self._pool.moves
        damage = failed if isinstance(failed, Damaged) else None
        first = None if isinstance(failed, NotFound) else failed
        at, where, every = place, place, bad
        missing: NotFound | None = None
        tried: set[bytes] = set()
        try:
            if isinstance(first, BackendError) and not self._leads_on(at, first):
                raise first
            while True:
                if (now := moves.current(at)) != at:
                    at, bad = now, frozenset()
                used: set[str] = set()
                missing = None
                try:
                    attempt(at, bad, used)
                except Damaged as error:
                    first = first or error
                    if damage is None:
                        damage, where = error, at
                    if at == where:
                        every |= used
                    if not used <= bad:
                        bad |= used
                        continue
                except NotFound as error:
                    missing = error if used else None  # of a base, or the pack itself
                except BackendError as error:
                    first = first or error
                else:
                    if damage is not None:
                        self._pool.note_bad_copy(where, every, damage, moved=at != where)
                    return
                tried.add(at.pack)
                if not self._leads_on(at, first) or moves.current(at).pack in tried:
                    raise first or missing or moves.lost(at)
        finally:  # each holds this frame by its traceback, and so the memory that is read into
            failed = first = damage = missing = None

    def _leads_on(self, at: ChunkPlace, first: Damaged | BackendError | None) -> bool:
        """Return whether moves lead on from where a frame could not be read."""
        try:
            return self._pool.moves.follow(at)
        except BackendError as error:  # home cannot be asked for them
            raise first or error from None

    def _base(self, head: FrameHead) -> memoryview | None:
        """Return the plain base of a delta: pieces of other chunks, laid end to end."""
        if not head.bases:
            return None
        whole = self._whole_base(head)
        if whole is not None:
            return whole
        base = memoryview(bytearray(head.plain_bytes))
        # one base chunk after the other: a frame may name a thousand of them
        for digest, rows in _by_base(head, 0, head.plain_bytes):
            self._base_place(digest, rows)
            source = self._bases.get(digest, self.base_chunk)
            for row in rows:
                base[row.to : row.to + row.plain_bytes] = source[
                    row.offset : row.offset + row.plain_bytes
                ]
        return base

    def _whole_base(self, head: FrameHead) -> memoryview | None:
        """Return the base without copying it, if it is exactly one whole chunk."""
        piece = head.bases[0]
        place = self._base_place(piece.digest)
        if len(head.bases) > 1 or piece.offset or place.plain_bytes != head.plain_bytes:
            return None
        return self._bases.get(piece.digest, self.base_chunk)

    def _part_of_base(self, head: FrameHead, start: int, stop: int) -> memoryview | None:
        """Return bytes ``[start, stop)`` of a delta's base, reading only the blocks around them."""
        if not head.bases:
            return None
        out = memoryview(bytearray(stop - start))
        for digest, rows in _by_base(head, start, stop):
            place = self._base_place(digest, rows)

            def sink(begin: int, plain: memoryview, rows: list[_Row] = rows) -> None:
                for row in rows:
                    low = max(begin, row.offset)
                    high = min(begin + len(plain), row.offset + row.plain_bytes)
                    if low < high:
                        to = row.to + low - row.offset
                        out[to : to + high - low] = plain[low - begin : high - begin]

            spans = sorted((row.offset, row.offset + row.plain_bytes) for row in rows)
            self.read_part(Part(place, 0, place.plain_bytes, spans), sink)
        return out

    def _base_place(self, digest: bytes, rows: Iterable[_Row] = ()) -> ChunkPlace:
        # a move may lead back to a delta whose base the layout does not need
        place = self._table.find(digest) or self._pool.moves.find(digest)
        if place is None or place.bases:
            damaged(f"the layout around b3:{digest.hex()}", "the base of a delta is not standalone")
        if any(row.offset + row.plain_bytes > place.plain_bytes for row in rows):
            damaged(f"a frame on base b3:{digest.hex()}", "it reaches past its base")
        return place

    def base_chunk(self, digest: bytes) -> memoryview:
        """Return the plain bytes of a base chunk, from the nearest place that has it."""
        place = self._base_place(digest)
        plain = self._on_this_node(place)
        if plain is not None:
            return plain
        out = memoryview(bytearray(place.plain_bytes))
        verified = self._from_shared(place, out) or self.read(place, out)
        self._hot.offer_plain(digest, verified)  # the next version's deltas will ask for it again
        return verified

    def _drop_bad_bases(self, place: ChunkPlace) -> bool:
        """Drop those bases of a delta that this node's disk damaged; tell whether any was."""
        found = False
        for digest in set(place.bases) if self._hot.local is not None else ():
            if digest_of(self._bases.get(digest, self.base_chunk)).raw != digest:
                assert self._hot.local is not None
                self._hot.local.reject(digest)
                self._bases.forget(digest)
                found = True
        return found

    def _from_shared(self, place: ChunkPlace, out: memoryview) -> Verified | None:
        for tier in self._hot.shared:
            frame = tier.get([place]).get(place.digest)
            if frame is None:
                continue
            try:
                plain = self.decode(place, frame, out)
            except (Damaged, UnsupportedFormat) as error:
                tier.bad(place, error)
                continue
            tier.hit(len(out))
            return plain
        return None

    def _read_part(
        self, part: Part, place: ChunkPlace, sink: Sink, avoid: frozenset[str], used: set[str]
    ) -> None:
        start_of_frame, tier = self._pool.read_head(place, avoid)
        used.add(tier)
        lost = place.proof_bytes < part.place.proof_bytes  # where its pack was rewritten
        if lost or self._only_whole(place):
            self._give_whole(part, sink)
            return
        name = _frame_name(place)
        head, proof = _checked(place, start_of_frame)
        if head.plain_bytes != part.plain_bytes or head.frame_bytes != place.frame_bytes:
            damaged(name, f"it holds {head.plain_bytes} plain bytes instead of {part.plain_bytes}")
        blocks = blocks_of_spans(part.spans, part.begin, part.plain_bytes, head.block_size)
        for first, last in _neighbours(blocks):
            plain_start = head.block_plain(first).start
            base = self._part_of_base(head, plain_start, head.block_plain(last).stop)
            start, stop = head.block_payload(first).start, head.block_payload(last).stop
            payload, tier = self._pool.read_frame(place, start, stop, avoid)
            used.add(tier)
            for index in range(first, last + 1):
                own = head.block_payload(index)
                block = memoryview(payload)[own.start - start : own.stop - start]
                own = head.block_plain(index)
                below = base[own.start - plain_start : own.stop - plain_start] if base else None
                plain = self._decode_block(head, index, block, below, proof, name)
                sink(part.begin + head.block_plain(index).start, plain)

    def _decode_block(
        self,
        head: FrameHead,
        index: int,
        payload: memoryview,
        base: memoryview | None,
        proof: bytes,
        name: str,
    ) -> memoryview:
        span = head.block_plain(index)
        out = memoryview(bytearray(len(span)))
        try:
            decode_block(
                head.codec,
                head.codec_head,
                payload,
                out,
                head.dtype,
                index=index,
                block_size=head.block_size,
                base=base,
            )
        except Damaged as error:
            damaged(name, str(error))
        if len(head.ends) == 1:
            _check_digest(head, out, name)
        elif proof:
            check_block(proof, head, index, out, name)
        elif xxh3(out) != head.sums[index]:
            damaged(name, f"the checksum of its block {index} does not match")
        self._pool.count_decoded(len(out))
        return out


@dataclass(frozen=True, slots=True)
class _Row:
    """``plain_bytes`` bytes at ``offset`` of a base chunk, and their position in what is wanted."""

    offset: int
    plain_bytes: int
    to: int


def _give(part: Part, plain: memoryview, sink: Sink) -> None:
    """Give ``sink`` the wanted bytes of a chunk that is all there."""
    for start, stop in part.spans:
        low, high = max(start, part.begin), min(stop, part.begin + part.plain_bytes)
        if low < high:
            sink(low, plain[low - part.begin : high - part.begin])


def _came(place: ChunkPlace) -> Came:
    """Return how a chunk came that was read from a durable tier."""
    return "delta" if place.bases else "full"


def _by_base(head: FrameHead, start: int, stop: int) -> Iterator[tuple[bytes, list[_Row]]]:
    """Yield the pieces that make up bytes ``[start, stop)`` of a delta's base, by base chunk."""
    rows: dict[bytes, list[_Row]] = {}
    at = 0
    for piece in head.bases:
        low, high = max(at, start), min(at + piece.plain_bytes, stop)
        if low < high:
            row = _Row(piece.offset + low - at, high - low, low - start)
            rows.setdefault(piece.digest, []).append(row)
        at += piece.plain_bytes
    yield from rows.items()


def _head_of(frame: memoryview | bytearray, place: ChunkPlace) -> FrameHead:
    """Return the verified head of the frame in ``place``.

    A frame that is a delta where the layout names no bases is damaged: bases are standalone.
    """
    name = _frame_name(place)
    head = parse_frame_head(frame, name, place.digest)
    if head.bases and not place.bases:
        damaged(name, "it is a delta, but the layout has no bases for it")
    return head


def _checked(place: ChunkPlace, start: memoryview) -> tuple[FrameHead, bytes]:
    """Return the verified head of the frame in ``place`` and the chunk's proof.

    ``start`` is what ``ReadPool.read_head`` read. The proof is empty where there is none, or where
    it cannot be verified here.
    """
    head = _head_of(start[place.proof_bytes :], place)
    if not place.proof_bytes or not can_prove():
        return head, b""
    return head, parse_proof(start[: place.proof_bytes], head, _frame_name(place))


def _check_digest(head: FrameHead, plain: memoryview, name: str) -> None:
    if digest_of(plain).raw != head.digest:
        damaged(name, "its plain bytes do not match their digest")


def _frame_name(place: ChunkPlace) -> str:
    return f"chunk b3:{place.digest.hex()} in pack {place.pack.hex()} at {place.offset}"


def _neighbours(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield ascending numbers as ranges ``(first, last)`` of neighbours."""
    first = last = None
    for block in blocks:
        if last is not None and block == last + 1:
            last = block
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = block
    if first is not None and last is not None:
        yield first, last
