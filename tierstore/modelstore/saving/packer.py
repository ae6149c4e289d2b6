"""Collects frames into packs and uploads them while the next ones are encoded."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tierstore.blobs.base import BlobStore
from tierstore.errors import OutOfSpace
from tierstore.format.keys import pack_key
from tierstore.format.pack import PackBuilder
from tierstore.format.proof import HashedPlain
from tierstore.format.table import ChunkPlace
from tierstore.ids import Buffer
from tierstore.modelstore.saving.framing import BufferPool, Frame, Framing

_FULL_PLAIN_BYTES = 2 << 30
"""Plain bytes in a pack from which on it is full however small its frames are: what is in a pack is
encoded again when the process is killed before the pack is put.
"""


class Packer:
    """Fills packs in the order of ``add`` and puts each into ``store`` when it is full.

    One upload runs while the next pack fills, so at most two packs are in memory.

    Args:
        store: Where packs go.
        pool: Takes the buffers of frames that are written.
        on_put: Told of each pack that was put: the places of its chunks, and its size in bytes.
    """

    def __init__(
        self,
        store: BlobStore,
        pool: BufferPool,
        on_put: Callable[[Sequence[ChunkPlace], int], None] = lambda places, size: None,
    ) -> None:
        self._store, self._pool, self._on_put = store, pool, on_put
        self._plain_bytes = 0
        self.most_bytes = math.inf
        """Bytes that all packs together may have."""
        self._held: list[mmap.mmap] = []
        self._builder = PackBuilder()
        self._uploader = ThreadPoolExecutor(1, "tierstore-upload")
        self._upload: Future[None] | None = None
        self.places: dict[bytes, ChunkPlace] = {}
        self.pack_sizes: dict[bytes, int] = {}

    def add(self, digest: bytes, frame: Frame) -> None:
        """Append one frame; blocks while two packs are waiting for their upload."""
        parts = [frame.head, frame.payload]
        self._builder.add(
            digest,
            parts,
            len(frame.head),
            frame.plain_bytes,
            frame.codec,
            frame.bases,
            frame.proof,
        )
        self._plain_bytes += frame.plain_bytes
        if self._is_full():
            self._flush()

    def copy(self, place: ChunkPlace, data: Buffer) -> None:
        """Append a frame of another pack as it is there; for the arguments see ``PackBuilder``."""
        self._builder.copy(place, data)
        self._plain_bytes += place.plain_bytes
        if self._is_full():
            self._flush()

    def _is_full(self) -> bool:
        return self._builder.full or self._plain_bytes >= _FULL_PLAIN_BYTES

    def add_chunk(
        self, buffer: mmap.mmap, plain: memoryview, *, hashed: HashedPlain, dtype: str
    ) -> None:
        """Encode and append one chunk as a standalone frame; its ``buffer`` is of the pool."""
        framing = Framing(self._pool, buffer)
        frame = framing.add(plain, hashed=hashed, dtype=dtype)
        held = framing.finish()
        self.add(hashed.digest, frame)
        self.hold(held)

    def hold(self, buffers: Iterable[mmap.mmap]) -> None:
        """Give these buffers back to the pool once all frames added so far are written."""
        self._held += buffers

    def _flush(self) -> None:
        pack, buffers, places = self._builder.close()
        size = sum(len(buffer) for buffer in buffers)
        if size > self.most_bytes - sum(self.pack_sizes.values()):
            raise OutOfSpace(f"it takes more than the {self.most_bytes} bytes that it may take")
        self._builder, self._plain_bytes = PackBuilder(), 0
        if self._upload is not None:
            self._upload.result()
        held, self._held = self._held, []
        self._upload = self._uploader.submit(self._put, pack_key(pack), buffers, held, places)
        self.pack_sizes[pack] = size
        self.places.update((place.digest, place) for place in places)

    def _put(
        self,
        key: str,
        buffers: list[Buffer],
        held: list[mmap.mmap],
        places: Sequence[ChunkPlace],
    ) -> None:
        size = sum(len(buffer) for buffer in buffers)
        self._store.put(key, buffers)
        for buffer in held:
            self._pool.give(buffer)
        self._on_put(places, size)

    def finish(self) -> None:
        """Upload the last pack; when this returns, every pack is durable."""
        if len(self._builder):
            self._flush()
        if self._upload is not None:
            self._upload.result()
            self._upload = None

    def close(self) -> None:
        """Stop; what is not uploaded is dropped."""
        self._uploader.shutdown(cancel_futures=True)
