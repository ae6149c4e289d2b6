"""Chunks of a fold that are lost, computed anew from the patches that it stands for (SPEC.md 8)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import digest_of
from tierstore.format.manifest import Manifest, pieces
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.stored import entry_bytes

_log = logging.getLogger("tierstore.patches")


class BelowFold:
    """What a fold stands for, opened once a chunk of the fold cannot be read. Thread-safe.

    Args:
        full: The fold's full manifest.
        open_below: Returns the files of what lies below the fold, by their paths, verified as they
            are read; none when that cannot be opened.
    """

    def __init__(self, full: Manifest, open_below: Callable[[], Mapping[str, FileView]]) -> None:
        self._full, self._open_below = full, open_below

    @cached_property
    def _below(self) -> Mapping[str, FileView]:
        return self._open_below()

    @cached_property
    def _places(self) -> dict[bytes, tuple[str, int]]:
        """The path of each chunk's file, and where in that the chunk begins."""
        found: dict[bytes, tuple[str, int]] = {}
        for file in self._full.files:
            runs = [(0, file.chunks, 0 if file.header else file.size)]
            runs += [(one.begin, one.chunks, entry_bytes(one)) for one in file.tensors]
            for begin, chunks, nbytes in runs:
                for piece in pieces(chunks, nbytes, self._full.chunk_size):
                    at = len(file.header) + begin + piece.begin
                    found.setdefault(piece.digest, (file.path, at))
        return found

    def read(self, digest: bytes, out: memoryview) -> bool:
        """Fill ``out`` with the plain bytes of a chunk; tell whether they could be computed."""
        place = self._places.get(digest)
        below = None if place is None else self._below.get(place[0])
        if place is None or below is None:
            return False
        try:
            plain = below.read(place[1], len(out))
        except (NotFound, Damaged, UnsupportedFormat) as error:
            _log.warning("a chunk of a fold is lost, and the patches below it, too: %s", error)
            return False
        if len(plain) != len(out) or digest_of(plain).raw != digest:
            return False
        out[:] = plain
        return True
