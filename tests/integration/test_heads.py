"""Where all logs of a store end, by one listing; and an agent that reads only what moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, opened
from tierstore import Rows
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import (
    ALIASES,
    CONFIG,
    HEAD,
    LAYOUTS,
    PACKS,
    REFS,
    VARIANTS,
    entry_key,
    ref_prefix,
)
from tierstore.format.tiers import MOVERS
from tierstore.modelstore.home import readcache
from tierstore.modelstore.home.heads import Heads
from tierstore.modelstore.names import listed as listing
from tierstore.modelstore.names.listed import ListedModel, list_names
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent
from tierstore.testing.faulty import FaultyStore
from tierstore.variants.derive import derive

NAMES = ("m", "a/b", "näme", "50%")


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("heads")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        store.reclaim.enable(wait_s=0)
        yield store


def save(store: Store, name: str, value: float) -> None:
    store.save(name, {"w": np.full(9, value, np.float32)}, base=None)


def test_every_log_ends_where_it_is_read_to(store: Store, blobs: MemoryStore) -> None:
    home = store._parts.home
    for times, name in enumerate(NAMES, 1):
        for value in range(times):
            save(store, name, value)
            store.alias(name, "weiß/x", f"{name}@{value + 1}")
    store.remove("a/b@1")
    blobs.put(f"{REFS}stray", b"")
    blobs.put(f"{REFS}m/versions/000000/notes", b"")
    blobs.put(entry_key(ref_prefix("m", "versions"), 5000), b"far ahead: no entry of it")
    blobs.put(f"{REFS}%ff/versions/000000/000000001", b"no name")
    blobs.put(f"{REFS}%6D/versions/000000/000000009", b"not how 'm' is written")
    heads = Heads(blobs)
    for name in NAMES:
        for log in ("versions", "removed", ALIASES + "weiß/x", ALIASES + "none", VARIANTS + "v"):
            last = home.log(name, log).last()
            assert heads.of(name, log).seq == (last.seq if last else 0), (name, log)
    seqs = {name: (last.seq, removed.seq) for name, (last, removed) in heads.versions()}
    assert seqs == {"m": (1, 0), "a/b": (2, 2), "näme": (3, 0), "50%": (4, 0)}
    assert {(name, alias): end.seq for name, alias, end in heads.aliases()} == {
        (name, "weiß/x"): times for times, name in enumerate(NAMES, 1)
    }
    assert list(heads.variants()) == []


def listed(blobs: BlobStore, cache: Path) -> dict[str, ListedModel]:
    """What another process shows of all models."""
    with opened(blobs, cache) as other:
        found = list_names(other._names, cache)
        found.read_ends()
        return {name: found.model(name) for name in found.models()}


def test_models_are_listed_as_they_are_looked_up_one_by_one(
    store: Store, blobs: MemoryStore, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for times, name in enumerate(NAMES, 1):
        for value in range(times):
            save(store, name, value)
            store.alias(name, "weiß/x", f"{name}@{value + 1}")
    store.alias("50%", "gone", "50%")
    store.remove_alias("50%", "gone")
    store.alias("näme", "weiß/x", "näme@1")
    derive(store, "näme@2", {"cast": "bf16"}, name="half")
    derive(store, "50%@1", {"cast": "bf16"}, name="half")
    store.remove("50%@1", "näme@3", "a/b@1", force=True)
    store.undelete("a/b@1")
    save(store, "removed", 7)
    store.remove_model("removed")
    blobs.put(f"{REFS}hint/versions/HEAD", b"all of its log is lost")
    found = listed(blobs, cache)
    assert list(found) == store.models() == sorted(NAMES)
    for name, one in found.items():
        assert one.newest == store.resolve(name)
        assert one.count == len(store.versions(name))
        aliases = {alias.name: alias.version.number for alias in store.aliases(name)}
        assert dict(one.aliases) == aliases
    assert dict(list_names(store._names, cache).all_versions()) == {
        name: [*store.versions(name), *store._names.all_variants(name)] for name in sorted(NAMES)
    }
    assert "refs/hint is not listed" in caplog.text


def test_a_later_process_reads_only_the_ends_that_are_new(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    monkeypatch.setattr(listing, "_FEW", 2)
    for name in NAMES:
        save(store, name, 1)
        store.alias(name, "prod", name)
    first, asked = listed(blobs, cache), FaultyStore(blobs)
    assert listed(asked, cache) == first
    assert [call for call in asked.calls if call[1] != CONFIG] == [("list", REFS)]
    save(store, "m", 2)
    asked.calls.clear()
    assert listed(asked, cache)["m"].newest.number == 2
    key = entry_key(ref_prefix("m", "versions"), 2)
    assert [key for op, key in asked.calls if op == "get"] == [CONFIG, key]


def test_a_later_process_reads_only_the_versions_that_are_new(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one model, or of all."""
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    monkeypatch.setattr(listing, "_FEW", 0)
    for value in range(3):
        save(store, "m", value)
    save(store, "n", 1)
    derive(store, "m@1", {"cast": "bf16"}, name="half")
    dict(list_names(store._names, cache).all_versions())
    save(store, "m", 3)
    every = {name: store.versions(name) for name in ("m", "n")}
    half = store._names.all_variants("m")
    asked = FaultyStore(blobs)
    with opened(asked, cache) as other:
        before = len(asked.calls)
        assert list_names(other._names, cache, "m").versions("m") == every["m"]
        new = entry_key(ref_prefix("m", "versions"), 4)
        assert asked.calls[before:] == [("list", f"{REFS}m/"), ("get", new)]
        found = dict(list_names(other._names, cache).all_versions())
        assert found == {"m": [*every["m"], *half], "n": every["n"]}
        assert asked.calls[before + 2 :] == [("list", REFS)]


