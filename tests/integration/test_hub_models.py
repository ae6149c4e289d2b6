"""The gateway's list of models: by pages, and what it asks of home for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from starlette.requests import Request

from tests.integration.kit import created
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import REFS
from tierstore.modelstore.store import Store
from tierstore.serving.hub.endpoints import Call
from tierstore.serving.hub.reading import Reading
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Caller
from tierstore.testing.faulty import FaultyStore

ANYONE = Caller(None, ("*",))


def save(store: Store, name: str, value: float) -> None:
    store.save(name, {"w": np.full(9, value, np.float32)}, base=None)


def page(
    reading: Reading, caller: Caller = ANYONE, /, **query: object
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A page of the list, and the query of the next one; none for the last."""
    scope = {
        "type": "http", "query_string": urlencode(query).encode(), "headers": [], "scheme": "http",
        "path": "/api/models", "raw_path": b"/api/models", "server": ("hub", 80),
    }  # fmt: skip
    answer = reading.models(Call(Request(scope), caller))
    link = answer.headers.get("link", "<>").split(">")[0][1:]
    following = {name: value for name, [value] in parse_qs(urlsplit(link).query).items()}
    return json.loads(bytes(answer.body)), following


@pytest.fixture
def asked() -> FaultyStore:
    return FaultyStore(MemoryStore("hub"))


@pytest.fixture
def store(asked: FaultyStore, cache: Path) -> Store:
    store = created(asked, cache)
    store.reclaim.enable(wait_s=0)
    for number in range(5):
        save(store, f"m{number}", number)
    return store


def reading_of(store: Store) -> Reading:
    return Reading(Repos(store), cast(Any, None), cast(Any, None))


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_pages_follow_one_another_whatever_comes_between(store: Store) -> None:
    reading = reading_of(store)
    first, following = page(reading, limit=2)
    assert (ids(first), following) == (["m0", "m1"], {"limit": "2", "cursor": "m1"})
    save(store, "m00", 7)
    store.remove("m3@1", force=True)
    second, following = page(reading, ANYONE, **following)
    assert ids(second) == ["m2", "m4"]
    assert following == {}
    assert ids(page(reading, search="M4")[0]) == ["m4"]
    assert ids(page(reading, Caller(None, ("m0*",)))[0]) == ["m0", "m00"]


def test_only_models_that_moved_are_read_again(store: Store, asked: FaultyStore) -> None:
    reading = reading_of(store)
    before, _ = page(reading)
    asked.calls.clear()
    assert page(reading)[0] == before
    assert asked.calls == [("list", REFS)]
    save(store, "m1", 9)
    store.alias("m2", "main", "m2@1")
    save(store, "m2", 9)
    asked.calls.clear()
    after, _ = page(reading)
    assert after[1]["sha"] == store.resolve("m1@2").digest.hex[:40]
    assert after[2]["sha"] == store.resolve("m2@1").digest.hex[:40]
    assert {key.split("/")[1] for op, key in asked.calls if op == "get"} == {"m1", "m2"}
    store.remove("m1@2", force=True)
    assert page(reading)[0][1] == before[1]
    store.undelete("m1@2")
    assert page(reading)[0] == after
