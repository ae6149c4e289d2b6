"""Writes moves, which say where else chunks of a pack lie (format/SPEC.md 8)."""

from __future__ import annotations

from collections.abc import Set

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.footers import read_chunks
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
    deltas = {one for one in into if len(into) > 1 and _has_deltas(home, one)}
    body = seal_move(pack, into, deltas=deltas)
    number = 1
    while not create_once(home.blobs, move_key(pack, number), body):
        number += 1


def seal_move(
    pack: bytes, into: Set[bytes], *, deltas: Set[bytes], unfit: Set[bytes] = frozenset()
) -> bytes:
    """Return a sealed move: of several places of a chunk the best one comes last, and so counts.

    That is one in a pack that can be relied on rather than in one that is unfit, and then in a pack
    without deltas, as a delta is of no use where its base is not found.

    Args:
        pack: Id of the pack.
        into: Ids of packs that hold chunks of it.
        deltas: Those of them that hold deltas, or cannot be looked into.
        unfit: Ids of packs that nothing new may rely on.
    """

    def rank(one: bytes) -> tuple[bool, bool, bytes]:
        return one not in unfit, one not in deltas, one

    body = Move(pack=pack.hex(), into=[one.hex() for one in sorted(into, key=rank)])
    return seal_body(Kind.MOVE, body)


def _has_deltas(home: Home, pack: bytes) -> bool:
    """Return whether a pack holds deltas, or cannot be looked into."""
    key = pack_key(pack)
    try:
        return read_chunks(home.packs, key, home.packs.size(key)).has_deltas
    except (NotFound, Damaged, UnsupportedFormat, BackendError):
        return True
