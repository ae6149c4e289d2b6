"""Releases: several models behind one switch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, settings
from tests.integration.test_rollout import NODES
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    Conflict,
    Damaged,
    GateClosed,
    InvalidName,
    NotFound,
    TierstoreError,
    UsageError,
)
from tierstore.format.keys import ref_prefix
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import ModelRef
from tierstore.modelstore.names.reports import parse_gate, parse_stages
from tierstore.modelstore.store import Store

MODELS = ("ranker", "retrieval", "tokenizer")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three models of two versions each; search@1 (prod) names the first ones, search@2 new ones
    of two of them.
    """
    with created(MemoryStore(), tmp_path) as store:
        for number in (1, 2):
            for at, model in enumerate(MODELS):
                store.save(model, {"w": np.full(9, 10 * at + number, np.float32)})
        store.releases.create("search", [f"{m}@1" for m in MODELS], alias="prod", message="first")
        store.releases.create("search", ["ranker@2", "retrieval@2"], based_on="search@prod")
        yield store


def served(store: Store, cache: Path) -> list[tuple[int, ...]]:
    """The members' numbers that each node gets, resolved one by one."""
    found = []
    for name in NODES:
        node = Store(store._parts.home.blobs, replace(settings(cache), node=name))
        found.append(tuple(node.resolve(f"{m}@release:search").number for m in MODELS))
    return found


def test_members_are_what_the_switch_says(store: Store) -> None:
    assert {m: v.number for m, v in store.releases.get("search@2").members.items()} == {
        "ranker": 2, "retrieval": 2, "tokenizer": 1,
    }  # fmt: skip
    assert str(store.load("ranker@release:search").version) == "ranker@1"
    assert store.load("ranker@release:search@2")["w"][0] == 2
    assert store.resolve("ranker@release:search@prod") == store.resolve("ranker@1")
    store.alias("search", "prod", "search@2")
    assert [str(store.resolve(f"{m}@release:search")) for m in MODELS] == [
        "ranker@2", "retrieval@2", "tokenizer@1",
    ]  # fmt: skip
    assert store.rollback("search", "prod", message="worse").version.number == 1
    assert str(store.resolve("ranker@release:search")) == "ranker@1"
    assert [(e.action, e.version, e.message) for e in store.history("search", "prod")] == [
        ("rollback", 1, "worse"), ("set", 2, ""), ("set", 1, "first"),
    ]  # fmt: skip
    assert [entry.action for entry in store.history("search")] == ["release", "release"]
    assert store.releases.names() == ["search"]


def test_a_variant_of_a_member_is_found_by_name_and_by_profile(store: Store) -> None:
    tierstore.derive(store, "ranker@1", {"cast": "bf16"})
    assert str(store.load("ranker@release:search+bf16").version) == "ranker@1+bf16"
    assert str(store.load("ranker@release:search", profile="bf16,full").version) == "ranker@1+bf16"
    assert str(store.load("tokenizer@release:search", profile="bf16,full").version) == "tokenizer@1"


def test_no_variant_stands_for_a_version_that_was_named(store: Store) -> None:
    tierstore.derive(store, "ranker@1", {"cast": "bf16"})
    for ref in ("ranker@1", "ranker@release:search@1", "ranker@release:search"):
        version = store.load(ref).version
        assert (version.number, version.variant) == (1, None), ref


def test_a_rollout_moves_all_members_of_a_node_together(store: Store, tmp_path: Path) -> None:
    status = store.rollouts.start(
        "search", "prod", store.resolve("search@2"), stages=parse_stages("50,100")
    )
    assert status.percent == 50
    now = served(store, tmp_path)
    assert set(now) == {(1, 1, 1), (2, 2, 1)}, "no node mixes two releases"
    assert 150 < now.count((2, 2, 1)) < 250
    assert {pin.version for pin in store.pins.active()} == {
        store.resolve(f"{model}@1").digest for model in MODELS
    }
    before = {info.key for info in store._parts.home.blobs.list("refs/")}
    store.rollouts.abort("search", "prod")
    after = {info.key for info in store._parts.home.blobs.list("refs/")}
    assert len(after - before) == 1
    assert set(served(store, tmp_path)) == {(1, 1, 1)}
    assert store.pins.active() == []


def test_gates_read_what_nodes_report_of_the_release(store: Store) -> None:
    new = store.resolve("search@2")
    store.rollouts.start(
        "search", "prod", new, gates=[parse_gate("ctr>=0.1")], stages=parse_stages("10,100")
    )
    with pytest.raises(GateClosed, match="search@2"):
        store.rollouts.step("search", "prod")
    store.rollouts.report(new, "a-node", {"ctr": "0.2"})
    assert store.rollouts.step("search", "prod") is not None
    store.rollouts.report(new, "a-node", {"ctr": "0.3"})
    assert store.rollouts.step("search", "prod") is None
    assert str(store.resolve("ranker@release:search")) == "ranker@2"
    assert store.rollouts.running() == []


