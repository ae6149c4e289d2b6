"""Versions are removed, named, refused and brought back; two that act at once see each other."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    Conflict,
    InvalidName,
    NotFound,
    TierstoreError,
    Unreachable,
    UsageError,
)
from tierstore.format.keys import CONFIG, LEASES, PACKS, REMOVED_LOG, layout_key, retention_key
from tierstore.format.reflog import Action, Hint, RefEntry
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.storeconfig import Features, encode_config, parse_config
from tierstore.ids import Digest
from tierstore.modelstore.chunks import writemove
from tierstore.modelstore.home import refs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease, in_force, new_lease
from tierstore.modelstore.home.probe import Probe
from tierstore.modelstore.home.refs import NOWHERE, RefTarget
from tierstore.modelstore.names import removalprotocol
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.reclaim import holders as holders_module
from tierstore.modelstore.reclaim import retention as retention_module
from tierstore.modelstore.reclaim.feature import enable, writers_seen
from tierstore.modelstore.reclaim.retention import Retentions
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore
from tierstore.variants.derive import derive


def content(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((40, 8), value, np.float32)}


def enabled(store: Store) -> Store:
    enable(store._parts.home, wait_s=0)
    return store


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("removal")


@pytest.fixture
def store(blobs: MemoryStore, tmp_path: Path) -> Iterator[Store]:
    """A store with the versions m@1 to m@5, m@2 to m@5 one byte more each."""
    with enabled(created(blobs, tmp_path)) as store:
        for number in range(1, 6):
            store.save("m", content(number), message=f"run {number}")
        yield store


def numbers(store: Store, model: str = "m") -> list[int]:
    return [version.number for version in store.versions(model)]


def test_a_removed_version_is_found_by_no_name(store: Store) -> None:
    digest = store.resolve("m@3").digest
    [gone] = store.remove("m@3", message="broken")
    assert str(gone) == "m@3"
    for ref in ("m@3", f"m@{digest}", f"m@{str(digest)[:15]}"):
        with pytest.raises(NotFound) as caught:
            store.load(ref)
        said = str(caught.value)
        assert said.startswith("m@3 was removed on 20")
        assert ", 'broken'; until 20" in said
        assert said.endswith(" UTC 'tierstore undelete m@3' brings it back")
    assert numbers(store) == [5, 4, 2, 1]
    assert [version.number for version in store.versions("m", limit=3)] == [5, 4, 2]
    store.undelete("m@3")
    equal(store.load("m@3").load(), content(3))
    assert store.resolve(f"m@{digest}").number == 3


class Elsewhere(MemoryStore):
    """A store whose clock is another than that of this machine."""

    ahead_s = 0.0

    def info(self, key: str) -> BlobInfo:
        info = super().info(key)
        return BlobInfo(info.key, info.size, info.mtime + self.ahead_s)


@pytest.mark.parametrize("ahead_s", [-2e7, 2e7])
def test_the_window_is_counted_by_the_clock_of_home(ahead_s: float, tmp_path: Path) -> None:
    """Whoever removes may be half a year off: what is removed can be brought back for 7 days."""
    blobs = Elsewhere("elsewhere")
    blobs.ahead_s = ahead_s
    with enabled(created(blobs, tmp_path)) as store:
        store.save("m", content(1))
        store.save("m", content(2))
        store.remove("m@1")
        with days_ago(-ahead_s / 86400):  # somebody whose clock is right
            store.alias("m", "prod", "m@2")
        [gone] = store.deleted("m")
        week_s = 7 * 24 * 3600
        assert gone.until.timestamp() - time.time() - ahead_s == pytest.approx(week_s, abs=900)
        assert store.reclaim.run(grace=timedelta(0)).of("deleted") == []
        store.undelete("m@1")
        equal(store.load("m@1").load(), content(1))


def test_no_window_is_over_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the time of the removal lies ahead: of clocks of whole seconds one is always."""
    monkeypatch.setattr(refs, "probe", lambda home_blobs: Probe(True, 1.0))
    store.remove("m@1")
    report = store.reclaim.run(grace=timedelta(0), window=timedelta(0), repack=False)
    assert len(report.of("deleted")) == 1


def test_the_newest_is_the_newest_that_is_not_removed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=r"m@5 is the newest version of 'm'.*--force"):
        store.remove("m")
    store.remove("m@5", "m@4", force=True)
    assert store.resolve("m").number == 3
    with opened(store._blobs, tmp_path / "other") as other:
        assert other.resolve("m").number == 3
        assert numbers(other) == [3, 2, 1]
    assert store.patch("m", {"w": Rows([1], np.ones((1, 8), np.float32))}).number == 6


def test_no_removed_version_is_a_base_of_deltas(store: Store) -> None:
    """The newest of the model that stays is, or one of another model."""
    rng = np.random.default_rng(1)
    first = {"w": rng.standard_normal((100, 1000), np.float32)}
    tuned = [{"w": first["w"] * np.float32(1 + 1e-6 * n)} for n in range(7)]
    bases = []
    for number, model in enumerate(("a", "a", "a", "b", "a")):
        if number == 2:
            store.remove("a@2", force=True)
        if number == 3:
            store.remove("a@1", "a@3", force=True)
        stats = store.save(model, tuned[number]).stats
        assert stats is not None
        bases.append(stats.base)
    assert bases == [None, "a@1", "a@1", None, "b@1"]


def test_no_variant_of_a_removed_version_is_a_base_of_deltas(store: Store) -> None:
    first = np.random.default_rng(1).standard_normal((100, 1000), np.float32)
    bases = []
    for number in range(1, 4):
        store.save("a", {"w": first * np.float32(1 + 1e-4 * number)}, base=None)
        if number == 3:
            store.remove("a@2")
        stats = derive(store, f"a@{number}", {"cast": "bf16"}).stats
        assert stats is not None
        bases.append(stats.base)
    assert bases == [None, "a@1+bf16", "a@1+bf16"]


