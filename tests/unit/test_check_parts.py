"""Layouts cut into what they need of each pack."""

from __future__ import annotations

import tracemalloc

import pytest

from tierstore.errors import OutOfSpace
from tierstore.format.layout import parse_layout, seal_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.care.check_parts import NeededParts, distinct


def digest(number: int) -> bytes:
    return number.to_bytes(32, "little")


def place(number: int, pack: int, at: int = 0, **more: object) -> ChunkPlace:
    offset = 64 + 200 * at
    fields = {"codec": 0, **more}
    return ChunkPlace(digest(number), digest(pack), offset, 150, 100, 50, **fields)  # type: ignore[arg-type]


def layout(version: int, places: list[ChunkPlace]) -> tuple[Digest, ChunkTable]:
    manifest = Digest(digest(version))
    sizes = {one.pack: 1 << 20 for one in places}
    return manifest, parse_layout(seal_layout(manifest, places, sizes), manifest, "layout")


@pytest.fixture
def parts() -> NeededParts:
    return NeededParts()


def test_a_layout_is_the_sum_of_its_parts(parts: NeededParts) -> None:
    places = [place(n, 1000 + n % 3, n, proof_bytes=7 * n) for n in range(10)]
    parts.add(*layout(1, places))
    assert parts.packs() == [digest(1000), digest(1001), digest(1002)]
    found = [one for pack in parts.packs() for part in parts.of(pack) for one in part.places()]
    assert sorted(found, key=lambda one: one.offset) == places
    assert parts.chunks() == 10


def test_a_delta_comes_with_its_bases(parts: NeededParts) -> None:
    near, far = place(1, 100), place(2, 200)
    delta = place(3, 100, 1, codec=3, bases=(far.digest, near.digest))
    parts.add(*layout(1, [near, far, delta]))
    [part] = parts.of(digest(100))
    assert [*part.places()] == [near, delta], "what is checked lies in the pack"
    assert part.table.find(far.digest) == far, "and the base elsewhere can be read"
    [other] = parts.of(digest(200))
    assert [*other.table] == [far]
    assert parts.chunks() == 3


def test_versions_share_parts_however_they_order_them(parts: NeededParts) -> None:
    places = [place(n, 100, n) for n in range(4)]
    parts.add(*layout(1, places))
    parts.add(*layout(2, places[::-1]))
    parts.add(*layout(3, places[:3]))
    moved = place(0, 101)
    parts.add(*layout(4, [moved, *places[1:]]))
    assert [[*part.places()] for part in parts.of(digest(100))] == [
        places,
        places[:3],
        places[1:],
    ]
    assert [own for _, own in distinct(parts.of(digest(100)))] == [places, [], []]
    assert parts.chunks() == 4, "the chunk that lies in two packs is one"
    assert parts.users([digest(101)]) == [Digest(digest(4))]
    assert parts.users([digest(100)]) == [Digest(digest(n)) for n in range(1, 5)]
    assert parts.users([digest(9)]) == parts.users([]) == []


def test_one_delta_on_two_places_of_its_base_is_two_parts(parts: NeededParts) -> None:
    """Else one layout's reader would be told to read the base where the other one has it."""
    delta = place(3, 100, codec=3, bases=(digest(1),))
    for version, pack in ((1, 200), (2, 300)):
        parts.add(*layout(version, [delta, place(1, pack)]))
    bases = [part.table.find(digest(1)) for part in parts.of(digest(100))]
    assert bases == [place(1, 200), place(1, 300)]


def test_memory_does_not_grow_with_the_chunks_of_all_versions(parts: NeededParts) -> None:
    """300 versions of 2,000 chunks, of which one is new: 600,000 pairs of version and chunk."""
    places = [place(n, 1_000_000 + n // 100, n % 100) for n in range(2000)]
    tracemalloc.start()
    try:
        for version in range(300):
            places[version] = place(100_000 + version, 2_000_000 + version)
            parts.add(*layout(version, places))
            if version == 100:
                before, _ = tracemalloc.get_traced_memory()
        assert tracemalloc.get_traced_memory()[0] - before < 4 << 20
    finally:
        tracemalloc.stop()
    assert parts.chunks() == 2299, "the first chunk of all was replaced at once"


def test_a_full_disk_says_what_to_do(parts: NeededParts) -> None:
    parts._db.execute("PRAGMA max_page_count = 20")
    places = [place(n, 1000 + n) for n in range(3000)]
    with pytest.raises(OutOfSpace, match="SQLITE_TMPDIR"):
        parts.add(*layout(1, places))
    parts.close()
