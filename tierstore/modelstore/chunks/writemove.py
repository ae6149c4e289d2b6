"""Writes moves, which say where else chunks of a pack lie (format/SPEC.md 8)."""

from __future__ import annotations

from collections.abc import Set

from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.once import create_once


def write_move(home: Home, pack: bytes, into: Set[bytes]) -> None:
    """Write a move of a pack behind those that are there, unless one of them says the same.

    Args:
        home: The store's home.
        pack: Id of the pack.
        into: Ids of packs that hold chunks of it.

    Raises:
        BackendError: Home did not take the move.
    """
    # of several places of a chunk the last one counts: a standalone frame rather than a delta
    ordered = sorted(into, key=lambda one: (len(into) > 1 and not _has_deltas(home, one), one))
    body = seal_body(Kind.MOVE, Move(pack=pack.hex(), into=[one.hex() for one in ordered]))
    number = 1
    while not create_once(home.blobs, move_key(pack, number), body):
        number += 1


def _has_deltas(home: Home, pack: bytes) -> bool:
    """Return whether a pack holds deltas, as far as it can be looked into."""
    key = pack_key(pack)
    try:
        places = read_footer(home.packs, key, home.packs.size(key))[1]
    except (NotFound, Damaged):
        return True
    return any(place.bases for place in places)
