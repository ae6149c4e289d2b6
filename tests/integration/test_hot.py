"""Stores with hot tiers, opened as users open them."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal, tensors
from tierstore.errors import ConfigError
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.store import Store
from tierstore.placement.policies import POLICIES
from tierstore.store import init_store, open_store

MODEL = tensors(1) | {"big": np.random.default_rng(5).standard_normal((700, 1024), np.float32)}
NBYTES = sum(array.nbytes for array in MODEL.values())
CHUNKS = 2 + 1 + 1 + 3


def hot_spec(folder: Path, size: int = 64 * MIB, **options: str) -> TierSpec:
    return TierSpec(name="hot", role="hot", url=str(folder / "hot"), size=size, options=options)


def made(folder: Path, *tiers: TierSpec) -> Store:
    with init_store(folder / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("m", MODEL)
    return open_store(folder / "store")


def load(store: Store) -> tierstore.Model:
    model = store.load("m")
    equal(model.load(), MODEL)
    return model


def test_what_was_loaded_once_is_mapped_the_next_time(tmp_path: Path) -> None:
    store = made(tmp_path, hot_spec(tmp_path))
    first = load(store).stats
    assert first.bytes_fetched > 0
    assert store._parts.hot.flush(30)
    again = load(store).stats
    assert again.bytes_fetched == again.bytes_decoded == 0
    assert again.bytes_mapped == MODEL["emb"].nbytes + MODEL["big"].nbytes
    assert again.bytes_by_tier == {"hot": NBYTES - again.bytes_mapped}
    store.close()
    with open_store(tmp_path / "store") as other:  # as another process would
        assert load(other).stats.bytes_fetched == 0
        assert other._parts.hot.local is not None
        assert other._parts.hot.local.usage().objects == CHUNKS


def test_what_was_loaded_is_the_users_own(tmp_path: Path) -> None:
    with made(tmp_path, hot_spec(tmp_path)) as store:
        load(store)
        store._parts.hot.flush(30)
        arrays = store.load("m").load()
        for array in arrays.values():
            array.fill(1)
        load(store)
        assert store._parts.hot.local is not None
        kept = store.load("m")["big"]
        store._parts.hot.local.evict()
        equal({"big": kept}, {"big": MODEL["big"]})
        assert load(store).stats.bytes_fetched > 0
    del store
    gc.collect()
    assert (arrays["big"] == 1).all()
    equal({"big": kept}, {"big": MODEL["big"]})


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_policy_and_the_quota_are_as_configured(tmp_path: Path, policy: str) -> None:
    with made(tmp_path, hot_spec(tmp_path, 3 * MIB, policy=policy)) as store:
        for _ in range(3):
            load(store)
            store._parts.hot.flush(30)
        assert store._parts.hot.local is not None
        assert store._parts.hot.local.usage().used_bytes <= 3 * MIB
        assert store._parts.hot.local.explain(bytes(32), 0.0)["policy"] == policy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": "lru"}, "no placement policy 'lru'"),
        ({"verify": "never"}, "boot, first or always"),
        ({"polcy": "s3fifo"}, "did you mean 'policy'"),
    ],
)
def test_options_that_are_not_known(tmp_path: Path, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(tmp_path, hot_spec(tmp_path, 64 * MIB, **options))
    with pytest.raises(ConfigError, match="has no size"):
        made(tmp_path, TierSpec(name="hot", role="hot", url=str(tmp_path / "hot")))


def node_file(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "tierstore.toml").write_text(text)
    monkeypatch.setenv("TIERSTORE_CONFIG", str(folder / "tierstore.toml"))


def test_a_node_says_where_its_tier_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, hot_spec(tmp_path)).close()
    node_file(tmp_path, monkeypatch, f'[hot]\nurl = "{tmp_path}/mine"\nsize = "2MiB"\n')
    with open_store(tmp_path / "store") as store:
        assert store._parts.hot.local is not None
        assert (store._parts.hot.local.root, store._parts.hot.local.quota_bytes) == (
            tmp_path / "mine",
            2 * MIB,
        )
    node_file(tmp_path, monkeypatch, "[hot]\nenabled = false\n")
    with open_store(tmp_path / "store") as store:
        assert store._parts.hot.local is None


def test_a_node_may_have_a_tier_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path).close()
    node_file(tmp_path, monkeypatch, f'[hot]\nurl = "{tmp_path}/mine"\nsize = "64MiB"\n')
    with open_store(tmp_path / "store") as store:
        load(store)
        store._parts.hot.flush(30)
        assert load(store).stats.bytes_fetched == 0


def test_a_tier_without_a_size_is_said_to_be_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path).close()
    node_file(tmp_path, monkeypatch, f'[hot]\nurl = "{tmp_path}/mine"\n')
    with open_store(tmp_path / "store") as store:
        load(store)
        assert not store._parts.hot
    assert "has no size" in caplog.text


def test_rows_of_a_hot_tensor_are_read_from_this_node(tmp_path: Path) -> None:
    with made(tmp_path, hot_spec(tmp_path)) as store:
        load(store)
        store._parts.hot.flush(30)
        model = store.load("m")
        rows = model.tensor("big")[[3, 300, 699]]
        assert rows.tobytes() == MODEL["big"][[3, 300, 699]].tobytes()
        assert model.tensor("big")[100:500].tobytes() == MODEL["big"][100:500].tobytes()
        assert model.stats.bytes_fetched == 0


def test_what_is_read_is_counted_in_home_for_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, hot_spec(tmp_path)).close()
    for node in ("one", "two"):
        monkeypatch.setenv("TIERSTORE_NODE", node)
        with open_store(tmp_path / "store") as store:
            load(store)
    with open_store(tmp_path / "store") as store:
        view = store.heat()
        [chunk] = [piece.place for piece in store.load("m").tensor("bias")._base.chunks()]
        assert view.chunk(chunk.digest) == pytest.approx(2.0, rel=1e-3)
        stored = {
            place.digest: place.frame_bytes for place in store.load("m")._opened.content.table
        }
        assert sum(view.packs().values()) == pytest.approx(2 * sum(stored.values()), rel=1e-3)
    assert sorted(p.name for p in (tmp_path / "store" / "heat").iterdir()) == ["one", "two"]


def test_a_store_without_tiers_counts_nothing(tmp_path: Path) -> None:
    with made(tmp_path) as store:
        load(store)
        assert store.heat().packs() == {}
    assert not (tmp_path / "store" / "heat").exists()
