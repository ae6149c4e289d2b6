"""Compares folds with the chains of patches that they stand for.

What no patch changes has the same chunks in both, by their digests alone. What patches change is
computed anew from the base and the patches, where data is read at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import digest_of
from tierstore.format.keys import FOLDS
from tierstore.format.layout import parse_fold
from tierstore.format.manifest import Manifest, TensorEntry, named_tensors
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.home.chain import unfolded
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.opener import Opener
from tierstore.modelstore.loading.tensor import VerifiedTensor
from tierstore.modelstore.places import StorePlaces
from tierstore.modelstore.settings import Settings
from tierstore.tiers.hot.tiers import HotTiers

_WINDOW_CHUNKS = 16


@dataclass(frozen=True, slots=True)
class FoundFold:
    """One object in ``folds/``.

    Attributes:
        key: Key of the object.
        patch: The patch version that was folded.
        full: Digest of the full manifest that equals it; ``None`` if the object is damaged.
    """

    key: str
    patch: Digest
    full: Digest | None


def look_at_folds(home: Home, live: set[str]) -> tuple[list[FoundFold], set[str]]:
    """Return the folds of versions, and the keys of folds that belong to no version.

    Args:
        home: The store's home.
        live: Hex digests of the manifests that versions need.
    """
    found, unused = [], set()
    for info in home.blobs.list(FOLDS):
        text = info.key.removeprefix(FOLDS)
        if text not in live:
            unused.add(info.key)
            continue
        patch = Digest.from_hex(text)
        try:
            full = parse_fold(home.blobs.get(info.key), patch, info.key)
        except NotFound:  # gone since we listed
            continue
        except (Damaged, UnsupportedFormat):
            full = None
        found.append(FoundFold(info.key, patch, full))
    return found, unused


class FoldCheck:
    """Compares one fold with its chain.

    Args:
        home: The store's home.
        settings: Limits on threads and memory.
        patch: The patch version that was folded.
        full: Digest of the full manifest that is to equal it.

    Attributes:
        differs: What differs, as far as metadata tells; empty if nothing does.

    Raises:
        Damaged, NotFound, UnsupportedFormat: The chain or the fold's manifest cannot be read, so
            that there is nothing to compare.
    """

    def __init__(self, home: Home, settings: Settings, patch: Digest, full: Digest) -> None:
        folded = home.manifest(full)
        chain = unfolded(home, patch)
        nowhere = StorePlaces(tuple)  # nothing is exported
        opened = Opener(home, settings, HotTiers(), nowhere).open_chain(chain).verified()
        self._chunk_size = opened.content.chunk_size
        self._changed: list[tuple[VerifiedTensor, TensorEntry]] = []
        self.differs = _other_files(folded, opened.manifest, opened.patched)
        if self.differs:
            return
        for name, _, entry in named_tensors(folded):
            tensor = opened.tensors[name]
            if tensor._overlays:
                self._changed.append((tensor, entry))
            elif tensor._base.digests != entry.chunks:
                self.differs = f"tensor {name!r}"
                return

    @property
    def plain_bytes(self) -> int:
        """Bytes of the tensors of which patches change a part."""
        return sum(tensor.nbytes for tensor, _ in self._changed)

    def compare_data(self, count: Callable[[int], None]) -> str:
        """Compute what patches change, and return what differs in the fold; empty if nothing does.

        Args:
            count: Called with the number of plain bytes of each part that was compared.
        """
        for tensor, entry in self._changed:
            digests = split_digests(entry.chunks)
            step = _WINDOW_CHUNKS * self._chunk_size
            for low in range(0, tensor.nbytes, step):
                out = memoryview(bytearray(min(step, tensor.nbytes - low)))
                tensor._fill(low, low + len(out), out, own=True)
                for at in range(0, len(out), self._chunk_size):
                    plain = out[at : at + self._chunk_size]
                    if digest_of(plain).raw != digests[(low + at) // self._chunk_size]:
                        return f"tensor {tensor.name!r}"
                count(len(out))
        return ""


def _other_files(folded: Manifest, base: Manifest, patched: frozenset[str]) -> str:
    """Return how the files of a fold differ from those below its patches, their chunks aside."""
    if folded.chunk_size != base.chunk_size:
        return f"chunks of {folded.chunk_size} bytes instead of {base.chunk_size}"
    if folded.lineage:
        return "its lineage, which is to be empty,"
    wanted = {file.path: file for file in base.files}
    if [file.path for file in folded.files] != list(wanted):
        return "its list of files"
    for file in folded.files:
        other = wanted[file.path]
        if file.path in patched:
            same = (file.header, file.size) == (other.header, other.size)
        else:
            same = file == other
        if not same:
            return f"file {file.path!r}"
    return ""
