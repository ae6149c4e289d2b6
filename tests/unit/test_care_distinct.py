"""Distinct chunks of many layouts add up to what a dict of all places gives."""

from __future__ import annotations

import random

import pytest

from tierstore.codecs import DELTA, RAW
from tierstore.format.checks import digest_of
from tierstore.format.layout import parse_layout, seal_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.care import distinct
from tierstore.modelstore.care.distinct import DistinctChunks

MANIFEST = Digest(bytes(32))
PACKS = [bytes([number]) * 32 for number in range(5)]


def layout(chosen: random.Random) -> ChunkTable:
    """Some of fifty chunks, each in any pack; every third is a delta where its base comes along."""
    numbers = chosen.sample(range(50), chosen.randrange(20))
    digests = [digest_of(bytes([number])).raw for number in numbers]
    places = []
    for number, digest in zip(numbers, digests, strict=True):
        bases = (digests[0],) if number % 3 == 0 and number != numbers[0] else ()
        lengths = chosen.randrange(100, 1000), 90, 2000 + number
        codec = DELTA if bases else RAW
        places.append(ChunkPlace(digest, chosen.choice(PACKS), 64, *lengths, codec, bases))
    data = seal_layout(MANIFEST, places, dict.fromkeys(PACKS, 10_000))
    return parse_layout(data, MANIFEST, "layout")


@pytest.mark.parametrize("at_once", [1, 30, 1 << 18])
def test_sums_are_those_of_the_places_that_were_seen_first(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distinct, "_AT_ONCE", at_once)
    chosen, chunks = random.Random(at_once), DistinctChunks()
    places, every_own = dict[bytes, ChunkPlace](), set[bytes]()
    for _ in range(20):
        table = layout(chosen)
        own = {place.digest for place in table if chosen.random() < 0.4}
        chunks.add(table, own)
        every_own |= own
        for place in table:
            places.setdefault(place.digest, place)
    sums, saved = chunks.sums(), {True: 0, False: 0}
    for digest, place in places.items():
        mine = digest in every_own
        saved[place.codec == DELTA or not mine] += mine * place.plain_bytes - place.frame_bytes
    assert sums.chunks == len(every_own)
    assert sums.plain_bytes == sum(places[digest].plain_bytes for digest in every_own)
    assert sums.frame_bytes == sum(place.frame_bytes for place in places.values())
    assert sums.packs == {place.pack for place in places.values()}
    assert (sums.codec_saved, sums.delta_saved) == (saved[False], saved[True])
