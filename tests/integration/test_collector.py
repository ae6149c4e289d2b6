"""What is collected and what stays, with the reason; what stays is healed before anything goes."""

from __future__ import annotations

import functools
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened, tensors
from tests.integration.test_collector_schedules import TUNED, tuned, weights
from tests.integration.test_tiers import Tiered
from tests.unit.format_by_hand import sealed
from tests.waiting import wait_until
from tierstore import Dense, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Damaged, NotFound, UnsupportedFormat, UsageError
from tierstore.format.keys import (
    ALIASES,
    COLLECTED,
    CONDEMNED,
    GC,
    INDEX,
    LEASES,
    MOVES,
    PACKS,
    PROBES,
    REMOVED_LOG,
    RESERVE,
    SWEEPS,
    fold_key,
    layout_key,
    list_key,
    pack_key,
)
from tierstore.format.layout import Fold
from tierstore.format.reflog import RefEntry
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.tiers import PINS, Pin
from tierstore.modelstore.home import readcache
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import TTL_S, WriterLease, new_lease
from tierstore.modelstore.home.refs import NOWHERE, RefTarget
from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease, Right
from tierstore.modelstore.reclaim import collector
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.kept import Kept, read_kept, write_kept
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.variants.derive import derive

DAY_S = 24 * 3600
PATCHED = {**tensors(3), "emb": tensors(9)["emb"], "bias": np.arange(77, dtype=np.int8)}
CHANGES = {"emb": Dense(PATCHED["emb"]), "bias": Dense(PATCHED["bias"])}
"""What changes every chunk that m@3 has alone."""


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("collected")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store with m@1 to m@3, each of a pack of its own; m@1's has what all have in common."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        yield store


def packs(blobs: MemoryStore) -> set[bytes]:
    return {bytes.fromhex(info.key.rpartition("/")[2]) for info in blobs.list(PACKS)}


def packs_of(store: Store, ref: str) -> set[bytes]:
    home = store._parts.home
    digest = store.resolve(ref).digest
    return set(home.layout(digest, home.manifest(digest)).pack_ids)


def keys(blobs: MemoryStore, prefix: str) -> list[str]:
    return [info.key for info in blobs.list(prefix)]


def collect(store: Store, **how: object) -> Report:
    return Collector(store._parts.home).run(**{"grace_s": 0, "window_s": 0, **how})  # type: ignore[arg-type]


def states(report: Report) -> dict[bytes, tuple[str, str]]:
    return {one.pack: (one.state, one.why) for one in report.packs}


def is_sound(store: Store) -> None:
    report = store.check(read_data=True)
    assert not report.damaged, report.findings


def age(blobs: MemoryStore, prefix: str, seconds: float) -> None:
    """What lies below a prefix was written so long ago."""
    for key in keys(blobs, prefix):
        data, mtime = blobs._blobs[key]
        blobs._blobs[key] = (data, mtime - seconds)


# What stays, and why


def test_nothing_of_versions_that_stay_is_deleted(store: Store, blobs: MemoryStore) -> None:
    before = packs(blobs)
    report = collect(store)
    assert packs(blobs) == before
    assert {one.state for one in report.packs} == {"live"}
    assert report.amounts()["live"].packs == 3
    assert report.amounts()["live"].bytes == sum(info.size for info in blobs.list(PACKS))
    assert keys(blobs, GC) == []


def test_only_who_enabled_it_collects(blobs: MemoryStore, cache: Path) -> None:
    with created(blobs, cache) as store:
        store.save("m", tensors(1))
        with pytest.raises(UsageError, match="gc --enable"):
            collect(store)
        before = dict(blobs._blobs)
        assert {one.state for one in collect(store, dry_run=True).packs} == {"live"}
        assert blobs._blobs == before


def test_what_is_removed_goes_and_what_others_share_stays(store: Store, blobs: MemoryStore) -> None:
    [first], [own] = packs_of(store, "m@1"), packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@1", "m@2")
    report = collect(store)
    assert states(report)[own] == ("deleted", "nothing needs it")
    assert states(report)[first] == ("live", "m@3"), "it has what m@3 has in common with it"
    assert own not in packs(blobs)
    assert report.condemned == 1
    equal(store.load("m@3").load(), tensors(3))
    is_sound(store)
    assert states(collect(store)).keys() == packs(blobs)