def test_equal_content_that_stays_is_found_by_its_digest(store: Store) -> None:
    store.save("m", content(1))
    digest = store.resolve("m@1").digest
    store.remove("m@1")
    assert store.resolve(f"m@{digest}").number == 6


def test_a_model_without_versions_is_not_listed_and_its_numbers_go_on(store: Store) -> None:
    store.save("n", content(9))
    assert [str(one) for one in store.remove_model("m", message="all")] == [
        "m@5", "m@4", "m@3", "m@2", "m@1"
    ]  # fmt: skip
    assert store.models() == ["n"]
    for ask in (store.load, store.versions, lambda model: store.resolve(f"{model}@5")):
        with pytest.raises(NotFound, match=r"m@5 was removed on .*'all'.*undelete m@5"):
            ask("m")
    assert len(store.history("m")) == 5
    with pytest.raises(Conflict, match="differs from the existing 'm' only in case"):
        store.save("M", content(1))
    assert store.save("m", content(9)).number == 6
    assert store.models() == ["m", "n"]
    assert numbers(store) == [6]


@pytest.mark.parametrize("removal", [True, False])
def test_a_model_without_an_entry_hides_no_other(tmp_path: Path, removal: bool) -> None:
    """Nor does the loss of one of several entries hide its model."""
    blobs = MemoryStore("strays")
    with created(blobs, tmp_path / "a") as store:
        if removal:
            enabled(store)
        for model in ("lost", "m", "m", "n"):
            store.save(model, content(len(blobs._blobs)))
        for model in ("lost", "m"):
            blobs.delete([store._parts.home.log(model).key_of(1)])
        blobs.put("refs/stray/x", b"")
        blobs.put("refs/hint/versions/HEAD", seal_body(Kind.HINT, Hint(seq=3)))
        assert store.models() == ["m", "n"]
        if removal:
            store.save("n", content(99))
            store.remove_model("n")
            assert store.models() == ["m"]


def test_variants_go_with_their_version(store: Store) -> None:
    derive(store, "m@2", {"cast": "bf16"})
    with pytest.raises(UsageError, match=r"m@2\+bf16 is a variant, .*: remove m@2$"):
        store.remove("m@2+bf16")
    store.remove("m@2")
    with pytest.raises(NotFound, match="m@2 was removed"):
        store.load("m@2+bf16")
    assert store.all_variants("m") == []
    store.undelete("m@2")
    assert store.load("m@2+bf16")["w"].shape == (40, 8)


HOLDS: dict[str, tuple[Callable[[Store], object], str]] = {
    "alias": (lambda store: store.alias("m", "prod", "m@2"), "alias prod"),
    "rollout": (
        lambda store: (
            store.alias("m", "prod", "m@1"),
            store.rollouts.start("m", "prod", "m@2"),
        ),
        "rollout of m@prod",
    ),
    "release": (lambda store: store.releases.create("all", ["m@2"]), "release all@1"),
    "pin": (
        lambda store: store.pins.add(store.resolve("m@2").digest, "m@2", ["hot"]),
        "pin of ",
    ),
    "pin of a variant": (
        lambda store: store.pins.add(
            derive(store, "m@2", {"cast": "bf16"}).digest, "m@2+bf16", ["hot"]
        ),
        "pin of ",
    ),
    "patch": (
        lambda store: store.patch("m@2", {"w": Rows([1], np.ones((1, 8), np.float32))}),
        "patch m@6, which lies on it",
    ),
}


@pytest.mark.parametrize("case", HOLDS)
def test_what_is_named_is_not_removed(store: Store, case: str) -> None:
    hold, reason = HOLDS[case]
    hold(store)
    with pytest.raises(Conflict) as caught:
        store.remove("m@3", "m@2")
    said, _, first = str(caught.value).partition("; nothing was removed: first ")
    assert said.startswith(f"m@2 is needed by {reason}")
    assert first.partition(" (")[0] in {
        "point the alias elsewhere", "let the rollout end", "remove the release as well",
        "take off the pin", "remove the patch as well, or fold it",
    }  # fmt: skip
    assert reason.split()[0] in first
    assert "nothing was removed" in str(caught.value)
    assert {2, 3} <= set(numbers(store))
    assert store._parts.home.log("m", REMOVED_LOG).last() is None, "it was seen before"
    store.remove("m@3")


def test_what_another_process_reads_is_not_removed(store: Store) -> None:
    blobs = store._blobs
    lease = msgspec.structs.replace(new_lease("reader"), pid=1, versions=[digest_of(store, 2)])
    blobs.put(f"{LEASES}{lease.id}", seal_body(Kind.LEASE, lease))
    with pytest.raises(Conflict, match=r"m@2 is needed by lease of .* \(pid 1 on "):
        store.remove("m@2")
    ended = msgspec.structs.replace(lease, ttl_s=1)
    blobs.put(f"{LEASES}{lease.id}", seal_body(Kind.LEASE, ended))
    wait_until(lambda: not in_force(blobs, "reader"), "the lease ends")
    store.remove("m@2")
    model = store.load("m@1")
    wait_until(lambda: bool(in_force(blobs, "reader")), "this process has a lease")
    store.remove("m@1")
    equal(model.load(), content(1))


def digest_of(store: Store, number: int) -> str:
    return store._parts.home.log("m").entry(number).manifest or ""


def test_what_only_shares_the_content_does_not_hold_it(store: Store) -> None:
    """A pin is of content; while another version has it, the older one can go."""
    same = store.save("m", content(2))
    store.pins.add(same.digest, "m@6", ["hot"])
    store.remove("m@2")
    with pytest.raises(Conflict, match="m@6 is needed by pin"):
        store.remove("m@6", force=True)