def test_equal_members_are_the_same_content(store: Store) -> None:
    one = store.releases.create("search", ["tokenizer@1", "ranker@1", "retrieval@1"])
    assert one.version.digest == store.resolve("search@1").digest
    assert one.version.number == 3


def test_mistakes_publish_nothing(store: Store) -> None:
    tierstore.derive(store, "ranker@1", {"cast": "bf16"})
    create, save = store.releases.create, store.save
    weights = {"w": np.ones(3, np.float32)}
    before = {info.key for info in store._parts.home.blobs.list()}
    cases: list[tuple[type[TierstoreError], str, object]] = [
        (NotFound, "ranker@9 does not exist", lambda: create("search", ["ranker@9"])),
        (UsageError, "1 to 1000 members", lambda: create("search", [])),
        (UsageError, "both", lambda: create("search", ["ranker@1", "ranker@2"])),
        (UsageError, "is a variant", lambda: create("search", ["ranker@1+bf16"])),
        (UsageError, "is a release", lambda: create("other", ["search@1"])),
        (UsageError, "is not a release", lambda: create("x", ["ranker"], based_on="ranker@1")),
        (Conflict, "name of a model", lambda: create("ranker", ["tokenizer"])),
        (Conflict, "name of a release", lambda: save("search", weights)),
        (Conflict, "only in case", lambda: create("Search", ["ranker"])),
        (InvalidName, "'\\+' begins", lambda: create("c++", ["ranker"])),
        (InvalidName, "reads as", lambda: create("x", ["ranker"], alias="release:x")),
        (UsageError, "is a release: it holds no tensors", lambda: store.load("search")),
        (UsageError, "is a release", lambda: store.diff("search@1", "search@2")),
        (UsageError, "is a release", lambda: store.rebase("search@1")),
        (UsageError, "is a release", lambda: tierstore.derive(store, "search", {"int8": "row"})),
        (NotFound, "has no 'vocab'", lambda: store.load("vocab@release:search")),
        (UsageError, "is not a release", lambda: store.load("ranker@release:tokenizer@1")),
        (NotFound, "none@prod does not exist", lambda: store.load("ranker@release:none")),
        (InvalidName, "names no releases", lambda: ModelRef.parse("a@release:b@release:c")),
        (UsageError, "is not a version of 'ranker'",
         lambda: store.rollouts.start("ranker", "prod", store.resolve("tokenizer@1"))),
    ]  # fmt: skip
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()  # type: ignore[operator]
    store.rollouts.start("search", "prod", store.resolve("search@2"))
    started = {info.key for info in store._parts.home.blobs.list()}
    with pytest.raises(Conflict, match="is in a rollout to search@2"):
        create("search", ["ranker@2"], alias="prod")
    assert {info.key for info in store._parts.home.blobs.list()} == started
    gone = {key for key in started - before if not key.startswith(("refs/search/alias", "pins/"))}
    assert {key for key in gone if not key.startswith("leases/")} == set()


def test_a_member_whose_log_says_something_else_is_damage(store: Store) -> None:
    blobs = store._parts.home.blobs
    log = store._parts.home.log("ranker")
    blobs.delete([log.key_of(1)])
    with pytest.raises(Damaged, match="search@1 names ranker@1"):
        store.load("ranker@release:search@1")
    findings = [(f.key, f.needed_by) for f in store.check().findings if "search@1" in f.needed_by]
    assert findings, "check says which releases need the version that is gone"


def test_a_member_whose_log_names_another_manifest_is_damage(store: Store) -> None:
    log = store._parts.home.log("ranker")
    other = msgspec.structs.replace(log.entry(1), manifest=log.entry(2).manifest)
    store._parts.home.blobs.put(log.key_of(1), seal_body(Kind.REF, other))
    with pytest.raises(Damaged, match="search@1 names ranker@1"):
        store.load("ranker@release:search@1")


def test_check_and_du_take_releases_as_they_are(store: Store) -> None:
    assert store.check(read_data=True).findings == []
    usage = store.usage()
    assert usage.logical == sum(store.usage(model).logical for model in MODELS)


def test_a_release_takes_four_small_objects(store: Store) -> None:
    before = {info.key for info in store._parts.home.blobs.list()}
    store.releases.create("ads", ["ranker@1"])
    new = {info.key for info in store._parts.home.blobs.list()} - before
    assert sorted(key.split("/")[0] for key in new) == ["layouts", "refs", "refs", "versions"]
    assert ref_prefix("ads", "versions") + "HEAD" in new


def test_racing_releases_each_get_a_number(store: Store, tmp_path: Path) -> None:
    made: list[int] = []

    def create(model: str) -> None:
        node = Store(store._parts.home.blobs, settings(tmp_path))
        made.append(node.releases.create("race", [f"{model}@1"]).version.number)

    threads = [threading.Thread(target=create, args=(model,)) for model in MODELS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [1, 2, 3]
