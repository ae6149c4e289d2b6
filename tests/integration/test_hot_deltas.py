"""A node that holds v1 fetches only what v2 changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, created, equal
from tests.integration.test_deltas import Model, tuned, weights
from tierstore.blobs.memory import MemoryStore
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.loading.model import LoadStats
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.placement.policies import DEFAULT_POLICY, make
from tierstore.tiers.hot.shared import SharedHot
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

V1: Model = {"emb": weights(1500), "layer": weights(200, seed=1), "kept": weights(1024, seed=2)}
V2 = V1 | {"layer": tuned(V1["layer"]), "emb": tuned(V1["emb"], 2), "new": weights(300, seed=3)}
REUSED = V1["kept"].nbytes
DELTA = V1["emb"].nbytes + V1["layer"].nbytes
FULL = V2["new"].nbytes


class Node:
    """One node's stores over one home, each a process with memory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, MemoryStore("home")
        created(self.home, folder).close()
        self.frames = MemoryStore("frames")
        self.opened: list[Store] = []

    def open(self, *, local: bool = False, shared: bool = False) -> Store:
        hot = HotTiers(
            LocalHot(self.folder / "hot", "s", 64 * MIB, lambda size: make(DEFAULT_POLICY, size))
            if local
            else None,
            [SharedHot(TierSpec(name="shared", role="shared", url="memory://"), self.frames)]
            if shared
            else [],
        )
        store = Store(
            self.home, Settings(self.folder, threads=2, memory_limit_bytes=64 * MIB), hot=hot
        )
        self.opened.append(store)
        return store

    def reads(self, ref: str, expected: Model, **tiers: bool) -> LoadStats:
        store = self.open(**tiers)
        model = store.load(ref)
        equal(model.load(), expected)
        assert store._parts.hot.flush(30)
        return model.stats


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    for store in made.opened:
        store.close()


@pytest.fixture
def delta_bytes(node: Node) -> int:
    """Two versions are saved; the bytes that the second added."""
    store = node.open()
    store.save("m", V1)
    found = store.save("m", V2).stats
    assert found is not None
    assert found.delta_bytes == DELTA
    return found.delta_stored_bytes


@pytest.mark.parametrize("tier", ["local", "shared"])
def test_only_what_changed_is_fetched(node: Node, delta_bytes: int, tier: str) -> None:
    first = node.reads("m@1", V1, **{tier: True})
    assert (first.bytes_reused, first.bytes_delta) == (0, 0)
    assert first.bytes_full == sum(array.nbytes for array in V1.values())
    second = node.reads("m@2", V2, **{tier: True})
    assert (second.bytes_reused, second.bytes_delta) == (REUSED, DELTA)
    assert second.bytes_full == FULL
    new_frames = second.bytes_fetched - delta_bytes
    assert 0 < new_frames < 1.05 * FULL  # no base was fetched again
    third = node.reads("m@2", V2, **{tier: True})
    assert third.bytes_fetched == third.bytes_delta == third.bytes_full == 0
    assert third.bytes_reused == REUSED + DELTA + FULL


def test_a_node_without_v1_fetches_bases_too_and_keeps_them(node: Node, delta_bytes: int) -> None:
    second = node.reads("m@2", V2, local=True)
    assert second.bytes_delta == DELTA
    assert second.bytes_fetched > delta_bytes + DELTA / 2
    first = node.reads("m@1", V1, local=True)
    assert first.bytes_fetched == 0


def test_rows_of_a_delta_use_the_base_of_this_node(node: Node, delta_bytes: int) -> None:
    node.reads("m@1", V1, local=True)
    model = node.open(local=True).load("m@2")
    rows = model.tensor("emb")[[1, 700, 1499]]
    assert rows.tobytes() == V2["emb"][[1, 700, 1499]].tobytes()
    assert model.stats.bytes_fetched < delta_bytes
    assert model.stats.bytes_delta == 3 * V1["emb"][0].nbytes


def test_a_base_that_this_nodes_disk_has_changed_is_fetched_again(
    node: Node, delta_bytes: int
) -> None:
    node.reads("m@1", V1, local=True)
    store = node.open(local=True)
    [base] = [piece.place.digest for piece in store.load("m@1").tensor("layer")._base.chunks()]
    [path] = (node.folder / "hot").rglob(base.hex())
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.unlink()
    path.write_bytes(data)
    model = store.load("m@2")
    assert np.array_equal(model["layer"], V2["layer"])
    assert store._parts.hot.local is not None
    assert store._parts.hot.local.stats.damaged == 1


def test_a_base_that_this_nodes_disk_has_changed_is_fetched_for_a_delta(node: Node) -> None:
    node.open().save("m", V1)
    node.reads("m@1", V1, local=True)
    for path in (node.folder / "hot").rglob("?" * 64):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()
        path.write_bytes(data)
    saved = node.open(local=True).save("m", V2, base="m@1").stats
    assert saved is not None
    assert saved.delta_bytes == DELTA
    equal(node.open().load("m@2").load(), V2)