def test_a_folded_patch_needs_nothing_below(store: Store) -> None:
    patched = store.patch("m@2", {"w": Rows([1], np.ones((1, 8), np.float32))})
    expected = store.load(patched).load()
    store.fold(patched)
    store.remove("m@2")
    equal(store.load(f"m@{patched.number}").load(), expected)


def test_patches_and_what_they_lie_on_go_together(store: Store) -> None:
    store.patch("m@2", {"w": Rows([1], np.ones((1, 8), np.float32))})
    store.remove("m@2", "m@6", force=True)
    assert numbers(store) == [5, 4, 3, 1]


def test_what_a_patch_lies_on_stays_by_any_version_of_that_content(store: Store) -> None:
    """The patch is older than the last one of these: it was made on another, which is removed."""
    store.patch("m@1", {"w": Rows([1], np.ones((1, 8), np.float32))})
    store.save("m", content(1), base=None)
    store.save("m", content(9), base=None)
    assert store.resolve("m@7").digest == store.resolve("m@1").digest
    store.remove("m@1")
    with pytest.raises(Conflict, match=r"^m@7 is needed by patch m@6, which lies on it; nothing"):
        store.remove("m@7")
    store.remove("m@7", "m@6")


def test_all_or_none_of_the_references(store: Store) -> None:
    with pytest.raises(NotFound, match="m@9 does not exist"):
        store.remove("m@1", "m@9")
    with pytest.raises(UsageError, match="no version was named"):
        store.remove()
    with pytest.raises(InvalidName):
        store.remove(3)  # type: ignore[arg-type]
    store.remove("m@1")
    with pytest.raises(NotFound, match="m@1 was removed"):
        store.remove("m@1", "m@2")
    assert numbers(store) == [5, 4, 3, 2]


def test_more_than_one_entry_can_hold(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removalprotocol, "MAX_REMOVED", 2)
    log = store._parts.home.log("m", REMOVED_LOG)
    store.remove_model("m")
    assert [entry.versions for entry in log.entries()] == [[5], [3, 4], [1, 2]] * 2


def test_removal_is_enabled_first(blobs: MemoryStore, tmp_path: Path) -> None:
    with created(blobs, tmp_path / "a") as store, opened(blobs, tmp_path / "b") as early:
        for value in (1, 2):
            store.save("m", content(value))
        for ask in (
            lambda: store.remove("m@1"),
            lambda: store.forget("m", keep_last=1),
        ):
            with pytest.raises(UsageError, match=r"nothing can be removed .*gc --enable"):
                ask()
        shown = store.forget("m", keep_last=1, dry_run=True)
        assert ([str(one) for one in shown.removed], numbers(store)) == (["m@1"], [2, 1])
        with pytest.raises(UsageError, match=r"m@1 is not removed; 'tierstore ls --deleted' lists"):
            store.undelete("m@1")
        with pytest.raises(NotFound, match="m@3"):
            store.undelete("m@3")
        with WriterLease(blobs):
            running, *seen = writers_seen(store._parts.home)
        assert (running.tool, running.last) == (None, None)
        assert [one.tool.startswith("tierstore ") for one in seen if one.tool] == [True]
        slept: list[float] = []
        left: list[float] = []

        def sleep(seconds: float) -> None:
            data, mtime = blobs._blobs[CONFIG]
            blobs._blobs[CONFIG] = data, mtime - seconds
            slept.append(seconds)

        enable(store._parts.home, 60, sleep, waiting=left.append)
        assert 50 < sum(slept) <= left[0] <= 61
        assert left == sorted(left, reverse=True)
        enable(store._parts.home, 60, sleep)
        assert sum(slept) <= 61, "it was waited for already"
        slept.clear()
        enable(store._parts.home, 0, sleep)
        assert not slept
        features = parse_config(blobs.get(CONFIG), "config").features
        assert features == Features(read=[], write=["reclaim"], gc=["reclaim"])
        early.remove("m@1")  # was opened before
        assert numbers(early) == [2]


def test_features_that_others_set_stay(store: Store) -> None:
    home = store._parts.home
    features = Features(read=["tiers"], write=["tiers"], gc=[])
    config = parse_config(home.blobs.get(CONFIG), "config")
    config.features = features
    home.blobs.put(CONFIG, encode_config(config))
    enable(home, 0)
    found = parse_config(home.blobs.get(CONFIG), "config").features
    assert found == Features(read=["tiers"], write=["reclaim", "tiers"], gc=["reclaim"])


# What it costs


def requests(blobs: MemoryStore, tmp_path: Path, ref: str) -> list[tuple[str, str]]:
    """The requests that resolving takes, in a process that has done it before."""
    counted = FaultyStore(blobs)
    with opened(counted, tmp_path) as store:
        store.resolve(ref)
        begin = len(counted.calls)
        store.resolve(ref)
        return counted.calls[begin:]


def test_a_store_without_the_feature_is_asked_nothing_more(
    blobs: MemoryStore, tmp_path: Path
) -> None:
    with created(blobs, tmp_path / "a") as store:
        for value in (1, 2, 3):
            store.save("m", content(value), alias="prod")
        digest = store.resolve("m@2").digest
        refs = ("m", "m@2", f"m@{digest}", "m@prod")
        before = {ref: requests(blobs, tmp_path / "b", ref) for ref in refs}
        assert not any("removed/" in key for calls in before.values() for _, key in calls)
        enabled(store)
        after = {ref: requests(blobs, tmp_path / "b", ref) for ref in refs}
        look = ("get", "refs/m/removed/000000/000000001")
        assert after["m@prod"] == before["m@prod"]
        for ref in refs[:3]:
            assert sorted(after[ref]) == sorted([*before[ref], look])
        store.remove("m@1")
        for value in range(40):
            store.save("m", content(value))
            if value % 2:
                store.remove(f"m@{value + 3}")
        [(_, look_key)] = set(requests(blobs, tmp_path / "b", "m@2")) - set(before["m@2"])
        assert look_key.startswith("refs/m/removed/"), "what was read once is known"


