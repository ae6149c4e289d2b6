"""Patched versions behind what serves models: followers, files by name, the gateway."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal
from tierstore import Dense, Rows
from tierstore.blobs.local.store import LocalStore
from tierstore.modelstore.placing.packgraph import PackGraph
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.placement.policies import DEFAULT_POLICY, make
from tierstore.serving import follow
from tierstore.serving.hub.hashing import Hashing
from tierstore.serving.hub.tree import Blobs
from tierstore.serving.update import Update
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

TABLE = np.random.default_rng(0).standard_normal((3000, 100), np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tierstore.init(tmp_path / "store", chunk_size=1 << 20) as one:
        one.save("m", {"emb": TABLE, "bias": TABLE[0], "other": TABLE[1]}, alias="prod")
        yield one


def after(number: int) -> dict[str, np.ndarray]:
    table = TABLE.copy()
    for version in range(2, number + 1):
        table[version] = version
    return {"emb": table, "bias": TABLE[number if number > 1 else 0], "other": TABLE[1]}


def patch(store: Store, number: int) -> None:
    row = np.full((1, 100), number, np.float32)
    changes = {"emb": Rows([number], row), "bias": Dense(TABLE[number])}
    assert store.patch("m@prod", changes, alias="prod").number == number


def test_a_follower_sees_what_patches_change(store: Store) -> None:
    seen: list[Update] = []
    with follow("m@prod", seen.append, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
        for number in (2, 3):
            patch(store, number)
            assert follower.wait(30, number=number)
            assert set(seen[-1].changed) == {"emb", "bias"}
            equal(seen[-1].tensors, after(number))
        store.rollback("m", "prod")
        assert follower.wait(30, number=2)
        equal(seen[-1].tensors, after(2))


def test_equal_signatures_mean_equal_bytes(store: Store) -> None:
    patch(store, 2)
    first, second = store.load("m@1"), store.load("m@2")
    same = {name for name in first if first.tensor(name).signature == second.tensor(name).signature}
    assert same == {"other"}
    again = store.load("m@2")
    assert all(again.tensor(name).signature == second.tensor(name).signature for name in again)


def test_safe_open_of_a_patched_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(store, 2)
    monkeypatch.setenv("TIERSTORE_STORE", store.url)
    with tierstore.safe_open("tierstore://m@2/model.safetensors", "np") as file:
        equal({name: file.get_tensor(name) for name in file.keys()}, after(2))  # noqa: SIM118
        some = file.get_slice("emb")[1:4]
        assert some.tobytes() == after(2)["emb"][1:4].tobytes()
    plain = store.load("m@2").open_file("model.safetensors")
    assert (plain.sha256, len(plain.read())) == ("", plain.size)


def test_the_gateway_computes_what_no_fold_has_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(store, 2)
    patch(store, 3)
    monkeypatch.setattr("tierstore.serving.hub.hashing._WINDOW_BYTES", 1 << 20)
    before = sorted(path for path in (tmp_path / "store").rglob("*") if "leases" not in path.parts)
    hashing, reads = Hashing(), []

    async def complete(model: tierstore.Model, times: int) -> None:
        await asyncio.gather(*(hashing.complete(model) for _ in range(times)))

    blobs = {}
    for number in (2, 3):
        model = store.load(f"m@{number}")
        view = model.open_file("model.safetensors")
        data = view.read()
        begun = model.stats.bytes_decoded
        asyncio.run(complete(model, 8))
        reads.append(model.stats.bytes_decoded - begun)
        (file,) = model.files
        assert hashlib.sha256(data).hexdigest() == file.sha256
        blobs[number] = Blobs().of_file(model, model._file_entry(file.path))
        again = store.load(f"m@{number}")
        asyncio.run(complete(again, 1))
        assert again.files == model.files
        assert again.stats.bytes_decoded < MIB  # it was known
    assert blobs[2] != blobs[3]
    assert max(reads) < 2 * TABLE.nbytes, "eight that ask at once have it read once"
    assert before == sorted(
        path for path in (tmp_path / "store").rglob("*") if "leases" not in path.parts
    )
    store.fold("m@3")
    assert store.load("m@3").files[0].sha256 == blobs[3].sha256


def test_a_node_that_has_v1_hot_fetches_the_patch_alone(store: Store, tmp_path: Path) -> None:
    local = LocalHot(
        tmp_path / "hot",
        store._parts.home.config.store_id,
        64 * MIB,
        lambda size: make(DEFAULT_POLICY, size),
    )
    own = Settings(tmp_path / "cache", threads=2, memory_limit_bytes=64 * MIB)
    with Store(LocalStore(tmp_path / "store"), own, hot=HotTiers(local)) as node:
        assert node.warmup("m@1").resident
        patch(store, 2)
        model = node.load("m@2")
        equal(model.load(), after(2))
        assert model.stats.bytes_fetched < 4096
        assert node._parts.hot.flush(30)
        assert not node.warming.look(node.resolve("m@2"), "hot").missing_bytes
        patch(store, 3)
        warm = node.warmup("m@3")
        assert warm.resident
        assert warm.stats is not None
        assert warm.stats.bytes_fetched < 4096
        equal(node.load("m@3").load(), after(3))
        node.pins.add(node.resolve("m@3").digest, "m@3", ["hot"])
        before = local.pinned()
        assert len(before) == warm.chunks
        store.fold("m@3")
        node.pins.add(node.resolve("m@3").digest, "m@3", ["hot"])
        assert local.pinned() != before


def test_packs_of_a_patched_version_are_kept_together(store: Store) -> None:
    patch(store, 2)
    graph = PackGraph(store._parts.home)
    first, second = (store.resolve(f"m@{number}").digest for number in (1, 2))
    assert set(graph.packs_of(first)) < set(graph.packs_of(second))
