"""Save: every chunk is read once, hashed, encoded if it is new, packed, and last published.

::

    source -> pooled buffer -> digest -> known? -> yes: reuse its place
       |                                  no: frame -> pack -> durable tier
       +-> SHA-256 of the file, in order
    then manifest, confirm what was reused, moves that heal, layout, ref entry, a last look at what
    is condemned, index segment (format/SPEC.md 11)
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tierstore.codecs import native_info
from tierstore.deferred import import_numpy
from tierstore.errors import BackendError, Damaged, NotFound, SourceChanged
from tierstore.format.checks import damaged
from tierstore.format.keys import layout_key, version_key
from tierstore.format.layout import missing_chunks, parse_layout, seal_layout
from tierstore.format.manifest import (
    FileEntry,
    LineageEntry,
    Manifest,
    TensorEntry,
    patch_manifest,
)
from tierstore.format.patch import PatchInfo
from tierstore.format.paths import check_tree
from tierstore.format.proof import HashedPlain, hash_plain
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.confirm import lost_since, unfit_packs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.sealing import seal_fit
from tierstore.modelstore.home.settling import Publication, Purged, publish
from tierstore.modelstore.saving.base_selection import BaseSelection
from tierstore.modelstore.saving.delta import LEAST_CHUNK_BYTES
from tierstore.modelstore.saving.framing import BufferPool, ChunkBase, Frame, Framing, encoders
from tierstore.modelstore.saving.healing import Healing
from tierstore.modelstore.saving.packer import Packer
from tierstore.modelstore.saving.savestate import (
    EncodedBatch,
    HashedChunk,
    SaveState,
    SourceChunk,
    chunks_of,
)
from tierstore.modelstore.saving.segments import Kept, SaveSegments
from tierstore.modelstore.saving.source import ReusedChunks, SourceFile
from tierstore.modelstore.version import SaveStats
from tierstore.progress import Progress

_T = TypeVar("_T")
_log = logging.getLogger("tierstore.writer")
_ROUNDS = 5


class Writer:
    """Runs one save: reads, hashes, encodes, packs and publishes.

    Args:
        home: The store's home, where metadata goes, and packs through its tiers.
        index: Finds chunks that the store has already.
        lease: The lease that the caller holds until the version is published.
        chunk_size: Bytes of a chunk.
        marked: The chunks of each pack that is quarantined, by pack id, as far as they are known;
            nothing in these packs is reused.
        threads: How many threads hash and encode, if memory allows.
        indexed: Whether later saves are told of the chunks that this one stores.
        selection: The base selection for new chunks; ``None`` stores them standalone.
        progress: Told after every batch of chunks.
    """

    def __init__(
        self,
        home: Home,
        index: ChunkIndex,
        lease: WriterLease,
        *,
        chunk_size: int,
        marked: Mapping[bytes, Set[bytes]],
        threads: int,
        indexed: bool,
        selection: BaseSelection | None = None,
        progress: Progress | None = None,
    ) -> None:
        if selection is not None or not native_info().in_use:
            import_numpy()
        self._home, self._index, self._lease = home, index, lease
        self._chunk_size, self._progress = chunk_size, progress
        self._state = SaveState(unfit=set(marked), alone=set().union(*marked.values()))
        self._healing = Healing(home, self._state.unfit)
        self._named = set[bytes]()
        self._digest: Digest | None = None
        self._selection = selection
        threads = min(threads, encoders(chunk_size, deltas=selection is not None))
        self._depth = 2 * threads + 2
        self._pool = BufferPool(chunk_size)
        self._segments = SaveSegments(home.blobs) if indexed else None
        told = [self._segments.note] if self._segments else []
        self._packer = Packer(home.packs, self._pool, *told)
        self._workers = ThreadPoolExecutor(threads, "tierstore-encode")
        self._began, self._since_s = time.monotonic(), running_s()
        self._total = self._headers = self._done = self._chunks = 0
        self._meta_bytes = self._objects = 0

    def limit(self, most_bytes: float) -> None:
        """Let ``publish`` fail with ``OutOfSpace`` before its packs take more bytes than that."""
        self._packer.most_bytes = most_bytes

    def publish(
        self,
        what: Publication[_T],
        files: Sequence[SourceFile],
        lineage: Sequence[LineageEntry] = (),
        patch: PatchInfo | None = None,
    ) -> _T:
        """Store the content of ``files``, and publish it; see ``settling.publish``.

        Args:
            what: How it is published.
            files: Open sources, which the caller closes after it.
            lineage: What the content was made from.
            patch: For a patch version: what its only file changes, and of which version.

        Returns:
            What ``what.append`` has returned.

        Raises:
            BackendError: Packs keep being condemned or deleted.
            Conflict: What a patch lies on was purged meanwhile.
            Damaged: It is unknown what is condemned.
        """
        check_tree([file.path for file in files])  # before anything is stored
        self._total = sum(file.size for file in files)
        for reused in [file.reused for file in files if file.reused is not None]:
            # before anything is encoded: what these rely on must stay as it is stored
            self._state.claimed |= {place.digest for place, _ in [*reused.places, *reused.bases]}
            self._reuse([*reused.places, *reused.bases])
        entries = tuple(map(self._write_file, files))
        self._packer.finish()
        manifest = Manifest(chunk_size=self._chunk_size, files=entries, lineage=tuple(lineage))
        if patch is not None:
            manifest = patch_manifest(entries[0], patch, self._chunk_size)
        return publish(what, partial(self._write, manifest), partial(self._look, what.below))

    def _write(self, manifest: Manifest, is_again: bool) -> Digest:
        """Write a manifest, and what leads to its chunks; return its digest, which is its name."""
        digest, sealed = seal_fit(self._home, manifest, is_again)
        # an equal object may be there already: a manifest is its content
        self._home.blobs.put(version_key(digest), sealed)
        self._wrote(sealed, ())
        self._publish(digest)
        self._digest = digest
        return digest

    def close(self) -> None:
        """Stop what this writer's threads do; what is not uploaded is dropped."""
        self._workers.shutdown(cancel_futures=True)
        self._packer.close()

    def _write_file(self, file: SourceFile) -> FileEntry:
        if file.reused is not None:
            return self._reuse_file(file, file.reused)
        sha = hashlib.sha256(file.header.raw if file.header else b"")
        self._headers += file.data_start
        digests = self._encode_all(chunks_of(file, self._chunk_size), sha.update)
        file.finish()
        if file.sha256 is not None and file.sha256 != sha.digest():
            raise SourceChanged(
                f"{file.path} is not the file of SHA-256 {file.sha256.hex()} any more; nothing was "
                "published"
            )
        tensors: list[TensorEntry] = []
        chunks = b""
        if file.header:
            for info in file.header.tensors:
                count = -(-(info.end - info.begin) // self._chunk_size)
                own = b"".join(next(digests) for _ in range(count))
                tensors.append(
                    TensorEntry(
                        name=info.name,
                        dtype=info.dtype,
                        shape=info.shape,
                        begin=info.begin,
                        chunks=own,
                    )
                )
        else:
            chunks = b"".join(digests)
        return FileEntry(
            path=file.path,
            size=file.size,
            sha256=sha.digest(),
            header=file.header.raw if file.header else b"",
            tensors=tuple(tensors),
            chunks=chunks,
        )

    def _reuse_file(self, file: SourceFile, reused: ReusedChunks) -> FileEntry:
        """Take over a stored file; it is read only if its packs turn out to be gone."""
        for (place, _), chunk in zip(reused.places, chunks_of(file, self._chunk_size), strict=True):
            self._state.order.setdefault(place.digest)
            self._state.sources.setdefault(place.digest, chunk)
            self._done += chunk.plain_bytes
            self._chunks += 1
        self._headers += file.data_start
        return reused.entry

    def _encode_all(
        self, chunks: Iterator[SourceChunk], on_read: Callable[[memoryview], None]
    ) -> Iterator[bytes]:
        """Read, hash and encode chunks; return their digests in order.

        The caller's thread reads, in order, and packs, in order; workers do the rest. Chunks are
        handed over in batches, because a switch between threads costs more than a tiny chunk.
        """
        digests: list[bytes] = []
        pending: deque[tuple[list[SourceChunk], Future[EncodedBatch]]] = deque()
        for batch in batches(chunks, lambda chunk: chunk.plain_bytes, self._chunk_size):
            if len(pending) == self._depth:
                digests += self._take(*pending.popleft())
            buffer = self._pool.take()
            view = memoryview(buffer)[: sum(chunk.plain_bytes for chunk in batch)]
            batch[0].file.read_into(batch[0].offset, view)
            on_read(view)
            pending.append((batch, self._workers.submit(self._encode, buffer, batch)))
        while pending:
            digests += self._take(*pending.popleft())
        return iter(digests)

    def _take(self, batch: list[SourceChunk], future: Future[EncodedBatch]) -> list[bytes]:
        results, held = future.result()
        for chunk, encoded in zip(batch, results, strict=True):
            if encoded.frame is not None:
                self._packer.add(encoded.digest, encoded.frame)
            self._state.order.setdefault(encoded.digest)
            self._state.sources.setdefault(encoded.digest, chunk)
            self._done += chunk.plain_bytes
        self._packer.hold(held)
        self._chunks += len(batch)
        self._lease.keep()
        if self._progress:
            self._progress(self._headers + self._done, self._total)
        return [encoded.digest for encoded in results]

    def _encode(self, buffer: mmap.mmap, batch: list[SourceChunk]) -> EncodedBatch:
        """Encode the chunks of ``batch``, which lie end to end in ``buffer``, and take it over."""
        framing = Framing(self._pool, buffer)
        results, at = [], 0
        for chunk in batch:
            plain = memoryview(buffer)[at : at + chunk.plain_bytes]
            at += chunk.plain_bytes
            hashed = hash_plain(plain)
            digest = hashed.digest
            is_new = self._state.claim(digest) and not (
                self._reuse_indexed(digest) or self._reuse_base(digest, chunk)
            )
            frame = self._frame(framing, hashed, plain, chunk) if is_new else None
            results.append(HashedChunk(digest, frame))
        return EncodedBatch(results, framing.finish())

    def _reuse_indexed(self, digest: bytes) -> bool:
        """Reuse a chunk that the index has, with its bases; tell whether it has a fit one."""
        found = self._index.find(digest)
        if found is None:
            return False
        places = [found]
        for base in found[0].bases:
            below = self._index.find(base)
            if below is None or below[0].bases:  # a base is standalone itself
                return False
            places.append(below)
        return self._reuse_if_fit(places)

    def _reuse_base(self, digest: bytes, chunk: SourceChunk) -> bool:
        """Reuse a chunk that the base version has and the index does not know; tell whether."""
        if self._selection is None or chunk.plain_bytes < LEAST_CHUNK_BYTES or not chunk.tensor:
            return False
        places = self._selection.stored(digest)
        return bool(places) and self._reuse_if_fit(places)

    def _reuse_if_fit(self, places: Sequence[tuple[ChunkPlace, int]]) -> bool:
        """Reuse a stored chunk, the first of ``places``, with its bases; tell whether it is fit."""
        state, own = self._state, places[0][0]
        with state.lock:
            if any(place.pack in state.unfit for place, _ in places):
                state.lose(own)
                return False
            if own.bases and own.digest in state.alone:
                return False
        self._reuse(places)
        return True

    def _reuse(self, places: Iterable[tuple[ChunkPlace, int]]) -> None:
        state = self._state
        with state.lock:
            for place, pack_size in places:
                known = state.reused.get(place.digest)
                if known is None or known.bases:  # what is standalone may be a base: it stays so
                    state.reused[place.digest] = place
                    state.reused_packs[place.pack] = pack_size

    def _frame(
        self, framing: Framing, hashed: HashedPlain, plain: memoryview, chunk: SourceChunk
    ) -> Frame:
        base = None if hashed.digest in self._state.alone else self._base_of(plain, chunk)
        frame = framing.add(plain, hashed=hashed, dtype=chunk.dtype, base=base)
        if frame.bases and self._selection is not None:
            self._reuse(self._selection.places(frame.bases))
        return frame

    def _base_of(self, plain: memoryview, chunk: SourceChunk) -> ChunkBase | None:
        selection = self._selection
        if selection is None or not chunk.tensor or chunk.plain_bytes < LEAST_CHUNK_BYTES:
            return None
        base = selection.nearest((chunk.file.path, chunk.tensor), chunk.begin, plain)
        below = selection.places({piece.digest for piece in base.pieces}) if base else []
        return None if any(place.pack in self._state.unfit for place, _ in below) else base

    # Publishing

    def _publish(self, digest: Digest) -> None:
        """Write what leads to the chunks of a manifest: moves, and the layout if there is none."""
        self._confirm()
        self._heal(self._lost())
        key = layout_key(digest)
        for _ in range(_ROUNDS):
            sealed, used = self._layout(digest)
            if self._home.blobs.put_if_absent(key, sealed):
                self._wrote(sealed, used)
                return
            try:
                table = parse_layout(self._home.blobs.get(key), digest, f"layout {key}")
                if missing := missing_chunks(table, self._state.order):
                    damaged(f"layout {key}", f"it has no place for {len(missing)} chunks")
            except NotFound:  # removed just now
                continue
            except Damaged as error:
                _log.warning("%s; it is written anew", error)
                self._home.blobs.put(key, sealed)
                self._wrote(sealed, used)
                return
            self._keep(table)
            return
        raise BackendError(self._vanishing())

    def _layout(self, digest: Digest) -> tuple[bytes, dict[bytes, int]]:
        # bases of deltas come last: they are read with their deltas, not in load order
        order = dict.fromkeys([*self._state.order, *self._packer.places, *self._state.reused])
        places = [self._place(one) for one in order]
        sizes = {**self._state.reused_packs, **self._packer.pack_sizes}
        used = {place.pack: sizes[place.pack] for place in places}
        return seal_layout(digest, places, used), used

    def _place(self, digest: bytes) -> ChunkPlace:
        return self._packer.places.get(digest) or self._state.reused[digest]

    def _wrote(self, sealed: bytes, used: Iterable[bytes]) -> None:
        self._meta_bytes += len(sealed)
        self._objects += 1
        self._named.update(used)

    def _keep(self, table: ChunkTable) -> None:
        """Keep the layout that is there, and heal what it cannot rely on."""
        known = {*self._state.reused_packs, *self._packer.pack_sizes}  # confirmed just now
        sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
        others = {pack: size for pack, size in sizes.items() if pack not in known}
        self._state.unfit |= unfit_packs(self._home, others)
        self._named.update(table.pack_ids)
        self._heal(self._healing.lost_in(table, self._state.order), table)

    def _lost(self) -> dict[bytes, set[bytes]]:
        """Return the chunks of this save that other versions cannot read, by the pack."""
        state = self._state
        lost: dict[bytes, set[bytes]] = {}
        for place in state.lost:
            lost.setdefault(place.pack, set()).add(place.digest)
        if state.unfit:
            for pack, chunks in self._home.quarantine.chunks().items():
                if pack in state.unfit:  # else it was marked since: that is left to the next save
                    lost.setdefault(pack, set()).update(chunks)
        return {pack: chunks & state.order.keys() for pack, chunks in lost.items()}

    def _heal(self, lost: Mapping[bytes, Set[bytes]], table: ChunkTable | None = None) -> None:
        """Say by moves where these chunks lie now, wherever no move does so already."""
        for again in range(_ROUNDS):
            if not (todo := self._healing.uncovered(lost, table)):
                return
            every = {one for digests in todo.values() for one in digests}
            # a move holds standalone frames, and is no good into a pack whose footer is damaged
            self._store_alone([one for one in every if again or self._place(one).bases])
            for pack, digests in todo.items():
                into = {self._place(one).pack for one in digests}
                self._healing.move(pack, into)
                self._named |= into
        raise BackendError(self._vanishing())

    def _vanishing(self) -> str:
        return (
            f"packs that this save relies on keep disappearing from {self._home.packs.url}; "
            f"{self._left()}. See that no other program deletes objects there, then save again"
        )

    def _left(self) -> str:
        if self._digest is None:
            return "nothing was published"
        return f"b3:{self._digest.hex} was published, and parts of it may be missing"

    def _confirm(self) -> None:
        """Confirm the packs that are relied on; what lies in unfit ones is stored again."""
        for _ in range(_ROUNDS):
            if not (unfit := self._unfit_packs()):
                return
            self._store_again(unfit)
        raise BackendError(self._vanishing())

    def _unfit_packs(self) -> set[bytes]:
        """Return the reused packs that are unfit, after renewing the lease."""
        packs = dict(self._state.reused_packs)
        if not packs and self._lease.is_young:  # one object less for whoever publishes little
            return set()
        if not self._lease.renew():  # it had ended: our own packs may be gone too
            packs.update(self._packer.pack_sizes)
        return unfit_packs(self._home, packs)

    def _store_again(self, unfit: set[bytes]) -> None:
        """Store the chunks in unfit packs anew, and take them from nowhere else."""
        state = self._state
        state.unfit |= unfit
        self._index.forget(unfit)
        every = {**state.reused, **self._packer.places}
        lost = {digest for digest, place in every.items() if place.pack in unfit}
        # a base in a lost pack takes its deltas with it: they are stored standalone
        lost |= {d for d, place in every.items() if not lost.isdisjoint(place.bases)}
        again = [digest for digest in every if digest in lost]
        for digest in again:
            if digest in state.reused:
                state.lose(state.reused.pop(digest))
            self._packer.places.pop(digest, None)
        for pack in unfit:
            state.reused_packs.pop(pack, None)
            self._packer.pack_sizes.pop(pack, None)
        self._store_alone([digest for digest in again if digest in state.sources])

    def _store_alone(self, digests: Sequence[bytes]) -> None:
        """Read chunks from the source again, and store them as standalone frames."""
        if not digests:
            return
        sources = self._state.sources
        pending: deque[Future[EncodedBatch]] = deque()
        for batch in batches(digests, lambda one: sources[one].plain_bytes, self._chunk_size):
            if len(pending) == self._depth:
                self._add_alone(pending.popleft())
            buffer = self._pool.take()
            at = 0
            for chunk in map(sources.__getitem__, batch):
                chunk.file.read_into(chunk.offset, memoryview(buffer)[at : at + chunk.plain_bytes])
                at += chunk.plain_bytes
            pending.append(self._workers.submit(self._encode_alone, buffer, batch))
        while pending:
            self._add_alone(pending.popleft())
        for file in {chunk.file.path: chunk.file for chunk in sources.values()}.values():
            file.finish()
        self._packer.finish()

    def _encode_alone(self, buffer: mmap.mmap, digests: Sequence[bytes]) -> EncodedBatch:
        """Encode chunks that lie end to end in ``buffer``, and take that over."""
        framing = Framing(self._pool, buffer)
        results, at = [], 0
        for digest in digests:
            chunk = self._state.sources[digest]
            plain = memoryview(buffer)[at : at + chunk.plain_bytes]
            at += chunk.plain_bytes
            hashed = hash_plain(plain)
            if hashed.digest != digest:
                raise SourceChanged(
                    f"{chunk.file.path} changed while it was being saved; {self._left()}"
                )
            frame = framing.add(plain, hashed=hashed, dtype=chunk.dtype)
            results.append(HashedChunk(digest, frame))
        return EncodedBatch(results, framing.finish())

    def _add_alone(self, encoded: Future[EncodedBatch]) -> None:
        results, held = encoded.result()
        for one in results:
            if one.frame is not None:
                self._packer.add(one.digest, one.frame)
        self._packer.hold(held)
        self._lease.keep()

    def _look(self, below: Set[bytes], digest: Digest) -> None:
        """Make sure that what was published relies on no pack that goes; store anew what does.

        Called once the version is published, while its sources are still open. A collector looks
        at the versions after it has condemned packs: one of both sees the other.
        """
        own = {digest.raw}
        for _ in range(_ROUNDS):
            relied_on = (self._named | self._healing.leads_to) - self._state.unfit
            if not (lost := lost_since(self._home, relied_on, self._since_s, below, own)):
                return
            # what it lies on first: with another name of its own it would be refused again
            for one in sorted((below | own) & lost, key=lambda raw: raw == digest.raw):
                raise Purged(Digest(one))
            self._store_again(lost)
            self._publish(digest)
        raise BackendError(self._vanishing())

    def publish_index(self) -> None:
        """Publish the new chunks to later saves; called once the version is published."""
        if self._segments is None:
            return
        # where an equal layout was kept, nothing may lead to our own packs: then they are garbage
        places = [place for place in self._packer.places.values() if place.pack in self._named]
        used = {place.pack for place in places}
        sizes = {pack: size for pack, size in self._packer.pack_sizes.items() if pack in used}
        written = self._segments.replace(places, sizes)
        if written is not None:
            key, segment_bytes = written
            self._meta_bytes += segment_bytes
            self._objects += 1
            self._index.add(key, places, sizes)

    def keep(self) -> Kept | None:
        """Lead later saves to what is stored, as this one has failed; called after ``close``.

        Returns:
            What later saves will find; ``None`` where that is nothing new, or is not known.
        """
        if self._segments is None:
            return None
        is_written = self._digest is not None
        return self._segments.keep(self._state.found_bytes(), self._total, is_written=is_written)

    def stats(self) -> SaveStats:
        """Return what the save cost so far."""
        places = self._packer.places
        new_bytes = sum(place.plain_bytes for place in places.values())
        deltas = [place for place in places.values() if place.bases]
        base = self._selection.version if self._selection else None
        return SaveStats(
            logical_bytes=self._total,
            new_bytes=new_bytes,
            reused_bytes=self._done - new_bytes,
            delta_bytes=sum(place.plain_bytes for place in deltas),
            delta_stored_bytes=sum(place.frame_bytes for place in deltas),
            base=base.label if deltas and base else None,
            stored_bytes=sum(self._packer.pack_sizes.values()) + self._meta_bytes,
            chunks=self._chunks,
            new_chunks=len(places),
            objects=len(self._packer.pack_sizes) + self._objects,
            seconds=time.monotonic() - self._began,
        )
