"""Rewrites layouts that name packs from which moves lead on, before these go (SPEC.md 10.1).

Who reads a version whose layout names a pack that is gone asks for it in vain, and then for the
moves of it and the indexes of where they lead; and each mark follows every such chunk. So a layout
is written over once, by whoever has just followed it. Layouts are read and written one by one, as
many as name what was repacked or healed: a mark that follows one costs more than writing it.

Nothing is lost if this is paused until the version was removed, the packs that it found were
collected, and the same content saved again, which keeps the layout: moves lead back from these
packs to those that the layout named, and so to wherever that save has led from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set

from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.keys import layout_key
from tierstore.format.layout import seal_moved_layout
from tierstore.ids import Digest
from tierstore.modelstore.chunks.writemove import write_move
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.mark import Mark, Marker

_CHECKED = 64
"""After so many layouts the right to collect is checked again."""

_log = logging.getLogger("tierstore.gc")


def rewrite_layouts(
    home: Home, marker: Marker, mark: Mark, lease: HeldLease, is_over: Callable[[], bool]
) -> None:
    """Let the layouts that a mark had to follow by moves name the packs where it came to.

    What cannot be read or written now is left to a later run.

    Args:
        home: The store's home.
        marker: The marker that marked.
        mark: What it found; nothing was lacking.
        lease: The right to collect.
        is_over: Asked before each layout: whether the time is over.

    Raises:
        Conflict: The lease is lost.
    """
    digests, found = list[Digest](), dict[bytes, set[bytes]]()
    for digest in mark.kept:
        need = mark.needs.of(digest)
        if need.moved is not None and not _is_held(need.named & mark.held, mark):
            digests.append(digest)
            for pack, old in need.moved.items():
                found.setdefault(pack, set()).update(old)
    if not digests or is_over():
        return
    count = 0
    try:
        lease.check()
        back = _Back(home, marker)
        for pack, old in found.items():  # one move for all layouts
            back.lead(pack, old)
        sealed = _sealed(marker, mark, digests, back, lease, is_over)
        for _ in ahead(lambda one: home.blobs.put(layout_key(one[0]), one[1]), sealed):
            count += 1
    except (BackendError, Damaged) as error:
        _log.warning("layouts that name packs which are gone are left as they are: %s", error)
    _log.info("%d of %d layouts that name packs which are gone rewritten", count, len(digests))


def _is_held(packs: Set[bytes], mark: Mark) -> bool:
    """Return whether a reader holds packs that stay for that alone, as a layout names them."""
    return any(mark.needs.standing(pack) not in ("good", "gone") for pack in packs)


class _Back:
    """Writes the moves back."""

    def __init__(self, home: Home, marker: Marker) -> None:
        self._home, self._ways = home, marker.ways
        self._known: dict[bytes, set[bytes]] = {}

    def lead(self, pack: bytes, old: Set[bytes]) -> None:
        """Let moves of a pack lead to these packs."""
        known = self._known.setdefault(pack, self._ways.named(pack) | {pack})
        if lacking := old - known:
            write_move(self._home, pack, lacking)
            known |= lacking


def _sealed(
    marker: Marker,
    mark: Mark,
    digests: Sequence[Digest],
    back: _Back,
    lease: HeldLease,
    is_over: Callable[[], bool],
) -> Iterator[tuple[Digest, bytes]]:
    """Yield the new layouts; moves lead back from what they name."""
    for number, digest in enumerate(digests, 1):
        if is_over():
            return
        if number % _CHECKED == 0:
            lease.check()
        try:
            found = mark.needs.moved(digest)
        except (Damaged, NotFound) as error:
            _log.warning("%s", error)
            continue
        if found is None:
            continue
        table, places = found
        held = {one.pack: mark.holdings.bytes_of(one.pack) for one in places.values()}
        if not all(held.values()):  # it is in a tier that cannot be asked
            continue
        for one, new in places.items():
            old = table.find(one)
            if old is not None and old.pack != new.pack:
                back.lead(new.pack, table.packs_of((one, *old.bases)))
        sizes = {pack: max(tiers.values()) for pack, tiers in held.items()}
        chunks = marker.layouts.chunks(digest)
        yield digest, seal_moved_layout(digest, table, chunks, list(places.values()), sizes)