def test_a_removal_can_be_undone_within_its_window(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    report = collect(store, window_s=None)
    state, why = states(report)[own]
    assert state == "window"
    assert why.startswith("m@2 was removed, and can be undeleted until 20")
    store.undelete("m@2")
    with opened(blobs, Path(store._parts.settings.cache_dir) / "other") as other:
        equal(other.load("m@2").load(), tensors(2))
    store.remove("m@2")
    assert own in packs(blobs)
    store.retention.set("m", window=timedelta(0))
    assert states(collect(store, window_s=None))[own][0] == "deleted"
    with pytest.raises(NotFound, match="too late"):
        store.undelete("m@2")
    is_sound(store)


def test_the_bases_of_deltas_stay(store: Store, blobs: MemoryStore) -> None:
    base = weights(1)
    store.save("n", base, base=None)
    store.save("n", tuned(base, 3), base="n@1")
    below = packs_of(store, "n@1") & packs_of(store, "n@2")
    store.remove("n@1")
    report = collect(store)
    for pack in below:
        assert states(report)[pack] in {("base", "n@2"), ("live", "n@2")}
    assert "base" in {one.state for one in report.packs}
    equal(store.load("n@2").load(), TUNED)
    is_sound(store)


def test_what_a_patch_lies_on_stays_until_it_is_folded(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@3", CHANGES, fold=False)
    [own] = packs_of(store, "m@3") - packs_of(store, "m@1")
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [3])  # as one that was not refused
    assert states(collect(store))[own] == ("chain", "below the patch m@4")
    store.fold("m@4")
    blobs.delete(keys(blobs, LEASES))  # the fold's own is kept for some seconds
    report = collect(store)
    assert states(report)[own][0] == "deleted"
    assert own not in packs(blobs)
    equal(store.load("m@4").load(), PATCHED)
    is_sound(store)


def test_a_fold_that_is_not_whole_does_not_count(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@3", {"emb": Rows([1, 299], np.ones((2, 1000), np.float32))}, fold=False)
    before = packs(blobs)
    store.fold("m@4")
    [folded] = packs(blobs) - before
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [3])
    blobs.delete([pack_key(folded), *keys(blobs, LEASES)])
    assert collect(store).healed == 0
    assert packs(blobs) == before


def test_a_fold_that_was_written_anew_is_read_again(store: Store, blobs: MemoryStore) -> None:
    """By a collector that lives on, too."""
    store.patch("m@3", CHANGES, fold=False)
    store.fold("m@4")
    digest, other = store.resolve("m@4").digest, store.resolve("m@1").digest
    collector = Collector(store._parts.home)
    collector.run()
    assert collector.marker.layouts.fold_of(digest) not in (None, other)
    blobs.put(fold_key(digest), seal_body(Kind.FOLD, Fold(patch=digest.hex, full=other.hex)))
    collector.run()
    assert collector.marker.layouts.fold_of(digest) == other


def test_variants_go_with_their_version(store: Store, blobs: MemoryStore) -> None:
    before = packs(blobs)
    for number in (3, 2):  # the first one has what both have in common
        derive(store, f"m@{number}", {"cast": "bf16"})
    new = packs(blobs) - before
    assert len(new) == 2
    store.remove("m@2")
    report = collect(store)
    by_state = {states(report)[pack] for pack in new}
    assert by_state == {("deleted", "nothing needs it"), ("live", "m@3+bf16")}
    is_sound(store)


def test_members_of_releases_stay(store: Store) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.releases.create("all", ["m@2"])
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [2])
    assert states(collect(store))[own] == ("live", "release all@1")
    store.save("x", tensors(1))
    store.releases.create("all", ["x@1"])
    store.remove("all@1")
    assert states(collect(store))[own][0] == "deleted"


def test_members_of_a_removed_release_stop_nobody(store: Store, blobs: MemoryStore) -> None:
    """Their variants neither: what a run with a shorter window deleted the next does not miss."""
    before = packs(blobs)
    derive(store, "m@2", {"cast": "bf16"})
    [own] = packs(blobs) - before
    store.releases.create("all", ["m@2"])
    store.remove_model("all")
    store.remove("m@2")
    kind, why = states(collect(store, window_s=DAY_S))[own]
    assert kind == "window"
    assert why.startswith(("m@2+bf16 was removed", "release all@1 was removed"))
    assert states(collect(store))[own][0] == "deleted"
    assert collect(store, window_s=DAY_S).healed == 0


def test_the_variants_of_a_member_stay_while_one_of_its_releases_does(
    store: Store, blobs: MemoryStore
) -> None:
    """Whichever of the releases comes first."""
    before = packs(blobs)
    derive(store, "m@2", {"cast": "bf16"})
    [own] = packs(blobs) - before
    for name in ("a", "b", "c"):
        store.releases.create(name, ["m@2"])
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [2])
    for name in ("a", "c"):
        store.remove_model(name)
    assert states(collect(store, window_s=DAY_S))[own] == ("live", "release b@1")


