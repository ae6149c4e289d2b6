"""``Store.admin``: what the command line does with tiers, health and lineage, from Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.admin.doctor import CORE, NATIVE
from tierstore.errors import ConfigError, Conflict, NotFound, Unreachable, UsageError
from tierstore.format.tiers import HOME_NAME
from tierstore.testing.faulty import FaultyStore

MIB = 1 << 20


def array(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((256, 1024), np.float32)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with a warm and a hot tier, and one version in it."""
    for name in ("warm", "warmer"):
        (tmp_path / name).mkdir()
    tierstore.init(tmp_path / "store", chunk_size=MIB).close()
    with tierstore.open(tmp_path / "store") as store:
        store.admin.tiers.add(spec(tmp_path, "warm"), message="first")
        store.admin.tiers.add(spec(tmp_path, "hot", role="hot", size=64 * MIB))
    with tierstore.open(tmp_path / "store") as store:
        store.save("m", {"w": array(1)})
    return str(tmp_path / "store")


def spec(folder: Path, name: str, **fields: Any) -> tierstore.TierSpec:
    fields = {"role": "warm", **fields}
    return tierstore.TierSpec(name=name, url=(folder / name).as_uri(), **fields)


@pytest.fixture
def store(url: str) -> Iterator[tierstore.Store]:
    with tierstore.open(url) as opened:
        yield opened


def names(store: tierstore.Store) -> list[str]:
    return [tier.name for tier in store.admin.tiers.list()]


def test_services_are_made_once(store: tierstore.Store) -> None:
    for name in ("admin", "placement", "pins", "rollouts", "releases", "warming"):
        assert getattr(store, name) is getattr(store, name), name
    assert store.admin.tiers is store.admin.tiers


def test_services_say_whose_they_are(store: tierstore.Store) -> None:
    assert repr(store) == f"<Store {store.url}>"
    assert repr(store.admin) == f"<Admin of {store.url}>"
    assert repr(store.admin.tiers) == f"<TierAdmin of {store.url}>"
    assert repr(store.warming) == "<Warming of hot>"
    for name in ("placement", "pins", "rollouts", "releases"):
        assert repr(getattr(store, name)) == f"<{name.capitalize()} of {store.url}>"


def test_tiers_are_added_and_listed(store: tierstore.Store, tmp_path: Path) -> None:
    assert names(store) == ["hot", "warm"]
    added = store.admin.tiers.add(spec(tmp_path, "warmer", size=5 * MIB), message="more room")
    assert (added.name, added.role, added.size) == ("warmer", "warm", 5 * MIB)
    assert store.admin.tiers.list() == store.tiers()
    assert names(store) == ["hot", "warm", "warmer"]
    with pytest.raises(Conflict, match="warmer"):
        store.admin.tiers.add(spec(tmp_path, "warmer"))


def test_a_tier_is_changed(store: tierstore.Store) -> None:
    changed = store.admin.tiers.set("warm", size=100 * MIB, high=90, low=80, message="why")
    assert (changed.size, changed.high, changed.low) == (100 * MIB, 90, 80)
    assert store.tiers()[1] == changed
    assert store.admin.tiers.set("warm", size=None).size is None
    with pytest.raises(UsageError, match="nothing to change"):
        store.admin.tiers.set("warm")
    with pytest.raises(ConfigError):
        store.admin.tiers.set("warm", high=101)
    with pytest.raises(NotFound, match="'cold'"):
        store.admin.tiers.set("cold", size=1)


def test_a_quota_below_what_a_tier_holds_is_forced(store: tierstore.Store) -> None:
    with pytest.raises(UsageError, match=r"more than a quota of 1\.0 KiB"):
        store.admin.tiers.set("warm", size=1024)
    assert store.tiers()[1].size is None
    assert store.admin.tiers.set("warm", size=1024, force=True).size == 1024


def test_a_tier_is_drained_and_removed(store: tierstore.Store) -> None:
    planned = store.admin.tiers.drain("warm", dry_run=True)
    assert [move.source for move in planned.plan.moves] == ["warm"]
    assert planned.moved == ()
    assert planned.spec.state == "active"
    assert len(planned.left.only) == 1
    with pytest.raises(Conflict, match="takes new packs"):
        store.admin.tiers.remove("warm")

    told: list[object] = []
    drained = store.admin.tiers.drain("warm", message="goes", progress=told.append)
    assert drained.spec.state == "draining"
    assert [one.status for one in drained.moved] == ["done"]
    assert told == list(drained.moved)
    assert drained.left.packs == {}

    again = store.admin.tiers.undrain("warm")
    assert (again.spec.state, again.moved, again.plan.moves) == ("active", (), ())
    with pytest.raises(UsageError, match="is not being drained"):
        store.admin.tiers.undrain("warm")

    store.admin.tiers.drain("warm")
    removed = store.admin.tiers.remove("warm")
    assert removed.spec.name == "warm"
    assert removed.left is not None
    assert removed.left.packs == {}
    assert names(store) == ["hot"]
    assert store.admin.tiers.remove("hot").left is None
    assert np.array_equal(store.load("m")["w"], array(1))


