"""Readers and collectors follow moves alike: a difference between them would be a lost chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.kit import created, tensors
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move, parse_move
from tierstore.format.pack import PackBuilder
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import ByteRange
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.ways import Ways

HELD = ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2), (2, 0))
"""Which chunks each pack holds."""


@dataclass(frozen=True)
class Store:
    """A store of packs that hold some chunks in common.

    Attributes:
        home: The store's home, which has the packs, too.
        blobs: What is in it.
        packs: The ids of the packs.
        chunks: The digests of all chunks.
    """

    home: Home
    blobs: MemoryStore
    packs: tuple[bytes, ...]
    chunks: tuple[bytes, ...]


@pytest.fixture
def made(cache: Path) -> Store:
    blobs = MemoryStore("agreeing")
    with created(blobs, cache) as store:
        store.save("m", tensors(1), base=None)
        table = list(store.load("m")._opened.content.table)[:3]
    packs = []
    for held in HELD:
        builder = PackBuilder()
        for place in (table[number] for number in held):
            end = place.offset + place.frame_bytes
            span = ByteRange(place.offset - place.proof_bytes, end)
            builder.copy(place, blobs.get(pack_key(place.pack), span))
        pack, buffers, _ = builder.close()
        blobs.put(pack_key(pack), b"".join(buffers))
        packs.append(pack)
    return Store(Home(blobs), blobs, tuple(packs), tuple(one.digest for one in table))


numbers = st.integers(0, len(HELD) - 1)
into = st.lists(numbers, max_size=4)


@given(
    moves=st.dictionaries(numbers, st.lists(into, min_size=1, max_size=3), max_size=len(HELD)),
    gone=st.sets(numbers),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_readers_and_collectors_come_to_the_same_places(
    made: Store, moves: dict[int, list[list[int]]], gone: set[int]
) -> None:
    blobs, packs = MemoryStore("graph"), made.packs
    for info in made.blobs.list():
        if info.key not in {pack_key(packs[one]) for one in gone}:
            blobs.put(info.key, made.blobs.get(info.key))
    for pack, every in moves.items():
        for number, names in enumerate(every, 1):
            body = Move(pack=packs[pack].hex(), into=[packs[one].hex() for one in names])
            blobs.put(move_key(packs[pack], number), seal_body(Kind.MOVE, body))
    home = Home(blobs)
    readers, collectors = Moves(blobs, home.packs), Ways(home)
    collectors.look(read_holdings(home.packs))
    for one in packs:
        readers.learn(one)
        found = collectors.targets(one)
        assert not found.hidden
        assert {
            digest: place
            for digest in made.chunks
            if (place := readers.target(one, digest)) is not None
        } == {digest: place for digest in made.chunks if (place := found.find(digest)) is not None}


def test_ways_that_fork_and_meet_are_followed_once(made: Store) -> None:
    """Of packs that are gone each leads to two of the next generation, which both lead on."""
    gone = [[bytes([age, which] * 16) for which in (0, 1)] for age in range(12)]
    for older, newer in zip(gone, [*gone[1:], list(made.packs[5:])], strict=True):
        for pack in older:
            names = [one.hex() for one in newer]
            for number in (1, 2):
                body = Move(pack=pack.hex(), into=names)
                made.blobs.put(move_key(pack, number), seal_body(Kind.MOVE, body))
    ways = Ways(made.home)
    ways.look(read_holdings(made.home.packs))
    found = ways.targets(gone[0][0])
    assert len(found.tables) == 2
    for digest in made.chunks:
        place = found.find(digest)
        assert place is not None
        assert place.pack == made.packs[6 if digest in made.chunks[::2] else 5]


def test_a_move_of_another_pack_is_damaged(made: Store) -> None:
    here, other = made.packs[:2]
    body = Move(pack=other.hex(), into=[here.hex()])
    sealed = seal_body(Kind.MOVE, body)
    assert parse_move(sealed, other, "a move") == [here]
    with pytest.raises(Damaged, match=f"it is a move of pack {other.hex()}"):
        parse_move(sealed, here, "a move")
    made.blobs.put(move_key(here), sealed)
    with pytest.raises(Damaged):
        Moves(made.blobs, made.home.packs).learn(here)
    ways = Ways(made.home)
    ways.look(read_holdings(made.home.packs))
    with pytest.raises(Damaged):
        ways.targets(here)
