"""Whether what a reference points to may have changed, asked for as little as can be.

Which version a reference means follows from the ends of a few logs, whose entries are created once
and never change. So as long as there is no entry behind the last one of any of them, it means what
it did, whoever writes and whatever they announce: one request a log, which finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from tierstore.folders import path_of
from tierstore.format.keys import ALIASES, REMOVED_LOG, VARIANTS, VERSION_LOG
from tierstore.ids import FULL, ModelRef
from tierstore.modelstore.home.home import Home


class Watched:
    """The ends of the logs that a reference depends on, as they are when this is made.

    Make it before the reference is looked up: what comes between the two is then seen the next
    time.

    Args:
        home: The store's home.
        ref: The reference; not one of a release, which depends on the logs of others.
        order: The variants that are preferred, best first.
    """

    def __init__(self, home: Home, ref: ModelRef, order: Sequence[str]) -> None:
        self._home, self._reclaims = home, home.reclaims
        logs = [home.log(ref.model, name) for name in _logs(ref, order, removals=self._reclaims)]
        # A client of a network file system may go on for a minute saying that a file is missing
        # which it has looked for before; it does not with one that is replaced.
        self._hints = [(log, log.hinted()) for log in logs] if _is_mount(home) else []
        ends = [(log, log.last()) for log in logs]
        self._next = [log.key_of(last.seq + 1 if last else 1) for log, last in ends]

    def has_moved(self) -> bool:
        """Return whether any of the logs has another entry by now, or others count."""
        if self._home.reclaims != self._reclaims:
            return True
        if any(log.hinted() != hint for log, hint in self._hints):
            return True
        return bool(self._home.blobs.present(self._next))


def _is_mount(home: Home) -> bool:
    return path_of(home.blobs.url) is not None and not home.blobs.local


def _logs(ref: ModelRef, order: Sequence[str], *, removals: bool) -> Iterator[str]:
    """Yield the names of the logs of the model on which the meaning of a reference depends."""
    if ref.alias is not None:
        yield ALIASES + ref.alias
    else:
        if ref.number is None:
            yield VERSION_LOG
        if removals:
            yield REMOVED_LOG
    wanted = order if ref.variant is None else [ref.variant]
    yield from (VARIANTS + name for name in takewhile(lambda name: name != FULL, wanted))
