"""What a collection had done by the time it was cut off: whoever ended it is told, by a note."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.report import Report
from tierstore.progress import Progress
from tierstore.shown import counted, size

_NEXT = "the next collection looks at these again and deletes them"


class SoFar:
    """What one collection has done so far.

    Args:
        progress: Called with the bytes that were deleted and those to delete.
        is_dry: Whether it changes nothing.

    Attributes:
        report: Its report, as far as it has come.
    """

    def __init__(self, progress: Progress | None, *, is_dry: bool) -> None:
        self.report = Report(is_dry)
        self._progress = progress
        self._condemned_bytes = 0
        self._deleted: tuple[int, int] | None = None

    def condemned(self, packs: Set[bytes], holdings: Holdings) -> None:
        """Take note of packs that are condemned by now."""
        self.report.condemned = len(packs)
        self._condemned_bytes = sum(sum(holdings.bytes_of(pack).values()) for pack in packs)

    def swept(self, done: int, total: int) -> None:
        """Take note of the bytes that were deleted from all tiers, and of those to delete."""
        self._deleted = done, total
        if self._progress is not None:
            self._progress(done, total)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Add a note on what was done to whatever ends the block, if that is cut off or fails."""
        try:
            yield
        except BaseException as error:
            if note := self._note(is_failure=isinstance(error, Exception)):
                error.add_note(note)
            raise

    def _note(self, *, is_failure: bool) -> str:
        """Return what was done; of a failure that has done nothing its own message is enough."""
        if self.report.dry_run:
            return ""
        parts = []
        if self.report.healed:
            parts.append(f"{self.report.healed} chunks and layouts of what stays were healed")
        if self.report.repacked:
            parts.append(f"{counted(self.report.repacked, 'pack')} with much waste repacked")
        if self.report.condemned:
            packs, held = counted(self.report.condemned, "pack"), size(self._condemned_bytes)
            parts.append(f"{packs} of {held} marked for deletion")
        if self._deleted is not None and self._deleted[1]:
            done, total = map(size, self._deleted)
            parts.append(f"{done} of {total} deleted, and of the last batch there may be more")
        elif parts:
            parts.append("nothing was deleted yet")
        if not parts:
            return "" if is_failure else "nothing was marked or deleted yet"
        said = ", ".join(parts)
        return f"{said}; {_NEXT}" if self.report.condemned or self._deleted else said
