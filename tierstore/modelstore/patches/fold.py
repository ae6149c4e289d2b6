"""Fold: stores the full manifest that equals a version with patches on it.

Files without patches are neither read nor written. A file with patches is read whole, because its
SHA-256 is that of the whole file. Chunks that change become deltas against the full manifest below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tierstore.errors import BackendError, Damaged, NotDurable, NotFound
from tierstore.format.keys import fold_key
from tierstore.format.layout import Fold
from tierstore.format.manifest import FileEntry
from tierstore.format.safetensors import parse_header
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import find_chain, fold_of
from tierstore.modelstore.home.confirm import unfit_packs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.settling import Publication
from tierstore.modelstore.loading.opener import Opener, VerifiedOpened
from tierstore.modelstore.saving.base_selection import BaseSelection
from tierstore.modelstore.saving.healing import Healing
from tierstore.modelstore.saving.reused_file import ReusedFile
from tierstore.modelstore.saving.source import SourceFile
from tierstore.modelstore.saving.transaction import Saving
from tierstore.modelstore.version import SaveStats, Version
from tierstore.progress import Progress

_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Folded:
    """The result of a fold.

    Attributes:
        version: The version that was folded.
        patches: Number of patches that were folded; 0 when nothing was done.
        full: Digest of the full manifest that equals the version.
        stats: Cost of the save; ``None`` when nothing was stored.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
        >>> store.fold("ranker").patches
        0
    """

    version: Version
    patches: int
    full: Digest
    stats: SaveStats | None


class _PatchedFile(SourceFile):
    """A file with patches on it, read in order through a window."""

    def __init__(self, opened: VerifiedOpened, file: FileEntry) -> None:
        self.path, self.size = file.path, file.size
        self.header = parse_header(file.header, file.size)
        self._view = opened.view(file)
        self._begin = 0
        self._window = memoryview(b"")

    def read_into(self, offset: int, out: memoryview) -> None:
        if not self._begin <= offset <= offset + len(out) <= self._begin + len(self._window):
            self._begin, end = next(self._view.spans(offset, self.size, _WINDOW_BYTES))
            self._window = memoryview(bytearray(max(len(out), end - offset)))
            self._view.read_into(offset, self._window)
        out[:] = self._window[offset - self._begin :][: len(out)]

    def finish(self) -> None:
        """Do nothing: what is stored does not change."""


def fold_version(
    home: Home,
    opener: Opener,
    saving: Saving,
    version: Version,
    *,
    at_least: int,
    progress: Progress | None,
    most_bytes: float = math.inf,
) -> Folded:
    """Store the full manifest that equals a patch version, and name it in ``folds/``.

    Args:
        home: The store's home.
        opener: Opens the store's versions.
        saving: Saves to the store.
        version: The version to fold.
        at_least: The fewest patches for which anything is done.
        progress: Called with bytes done and bytes in all.
        most_bytes: Bytes that its packs may take.

    Raises:
        OutOfSpace: It would take more; nothing was published.
    """
    chain = find_chain(home, version.digest)
    if chain.full != version.digest and not chain.patches and _is_lost(home, chain.full):
        chain = find_chain(home, version.digest, frozenset([chain.full]))  # what is lost is healed
    count = len(chain.patches)
    if not count or count < at_least:
        return Folded(version, 0, chain.full, None)
    opened = opener.open_chain(chain).verified()
    files = [
        _PatchedFile(opened, file)
        if file.path in opened.patched
        else ReusedFile(opened.content, file, file.path)
        for file in opened.manifest.files
    ]
    base = saving.as_base(version)
    with saving.begin(BaseSelection(files, lambda _: base), progress=progress) as writer:
        writer.limit(most_bytes)
        full = writer.publish(
            Publication(
                lambda full: name_fold(home, version.digest, full),
                lambda full, why: f"{version} is read by its patches as before",
            ),
            files,
        )
    return Folded(version, count, full, writer.stats())


def _is_lost(home: Home, full: Digest) -> bool:
    """Return whether chunks of a fold cannot be read, or will be deleted."""
    try:
        table = home.layout(full, home.manifest(full))
    except (NotFound, Damaged):
        return True
    unfit = unfit_packs(home, dict(zip(table.pack_ids, table.pack_sizes, strict=True)))
    healing = Healing(home, unfit)
    return bool(healing.uncovered(healing.lost_in(table, table.digests), table))


def name_fold(home: Home, patch: Digest, full: Digest) -> Digest:
    """Let a fold name a full manifest, and return that.

    A fold is never taken back: where it cannot be read, what lies below is.
    """
    key = fold_key(patch)
    data = seal_body(Kind.FOLD, Fold(patch=patch.hex, full=full.hex))
    try:
        created = home.blobs.put_if_absent(key, data)
    except NotDurable:
        raise
    except BackendError:  # the answer may be lost, not the write: any fold of it says the same
        if fold_of(home, patch) is None:
            raise
        return full
    if created:
        return full
    named = fold_of(home, patch)
    if named is None or (named != full and home.condemned.among([named.raw])):
        home.blobs.put(key, data)  # the one that is there is damaged, or leads to what was purged
    return full
