"""A safetensors file with patches on its tensors, as a range of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.manifest import FileEntry
from tierstore.modelstore.chunks.local import FilePart
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.stored import Content
from tierstore.modelstore.loading.tensor import Tensor, read_into

if TYPE_CHECKING:
    from tierstore.deferred import Bytes


class PatchedFileView(FileView):
    """A ``FileView`` of a file that patches change; it has no SHA-256 until the version is folded.

    Args:
        content: The version's layout and reader.
        entry: The file's entry in the full manifest below.
        tensors: The version's tensors; those of other files are ignored.
    """

    def __init__(self, content: Content, entry: FileEntry, tensors: Iterable[Tensor]) -> None:
        super().__init__(content, entry)
        begins = {tensor.name: tensor.begin for tensor in entry.tensors}
        own = [tensor for tensor in tensors if tensor.file == entry.path and tensor.nbytes]
        self._tensors = [(begins[tensor.name_in_file], tensor) for tensor in own]

    def parts(self, start: int, stop: int) -> list[bytes | FilePart]:
        """Return bytes ``[start, stop)``, read: stored chunks lack what patches change."""
        return [self.read(start, stop - start)]

    def _fill_data(self, targets: Sequence[tuple[int, memoryview]], *, own: bool) -> None:
        whole: list[tuple[Tensor, Bytes]] = []
        for begin, out in targets:
            end = begin + len(out)
            for start, tensor in self._tensors:
                low, high = max(start, begin), min(start + tensor.nbytes, end)
                if low >= high:
                    continue
                part = out[low - begin : high - begin]
                if high - low == tensor.nbytes:
                    whole.append((tensor, np.frombuffer(part, np.uint8)))
                else:
                    tensor._fill(low - start, high - start, part, own=own)
        if whole:
            read_into(whole, own=own)
