"""Copies between kinds of storage, from tiers and out of damage, and beside collectors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal
from tests.integration.test_copy import ROWS, flip, model, tuned
from tests.servers.moto import Moto
from tierstore import TierSpec
from tierstore.blobs.local.store import LocalStore

_names = itertools.count()


@pytest.fixture(params=["s3", "memory", "file"])
def url(
    request: pytest.FixtureRequest,
    moto_server: Moto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    name = f"copies-{next(_names)}"
    if request.param == "file":
        return str(tmp_path / name)
    if request.param == "s3":
        for key, value in moto_server.environment.items():
            monkeypatch.setenv(key, value)
        moto_server.client().create_bucket(Bucket=name)
    return f"{request.param}://{name}/there"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "source", chunk_size=MIB) as store:
        first = model()
        store.save("m", first)
        store.save("m", tuned(first), alias="prod")
        store.patch("m", {"emb": ROWS})
        yield store


def test_there_and_back(source: tierstore.Store, url: str, tmp_path: Path) -> None:
    """A backup, and a restore of it into an empty store: every byte is what it was."""
    with tierstore.init(url) as backup:
        assert not source.sync(backup, aliases=True, history=True).failed
    with tierstore.open(url) as backup, tierstore.init(tmp_path / "restored") as restored:
        assert not backup.sync(restored, aliases=True, history=True).failed
        for ref in ("m@1", "m@2", "m@3", "m@prod"):
            assert restored.resolve(ref) == source.resolve(ref)
            equal(restored.load(ref).load(), source.load(ref).load())
        assert not restored.check(read_data=True).findings
        assert backup.sync(restored, aliases=True).sent_bytes == 0


def test_from_tiers_of_which_one_is_damaged(tmp_path: Path, cache: Path, url: str) -> None:
    warm = TierSpec(name="nfs", role="warm", url=str(tmp_path / "nfs"))
    with (
        tierstore.init(tmp_path / "tiered", tiers=[warm]) as source,
        tierstore.init(url) as target,
    ):
        source.save("m", model())
        blobs = LocalStore(tmp_path / "nfs")
        [pack] = blobs.list("packs/")
        LocalStore(tmp_path / "tiered").put(pack.key, blobs.get(pack.key))
        flip(blobs, pack.key, pack.size // 2)
        assert not source.sync(target).failed
        equal(target.load("m").load(), source.load("m").load())


def test_beside_collectors_on_both_sides(tmp_path: Path, cache: Path) -> None:
    """Versions come and go, and both stores are collected, while one is synced to the other."""
    with tierstore.init(tmp_path / "one") as one, tierstore.init(tmp_path / "two") as two:
        for store in (one, two):
            store.reclaim.enable(wait_s=0)
        ended = threading.Event()
        failed: list[BaseException] = []

        def collect(store: tierstore.Store) -> None:
            try:
                while not ended.is_set():
                    store.reclaim.run(grace=timedelta(0), window=timedelta(0))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=collect, args=(store,)) for store in (one, two)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 9):
                state = {"w": np.full((300, 300), number, np.float32)}
                one.save("m", state)
                if number > 2:
                    one.remove(f"m@{number - 2}")
                assert not one.sync(two, delete=True).failed
                equal(two.load("m").load(), state)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not failed, failed
        assert [version.number for version in two.versions("m")] == [8, 7]
        for store in (one, two):
            assert not store.check(read_data=True).damaged