def test_what_aliases_meant_stays_for_the_alias_history(store: Store) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    for version in ("m@2", "m@3", "m@1"):
        store.alias("m", "prod", version)
    store.remove("m@2")
    state, why = states(collect(store))[own]
    assert (state, why) == ("live", "alias m@prod left it in the last 30 d")
    store.retention.set(None, alias_history=timedelta(0))
    store.retention.set("m", alias_history=timedelta(hours=36), window=timedelta(0))
    assert states(collect(store))[own] == ("live", "alias m@prod left it in the last 1 d 12 h")
    store.retention.set("m", window=timedelta(0))
    assert states(collect(store))[own][0] == "deleted"


def test_what_an_alias_meant_can_come_back_with_its_variants(
    store: Store, blobs: MemoryStore
) -> None:
    """Also a release, with the variants of its members."""
    derive(store, "m@2", {"cast": "bf16"})
    for number in (2, 3):
        store.alias("m", "prod", f"m@{number}")
        store.releases.create("all", [f"m@{number}"])
        store.alias("all", "prod", f"all@{number - 1}")
    store.remove("all@1")
    store.remove("m@2")
    assert collect(store).of("deleted") == []
    store.remove_alias("m", "prod")
    store.retention.set("m", window=timedelta(0), alias_history=timedelta(0))
    assert collect(store).of("deleted") == [], "the release that it means is all@2 now"
    for ref in ("m@2", "all@1"):
        store.undelete(ref)
    assert store.load("m@2+bf16").load().keys() == tensors(2).keys()
    is_sound(store)


def named(manifest: str | None, last: RefEntry | None) -> RefTarget:
    return RefTarget(1, manifest)


def test_what_an_alias_means_stays_whole_though_it_was_removed(
    store: Store, blobs: MemoryStore
) -> None:
    """Who let it name the version had died before the look at removals."""
    store.releases.create("search", ["m@1"])
    for number in (4, 5):
        store.save("n", tensors(number), base=None)
    derive(store, "n@1", {"cast": "bf16"})
    home = store._parts.home
    for model in ("search", "n"):
        manifest = home.log(model).entry(1).manifest
        home.log(model, ALIASES + "prod").append("set", functools.partial(named, manifest))
    for model in ("search", "n", "m"):
        home.log(model, REMOVED_LOG).append("forget", lambda last: NOWHERE, "", [1])
    before = packs(blobs)
    assert collect(store).of("deleted") == []
    assert packs(blobs) == before


def test_an_alias_that_moves_every_night_has_one_reason(store: Store) -> None:
    """However many versions it left: their packs are counted together."""
    gone = ["m@1", "m@2", "m@3"]
    for number in (4, 5):
        store.save("m", tensors(number), base=None)
    for version in (*gone, "m@4", "m@5"):
        store.alias("m", "nightly", version)
    own = {pack for one in gone for pack in packs_of(store, one)}
    store.remove(*gone)
    own = own - packs_of(store, "m@4") - packs_of(store, "m@5")
    shares = store.reclaim.explain(window=timedelta(0)).of("home")
    [left] = [one for one in shares if one.why.startswith("alias m@nightly left it")]
    assert (left.objects, left.kind) == (len(own), "live")
    assert len(own) > 1
    sizes = {info.key: info.size for info in store._parts.home.blobs.list("packs/")}
    assert left.bytes == sum(sizes[pack_key(pack)] for pack in own)


def test_where_an_alias_would_go_back_to_stays(store: Store) -> None:
    store.retention.set(None, alias_history=timedelta(0))
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.alias("m", "prod", "m@2")
    store.alias("m", "prod", "m@3")
    store.remove("m@2")
    assert states(collect(store))[own] == ("live", "rollback of m@prod")


def test_where_an_alias_would_go_back_to_stays_though_it_was_removed_in_between(
    store: Store,
) -> None:
    store.retention.set(None, alias_history=timedelta(0))
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.alias("m", "prod", "m@2")
    store.remove_alias("m", "prod")
    store.alias("m", "prod", "m@3")
    store.remove("m@2")
    assert states(collect(store))[own] == ("live", "rollback of m@prod")


@pytest.mark.parametrize("end", ["removed", "moved on"])
def test_what_a_rollback_goes_back_to_does_not_stay_for_ever(store: Store, end: str) -> None:
    """It stays until the alias goes back elsewhere, or is removed; then for the alias history."""
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.alias("m", "prod", "m@2")
    if end == "removed":
        store.remove_alias("m", "prod")
        store.remove("m@2")
    else:
        store.alias("m", "prod", "m@3")
        store.remove("m@2")
        store.alias("m", "prod", "m@1")
    why = "alias m@prod left it in the last 30 d"
    assert states(collect(store))[own] == ("live", why)
    store.retention.set("m", alias_history=timedelta(0))
    assert states(collect(store))[own][0] == "deleted"


