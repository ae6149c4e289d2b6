"""Copies a manifest of another store with its chunks: frames as they are, and only what is new.

::

    manifest there -> chunks that are not here -> bases that are not here standalone -> frames,
    verified -> packs; then manifest, layout, ref entry and last look, as in any save
    (format/SPEC.md 11)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set

from tierstore.errors import Conflict, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import Manifest
from tierstore.format.table import ChunkTable
from tierstore.ids import Buffer, Digest
from tierstore.modelstore.loading.stored import VerifiedContent
from tierstore.modelstore.saving.copied_file import CopiedFile
from tierstore.modelstore.saving.savestate import chunks_of
from tierstore.modelstore.saving.writer import Writer

_log = logging.getLogger("tierstore.copy")


class CopyWriter(Writer):
    """Runs the save of a manifest of another store; made by ``Saving.begin``."""

    def copy(
        self, digest: Digest, sealed: Buffer, manifest: Manifest, content: VerifiedContent
    ) -> None:
        """Store a manifest as it is in another store, with all chunks that it names.

        It is of use once a ref entry names it, or a manifest that lies on it.

        Args:
            digest: The digest of the manifest.
            sealed: The manifest as it is stored there.
            manifest: The same, parsed and compared with its digest.
            content: Its layout and the reader of its chunks, there.

        Raises:
            Conflict: Exactly this content was purged here.
            Damaged, NotFound: A chunk cannot be read there; nothing was published.
        """
        home = self._home
        if home.reclaims and home.condemned.among((), {digest.raw}):
            raise Conflict(
                f"exactly the content b3:{digest.hex} was purged from {home.blobs.url}, and is "
                "not copied there; save it from its source if it is to come back"
            )
        files = [CopiedFile(content, entry) for entry in manifest.files]
        self._total = sum(file.size for file in files)
        self._note(files)
        self._alone = set[bytes]()
        self._known = self._known_table(digest, manifest)
        self._copy_missing(content)
        self._packer.finish()
        home.blobs.put(version_key(digest), sealed)
        self._wrote(bytes(sealed), ())
        self._publish(digest)
        self._digest = digest

    def look(self, below: Set[bytes] = frozenset()) -> None:
        """Look whether all that was written stays, once an entry leads to it; see ``publish``.

        Args:
            below: The digests of other manifests that must stay.
        """
        if self._digest is not None:
            self._look(below, self._digest)

    def _note(self, files: Sequence[CopiedFile]) -> None:
        """Take note of all chunks, in load order, and of where each can be read again."""
        for file in files:
            self._headers += file.data_start
            for place, chunk in zip(file.places, chunks_of(file, self._chunk_size), strict=True):
                self._state.order.setdefault(place.digest)
                self._state.sources.setdefault(place.digest, chunk)
                self._done += chunk.plain_bytes
                self._chunks += 1

    def _copy_missing(self, content: VerifiedContent) -> None:
        """Copy the frames of chunks that are not stored here, bases before the deltas on them."""
        wanted = {
            digest: place
            for digest in self._state.order
            if not (self._reuse_indexed(digest) or self._reuse_placed(digest))
            and (place := content.table.find(digest)) is not None
        }
        deltas_on = dict.fromkeys(base for place in wanted.values() for base in place.bases)
        bases = {
            base: place
            for base in deltas_on
            if not self._is_alone(base) and (place := content.table.find(base)) is not None
        }
        left_bytes = sum(wanted[digest].plain_bytes for digest in wanted)
        unfit: list[bytes] = []
        for places in (bases, {one: at for one, at in wanted.items() if one not in bases}):
            for at, data in content.reader.frames(list(places.values())):
                if all(map(self._is_alone, at.bases)):
                    self._packer.copy(at, data)
                    if not at.bases:
                        self._alone.add(at.digest)
                elif at.digest in wanted:  # where a move led: on bases that are not copied
                    unfit.append(at.digest)
                self._lease.keep()
                left_bytes -= at.plain_bytes if at.digest in wanted else 0
                if self._progress:
                    self._progress(self._total - left_bytes, self._total)
        self._store_alone(unfit)

    def _known_table(self, digest: Digest, manifest: Manifest) -> ChunkTable | None:
        """Return the layout of the manifest here: a copy of it, or a save, may have come so far."""
        try:
            return self._home.layout_if_there(digest, manifest)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.info("%s; its chunks are looked for in the index", error)
            return None

    def _reuse_placed(self, digest: bytes) -> bool:
        """Reuse a chunk that the layout here has and the index does not know; tell whether."""
        place = self._known.find(digest) if self._known is not None else None
        if place is None or self._known is None:
            return False
        sizes = dict(zip(self._known.pack_ids, self._known.pack_sizes, strict=True))
        below = [found for base in place.bases if (found := self._known.find(base)) is not None]
        return self._reuse_if_fit([(one, sizes[one.pack]) for one in (place, *below)])

    def _is_alone(self, digest: bytes) -> bool:
        """Return whether a chunk is here, or was copied, as a standalone frame, as a base is."""
        if digest in self._alone:
            return True
        found = self._index.find(digest)
        if found is None or found[0].bases or not self._reuse_if_fit([found]):
            return False
        self._alone.add(digest)
        return True
