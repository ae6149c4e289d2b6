"""Durable tiers: the fastest good copy is read, and absent is told apart from unreachable."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    Unreachable,
)
from tierstore.format.tiers import TierSpec
from tierstore.ids import ByteRange
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.durable import tiers as durable
from tierstore.tiers.durable.marker import Keeper, claim, verify
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier
from tierstore.tiers.guard.lazy import LazyStore

KEY = "packs/ab/" + "ab" * 32
DOWN = Unreachable("no answer")
KEEPER = Keeper(frozenset({"written 1"}), "memory://home", "somebody@host", 1)


class Tiers:
    """Warm, cold and home in memory, each able to fail."""

    def __init__(self, *, draining: str = "") -> None:
        self.faults: dict[str, Fault] = {}
        self.stores = {name: self._store(name) for name in ("warm", "cold", "home")}
        tiers = [
            DurableTier(
                TierSpec(
                    name=name, role="warm", url=f"memory://{name}",
                    state="draining" if name == draining else "active",
                ),
                self.stores[name], store_id="s",
            )
            for name in ("warm", "cold")
        ]  # fmt: skip
        for tier in tiers:
            claim(self.stores[tier.name].inner, tier.name, "s", (), lambda: KEEPER)
        self.tiers = DurableTiers([*tiers, home_tier(self.stores["home"])])

    def _store(self, name: str) -> FaultyStore:
        return FaultyStore(MemoryStore(name), lambda op, key, n: self.faults.get(name))

    def calls(self, name: str) -> list[str]:
        found = [op for op, key in self.stores[name].calls if key == KEY]
        self.stores[name].calls.clear()
        return found


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


def read(tiers: Tiers, size: int = 4, avoid: frozenset[str] = frozenset()) -> tuple[str, bytes]:
    out = bytearray(size)
    name = tiers.tiers.read([RangeRead(KEY, 0, memoryview(out))], avoid)
    return name, bytes(out)


@pytest.mark.parametrize("holder", ["warm", "cold", "home"])
def test_a_read_falls_through_to_whoever_has_the_pack(tiers: Tiers, holder: str) -> None:
    tiers.stores[holder].inner.put(KEY, b"pack")
    assert read(tiers) == (holder, b"pack")
    assert bytes(tiers.tiers.get(KEY, ByteRange(1, 3))) == b"ac"
    assert tiers.tiers.info(KEY).size == 4
    stats = {tier.name: (tier.stats.hits, tier.stats.hit_bytes) for tier in tiers.tiers.tiers}
    assert stats == {"warm": (0, 0), "cold": (0, 0), "home": (0, 0)} | {holder: (2, 6)}


def test_the_fastest_copy_is_read_and_one_that_is_avoided_is_not(tiers: Tiers) -> None:
    for name in ("warm", "cold"):
        tiers.stores[name].inner.put(KEY, name.encode()[:4])
    assert read(tiers) == ("warm", b"warm")
    assert read(tiers, avoid=frozenset(["warm"])) == ("cold", b"cold")
    with pytest.raises(NotFound):
        read(tiers, avoid=frozenset(["warm", "cold"]))


def test_where_a_pack_was_found_is_asked_first(tiers: Tiers) -> None:
    tiers.stores["cold"].inner.put(KEY, b"pack")
    read(tiers)
    assert tiers.calls("warm") == ["get_ranges"]
    read(tiers)
    assert tiers.calls("warm") == []


def test_what_is_remembered_is_never_trusted(tiers: Tiers) -> None:
    tiers.stores["cold"].inner.put(KEY, b"pack")
    read(tiers)
    tiers.stores["warm"].inner.put(KEY, b"PACK")
    tiers.stores["cold"].inner.delete([KEY])
    assert read(tiers) == ("warm", b"PACK")
    tiers.stores["warm"].inner.delete([KEY])
    with pytest.raises(NotFound, match="none of the tiers warm, cold, home"):
        read(tiers)


def test_after_a_while_faster_tiers_are_asked_again(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tiers.stores["cold"].inner.put(KEY, b"pack")
    read(tiers)
    tiers.stores["warm"].inner.put(KEY, b"PACK")
    now += 59
    assert read(tiers)[0] == "cold"
    now += 2
    assert read(tiers)[0] == "warm"


def test_it_remembers_a_bounded_number(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_REMEMBERED", 3)
    for number in range(9):
        tiers.stores["cold"].inner.put(f"packs/{number}", b"pack")
        tiers.tiers.get(f"packs/{number}")
    assert len(tiers.tiers._where) == 3


def test_a_tier_that_fails_is_passed_over(tiers: Tiers, caplog: pytest.LogCaptureFixture) -> None:
    tiers.stores["cold"].inner.put(KEY, b"pack")
    tiers.faults["warm"] = DOWN
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read(tiers) == ("cold", b"pack")
            tiers.tiers._where.clear()
    assert [record.getMessage() for record in caplog.records] == ["tier warm failed: no answer"]


def test_not_found_is_told_apart_from_could_not_ask(tiers: Tiers) -> None:
    tiers.faults["warm"] = DOWN
    with pytest.raises(Unreachable, match=r"may exist: tier warm could not be asked: no answer"):
        read(tiers)
    with pytest.raises(Unreachable, match="may exist"):
        tiers.tiers.info(KEY)
    tiers.faults["warm"] = tiers.faults["cold"] = PermissionDenied("refused")
    with pytest.raises(PermissionDenied, match=r"tier warm .*tier cold"):
        read(tiers)
    tiers.faults.clear()
    with pytest.raises(NotFound):
        read(tiers)


def test_a_copy_that_is_cut_short_is_passed_over_loudly(
    tiers: Tiers, caplog: pytest.LogCaptureFixture
) -> None:
    tiers.stores["warm"].inner.put(KEY, b"pa")
    tiers.stores["cold"].inner.put(KEY, b"pack")
    assert read(tiers) == ("cold", b"pack")
    assert "tier warm is damaged" in caplog.text
    tiers.stores["cold"].inner.delete([KEY])
    tiers.tiers._where.clear()
    with pytest.raises(Damaged):
        read(tiers)
    tiers.faults["cold"] = DOWN  # the good copy may be there
    with pytest.raises(Unreachable, match="tier cold could not be asked"):
        read(tiers)


def test_a_pack_that_moves_up_while_it_is_looked_for_is_found(tiers: Tiers) -> None:
    """Asked in order, warm does not have it yet, and then cold no longer has it."""
    tiers.stores["cold"].inner.put(KEY, b"pack")
    asked = []

    def plan(op: str, key: str, n: int) -> Fault:
        if key == KEY and op == "get_ranges":
            asked.append(op)
            if len(asked) == 1:
                tiers.stores["warm"].inner.put(KEY, b"pack")
                tiers.stores["cold"].inner.delete([KEY])
                return NotFound("not yet")
        return None

    tiers.stores["warm"].plan = plan
    assert read(tiers) == ("warm", b"pack")


def test_a_mount_that_is_missing_is_not_an_empty_tier(tmp_path: Path) -> None:
    home, root = MemoryStore("home"), tmp_path / "mount"
    warm = LocalStore(root, create=True)
    claim(warm, "warm", "s", (), lambda: KEEPER)
    spec = TierSpec(name="warm", role="warm", url=warm.url)
    tiers = DurableTiers([DurableTier(spec, warm, store_id="s"), home_tier(home)])
    tiers.put(KEY, b"pack")
    assert not list(home.list())
    (root / "tier.json").rename(tmp_path / "elsewhere")
    (root / KEY).unlink()
    with pytest.raises(Unreachable, match="that it is mounted"):
        tiers.info(KEY)
    tiers.put(KEY, b"pack")  # and nothing is entrusted to it
    assert bytes(home.get(KEY)) == b"pack"


def test_a_pack_is_written_to_the_first_tier_that_takes_it(tiers: Tiers) -> None:
    def holders() -> list[str]:
        return [name for name, store in tiers.stores.items() if KEY in _keys(store.inner)]

    tiers.tiers.put(KEY, [b"pa", b"ck"])
    assert holders() == ["warm"]
    tiers.tiers.delete([KEY])
    tiers.faults["warm"] = OutOfSpace("full")
    tiers.tiers.put(KEY, b"pack")
    assert holders() == ["cold"]
    tiers.faults["cold"] = DOWN
    tiers.tiers.put(KEY, b"pack")
    tiers.faults["home"] = PermissionDenied("read-only")
    with pytest.raises(OutOfSpace, match="full"):
        tiers.tiers.put(KEY, b"pack")


def test_a_draining_tier_is_read_but_not_written() -> None:
    tiers = Tiers(draining="warm")
    tiers.tiers.put(KEY, b"pack")
    assert KEY not in _keys(tiers.stores["warm"].inner)
    tiers.stores["warm"].inner.put(KEY, b"WARM")
    tiers.tiers._where.clear()
    assert read(tiers) == ("warm", b"WARM")


def _keys(store: BlobStore) -> list[str]:
    return [info.key for info in store.list("packs/")]


def test_delete_reaches_every_tier_and_says_which_failed(tiers: Tiers) -> None:
    for store in tiers.stores.values():
        store.inner.put(KEY, b"pack")
    tiers.faults["warm"] = DOWN
    with pytest.raises(Unreachable):
        tiers.tiers.delete([KEY])
    assert [name for name, store in tiers.stores.items() if KEY in _keys(store.inner)] == ["warm"]
    tiers.faults.clear()
    tiers.tiers.delete(iter([KEY]))
    with pytest.raises(NotFound):
        tiers.tiers.get(KEY)


def test_listing_merges_and_hides_no_tier_that_cannot_be_asked(tiers: Tiers) -> None:
    for name, keys in {"warm": "ac", "cold": "ab", "home": "d"}.items():
        for key in keys:
            tiers.stores[name].inner.put(f"packs/{key}/{key}", name.encode())
    listed = list(tiers.tiers.list("packs/"))
    assert [(info.key[-1], info.size) for info in listed] == [
        ("a", 4),
        ("b", 4),
        ("c", 4),
        ("d", 4),
    ]
    assert list(tiers.tiers.list_folders("packs/")) == ["a", "b", "c", "d"]
    tiers.faults["cold"] = DOWN
    with pytest.raises(Unreachable):
        list(tiers.tiers.list("packs/"))


def test_one_tier_alone_is_the_store_itself() -> None:
    home = MemoryStore("home")
    tiers = DurableTiers([home_tier(home)])
    assert (tiers.url, tiers.capabilities) == (home.url, home.capabilities)
    assert tiers.put_if_absent(KEY, b"pack")
    assert not tiers.put_if_absent(KEY, b"pack")
    with pytest.raises(NotFound, match="memory://home"):
        tiers.get("packs/none")


def test_several_tiers_cannot_promise_a_first_writer(tiers: Tiers) -> None:
    assert not tiers.tiers.capabilities.put_if_absent
    with pytest.raises(BackendError, match="only if it is absent"):
        tiers.tiers.put_if_absent(KEY, b"pack")


def test_a_place_is_claimed_by_one_store() -> None:
    store = MemoryStore("tier")
    with pytest.raises(Unreachable, match="that it is mounted"):
        verify(store, "warm", "s")
    claim(store, "warm", "s", (), lambda: KEEPER)
    claim(store, "warm", "s", (), lambda: KEEPER)
    verify(store, "warm", "s")
    with pytest.raises(Conflict, match="another store"):
        claim(store, "warm", "other", (), lambda: KEEPER)
    with pytest.raises(Unreachable, match="another store"):
        verify(store, "warm", "other")
    for damage in (b"{", b"[]", b"\xff"):
        store.put("tier.json", damage)
        with pytest.raises(Unreachable):
            verify(store, "warm", "s")


def test_a_lazy_store_is_opened_once_when_it_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryStore("inner")
    answers: list[Exception | BlobStore] = [NotFound("no directory"), Conflict("x"), inner]
    opened = []

    def opener() -> BlobStore:
        opened.append(1)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lazy = LazyStore("file:///x", opener, "cold")
    assert (lazy.url, opened) == ("file:///x", [])
    for why in ("no directory", "x"):  # never "there is no such blob"
        with pytest.raises(Unreachable, match=f"file:///x cannot be opened: {why}"):
            lazy.get(KEY)
    assert len(caplog.records) == 1
    lazy.put(KEY, b"pack")
    assert (bytes(lazy.get(KEY)), len(opened)) == (b"pack", 3)
    assert lazy.capabilities == inner.capabilities
