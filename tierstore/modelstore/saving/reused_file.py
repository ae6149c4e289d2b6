"""Reuses whole files of stored versions in a new one: nothing of them is read or written."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tierstore.format.manifest import FileEntry
from tierstore.format.safetensors import parse_header
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.opener import VerifiedOpened
from tierstore.modelstore.loading.stored import VerifiedContent
from tierstore.modelstore.saving.source import ReusedChunks, SourceFile

_Places = list[tuple[ChunkPlace, int]]


class ReusedFile(SourceFile):
    """A file of a stored version as a source of a new one.

    Args:
        content: Layout and reader of the version that holds the file; its chunk size is the new
            version's.
        entry: The file's entry there; no patches lie on it.
        path: Path in the new version, of the same kind (safetensors or not).
    """

    def __init__(self, content: VerifiedContent, entry: FileEntry, path: str) -> None:
        self.path, self.size = path, entry.size
        self.header = parse_header(entry.header, entry.size) if entry.header else None
        self._content = content
        self._pieces = content.file_pieces(entry)
        places = [piece.place for piece in self._pieces]
        entry = msgspec.structs.replace(entry, path=path)
        self.reused = ReusedChunks(entry, *_with_bases(content, places))

    def read_into(self, offset: int, out: memoryview) -> None:
        """Read one whole chunk whose pack is gone."""
        at = offset - self.data_start
        piece = next(piece for piece in self._pieces if piece.begin == at)
        self._content.reader.read([Want(piece.place, out)])

    def finish(self) -> None:
        """Do nothing: what is stored does not change."""


def _with_bases(content: VerifiedContent, places: Sequence[ChunkPlace]) -> tuple[_Places, _Places]:
    """Return the places with the sizes of their packs, and the same for the bases of deltas."""
    table = content.table
    sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
    below = [table.find(base) for place in places for base in place.bases]
    return (
        [(place, sizes[place.pack]) for place in places],
        [(place, sizes[place.pack]) for place in below if place is not None],
    )


def reused_file(holder: VerifiedOpened, file: FileEntry, as_path: str) -> ReusedFile | None:
    """Return a stored file as a source of a new version that moves none of its bytes.

    Args:
        holder: The version that holds the file.
        file: The file's entry there.
        as_path: Path of the file in the new version.

    Returns:
        ``None`` when the file has to be read: patches lie on it, or the new path makes it a file of
        another kind.
    """
    same_kind = file.path.rpartition(".")[2] == as_path.rpartition(".")[2]
    if file.path in holder.patched or not same_kind:
        return None
    return ReusedFile(holder.content, file, as_path)
