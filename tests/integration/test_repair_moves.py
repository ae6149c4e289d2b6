"""A damaged move is made anew: what it leads to can be read, wherever else chunks lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_check_ways import lead
from tests.integration.test_deltas import model, tuned_model
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import PACKS, move_key, pack_key
from tierstore.format.layout import parse_move
from tierstore.format.pack import PackBuilder
from tierstore.format.table import ChunkPlace
from tierstore.ids import ByteRange
from tierstore.modelstore.home.home import chunks_of
from tierstore.modelstore.store import Store

NEW = tuned_model(model())


@pytest.fixture
def blobs(cache: Path) -> MemoryStore:
    """A store in which n@1 lies standalone in a pack of its own, beside the model it came from."""
    blobs = MemoryStore("moved")
    with created(blobs, cache) as store:
        store.save("m", model(), base=None)
        store.save("n", NEW, base=None)
    return blobs


@pytest.fixture
def deltas(cache: Path) -> tuple[bytes, bytes]:
    """Another pack with the same chunks, as deltas: its id and its bytes."""
    other = MemoryStore("elsewhere")
    with created(other, cache / "other") as store:
        store.save("m", model(), base=None)
        before = {info.key for info in other.list(PACKS)}
        store.save("m", NEW)
        assert all(place.bases for place in places_of(store, "m@2"))
    [key] = {info.key for info in other.list(PACKS)} - before
    return bytes.fromhex(key[-64:]), bytes(other.get(key))


def places_of(store: Store, ref: str) -> list[ChunkPlace]:
    """The places of a version's own chunks."""
    opened = store.load(ref)._opened.content
    home = store._parts.home
    digest = store.resolve(ref).digest
    own = set(chunks_of(home.manifest(digest)))
    return [place for place in opened.table if place.digest in own]


def pack_of(places: Iterable[ChunkPlace]) -> bytes:
    [pack] = {place.pack for place in places}
    return pack


def lost_with_its_move(blobs: MemoryStore, pack: bytes) -> None:
    blobs.put(move_key(pack), b"damaged")
    blobs.delete([pack_key(pack)])


def below(blobs: MemoryStore, places: list[ChunkPlace], limit: bytes) -> bytes:
    """Put another pack with these frames, whose id is lower than a given one.

    Ids are random, and that one may be very low itself.
    """
    for _ in range(100_000):
        builder = PackBuilder()
        for place in places:
            end = place.offset + place.frame_bytes
            span = ByteRange(place.offset - place.proof_bytes, end)
            builder.copy(place, blobs.get(pack_key(place.pack), span))
        pack, buffers, _ = builder.close()
        if pack < limit and pack != places[0].pack:
            blobs.put(pack_key(pack), b"".join(buffers))
            return pack
    raise AssertionError("no pack has such an id")


def with_deltas(blobs: MemoryStore, deltas: tuple[bytes, bytes], cache: Path) -> list[ChunkPlace]:
    """Put the pack of deltas; return where the layout has the chunks."""
    with opened(blobs, cache) as store:
        places = places_of(store, "n")
    delta, data = deltas
    blobs.put(pack_key(delta), data)
    return places


def test_what_lies_standalone_comes_after_deltas(
    blobs: MemoryStore, deltas: tuple[bytes, bytes], cache: Path
) -> None:
    places, delta = with_deltas(blobs, deltas, cache), deltas[0]
    whole = below(blobs, places, delta)
    lost_with_its_move(blobs, pack_of(places))
    with opened(blobs, cache) as store:
        [done] = store.repair().objects
        assert done.outcome == "repaired"
        equal(store.load("n").load(), NEW)
    into = parse_move(blobs.get(done.key), pack_of(places), "move")
    assert into.index(whole) > into.index(delta)


def test_it_leads_to_the_bases_of_deltas_as_well(
    blobs: MemoryStore, deltas: tuple[bytes, bytes], cache: Path
) -> None:
    places = with_deltas(blobs, deltas, cache)
    lost_with_its_move(blobs, pack_of(places))
    with opened(blobs, cache) as store:
        [done] = store.repair().objects
        assert (done.outcome, done.key) == ("repaired", move_key(pack_of(places)))
        equal(store.load("n").load(), NEW)
        assert not store.check(read_data=True).damaged


def test_where_it_led_is_lost_if_no_pack_has_its_chunks(blobs: MemoryStore, cache: Path) -> None:
    with opened(blobs, cache) as store:
        pack = pack_of(places_of(store, "n"))
    lost_with_its_move(blobs, pack)
    with opened(blobs, cache) as store:
        report = store.repair()
        assert [(one.outcome, one.key) for one in report.objects] == [
            ("lost", move_key(pack)),
            ("lost", pack_key(pack)),
        ]
        assert [hit.version for hit in report.hit] == ["n@1"]
        store.save("again", NEW, base=None)
        equal(store.load("n").load(), NEW)
        assert store.repair().is_whole


def test_a_save_heals_what_moves_lead_to_a_delta_of(
    blobs: MemoryStore, deltas: tuple[bytes, bytes], cache: Path
) -> None:
    """It does not know the layout of the other version, and whether that has the base."""
    gone = pack_of(with_deltas(blobs, deltas, cache))
    lead(blobs, gone, deltas[0])
    blobs.delete([pack_key(gone)])
    with opened(blobs, cache) as store:
        with pytest.raises(Damaged, match="the base of a delta is not standalone"):
            store.load("n").load()
        store.save("o", {**NEW, "more": NEW["emb"][:1] + 1}, base=None)
        equal(store.load("n").load(), NEW)
        assert not store.check(read_data=True).damaged