def test_the_look_is_made_in_the_request_that_is_made_anyway(store: Store) -> None:
    class Rounds(FaultyStore):
        def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
            rounds.append(list(keys))
            return self.inner.get_many(keys)

    rounds: list[list[str]] = []
    names = Names(Home(Rounds(store._blobs)), "node", {})
    for ref in ("m", "m@2"):
        rounds.clear()
        names.resolve(ref)
        [asked] = rounds
        assert sum("removed/" in key for key in asked) == 1
        assert len(asked) == (3 if ref == "m" else 2)


def test_a_long_log_of_removals_is_read_to_its_end(store: Store) -> None:
    home = store._parts.home
    log = home.log("m", REMOVED_LOG)
    for number in range(1, 121):
        action: Action = "forget" if number % 2 else "undelete"
        log.append(action, lambda last: NOWHERE, None, [number % 3 + 1])
    fresh = Removals(home)
    expected: dict[int, RefEntry] = {}
    for entry in reversed(list(log.entries())):
        for number in entry.versions:
            if entry.action == "forget":
                expected[number] = entry
            else:
                expected.pop(number, None)
    assert dict(fresh.of("m")) == expected
    assert [entry.seq for entry in fresh.entries("m")] == list(range(120, 0, -1))
    home.blobs.put("refs/m/removed/HEAD", seal_body(Kind.HINT, Hint(seq=1)))
    assert dict(Removals(home).of("m")) == expected, "the hint is not needed"


# Undelete


def test_undelete_of_what_is_not_removed(store: Store) -> None:
    with pytest.raises(UsageError, match="m@2 is not removed"):
        store.undelete("m@2")
    with pytest.raises(NotFound, match="m@9 does not exist"):
        store.undelete("m@9")
    with pytest.raises(NotFound, match="no model 'x'"):
        store.undelete("x@1")
    store.remove("m@1", "m@2")
    with pytest.raises(UsageError, match="2 removed versions are meant by m, m@2, m@1 among them"):
        store.undelete("m")
    assert str(store.undelete(f"m@{store.deleted('m')[0].version.digest}")) == "m@2"
    assert str(store.undelete("m")) == "m@1", "the only one"


@pytest.mark.parametrize("ref", ["m@stagign", "m@release:nosuch", "m@release:nosuch@2"])
def test_an_alias_that_is_not_there_names_nothing_removed(store: Store, ref: str) -> None:
    """Though one version alone is removed."""
    store.remove("m@1")
    with pytest.raises(NotFound, match=r"stagign|nosuch"):
        store.undelete(ref)
    assert len(store.deleted("m")) == 1


@pytest.mark.parametrize("how", ["of the version", "of the variant"])
def test_undelete_of_what_is_gone_is_too_late(store: Store, how: str) -> None:
    blobs = store._blobs
    before = {info.key for info in blobs.list(PACKS)}
    if how == "of the variant":
        rng = np.random.default_rng(1)
        store.save("m", {"w": rng.standard_normal((40, 8)).astype("f4")})
        before = {info.key for info in blobs.list(PACKS)}
        derive(store, "m@6", {"cast": "bf16"})
    else:
        store.save("m", content(77), base=None)
    [pack] = {info.key for info in blobs.list(PACKS)} - before
    store.save("m", content(78), base=None)
    store.remove("m@6")
    blobs.delete([pack])
    with pytest.raises(NotFound, match="it is too late for m@6"):
        store.undelete("m@6")
    with pytest.raises(NotFound, match="m@6 was removed"):
        store.load("m@6")
    assert store.check().findings == []


def test_a_release_comes_back_with_its_members_only(store: Store) -> None:
    store.releases.create("all", ["m@2"])
    store.releases.create("all", ["m@5"])
    store.remove("all@1")
    store.remove("m@2")
    with pytest.raises(NotFound, match="m@2 was removed"):
        store.undelete("all@1")
    with pytest.raises(NotFound, match="all@1 was removed"):
        store.load("m@release:all@1")
    store.undelete("m@2")
    store.undelete("all@1")
    assert store.resolve("m@release:all@1").number == 2


def test_what_is_removed_is_listed(store: Store) -> None:
    store.remove("m@1", message="old")
    store.save("n", content(1))
    store.remove_model("n")
    found = store.deleted()
    assert [(str(one.version), one.message) for one in found] == [("m@1", "old"), ("n@1", "")]
    assert found[0].until - found[0].removed == timedelta(days=7)
    store.retention.set(None, window=timedelta(days=1))
    store.retention.set("m", window=timedelta(0))
    found = store.deleted()
    assert [one.until - one.removed for one in found] == [timedelta(0), timedelta(days=1)]
    with pytest.raises(
        NotFound, match="brings it back if it is still there, which is certain only"
    ):
        store.load("m@1")
    store.undelete("m@1")
    assert [str(one.version) for one in store.deleted("n")] == ["n@1"]
    with pytest.raises(NotFound, match="no model 'x'"):
        store.deleted("x")


# Forget and retention


def test_forget_says_what_stays_and_why(store: Store) -> None:
    store.alias("m", "prod", "m@1")
    store.alias("m", "prod", "m@2")
    store.save("m", content(6), message="v1.0")
    store.save("m", content(7))
    found = store.forget("m", keep_last=1, keep_tag=["v*"], dry_run=True)
    assert [(one.version.number, one.reasons) for one in found.kept] == [
        (7, ("newest", "last 1")),
        (6, ("tag v*",)),
        (2, ("alias prod",)),
        (1, ("rollback of prod", "alias prod in the last 30 d")),
    ]
    assert [version.number for version in found.removed] == [5, 4, 3]
    store.retention.set("m", alias_history=timedelta(0))
    found = store.forget("m", keep_last=1, dry_run=True)
    assert found.kept[-1].reasons == ("rollback of prod",)
    assert numbers(store) == [7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(
        Conflict, match=r"3 of the 7 versions of m would be removed, .*than 20 % .*=43 \("
    ):
        store.forget("m", keep_last=1, keep_tag=["v*"])
    store.forget("m", keep_last=1, keep_tag=["v*"], most_percent=43)
    assert numbers(store) == [7, 6, 2, 1]
    with pytest.raises(UsageError, match="no rule was given"):
        store.forget("m")
    with pytest.raises(NotFound, match="no model 'x'"):
        store.forget("x", keep_last=1)


@contextlib.contextmanager
def days_ago(days: float) -> Iterator[None]:
    """Let this machine's clock be so many days behind."""
    real = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: real() - int(days * 86400e9))
        yield


