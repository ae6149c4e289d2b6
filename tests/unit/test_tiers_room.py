"""The room in a tier: when it is listed again, and when what is known of it is enough."""

from __future__ import annotations

import time

import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.format.tiers import TierSpec
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers.durable.room import Room
from tierstore.tiers.durable.tier import DurableTier


class World:
    """A tier with a quota of 100 bytes, at a time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.blobs = FaultyStore(MemoryStore("tier"))
        spec = TierSpec(name="warm", role="warm", url="memory://tier", size=100)
        self.room = Room(DurableTier(spec, self.blobs))
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def others_write(self, number: int, nbytes: int) -> None:
        self.blobs.inner.put(f"packs/00/{number}", bytes(nbytes))

    @property
    def listings(self) -> int:
        return sum(op == "list" for op, _ in self.blobs.calls)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_with_much_room_one_listing_lasts_for_an_hour(world: World) -> None:
    world.others_write(1, 30)
    for _ in range(5):
        world.room.look_again()
        assert world.room.fits(10)
        world.room.add(10)
        world.now_s += 600
    assert world.listings == 1
    assert world.room.fits(5)  # what this process has written counts
    world.now_s += 700
    world.others_write(2, 69)
    assert not world.room.fits(2)
    assert world.listings == 2


def test_one_that_is_nearly_full_is_listed_each_minute(world: World) -> None:
    world.others_write(1, 85)
    assert world.room.fits(10)
    world.now_s += 59
    assert world.room.fits(10)
    assert world.listings == 1
    world.others_write(2, 10)
    world.now_s += 2
    assert not world.room.fits(10)
    assert world.listings == 2


def test_one_that_was_full_is_listed_at_the_next_save(world: World) -> None:
    world.others_write(1, 100)
    assert not world.room.fits(1)
    assert not world.room.fits(1)
    assert world.listings == 1
    world.blobs.inner.delete(["packs/00/1"])  # by a collection
    world.room.look_again()
    assert world.room.fits(1)
    assert world.listings == 2
