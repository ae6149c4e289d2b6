"""Index segments of one save: how later saves find what it has stored, also if it never ends.

A save that lasts writes a segment of every few packs. When it is published, one segment takes their
place. When it is killed or fails, the next save that needs their chunks finds them, confirms that
they are there, as it does with all that it finds, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from tierstore.blobs.base import BlobStore
from tierstore.errors import TierstoreError
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.index import write_segment

EARLY_PACKS = 2
"""Number of packs from which on an early segment is written.

What a process that is killed has to store again is 256 MiB at most: the packs of a segment that was
being written, one that was put or being put meanwhile, and one that was being filled.
"""
_log = logging.getLogger("tierstore.writer")


class Kept(NamedTuple):
    """What is stored of a save that failed, its own chunks and those that it found.

    Attributes:
        stored_bytes: Plain bytes of its chunks that later saves find, as far as it had come.
        total_bytes: Plain bytes of all that it was to save.
    """

    stored_bytes: int
    total_bytes: int


class SaveSegments:
    """Writes the index segments of one save, those of its packs in a thread of its own.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._writer = ThreadPoolExecutor(1, "tierstore-index")
        self._places: list[ChunkPlace] = []
        self._sizes: dict[bytes, int] = {}
        self._early: list[str] = []
        self._writing: Future[None] | None = None
        self._kept_bytes = 0

    def note(self, places: Sequence[ChunkPlace], pack_size: int) -> None:
        """Take note of the chunks of a pack that is durable now; called by one thread at a time.

        Args:
            places: Places of its chunks, at least one.
            pack_size: Size of the pack in bytes.
        """
        self._places += places
        self._sizes[places[0].pack] = pack_size
        if self._writing is not None:  # uploads do not run ahead of it
            self._writing.result()
        if len(self._sizes) == EARLY_PACKS:
            self._writing = self._writer.submit(self._write, self._places, self._sizes)
            self._places, self._sizes = [], {}

    def _write(self, places: Sequence[ChunkPlace], sizes: dict[bytes, int]) -> None:
        written = write_segment(self._home_blobs, places, sizes)
        if written is not None:  # else the save goes on; if it fails, these are stored again
            self._early.append(written[0])
            self._kept_bytes += sum(place.plain_bytes for place in places)

    def keep(self, found_bytes: int, total_bytes: int, *, is_written: bool) -> Kept | None:
        """Write what is left to be written, as the save has failed; no pack is put any more.

        Args:
            found_bytes: Plain bytes of its chunks that were there before.
            total_bytes: Plain bytes of all that it was to save.
            is_written: Whether it has failed after all of its content was stored.

        Returns:
            What is stored of it; ``None`` where all of that was there before.
        """
        self._writer.shutdown()
        if self._sizes:
            self._write(self._places, self._sizes)
            self._places, self._sizes = [], {}
        if is_written and not self._kept_bytes:
            return None
        return Kept(found_bytes + self._kept_bytes, total_bytes)

    def replace(
        self, places: Sequence[ChunkPlace], sizes: dict[bytes, int]
    ) -> tuple[str, int] | None:
        """Write the segment of the whole save in place of all others, as it is published.

        Args:
            places: Places of the chunks that the save has added; none where nothing leads to them.
            sizes: Sizes of their packs in bytes, by pack id.

        Returns:
            The segment's key, and its size in bytes; ``None`` where none was written.
        """
        self._writer.shutdown()
        written = write_segment(self._home_blobs, places, sizes) if places else None
        if written is not None or not places:
            self._delete_early()
        return written

    def _delete_early(self) -> None:
        if not self._early:
            return
        try:
            self._home_blobs.delete(self._early)
        except TierstoreError as error:  # they say once more what the new one says
            _log.info("early index segments of this save were not removed: %s", error)