def why_kept(store: Store) -> dict[int, tuple[str, ...]]:
    found = store.forget("m", keep_last=1, dry_run=True)
    return {one.version.number: one.reasons for one in found.kept}


def test_rules_keep_what_an_alias_meant_until_lately(store: Store) -> None:
    """However long ago it was set."""
    with days_ago(400):
        store.alias("m", "prod", "m@1")
    with days_ago(2):
        store.alias("m", "prod", "m@2")
    with days_ago(1):
        store.alias("m", "prod", "m@3")
    assert why_kept(store) == {
        5: ("newest", "last 1"),
        3: ("alias prod",),
        2: ("rollback of prod", "alias prod in the last 30 d"),
        1: ("alias prod in the last 30 d",),
    }


def test_rules_keep_what_an_alias_meant_before_a_clock_that_is_behind(store: Store) -> None:
    for days, version in ((4, "m@1"), (3, "m@2"), (2, "m@3"), (90, "m@4")):
        with days_ago(days):
            store.alias("m", "prod", version)
    lately = "alias prod in the last 30 d"
    assert why_kept(store) == {
        5: ("newest", "last 1"),
        4: ("alias prod",),
        3: ("rollback of prod", lately),
        2: (lately,),
        1: (lately,),
    }


def test_rules_read_no_more_of_a_long_log_than_they_need(store: Store, tmp_path: Path) -> None:
    """An alias that moves each minute for a year has half a million entries."""
    log = store._parts.home.log("m", "alias/prod")
    manifests = [digest_of(store, number) for number in range(1, 6)]

    def target(last: RefEntry | None) -> RefTarget:
        seq = last.seq if last is not None else 0
        number = 1 if seq == 300 else 3
        return RefTarget(number, manifests[number - 1], seq or None)

    with days_ago(400):
        for _ in range(600):
            log.append("set", target)
    with days_ago(2):
        store.alias("m", "prod", "m@2")
    with days_ago(90):  # by its clock
        store.alias("m", "prod", "m@4")
    faulty = FaultyStore(store._blobs, None)
    with opened(faulty, tmp_path / "other") as other:
        lately = "alias prod in the last 30 d"
        assert why_kept(other) == {
            5: ("newest", "last 1"),
            4: ("alias prod",),
            3: (lately,),
            2: ("rollback of prod", lately),
        }
    assert sum("/alias/" in key for _, key in faulty.calls) < 250


def test_rules_keep_where_a_rollback_goes_though_the_alias_was_removed_in_between(
    store: Store,
) -> None:
    with days_ago(400):
        store.alias("m", "prod", "m@1")
        store.remove_alias("m", "prod")
        store.alias("m", "prod", "m@2")
    assert why_kept(store)[1] == ("rollback of prod",)
    store.forget("m", keep_last=1, most_percent=100)
    assert store.rollback("m", "prod").version.number == 1


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Store]:
    """A store with m@1 to m@3, whose home has a clock of its own."""
    with enabled(created(Elsewhere("elsewhere"), tmp_path)) as store:
        for number in range(1, 4):
            store.save("m", content(number))
        yield store


@contextlib.contextmanager
def ahead(store: Store, days: float) -> Iterator[None]:
    """Let this machine's clock be so many days ahead; those of home and of others are right."""
    blobs, real = store._blobs, time.time
    assert isinstance(blobs, Elsewhere)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: real() + days * 86400)
        blobs.ahead_s = -days * 86400  # the time of new objects is this machine's
        yield
    blobs.ahead_s = 0.0


def test_the_alias_history_is_counted_by_the_clock_of_home(elsewhere: Store) -> None:
    for version in ("m@1", "m@2", "m@3"):
        elsewhere.alias("m", "prod", version)
    with ahead(elsewhere, 300):
        assert why_kept(elsewhere)[1] == ("alias prod in the last 30 d",)


def test_rules_wait_for_a_window_by_the_clock_of_home(elsewhere: Store) -> None:
    elsewhere.retention.set("m", keep_last=1)
    with ahead(elsewhere, 300):
        reported = elsewhere.retention.apply("m", most_percent=100)
        assert reported is not None
        assert reported.dry_run
        elsewhere.retention.set("m", keep_last=1)
        [held] = elsewhere.retention.all()
    assert held.since.timestamp() == pytest.approx(time.time(), abs=900)


def test_rules_wait_for_a_window_though_the_clock_of_home_leaps(elsewhere: Store) -> None:
    elsewhere.retention.set("m", keep_last=1)
    blobs = elsewhere._blobs
    assert isinstance(blobs, Elsewhere)
    blobs.ahead_s = 300 * 86400.0
    reported = elsewhere.retention.apply("m", most_percent=100)
    assert reported is not None
    assert reported.dry_run


def test_a_pin_ends_by_the_clock_of_home(elsewhere: Store) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    elsewhere.pins.add(elsewhere.resolve("m@1").digest, "m@1", ["hot"], until)
    with ahead(elsewhere, 300):
        with pytest.raises(Conflict, match="m@1 is needed by pin"):
            elsewhere.remove("m@1")
        log = elsewhere._parts.home.log("m", REMOVED_LOG)
        log.append("forget", lambda last: NOWHERE, None, [1])
        report = elsewhere.reclaim.run(window=timedelta(0), grace=timedelta(0))
        assert "pin of" in "".join(one.why for one in report.packs)