def test_a_number_that_was_given_a_second_time_is_read_again(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the store was put back meanwhile."""
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    monkeypatch.setattr(listing, "_FEW", 0)
    save(store, "m", 1)
    assert listed(blobs, cache)["m"].newest == store.resolve("m")
    log = ref_prefix("m", "versions")
    blobs.delete([entry_key(log, 1), log + HEAD])
    save(store, "m", 2)
    assert listed(blobs, cache)["m"].newest == store.resolve("m@1")


def test_a_model_that_cannot_be_read_hides_no_other(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    for name in ("m", "n", "o"):
        save(store, name, 1)
        save(store, name, 2)
    store.remove("n@1")
    blobs.put(entry_key(ref_prefix("m", "versions"), 2), b"damaged")
    blobs.put(entry_key(ref_prefix("n", "removed"), 2), b"damaged")
    with opened(blobs, cache) as other:
        found = list_names(other._names, cache)
        found.read_ends()
        assert found.models() == ["m", "n", "o"]
        for name in ("m", "n"):
            with pytest.raises(Damaged, match=f"{name}.*is damaged"):
                found.model(name)
        assert found.model("o").count == 2


def test_an_agents_round_reads_nothing_of_models_that_did_not_move(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    for name in NAMES:
        save(store, name, 1)
        store.alias(name, "prod", name)
    asked = FaultyStore(blobs)
    with opened(asked, cache) as other:
        agent = Agent(other, scrub_s=None)
        agent.round()
        asked.calls.clear()
        agent.round()
        assert [key for _, key in asked.calls if key.startswith(REFS) and key != REFS] == []
        save(store, "m", 2)
        asked.calls.clear()
        agent.round()
        logs = {key for op, key in asked.calls if op == "get" and key.startswith(REFS)}
        assert {key.split("/")[1] for key in logs} == {"m"}
        assert agent.stats.failed_rounds == 0


def test_an_agent_steps_a_rollout_that_another_process_has_begun(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (1, 2):
        save(store, "m", value)
    store.alias("m", "prod", "m@1")
    with opened(blobs, cache) as other:
        agent = Agent(other, scrub_s=None)
        agent.round()
        store.rollouts.start("m", "prod", "m@2", stages=[5000, 10000], every_s=60)
        agent.round()
        assert agent.stats.rollout_steps == 0, "it is not due"
        monkeypatch.setattr(other.rollouts, "_clock", lambda: time.time() + 3600)
        for done in (1, 2, 2):
            agent.round()
            assert agent.stats.rollout_steps == done
    assert store.resolve("m@prod").number == 2


def test_an_agent_folds_what_was_brought_back(store: Store, cache: Path) -> None:
    table = np.arange(64_000, dtype="f4").reshape(1000, 64)
    store.save("m", {"emb": table})
    for turn in range(8):
        store.patch("m", {"emb": Rows([turn], -table[turn : turn + 1])}, fold=False)
    store.remove("m@9", force=True)
    agent = Agent(store, scrub_s=None)
    agent.round()
    assert agent.stats.folded == 0
    store.undelete("m@9")
    agent.round()
    assert agent.stats.folded == 1


def test_where_home_is_the_only_tier_no_packs_are_listed(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    save(store, "m", 1)
    asked = FaultyStore(blobs)
    with opened(asked, cache) as other:
        agent = Agent(other, scrub_s=None)
        agent.round()
        asked.calls.clear()
        agent.round()
        listed = {key for op, key in asked.calls if op == "list"}
        assert listed.isdisjoint({PACKS, LAYOUTS, MOVERS})
        assert agent.stats.failed_rounds == agent.stats.refused == 0


def test_an_agent_sees_a_rollout_whose_number_another_entry_had(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the store was put back meanwhile."""
    for value in (1, 2):
        save(store, "m", value)
    store.alias("m", "prod", "m@1")
    store.alias("m", "prod", "m@1")
    with opened(blobs, cache) as other:
        monkeypatch.setattr(other.rollouts, "_clock", lambda: time.time() + 3600)
        agent = Agent(other, scrub_s=None)
        agent.round()
        log = ref_prefix("m", ALIASES + "prod")
        blobs.delete([entry_key(log, 2), log + HEAD])
        started = store.rollouts.start("m", "prod", "m@2", stages=[5000, 10000], every_s=60)
        assert started.seq == 2
        agent.round()
        assert agent.stats.rollout_steps == 1
