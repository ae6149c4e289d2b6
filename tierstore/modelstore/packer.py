"""Collects frames into packs and uploads them while the next ones are encoded."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from tierstore.blobs.base import BlobStore
from tierstore.format.keys import pack_key
from tierstore.format.pack import PackBuilder
from tierstore.format.table import ChunkPlace
from tierstore.ids import Buffer
from tierstore.modelstore.framing import BufferPool, Frame


class Packer:
    """Fills packs in the order of ``add`` and puts each into ``store`` when it is full.

    One upload runs while the next pack fills, so at most two packs are in memory.
    """

    def __init__(self, store: BlobStore, pool: BufferPool) -> None:
        self._store, self._pool = store, pool
        self._held: list[bytearray] = []
        self._builder = PackBuilder()
        self._uploader = ThreadPoolExecutor(1, "tierstore-upload")
        self._upload: Future[None] | None = None
        self.places: dict[bytes, ChunkPlace] = {}
        self.pack_sizes: dict[bytes, int] = {}

    def add(self, digest: bytes, frame: Frame) -> None:
        """Append one frame; blocks while two packs are waiting."""
        self._builder.add(digest, frame.data, frame.head, frame.plain, frame.codec, frame.bases)
        if frame.buffer is not None:
            self._held.append(frame.buffer)
        if self._builder.full:
            self._flush()

    def _flush(self) -> None:
        pack, buffers, places = self._builder.close()
        self._builder = PackBuilder()
        if self._upload is not None:
            self._upload.result()
        held, self._held = self._held, []
        self._upload = self._uploader.submit(self._put, pack_key(pack), buffers, held)
        self.pack_sizes[pack] = sum(len(buffer) for buffer in buffers)
        self.places.update((place.digest, place) for place in places)

    def _put(self, key: str, buffers: list[Buffer], held: list[bytearray]) -> None:
        self._store.put(key, buffers)
        for buffer in held:
            self._pool.give(buffer)

    def finish(self) -> None:
        """Upload the last pack; when it returns every pack is durable."""
        if len(self._builder):
            self._flush()
        if self._upload is not None:
            self._upload.result()
            self._upload = None

    def close(self) -> None:
        """Stop; what is not uploaded is dropped."""
        self._uploader.shutdown(cancel_futures=True)