def test_what_is_damaged_of_a_removed_version_is_told_by_the_clock_of_home(
    elsewhere: Store,
) -> None:
    own = elsewhere.resolve("m@1").digest
    elsewhere.remove("m@1")
    key = layout_key(own)
    elsewhere._blobs.put(key, bytes(elsewhere._blobs.get(key))[:-3])
    with ahead(elsewhere, 300):
        assert elsewhere.check().damaged


def test_nothing_is_promised_of_what_a_shorter_window_took(store: Store) -> None:
    """Neither in the list nor in messages; of later removals it is."""
    store.save("n", {"w": np.random.default_rng(1).standard_normal((99, 99))})
    store.save("n", content(1))
    store.remove("n@1")
    with pytest.raises(NotFound, match=r"; until 20.* 'tierstore undelete n@1' brings it back"):
        store.load("n@1")
    store.reclaim.run(window=timedelta(0), dry_run=True)
    assert store.deleted("n")[0].until > datetime.now(UTC)
    store.reclaim.run(window=timedelta(0), grace=timedelta(0))
    with pytest.raises(NotFound, match=r"if it is still there, which is certain only until 20"):
        store.load("n@1")
    [gone] = store.deleted("n")
    assert gone.until == gone.removed
    store.reclaim.run()
    store.remove("m@1")
    assert store.deleted("m")[0].until > datetime.now(UTC) + timedelta(days=6)
    with pytest.raises(NotFound, match=r"; until 20.* 'tierstore undelete m@1' brings it back"):
        store.load("m@1")
    assert store.deleted("n")[0].until == gone.until, "a later run does not forget it"


def test_a_window_that_a_collection_ended_does_not_begin_again(store: Store) -> None:
    """What one run left because of a limit the next one deletes, as ``ls --deleted`` says."""
    no_s = timedelta(0)
    store.save("n", {"w": np.random.default_rng(1).standard_normal((99, 99))})
    store.save("n", content(1))
    store.remove("n@1")
    assert store.reclaim.run(window=no_s, grace=no_s, max_bytes=0).stopped
    [gone] = store.deleted("n")
    assert gone.until == gone.removed
    store.save("o", {"w": np.random.default_rng(2).standard_normal((99, 99))})
    store.save("o", content(1))
    store.remove("o@1")
    report = store.reclaim.run(grace=no_s)
    assert (len(report.of("deleted")), report.healed) == (1, 0)
    [kept] = report.of("window")
    assert kept.why.startswith("o@1 was removed, and can be undeleted until ")
    store.undelete("o@1")


@pytest.mark.parametrize("is_behind", [True, False])
def test_no_window_is_ended_by_a_time_alone_or_while_nobody_can_read_it(
    elsewhere: Store, is_behind: bool
) -> None:
    """Home's clock went back: what is removed now has the time of what a run ended before."""
    blobs, no_s = elsewhere._blobs, timedelta(0)
    assert isinstance(blobs, Elsewhere)
    for name, number in (("n", 1), ("o", 2)):
        elsewhere.save(name, {"w": np.random.default_rng(number).standard_normal((99, 99))})
        elsewhere.save(name, content(1))
    blobs.ahead_s = 3600.0 if is_behind else 0.0
    elsewhere.remove("n@1")
    if not is_behind:
        elsewhere.remove("o@1")
    elsewhere.reclaim.run(window=no_s, grace=no_s, max_bytes=0)
    blobs.ahead_s = 0.0
    if is_behind:
        elsewhere.remove("o@1")
    else:
        blobs.put(retention_key("o"), b"TSOB")
    assert elsewhere.reclaim.run(grace=no_s).of("deleted")
    elsewhere.retention.set("o", window=timedelta(days=7))
    elsewhere.undelete("o@1")
    assert len(elsewhere.load("o@1").load()["w"]) == 99


def test_a_longer_window_promises_nothing_that_is_gone(store: Store) -> None:
    """Another model, of which what is removed has its window still, is promised on."""
    for name, number in (("n", 1), ("o", 2)):
        store.save(name, {"w": np.random.default_rng(number).standard_normal((99, 99))})
        store.save(name, content(1))
    store.retention.set("n", window=timedelta(0))
    store.remove("n@1")
    store.remove("o@1")
    store.reclaim.run(grace=timedelta(0))
    store.retention.set("n", window=timedelta(days=14))
    [gone] = store.deleted("n")
    assert gone.until == gone.removed
    assert store.deleted("o")[0].until > datetime.now(UTC) + timedelta(days=6)
    store.retention.set("n", window=timedelta(0))
    store.remove("n@2", force=True)
    store.reclaim.run(grace=timedelta(0))
    assert store.deleted("o")[0].until > datetime.now(UTC) + timedelta(days=6)
    store.undelete("o@1")


@pytest.mark.parametrize("is_removed_first", [True, False])
def test_nothing_is_collected_while_the_clock_of_home_is_ahead_of_all_others(
    elsewhere: Store, is_removed_first: bool
) -> None:
    """It may have leaped, and then all windows, graces and leases would be over."""
    blobs, no_s = elsewhere._blobs, timedelta(0)
    assert isinstance(blobs, Elsewhere)
    if is_removed_first:
        elsewhere.remove("m@1")
    blobs.ahead_s = 300 * 86400.0
    if not is_removed_first:
        elsewhere.remove("m@1")
    for how in ({}, {"window": no_s}, {"dry_run": True}):
        with pytest.raises(BackendError, match=r"the clock of .* more than a day after this mach"):
            elsewhere.reclaim.run(grace=no_s, **how)
    blobs.ahead_s = 0.9 * 86400
    assert elsewhere.reclaim.run(grace=no_s).of("deleted") == []
    elsewhere.undelete("m@1")
    equal(elsewhere.load("m@1").load(), content(1))


