"""Versions are brought into hot tiers before they are asked for, pinned there, and put out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, equal
from tests.integration.test_deltas import Model, tuned, weights
from tests.servers.redis import RedisServer
from tierstore.errors import OutOfSpace, Unreachable, UsageError
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.store import Store
from tierstore.store import init_store, open_store

V1: Model = {"emb": weights(1500), "layer": weights(200, seed=1), "kept": weights(1024, seed=2)}
V2 = V1 | {"layer": tuned(V1["layer"]), "emb": tuned(V1["emb"], 2), "new": weights(300, seed=3)}
SIZE = {1: sum(a.nbytes for a in V1.values()), 2: sum(a.nbytes for a in V2.values())}


def hot_spec(folder: Path, size: int = 64 * MIB) -> TierSpec:
    return TierSpec(name="nvme", role="hot", url=str(folder / "hot"), size=size)


def redis_spec(server: RedisServer) -> TierSpec:
    return TierSpec(name="redis", role="shared", url=server.url)


def opened(folder: Path, *tiers: TierSpec) -> Store:
    with init_store(folder / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("m", V1)
        store.save("m", V2)
        store._parts.hot.flush()
        if store._parts.hot.local is not None:
            store.evict()  # what saving read of v1
    return open_store(folder / "store")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path, hot_spec(tmp_path)) as store:
        yield store


def fetched(store: Store, ref: str) -> int:
    model = store.load(ref)
    equal(model.load(), V1 if ref == "m@1" else V2)
    return model.stats.bytes_fetched


def test_a_version_is_read_from_this_node_once_it_is_warm(store: Store) -> None:
    cold = store.warming.look(store.resolve("m@1"), "hot")
    assert (cold.tier, cold.resident, cold.missing_bytes) == ("nvme", False, SIZE[1])
    told: list[tuple[int, int]] = []
    warm = store.warmup("m@1", progress=lambda done, total: told.append((done, total)))
    assert (warm.resident, warm.tier_bytes, warm.missing_bytes) == (True, SIZE[1], 0)
    assert warm.stats is not None
    assert (warm.stats.bytes_reused, warm.stats.bytes_full) == (0, SIZE[1])
    assert told[-1] == (SIZE[1], SIZE[1])
    assert fetched(store, "m@1") == 0
    assert store.warming.look(store.resolve("m@1"), "nvme").resident


def test_the_next_version_costs_what_it_changed(store: Store) -> None:
    store.warmup("m@1")
    second = store.warmup("m@2")
    assert second.stats is not None
    assert second.stats.bytes_reused == 0  # what is there is not even read
    assert second.stats.bytes_delta == V1["emb"].nbytes + V1["layer"].nbytes
    assert second.stats.bytes_full == V2["new"].nbytes
    assert second.stats.bytes_fetched < 0.4 * SIZE[2]
    assert fetched(store, "m@2") == 0


def test_a_warm_up_pushes_others_out_but_never_itself(tmp_path: Path) -> None:
    with opened(tmp_path, hot_spec(tmp_path, 11 * MIB)) as store:
        assert store._parts.hot.local is not None
        for ref, other in (("m@2", "m@1"), ("m@1", "m@2")):
            assert store.warmup(ref).resident
            assert fetched(store, ref) == 0
            assert store._parts.hot.local.usage().used_bytes <= 11 * MIB
            assert store._parts.hot.local.usage().pinned_bytes == 0
            store.evict(other)


def test_what_is_larger_than_the_tier_is_refused_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, hot_spec(tmp_path, 4 * MIB)) as store:
        with pytest.raises(OutOfSpace, match="holds at most"):
            store.warmup("m@1")
        assert store._parts.hot.local is not None
        assert store._parts.hot.local.usage().objects == 0


def test_eviction_frees_a_version_or_all(store: Store) -> None:
    store.warmup("m@1")
    store.warmup("m@2")
    freed = store.evict("m@1")
    assert freed >= SIZE[1]
    look = store.warming.look(store.resolve("m@2"), "hot")
    assert look.missing_bytes == V1["kept"].nbytes  # it was of both
    assert store.evict() > 0
    assert store._parts.hot.local is not None
    assert store._parts.hot.local.usage().objects == 0
    equal(store.load("m@1").load(), V1)


def test_a_pinned_version_stays_until_its_pin_ends(store: Store, tmp_path: Path) -> None:
    store.warmup("m@1")
    store.warmup("m@2")
    digest = store.resolve("m@1").digest
    soon = datetime.now(UTC) + timedelta(seconds=1)
    store.pins.add(digest, "m@1", ["hot"], soon)
    assert store.evict("m@1") == 0
    assert store.evict() > 0
    assert store.warming.look(store.resolve("m@1"), "hot").resident
    assert fetched(store, "m@1") == 0
    while datetime.now(UTC) <= soon:
        time.sleep(0.05)
    assert store.evict() > 0
    store.pins.add(digest, "m@1", ["warm"])
    store.warmup("m@1")
    assert store.evict() > 0  # a pin in warm tiers holds nothing here


def test_a_pin_of_another_node_is_heard_of(tmp_path: Path) -> None:
    with opened(tmp_path, hot_spec(tmp_path)) as store:
        store.warmup("m@1")
    with open_store(tmp_path / "store") as other:
        other._parts.hot_pins._local = None  # as on a node without this tier
        other.pins.add(other.resolve("m@1").digest, "m@1", ["hot"])
        other.close()
    with open_store(tmp_path / "store") as store:
        store.load("m@2")  # the first load of a process looks for pins, and then every minute does
        local = store._parts.hot.local
        assert local is not None
        until = time.monotonic() + 30
        while local.usage().pinned_bytes < SIZE[1]:
            assert time.monotonic() < until, "the pin was never heard of"
            time.sleep(0.01)
        Pins(store._parts.home.blobs).remove(store.resolve("m@1").digest)
        store._parts.hot_pins.sync()
        assert local.usage().pinned_bytes == 0


def test_home_that_cannot_be_asked_for_pins_changes_none(store: Store) -> None:
    store.warmup("m@1")
    store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"])

    def down(prefix: str = "") -> Iterator[object]:
        raise Unreachable("no answer")

    blobs = store._parts.home.blobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "list", down)
        with pytest.raises(Unreachable):
            store.evict()
    assert store.warming.look(store.resolve("m@1"), "hot").resident


@pytest.mark.parametrize("with_local", [False, True])
def test_a_shared_tier_serves_nodes_that_have_nothing(
    tmp_path: Path, redis_plain: RedisServer, with_local: bool
) -> None:
    tiers = [redis_spec(redis_plain)] + [hot_spec(tmp_path)] * with_local
    with opened(tmp_path, *tiers) as store:
        if with_local:  # what is plain on this node has no frame to give
            assert store.warmup("m@2").tier == "nvme"
        warm = store.warmup("m@2", tier="redis")
        assert (warm.tier, warm.resident, warm.missing_chunks) == ("redis", True, 0)
        assert warm.tier_bytes < SIZE[2] + sum(a.nbytes for a in (V1["emb"], V1["layer"]))
        assert store.warming.look(store.resolve("m@2"), "redis").resident
        if with_local:
            store.evict("m@2")
        model = store.load("m@2")
        equal(model.load(), V2)
        assert model.stats.bytes_fetched == 0
        with pytest.raises(UsageError, match="never emptied as a whole"):
            store.evict(tier="redis")
        store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"])
        assert store.evict("m@2", tier="redis") > 0
        missing = store.warming.look(store.resolve("m@2"), "redis")
        kept = {piece.place.digest for piece in store.load("m@1").tensor("kept")._base.chunks()}
        assert 0 < missing.missing_chunks < missing.chunks
        assert store.warming._hot.shared[0].present(
            [place for place in store.load("m@2")._opened.content.table if place.digest in kept]
        )


def test_a_tier_that_is_not_there_is_said_to_be(store: Store, tmp_path: Path) -> None:
    for call in (lambda: store.warmup("m", tier="redis"), lambda: store.evict("m", tier="warm")):
        with pytest.raises(UsageError, match="its hot tiers are: nvme"):
            call()
    with init_store(tmp_path / "plain") as plain:
        plain.save("m", {"w": np.zeros(3)})
        with pytest.raises(UsageError, match="its hot tiers are: none"):
            plain.warmup("m")
