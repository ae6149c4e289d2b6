"""Home goes away under an open store, as when it is unmounted: nothing is called published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, equal
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import TierstoreError, Unreachable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore

FIRST = {"w": np.arange(1000, dtype=np.float32)}
SECOND = {"w": FIRST["w"] + 1}


def patched(store: Store) -> object:
    return store.patch("m@1", {"w": Rows([1], np.ones(1, np.float32))}, fold=False)


WRITES: dict[str, Callable[[Store], object]] = {
    "save": lambda store: store.save("m", SECOND, alias="prod"),
    "a new model": lambda store: store.save("n", SECOND),
    "alias": lambda store: store.alias("m", "new", store.versions("m")[0]),
    "patch": patched,
}


@pytest.mark.parametrize("there", ["nothing", "another store"])
@pytest.mark.parametrize("write", WRITES)
def test_below_a_mount_point_that_is_empty_nothing_is_published(
    tmp_path: Path, write: str, there: str
) -> None:
    home, away = tmp_path / "home", tmp_path / "server"
    with tierstore.init(home) as store:
        store.save("m", FIRST, alias="prod")
        version = store.versions("m")[0]
        home.rename(away)
        if there == "nothing":
            home.mkdir()
        else:
            tierstore.init(home).close()
        with pytest.raises(TierstoreError):
            WRITES[write](store)
        assert not list(home.glob("refs/*/*/0*/0*")), "an entry"
        home.rename(tmp_path / "junk")
        away.rename(home)
        assert store.versions("m") == [version]
        equal(store.load("m@prod").load(), FIRST)
        WRITES["save"](store)
        equal(store.load("m@prod").load(), SECOND)


def test_the_message_asks_whether_it_is_mounted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with tierstore.init(home) as store:
        store.save("m", FIRST)
        home.rename(tmp_path / "away")
        home.mkdir()
        with pytest.raises(Unreachable, match=r"file system is mounted.*Nothing was published"):
            store.save("m", SECOND)
        (tmp_path / "other").mkdir()
        tierstore.init(tmp_path / "other" / "home").close()
        home.rename(tmp_path / "junk")
        (tmp_path / "other" / "home").rename(home)
        with pytest.raises(Unreachable, match="is another store now"):
            store.save("m", SECOND)


def test_looking_costs_no_request_where_there_is_a_hint(cache: Path) -> None:
    blobs = FaultyStore(MemoryStore("home"))
    with created(blobs, cache) as store:
        store.save("m", FIRST)
        blobs.calls.clear()
        many = blobs.get_many
        asked: list[list[str]] = []

        def noted(keys: list[str]) -> dict[str, memoryview]:
            asked.append(list(keys))
            return many(keys)

        blobs.get_many = noted  # type: ignore[method-assign, assignment]
        store.save("m", SECOND)
        together = [keys for keys in asked if "config.json" in keys]
        assert together == [["config.json", *keys[1:]] for keys in together]
        assert all(len(keys) == 3 for keys in together)
        assert together