def test_a_collector_whose_own_clock_is_wrong_believes_home_and_the_others(
    elsewhere: Store,
) -> None:
    elsewhere.remove("m@1")
    blobs = elsewhere._blobs
    assert isinstance(blobs, Elsewhere)
    blobs.ahead_s = 300 * 86400.0
    with days_ago(-299.5):
        elsewhere.alias("m", "prod", "m@2")
    assert len(elsewhere.reclaim.run(grace=timedelta(0)).of("deleted")) == 1


def test_forget_keeps_what_patches_lie_on(store: Store) -> None:
    store.patch("m@1", {"w": Rows([1], np.ones((1, 8), np.float32))})
    found = store.forget("m", keep_last=1, most_percent=100)
    assert [(one.version.number, one.reasons[0]) for one in found.kept] == [
        (6, "newest"),
        (5, "last 1"),
        (1, "patch m@6 lies on it"),
    ]


def test_looking_at_the_rules_of_many_models_costs_as_much_for_each(cache: Path) -> None:
    """What names versions of all models is read once, not once for each model."""

    def requests(models: int) -> int:
        blobs = FaultyStore(MemoryStore(f"rules-{models}"), None)
        with enabled(created(blobs, cache / str(models))) as store:
            for number in range(models):
                store.save(f"m{number}", content(number + 1))
            Retentions(store._names).set(None, keep_last=1)
            before = len(blobs.calls)
            assert len(Retentions(store._names).outlooks()) == models
            return len(blobs.calls) - before

    few, more, many = requests(4), requests(8), requests(12)
    assert many - more <= 1.2 * (more - few)