def test_df(store: tierstore.Store) -> None:
    store.warmup("m")
    found = {report.spec.name: report for report in store.admin.df()}
    assert list(found) == ["hot", "warm", HOME_NAME]
    assert (found["hot"].objects, found["hot"].used_bytes) == (1, MIB)
    assert found["warm"].objects == 1
    assert found["warm"].used_bytes == store.usage().stored
    assert found[HOME_NAME].objects == 0
    assert all(report.error is None for report in found.values())


def test_df_says_which_tier_cannot_be_asked(store: tierstore.Store, tmp_path: Path) -> None:
    (tmp_path / "warm").rename(tmp_path / "elsewhere")
    found = {report.spec.name: report for report in store.admin.df()}
    assert found["warm"].error is not None
    assert found["warm"].used_bytes is None
    assert found[HOME_NAME].error is None


def test_top(store: tierstore.Store) -> None:
    seen = store.admin.top(3)
    assert list(seen.reports) == ["hot", "warm", HOME_NAME]
    assert [one.name for one in seen.overview.tiers] == ["hot", "warm", HOME_NAME]
    assert seen.hottest == ()
    assert seen.time.utcoffset() is not None
    store.load("m").load()
    (hottest,) = store.admin.top(3).hottest
    assert hottest.versions == ("m@1",)
    assert hottest.tiers == ("warm",)


def test_lineage(store: tierstore.Store) -> None:
    variant = store.derive("m", {"cast": "bf16"})
    assert str(variant) == "m@1+bf16"
    (root,) = store.admin.lineage("m@1")
    assert (root.names, root.asked, root.digest) == (["m@1"], True, store.resolve("m@1").digest)
    assert [(child.names, child.relation) for child in root.children] == [
        (["m@1+bf16"], "derived-from")
    ]
    with pytest.raises(NotFound):
        store.admin.lineage("n")


def test_derive_is_that_of_the_package(store: tierstore.Store) -> None:
    first = store.derive("m", {"cast": "bf16"}, name="a", message="why", max_error=0.1)
    second = tierstore.derive(store, "m", {"cast": "bf16"}, name="a", max_error=0.1)
    assert first.digest == second.digest
    assert (first.variant, first.message) == ("a", "why")
    assert store.variants("m") == [store.resolve("m@1+a")]


def test_validate(store: tierstore.Store, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    found = store.admin.validate(str(tmp_path / "new"), "warm")
    assert found.url == (tmp_path / "new").as_uri()
    assert found.examination.home
    assert found.examination.durable
    assert not found.examination.broken
    assert found.capabilities.put_if_absent
    assert found.local
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(NotFound):
        store.admin.validate(str(tmp_path / "missing"), "warm")


def test_doctor(store: tierstore.Store, tmp_path: Path) -> None:
    found = store.admin.doctor()
    about = found.installation
    assert about.tierstore == tierstore.__version__
    assert about.libraries["numpy"] == np.__version__
    assert set(about.libraries) == set(CORE)
    assert set(about.native_parts) == set(NATIVE)
    assert about.cache_writable
    health = found.store
    assert health is not None
    assert (health.url, health.chunk_size, health.put_if_absent) == (store.url, MIB, True)
    assert health.features == ("tiers",)
    assert health.error is None
    assert [(tier.spec.name, tier.error) for tier in found.tiers] == [("hot", None), ("warm", None)]

    (tmp_path / "warm").rename(tmp_path / "elsewhere")
    hot, warm = store.admin.doctor().tiers
    assert hot.error is None
    assert warm.error is not None


def test_a_store_that_fails_has_a_diagnosis(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = FaultyStore(store._parts.home.blobs, lambda op, key, n: Unreachable("no answer"))
    monkeypatch.setattr(store._parts.home, "blobs", broken)
    found = store.admin.doctor()
    assert found.store is not None
    assert str(found.store.error) == "no answer"
    assert found.store.put_if_absent is None
    assert found.store.store_id == store._parts.home.config.store_id
    assert found.tiers == ()
