"""One save transaction for versions, folds, patches and variants."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TypeVar

from tierstore.errors import OutOfSpace
from tierstore.format.storeconfig import check_features
from tierstore.modelstore.home.condemned import GRACE_S, Glance
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.loading.opener import Opener
from tierstore.modelstore.names.names import Before
from tierstore.modelstore.saving.base_selection import (
    BaseSelection,
    Newest,
    named_base,
    select_base,
)
from tierstore.modelstore.saving.copier import CopyWriter
from tierstore.modelstore.saving.delta import BaseVersion
from tierstore.modelstore.saving.framing import encoders
from tierstore.modelstore.saving.segments import Kept
from tierstore.modelstore.saving.source import SourceFile
from tierstore.modelstore.saving.writer import Writer
from tierstore.modelstore.version import Version
from tierstore.progress import Progress
from tierstore.shown import size

_W = TypeVar("_W", bound=Writer)


class _Behind(Container[bytes]):
    """Packs whose places in the index stand back: nothing in them is reused, or most likely not."""

    def __init__(self, marked: Container[bytes], glance: Glance) -> None:
        self._marked, self._glance = marked, glance

    def __contains__(self, pack: object) -> bool:
        return pack in self._marked or (isinstance(pack, bytes) and self._glance.may_hold(pack))


class Saving:
    """Runs the saves of one store.

    Args:
        home: The store's home.
        index: Finds chunks that the store has already.
        opener: Opens versions as bases of deltas.
        resolve: Finds the version that a reference points to.
        newest: Finds the newest version of a model that is not removed; see ``Newest``.
        threads: How many threads hash and encode, if memory allows.
    """

    def __init__(
        self,
        home: Home,
        index: ChunkIndex,
        opener: Opener,
        resolve: Callable[[str | Version], Version],
        newest: Newest,
        threads: int,
    ) -> None:
        self._home, self._index, self._opener = home, index, opener
        self._resolve, self._newest, self._threads = resolve, newest, threads

    def begin(
        self,
        selection: BaseSelection | None = None,
        *,
        indexed: bool = True,
        chunk_size: int | None = None,
        progress: Progress | None = None,
    ) -> AbstractContextManager[Writer]:
        """Yield a writer; garbage collection leaves its packs alone until the block ends.

        The block calls ``publish``; its sources stay open until after it. When it ends without an
        error, the new chunks are published to later saves. When it ends with one, so are those
        that were stored, and a note on the error says so.

        Args:
            selection: The base selection for new chunks; ``None`` stores them standalone.
            indexed: Whether the dedup index is brought up to date first and told of new chunks.
                ``False`` for small saves that are hardly ever duplicates: looking at all index
                segments would cost more.
            chunk_size: Bytes of a chunk; by default the store's. A patch takes that of its base.
            progress: Called with bytes done and bytes in all.

        Raises:
            UnsupportedFormat: The store needs a newer tierstore to be written to.
        """
        return self._begin(Writer, selection, indexed, chunk_size, progress)

    def begin_copy(
        self, chunk_size: int, progress: Progress | None = None, *, indexed: bool = True
    ) -> AbstractContextManager[CopyWriter]:
        """Yield a writer of what another store has; as ``begin`` in all else.

        Args:
            chunk_size: Bytes of a chunk of the manifest that is copied.
            progress: Called with bytes done and bytes in all.
            indexed: As for ``begin``.
        """
        return self._begin(CopyWriter, None, indexed, chunk_size, progress)

    @contextmanager
    def _begin(
        self,
        kind: type[_W],
        selection: BaseSelection | None,
        indexed: bool,
        chunk_size: int | None,
        progress: Progress | None,
    ) -> Iterator[_W]:
        home = self._home
        check_features(home.config, "write", home.blobs.url)
        with WriterLease(home.blobs) as lease:
            home.packs.refresh()  # no pack goes to a tier that is being drained
            marked = home.quarantine.chunks() if indexed else {}
            if indexed:
                # before removal is allowed nothing is condemned, and nobody need ask
                glance = home.condemned.glance() if home.reclaims else Glance(frozenset(), None)
                self._index.sync(_Behind(marked, glance))
                self._index.forget_condemned(glance.segments, home.condemned)
                lease.remove_ended()
            writer = kind(
                home,
                self._index,
                lease,
                chunk_size=chunk_size or home.config.chunk_size,
                marked=marked,
                threads=self._threads,
                indexed=indexed,
                selection=selection,
                progress=progress,
            )
            try:
                with closing(writer):
                    yield writer
            except BaseException as error:
                if note := self._kept(writer.keep(), error):
                    error.add_note(note)
                raise
            writer.publish_index()

    def _kept(self, kept: Kept | None, error: BaseException) -> str:
        """Return what is said of a save that failed."""
        if kept is None or not kept.total_bytes:
            return ""
        total = size(kept.total_bytes)
        if kept.stored_bytes:
            hours = GRACE_S // 3600
            least = f", for {hours} hours at least" if self._home.reclaims else ""
            stored = f"{size(kept.stored_bytes)} of {total} are stored"
            return f"{stored}, and saving it again goes on from there{least}"
        return f"none of its {total} are stored" if isinstance(error, OutOfSpace) else ""

    def select_base(
        self, files: Sequence[SourceFile], base: str | Version | None, model: str, before: Before
    ) -> BaseSelection | None:
        """Choose the base version of a save.

        Args:
            files: The files to be saved.
            base: A reference; ``"auto"`` takes the newest version of the model, or else the most
                similar one of another model; ``None`` stores no deltas.
            model: Name under which ``files`` are saved.
            before: What there is of that name.
        """
        return select_base(
            files, base, model, self._home, self.as_base, self._resolve, self._newest, before
        )

    def named_base(
        self, files: Sequence[SourceFile], base: str | Version | None
    ) -> BaseSelection | None:
        """Take the version that a reference names as the base of a save; ``None`` takes none."""
        return named_base(files, base, self.as_base, self._resolve)

    def as_base(self, version: Version) -> BaseVersion:
        """Open a version as a source of bases: the full version below it, if it has patches."""
        full = self._opener.open_full(version)
        keep = min(self._threads, encoders(full.manifest.chunk_size, deltas=True)) + 1
        return BaseVersion(str(version), full.manifest, full.content, self._index.find, keep)