def test_stored_rules_report_for_a_window_and_then_remove(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(retention_module, "home_or_own_now_s", lambda home_blobs: now)
    monkeypatch.setattr(holders_module, "certain_now_s", lambda home_blobs: now)
    retention = Retentions(store._names)
    with pytest.raises(UsageError, match="give rules, such as keep_last, or a window, or an alias"):
        retention.set("m")
    for keep in ({"keep_last": 0}, {"keep_within": timedelta(0)}):
        with pytest.raises(UsageError, match="of 0 keeps nothing"):
            retention.set("m", window=timedelta(days=1), **keep)
    with pytest.raises(NotFound, match="no model 'x'"):
        retention.set("x", keep_last=3)
    assert retention.apply("m") is None
    retention.set(None, keep_last=np.int64(4), message="for all")  # type: ignore[arg-type]
    now = 6.9 * 86400
    reported = retention.apply("m")
    assert reported is not None
    assert reported.dry_run
    assert [version.number for version in reported.removed] == [1]
    now = 7.1 * 86400
    done = retention.apply("m")
    assert done is not None
    assert not done.dry_run
    assert numbers(store) == [5, 4, 3, 2]
    retention.set("m", keep_last=1, window=timedelta(days=1))
    assert [(one.model, one.message) for one in retention.all()] == [(None, "for all"), ("m", "")]
    now += 86401
    with pytest.raises(Conflict, match="3 of the 4 versions of m would be removed"):
        retention.apply("m")
    retention.remove("m")
    assert retention.get("m") is None
    done = retention.apply("m")
    assert done is not None
    assert done.removed == []


# Two at once: one acts between any two requests of the other


@contextlib.contextmanager
def stopped_at(
    tmp_path: Path, at: int, first: Callable[[Store], object], second: Callable[[Store], object]
) -> Iterator[tuple[Store, list[str]]]:
    """Give a store in which ``second`` ran before request ``at`` of ``first``, and what they said.

    There are less than two answers when ``first`` makes fewer requests.
    """
    blobs = MemoryStore("race")
    said: list[str] = []
    ran: list[bool] = []
    skipped: list[int] = []

    def run(act: Callable[[Store], object], store: Store) -> None:
        try:
            act(store)
        except TierstoreError as error:
            said.append(str(error))
        else:
            said.append("done")

    def plan(op: str, key: str, n: int) -> None:
        if skipped and not ran and n - skipped[0] >= at:
            ran.append(True)
            run(second, other)

    faulty = FaultyStore(blobs, plan)
    with (
        enabled(created(blobs, tmp_path / "a")) as other,
        opened(faulty, tmp_path / "b") as store,
    ):
        for value in (1, 2, 3):
            other.save("m", content(value))
        other.alias("m", "prod", "m@1")
        other.alias("m", "prod", "m@3")
        skipped.append(len(faulty.calls))
        run(first, store)
        yield other, said


NAMINGS: dict[str, Callable[[Store], object]] = {
    "alias": lambda store: store.alias("m", "prod", "m@1"),
    "new alias": lambda store: store.alias("m", "next", "m@1"),
    "rollback": lambda store: store.rollback("m", "prod"),
    "rollout": lambda store: store.rollouts.start("m", "prod", "m@1"),
    "release": lambda store: store.releases.create("all", ["m@1"]),
    "pin": lambda store: store.pins.add(Digest.from_hex(digest_of(store, 1)), "m@1", ["hot"]),
}


def names_it(store: Store) -> bool:
    """Whether anything names m@1."""
    for alias in store.aliases("m"):
        last = store.history("m", alias.name, 1)[0]
        if 1 in (last.version, last.rollout and last.rollout.version):
            return True
    with contextlib.suppress(NotFound):
        if store.versions("all"):
            return True
    return any(not pin.ref.startswith("rollout of") for pin in store.pins.active())


@pytest.mark.parametrize("name", NAMINGS)
@pytest.mark.parametrize("removed_first", [True, False])
def test_nothing_that_is_named_is_removed_whoever_comes_first(
    tmp_path: Path, name: str, removed_first: bool
) -> None:
    parties = [NAMINGS[name], lambda store: store.remove("m@1")]
    if removed_first:
        parties.reverse()
    outcomes = set()
    for at in itertools.count(1):
        with stopped_at(tmp_path, at, *parties) as (store, said):
            if len(said) < 2:
                break
            removed = 1 not in numbers(store)
            named = names_it(store)
            assert not (removed and named), said
            moved = name in {"alias", "rollback"} and named
            [prod] = [one.version.number for one in store.aliases("m") if one.name == "prod"]
            assert prod == (1 if moved else 3), said
            outcomes.add((removed, named))
    assert (True, False) in outcomes
    assert (False, True) in outcomes


def test_rollback_to_what_is_removed(store: Store) -> None:
    store.alias("m", "prod", "m@1")
    store.alias("m", "prod", "m@3")
    store.remove("m@1")
    with pytest.raises(NotFound, match=r"m@1 was removed .*goes back to no other version"):
        store.rollback("m", "prod")
    assert store.resolve("m@prod").number == 3


def test_a_process_that_was_opened_before_sees_it_as_it_appends(
    blobs: MemoryStore, tmp_path: Path
) -> None:
    with created(blobs, tmp_path / "a") as store, opened(blobs, tmp_path / "b") as early:
        for value in (1, 2):
            store.save("m", content(value))
        old = early.resolve("m@1")
        enabled(store).remove("m@1")
        with pytest.raises(NotFound, match=r"m@1 was removed .* m@prod is gone"):
            early.alias("m", "prod", old)
        assert store.aliases("m") == []


@pytest.mark.parametrize("most", [10_000, 2])
def test_a_look_that_fails_removes_nothing(
    store: Store, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many entries it takes."""
    monkeypatch.setattr(removalprotocol, "MAX_REMOVED", most)

    def plan(op: str, key: str, n: int) -> Unreachable | None:
        written = any("removed/" in key for op, key in faulty.calls if op == "put_if_absent")
        return Unreachable("gone") if written and op == "list" and key == "pins/" else None

    faulty = FaultyStore(store._blobs, plan)
    with opened(faulty, tmp_path / "other") as other, pytest.raises(Unreachable):
        other.remove_model("m")
    assert numbers(store) == [5, 4, 3, 2, 1]
    entries = list(store._parts.home.log("m", REMOVED_LOG).entries())
    many = 1 if most > 5 else 3
    assert [one.action for one in entries] == ["undelete"] * many + ["announce"] * many
    assert store.history("m")[-1].action != "announce"


def test_a_removal_of_many_that_is_stopped_is_undone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took three entries; a version of the second was named before that was written."""
    monkeypatch.setattr(removalprotocol, "MAX_REMOVED", 2)

    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and key.endswith("removed/000000/000000005"):
            with opened(store._blobs, tmp_path / "third") as third:
                if not third.aliases("m"):
                    third.alias("m", "prod", "m@3")

    with (
        opened(FaultyStore(store._blobs, plan), tmp_path / "other") as other,
        pytest.raises(Conflict, match="m@3 was named, or removed by somebody else, just now"),
    ):
        other.remove_model("m")
    assert numbers(store) == [5, 4, 3, 2, 1]
    actions = [one.action for one in store._parts.home.log("m", REMOVED_LOG).entries()]
    assert actions[::-1] == ["announce"] * 3 + ["forget"] + ["undelete"] * 4
    assert not Removals(Home(store._blobs)).announced("m")
    for number in range(1, 6):
        store.load(f"m@{number}").load()


@pytest.mark.parametrize("name", NAMINGS)
def test_what_is_announced_only_is_in_force(store: Store, name: str, tmp_path: Path) -> None:
    """Who removed it died before it looked at names; whoever names it stops the removal."""
    log = store._parts.home.log("m", REMOVED_LOG)
    if name in ("alias", "rollback", "rollout"):
        store.alias("m", "prod", "m@1")
        store.alias("m", "prod", "m@3")
    log.append("announce", lambda last: NOWHERE, None, [1])
    with opened(store._blobs, tmp_path / "other") as other:
        assert numbers(other)[-1] == 1
        other.load("m@1").load()
        assert not other.deleted("m")
        NAMINGS[name](other)
        assert names_it(other)
    assert [one.action for one in log.entries()] == ["undelete", "announce"]


@pytest.mark.parametrize("order", ["right", "as it was"])
def test_what_was_collected_is_saved_again_as_deltas_beside_whole_chunks(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move leads to a pack with deltas, and to the pack where these are standalone: that counts.

    The names of the packs are random, so several models make sure that both orders come up. Where
    the deltas count, as in stores that were written before, an undelete leads to their bases.
    """
    if order != "right":
        monkeypatch.setattr(writemove, "_has_deltas", lambda home, pack: True)

    def weights(number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(number)
        return {
            "emb": rng.standard_normal((400, 64), np.float32),
            "own": rng.standard_normal(60_000, np.float32),
        }

    blobs = MemoryStore("again")
    names = [f"m{number}" for number in range(8)]
    with enabled(created(blobs, tmp_path)) as store:
        for number, name in enumerate(names):
            first = weights(number)
            tuned = {"emb": first["emb"] + np.float32(1e-6), "own": weights(100 + number)["own"]}
            store.save(name, first, base=None)
            store.save(name, tuned, base=None)
            store.remove(f"{name}@1")
        none = timedelta(0)
        assert len(store.reclaim.run(grace=none, window=none, repack=False).of("deleted")) == 8
        for number, name in enumerate(names):
            assert store.save("again", weights(number), base=f"{name}@2").number == number + 1
        for number in range(8) if order != "right" else ():
            store.remove(f"again@{number + 1}", force=True)
            store.undelete(f"again@{number + 1}")
    for collected in (False, True):
        with opened(blobs, tmp_path / str(collected)) as store:
            if collected:
                store.reclaim.run(grace=none, window=none, repack=False)
                assert store.check(read_data=True).findings == []
            for number in range(8):
                equal(store.load(f"again@{number + 1}").load(), weights(number))
