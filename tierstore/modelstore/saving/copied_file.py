"""Files of a version of another store, which are copied frame by frame."""

from __future__ import annotations

from tierstore.format.manifest import FileEntry
from tierstore.format.safetensors import parse_header
from tierstore.modelstore.loading.stored import VerifiedContent
from tierstore.modelstore.saving.source import SourceFile


class CopiedFile(SourceFile):
    """A file of a manifest of another store.

    Its bytes are read only where a chunk cannot be copied as it is.

    Args:
        content: Layout and reader of the manifest that holds the file.
        entry: The file's entry there.
    """

    def __init__(self, content: VerifiedContent, entry: FileEntry) -> None:
        self.path, self.size = entry.path, entry.size
        self.header = parse_header(entry.header, entry.size) if entry.header else None
        self._content = content
        pieces = content.file_pieces(entry)
        self.places = [piece.place for piece in pieces]
        """Places of the chunks, in order."""
        self._at = {piece.begin: piece.place for piece in pieces}

    def read_into(self, offset: int, out: memoryview) -> None:
        """Read one whole chunk, which begins at ``offset`` of the file."""
        out[:] = self._content.reader.chunk(self._at[offset - self.data_start])

    def finish(self) -> None:
        """Do nothing: what is stored does not change."""