def test_what_is_pinned_stays(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    digest = store.resolve("m@2").digest
    store.remove("m@2")
    pin = Pin(version=digest.hex, ref="m@2", roles=["warm"], who="ada@x", until_us=None)
    blobs.put(PINS + digest.hex, seal_body(Kind.PIN, pin))
    assert states(collect(store))[own] == ("live", "pin of ada@x")


def test_what_is_read_stays_until_the_reader_is_done(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    model = store.load("m@2")
    wait_until(lambda: bool(keys(blobs, LEASES)), "a reader's lease")
    store.remove("m@2")
    state, why = states(collect(store))[own]
    assert (state, why.partition(" ")[0]) == ("leased", "lease")
    equal(model.load(), tensors(2))
    model.close()
    wait_until(lambda: not keys(blobs, LEASES), "the end of the lease")
    assert states(collect(store))[own][0] == "deleted"


def test_a_reader_keeps_what_its_patch_lay_on(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@3", CHANGES, fold=False)
    [own] = packs_of(store, "m@3") - packs_of(store, "m@1")
    lease = new_lease("reader")
    lease.versions.append(store.resolve("m@4").digest.hex)
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    store.fold("m@4")
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [3])
    assert states(collect(store))[own][0] == "leased"
    blobs.delete(keys(blobs, LEASES))
    assert states(collect(store))[own][0] == "deleted"


def test_a_lease_ends_well_after_its_time(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    lease = new_lease("reader")
    lease.versions.append(store.resolve("m@2").digest.hex)
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    log = store._parts.home.log("m", "removed")
    log.append("forget", lambda last: (None, None, None), None, [2])
    age(blobs, LEASES, 1.9 * TTL_S)
    assert states(collect(store))[own][0] == "leased"
    age(blobs, LEASES, 0.2 * TTL_S)
    assert states(collect(store))[own][0] == "deleted"
    assert keys(blobs, LEASES) == [], "it is tidied up"


def test_a_lease_of_a_newer_version_ends_too(store: Store, blobs: MemoryStore) -> None:
    """It is renewed at least once in 7 days, as any; so long nobody knows what it holds."""
    lease = {**msgspec.to_builtins(new_lease("reader")), "requires": ["later"]}
    blobs.put(LEASES + lease["id"], sealed(Kind.LEASE, msgspec.json.encode(lease)))
    age(blobs, LEASES, 13.9 * DAY_S)
    with pytest.raises(UnsupportedFormat, match=f"{LEASES}{lease['id']} .*'later'"):
        collect(store)
    with WriterLease(blobs) as writer:
        writer.remove_ended()
    assert keys(blobs, LEASES) == [LEASES + lease["id"]]
    age(blobs, LEASES, 0.2 * DAY_S)
    collect(store)
    assert keys(blobs, LEASES) == []


# Waiting


def orphan(store: Store, blobs: MemoryStore) -> bytes:
    """A pack that a save left which died before it was published."""
    before = packs(blobs)

    def plan(op: str, key: str, n: int) -> Fault:
        return Damaged("it died") if key.startswith("versions/") else None

    cache = Path(store._parts.settings.cache_dir) / "died"
    with opened(FaultyStore(blobs, plan), cache) as died, pytest.raises(Damaged):
        died.save("x", weights(8))
    [left] = packs(blobs) - before
    return left


def test_what_an_unfinished_save_left_waits_for_the_grace(store: Store, blobs: MemoryStore) -> None:
    left = orphan(store, blobs)
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    collector = Collector(store._parts.home)
    report = collector.run(window_s=0, grace_s=DAY_S)
    assert states(report)[own][0] == "deleted", "it has waited for its window"
    state, why = states(report)[left]
    assert state == "waiting"
    assert why.startswith(
        "no version has it: a save that was not finished can go on with it until 20"
    )
    assert left in packs(blobs)
    kept = read_kept(blobs, time.time())
    assert set(kept.seen) == {left}
    write_kept(blobs, Kept({left: kept.seen[left] - DAY_S - 1}), time.time())
    assert states(collect(store, grace_s=DAY_S))[left][0] == "deleted", "by another process"


def test_what_is_needed_again_waits_anew(store: Store, blobs: MemoryStore) -> None:
    left = orphan(store, blobs)
    collector = Collector(store._parts.home)
    collector.run(grace_s=DAY_S)
    assert left in read_kept(blobs, time.time()).seen
    store.save("x", weights(8))
    assert packs_of(store, "x@1") == {left}
    assert states(collector.run(grace_s=DAY_S))[left] == ("live", "x@1")
    assert left not in read_kept(blobs, time.time()).seen


def test_saves_that_run_are_waited_for_by_their_leases(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    collector = Collector(store._parts.home)
    with WriterLease(blobs) as lease:
        state, why = states(collector.run(grace_s=0, window_s=0))[own]
        assert state == "writing"
        assert why.startswith("nothing needs it: it goes once these saves have ended: ")
        said = re.search(r", lease (.*); if it was killed, until (.*) UTC\)$", why)
        assert said is not None
        assert said[1] == lease._lease.id
        left_s = datetime.fromisoformat(f"{said[2]}+00:00").timestamp() - time.time()
        assert left_s == pytest.approx(2 * lease._lease.ttl_s, abs=60)
        assert own in packs(blobs)
        assert states(collector.run(grace_s=0, window_s=0))[own][0] == "writing"
    with WriterLease(blobs):  # it began after the list: it sees that itself
        assert states(collector.run(grace_s=0, window_s=0))[own][0] == "deleted"
    assert own not in packs(blobs)


def test_another_process_waits_for_all_saves_that_it_finds(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    with WriterLease(blobs):
        collect(store)
        assert states(collect(store))[own][0] == "writing"
    assert states(collect(store))[own][0] == "deleted"


def test_one_collects_at_a_time(store: Store, blobs: MemoryStore) -> None:
    with (
        HeldLease(blobs, COLLECTOR),
        pytest.raises(Conflict, match="another garbage collection is at work"),
    ):
        collect(store)
    collect(store)
    assert len(keys(blobs, SWEEPS)) == 1


def test_a_long_mark_keeps_the_right(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lasts for 1 s unless it is renewed; the mark takes until it was written 8 times."""
    monkeypatch.setattr(collector, "COLLECTOR", Right(SWEEPS, "garbage collection", ttl_s=1))
    written, errors, mark = list[str](), list[str](), Marker.mark

    def plan(op: str, key: str, n: int) -> Fault:
        if op in ("put", "put_if_absent") and key.startswith(SWEEPS):
            written.append(key)
        return None

    def long(self: Marker, *how: Any) -> Mark:
        if not errors:
            wait_until(lambda: len(written) >= 8, "the right is written anew")
            with pytest.raises(Conflict, match="another garbage collection is at work"):
                collect(store)
            errors.append("it was refused")
        return mark(self, *how)

    monkeypatch.setattr(Marker, "mark", long)
    Collector(Home(FaultyStore(blobs, plan))).run()
    assert errors
    assert set(written) == {f"{SWEEPS}000000001"}


def test_who_has_lost_the_right_keeps_no_note(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, mark = list[bytes](), Marker.mark

    def overtaken(self: Marker, *how: Any) -> Mark:
        found = mark(self, *how)
        if not notes:
            notes.append(b"")
            age(blobs, SWEEPS, 3600)
            collect(store)
            notes.append(bytes(blobs.get(COLLECTED)))
        return found

    monkeypatch.setattr(Marker, "mark", overtaken)
    with pytest.raises(Conflict, match="another garbage collection has taken over"):
        collect(store)
    assert bytes(blobs.get(COLLECTED)) == notes[-1]


# Healing


def condemned_now(store: Store, blobs: MemoryStore, ref: str) -> set[bytes]:
    found = packs_of(store, ref)
    condemn(blobs, *map(pack_key, found))
    return found


def test_what_is_condemned_and_needed_is_copied_first(store: Store, blobs: MemoryStore) -> None:
    condemned = condemned_now(store, blobs, "m@2")
    report = collect(store)
    assert report.healed > 0
    assert packs(blobs).isdisjoint(condemned)
    assert len(packs(blobs)) == 2, "m@3's own, and one new pack"
    for number in range(1, 4):
        assert packs_of(store, f"m@{number}") <= packs(blobs), "layouts name what is there"
    with opened(blobs, Path(store._parts.settings.cache_dir) / "other") as other:
        for number in range(1, 4):
            equal(other.load(f"m@{number}").load(), tensors(number))
    is_sound(store)
    again = collect(store)
    assert (again.healed, again.condemned) == (0, 0)
    assert {one.state for one in again.packs} == {"live"}


def test_condemned_deltas_and_their_bases_are_copied(store: Store, blobs: MemoryStore) -> None:
    store.save("n", weights(1), base=None)
    store.save("n", TUNED, base="n@1")
    store.remove("n@1")
    condemned_now(store, blobs, "n@2")
    assert collect(store).healed > 0
    equal(store.load("n@2").load(), TUNED)
    is_sound(store)
    assert collect(store).healed == 0


def test_a_missing_layout_is_written_again(store: Store, blobs: MemoryStore) -> None:
    key = layout_key(store.resolve("m@2").digest)
    blobs.delete([key])
    assert collect(store).healed == 1
    assert key in keys(blobs, "layouts/")
    is_sound(store)


def test_what_is_in_another_pack_heals_what_is_gone(store: Store, blobs: MemoryStore) -> None:
    store.save("copy", tensors(2), base=None)
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    data = bytes(blobs.get(pack_key(own)))
    blobs.delete([pack_key(own)])
    store.save("copy", tensors(2), base=None)  # stored again, with moves
    blobs.delete(keys(blobs, MOVES))
    assert data
    assert collect(store).healed > 0
    equal(store.load("m@2").load(), tensors(2))
    is_sound(store)


def test_what_cannot_be_healed_ends_the_run_before_anything_is_deleted(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    [dead] = packs_of(store, "m@3") - packs_of(store, "m@1")
    store.save("m", tensors(1))
    store.remove("m@3")
    blobs.delete([pack_key(own)])
    with pytest.raises(Damaged, match=r"m@2 .*has lost chunks.*tierstore rm"):
        collect(store)
    assert dead in packs(blobs)
    store.remove("m@2")
    assert states(collect(store))[dead][0] == "deleted"
    is_sound(store)


def test_a_delta_whose_base_is_gone_heals_nothing(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """It is in two packs: copied from one to the other, it would be lost there as well."""
    store.save("n", weights(1), base=None)
    store.save("n", TUNED, base="n@1")
    blobs.delete(keys(blobs, INDEX))
    with opened(blobs, tmp_path / "other") as other:
        other.save("again", TUNED, base="n@1")
    blobs.delete([pack_key(one) for one in packs_of(store, "n@1")])
    store.remove("n@1")
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"(n@2|again@1) .*has lost chunks.*tierstore rm"):
        collect(store)
    assert packs(blobs) == before


@pytest.mark.parametrize("prefix", ["refs/m/versions/000000/", "versions/", "layouts/", LEASES])
def test_what_cannot_be_read_ends_the_run_and_is_named(
    store: Store, blobs: MemoryStore, prefix: str
) -> None:
    left = orphan(store, blobs)
    blobs.put(f"{LEASES}{uuid.uuid4().hex}", b"no lease")
    if prefix != LEASES:
        blobs.delete(keys(blobs, LEASES))
    key = keys(blobs, prefix)[0]
    blobs.put(key, bytes(blobs.get(key))[:-1])
    with pytest.raises(Damaged, match=key):
        collect(store)
    assert left in packs(blobs)


def test_an_entry_that_is_missing_ends_the_run(store: Store, blobs: MemoryStore) -> None:
    blobs.delete(["refs/m/versions/000000/000000002"])
    with pytest.raises(Damaged, match="000000002"):
        collect(store)


def test_an_entry_that_goes_while_logs_are_read_ends_the_run(
    store: Store, blobs: MemoryStore
) -> None:
    entry = "refs/m/versions/000000/000000002"

    def plan(op: str, key: str, number: int) -> Fault:
        if op.startswith("get") and key.startswith("refs/m/"):
            blobs.delete([entry])
        return None

    with pytest.raises(Damaged, match=f"{entry}.*deleted just now"):
        Collector(Home(FaultyStore(blobs, plan))).run(grace_s=0, window_s=0)


def test_an_entry_far_ahead_of_its_log_ends_the_run(store: Store, blobs: MemoryStore) -> None:
    """Whether it is a stray file, or what is left of a log, nobody can tell."""
    stray = "refs/m/versions/999999/999999999"
    blobs.put(stray, blobs.get("refs/m/versions/000000/000000001"))
    store.remove("m@1")
    with pytest.raises(Damaged, match=f"{stray} .*far ahead of entry 3, .*move it away"):
        collect(store)
    blobs.delete([stray])
    assert collect(store).lacking == ()


def test_a_quarantined_pack_goes_once_everything_in_it_is_healed(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    key = pack_key(own)
    data = bytearray(blobs.get(key))
    data[200] ^= 1
    blobs.put(key, data)
    assert store.check(read_data=True).quarantined == [key]
    assert states(collect(store))[own] == ("live", "m@2"), "what is good of it may be all there is"
    store.save("again", tensors(2), base=None)
    report = collect(store)
    assert states(report)[own][0] == "deleted"
    equal(store.load("m@2").load(), tensors(2))


# Tiers


def test_a_pack_is_deleted_when_every_tier_said_so(tiered: Tiered) -> None:
    store = tiered.open()
    enable(store._parts.home, wait_s=0)
    store.save("m", tensors(1))
    store.save("m", tensors(2), base=None)
    for target in ("cold", "home"):
        tiered.copy("warm", target)
    own = packs_of(store, "m@1") - packs_of(store, "m@2")
    store.save("m", {"w": np.ones(3)})
    store.remove("m@1", "m@2")
    tiered.down("cold")
    report = collect(store)
    for pack in packs_of_removed(report, "down"):
        assert states(report)[pack][1] == "nothing needs it: it goes once tier cold can be asked"
    assert len(packs_of_removed(report, "down")) == 2
    assert [len(tiered.packs(name)) for name in ("warm", "cold", "home")] == [1, 2, 0]
    tiered.plans.clear()
    report = collect(store)
    assert len(packs_of_removed(report, "deleted")) == 2
    assert [len(tiered.packs(name)) for name in ("warm", "cold", "home")] == [1, 0, 0]
    assert not own & {one.pack for one in collect(store).packs}


def packs_of_removed(report: Report, state: str) -> list[bytes]:
    return [one.pack for one in report.packs if one.state == state]


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Tiered]:
    made = Tiered(tmp_path)
    yield made
    made.plans.clear()
    for store in made.opened:
        store.close()


def test_a_pack_in_a_tier_that_is_down_is_not_lost(tiered: Tiered) -> None:
    store = tiered.open()
    enable(store._parts.home, wait_s=0)
    store.save("m", tensors(1))
    tiered.copy("warm", "cold", drop=True)
    tiered.down("cold")
    report = collect(store)
    assert (report.healed, list(report.down)) == (0, ["cold"])
    tiered.plans.clear()
    equal(store.load("m").load(), tensors(1))


def test_a_tier_that_is_down_once_does_not_begin_the_grace_anew(tiered: Tiered) -> None:
    store = tiered.open()
    home = store._parts.home
    enable(home, wait_s=0)
    store.save("m", tensors(1))
    left, key = bytes(32), pack_key(bytes(32))  # of a save that was never finished
    tiered.stores["cold"].inner.put(key, b"left")
    collect(store, grace_s=DAY_S)
    kept = read_kept(home.blobs, time.time())
    assert kept.seen.keys() == {left}
    write_kept(home.blobs, replace(kept, seen={left: time.time() - 1.1 * DAY_S}), time.time())
    tiered.down("cold")
    assert not collect(store, grace_s=DAY_S).condemned, "it was not listed"
    tiered.plans.clear()
    assert states(collect(store, grace_s=DAY_S))[left][0] == "deleted"


# Limits and tidying


def test_limits_end_a_run_between_batches(store: Store, blobs: MemoryStore) -> None:
    store.save("m", {"w": np.ones(3)})
    store.remove("m@1", "m@2", "m@3")
    sizes = sorted(info.size for info in blobs.list(PACKS))[1:]
    over = collect(store, max_time_s=0)
    assert over.stopped == "the time is over"
    assert over.amounts()["condemned"].packs == 3
    first = collect(store, max_bytes=sizes[-1])
    assert first.stopped == "the limit of bytes is reached"
    assert first.amounts()["deleted"].packs == 1
    rest = collect(store, max_bytes=sum(sizes))
    assert rest.stopped is None
    assert len(packs(blobs)) == 1


def test_a_dry_run_says_what_would_be_deleted(store: Store, blobs: MemoryStore) -> None:
    store.remove("m@2")
    [own] = packs_of_layout(store, blobs)
    before = dict(blobs._blobs)
    assert states(collect(store, dry_run=True))[own] == ("deleted", "nothing needs it")
    assert blobs._blobs == before
    condemn(blobs, *keys(blobs, PACKS))
    before = dict(blobs._blobs)
    assert collect(store, dry_run=True).lacking == ["m@1", "m@3"]
    assert blobs._blobs == before


def packs_of_layout(store: Store, blobs: MemoryStore) -> set[bytes]:
    """The packs that no version needs any more."""
    needed = packs_of(store, "m@1") | packs_of(store, "m@3")
    return packs(blobs) - needed


def test_a_second_run_reads_next_to_nothing(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    store.patch("m@3", {"emb": Rows([1], np.ones((1, 1000), np.float32))})
    store.fold("m@4")
    store.remove("m@2")
    watched = FaultyStore(blobs)
    collector = Collector(Home(watched))
    collector.run(grace_s=0, window_s=0)
    collector.run(grace_s=0, window_s=0)
    watched.calls.clear()
    collector.run(grace_s=0, window_s=0)
    read = [key for op, key in watched.calls if op.startswith("get") or op == "info"]
    few = ("sweeps/", "probes/", "leases/", "config.json", COLLECTED, RESERVE)
    assert all(key.startswith(few) for key in read), read
    store.save("m", tensors(7))
    watched.calls.clear()
    collector.run(grace_s=0, window_s=0)
    read = [key for op, key in watched.calls if op == "get"]
    assert sum(key.startswith(("versions/", "layouts/", "refs/")) for key in read) <= 5


def test_a_rebased_layout_is_read_again(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    store.save("n", weights(1), base=None)
    store.save("n", TUNED, base="n@1")
    collector = Collector(store._parts.home)
    collector.run(grace_s=0, window_s=0)
    store.rebase("n@2", above=1)
    report = collector.run(grace_s=0, window_s=0)
    assert packs_of(store, "n@2") <= packs(blobs)
    assert {states(report)[pack][0] for pack in packs_of(store, "n@2")} == {"live"}
    equal(store.load("n@2").load(), TUNED)
    is_sound(store)


def test_what_is_over_is_tidied(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: list[float] = [0]
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + clock[0])
    for number in (1, 2):
        store.save("m", {"w": np.full(3, number)})
        store.remove(f"m@{3 + number - 1}", force=True)
        collect(store)
    assert keys(blobs, GC) == [list_key(1), list_key(2)]
    unnamed = CONDEMNED + "ab" * 16
    blobs.put(unnamed, bytes(blobs.get(keys(blobs, CONDEMNED)[0])))
    blobs.put(PROBES + "cd" * 16, b"1")
    ended = Pin(version="ab" * 32, ref="m", roles=["warm"], who="ada@x", until_us=1)
    blobs.put(PINS + "ab" * 32, seal_body(Kind.PIN, ended))
    clock[0] = 2 * DAY_S
    collect(store)
    assert keys(blobs, GC) == [list_key(2)]
    assert keys(blobs, PROBES) == []
    assert keys(blobs, PINS) == []
    assert len(keys(blobs, CONDEMNED)) == 3, "the highest list names two of them"
    clock[0] = 31 * DAY_S
    collect(store)
    assert keys(blobs, GC) == [list_key(2), list_key(3)]
    assert Home(blobs).condemned.every().packs == set()
    clock[0] = 65 * DAY_S
    collect(store)
    assert keys(blobs, GC) == [list_key(3)]
    assert keys(blobs, CONDEMNED) == [unnamed], "a collector may be about to name it"


def test_a_segment_stays_listed_while_a_tier_has_one_of_its_packs(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    with WriterLease(blobs):
        collect(store)
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 40 * DAY_S)
    collect(store, max_time_s=0)
    assert Home(blobs).condemned.every().packs == {own}


def test_a_removed_version_that_is_lost_stops_nobody(store: Store, blobs: MemoryStore) -> None:
    store.save("n", weights(5), base=None)
    store.save("n", {"w": np.ones(9)}, base=None)
    [lost] = packs_of(store, "n@1")
    blobs.delete([pack_key(lost)])
    with pytest.raises(Damaged, match=r"n@1 .*'tierstore rm' removes it"):
        collect(store, window_s=DAY_S)
    store.remove("n@1")
    assert collect(store, window_s=DAY_S).healed == 0
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    assert states(collect(store))[own][0] == "deleted"
    report = collect(store, window_s=DAY_S)
    assert report.healed == 0
    assert collect(store, window_s=DAY_S, dry_run=True).lacking == []
    with pytest.raises(NotFound, match="too late"):
        store.undelete("m@2")
    equal(store.load("m@3").load(), tensors(3))


def test_a_window_that_grows_brings_back_what_is_there(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    with WriterLease(blobs):
        assert states(collect(store))[own][0] == "writing"
    report = collect(store, window_s=DAY_S)
    assert states(report)[own][0] == "deleted"
    assert len(report.of("window")) == 1, "copied out of the pack that is condemned"
    store.undelete("m@2")
    equal(store.load("m@2").load(), tensors(2))


def test_the_packs_of_a_patch_that_has_a_fold_stay_though_they_are_condemned(
    store: Store, blobs: MemoryStore
) -> None:
    before = packs(blobs)
    store.patch("m@3", CHANGES, fold=False)
    [own] = packs(blobs) - before
    store.fold("m@4")
    condemn(blobs, pack_key(own))  # by a collection that came between the pack and the entry
    blobs.delete(keys(blobs, LEASES))  # the fold's own is kept for some seconds
    for _ in range(2):
        assert states(collect(store))[own][0] == "live"
    equal(store.load("m@4").load(), PATCHED)
    is_sound(store)
