"""What is verified of this node's hot tier, when, and who is told of what was wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.waiting import wait_until
from tierstore.cli.kit import app
from tierstore.errors import Unreachable, UsageError
from tierstore.serving.agent import Agent
from tierstore.serving.hub.tree import Blobs, blob_id
from tierstore.tiers import upkeep

CONFIG = json.dumps({"words": ["a"] * 200}).encode()
MODEL = np.random.default_rng(5).integers(0, 255, 5 << 20, dtype="u1")  # two chunks


def hot_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "hot").rglob("?" * 64) if "~" not in str(path))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a model that is hot on this node, in three files."""
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes(CONFIG)
    save_file({"w": MODEL}, tmp_path / "m" / "model.safetensors")
    tier = tierstore.TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=1 << 30)
    with tierstore.init(tmp_path / "store", tiers=[tier]) as store:
        store.save("m", tmp_path / "m")
        store.warmup("m")
    assert len(hot_files(tmp_path)) == 3
    return tmp_path


def set_verify(root: Path, verify: str) -> None:
    with tierstore.open(root / "store") as store:
        store.admin.tiers.set("hot", options={"verify": verify})


@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_process_that_verifies_what_it_reads_returns_nothing_that_changed(
    place: Path, verify: str
) -> None:
    set_verify(place, verify)
    for path in hot_files(place):
        flip(path)
    with tierstore.open(place / "store") as store:
        model = store.load("m")
        np.testing.assert_array_equal(model["w"], MODEL)
        assert model.read_file("config.json") == CONFIG
        assert (
            model.open_file("model.safetensors").read(5 << 19, 100)
            == ((place / "m" / "model.safetensors").read_bytes()[5 << 19 :][:100])
        )
        assert store._parts.hot.local is not None
        assert store._parts.hot.local.stats.damaged == 3


def test_check_looks_at_the_hot_tier_where_that_is_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = hot_files(place)
    flip(paths[1])
    with tierstore.open(place / "store") as store:
        assert not store.check(read_data=True).damaged
        told: list[tuple[int, int]] = []
        report = store.check(hot=True, progress=lambda done, total: told.append((done, total)))
        [found] = report.findings
        assert (found.severity, found.key) == ("damage", f"hot/{paths[1].name}")
        total = len(CONFIG) + MODEL.nbytes
        assert (report.hot_bytes, told[-1]) == (total, (total, total))
        assert not paths[1].exists()
        left = sum(path.stat().st_size for path in hot_files(place))
        again = store.check(hot=True)
        assert (again.findings, again.hot_bytes) == ([], left)
        [tier] = store.admin.doctor().tiers
        assert tier.problems == ()  # this process has not told the others yet
    flip(hot_files(place)[0])
    assert app.run(["--store", str(place / "store"), "check", "--hot"]) == 4
    out = capsys.readouterr().out
    assert "this node's disk changed this chunk" in out
    assert "in the hot tier" in out
    with tierstore.open(place / "store") as store:
        [tier] = store.admin.doctor().tiers
        [problem] = tier.problems
        assert "2 damaged chunks in it in the last day" in problem


def test_check_of_a_hot_tier_that_is_not_there(tmp_path: Path) -> None:
    with (
        tierstore.init(tmp_path / "store") as store,
        pytest.raises(UsageError, match="no hot tier"),
    ):
        store.check(hot=True)


def test_check_of_a_hot_tier_whose_directory_fails(place: Path) -> None:
    with tierstore.open(place / "store") as store:
        (place / "hot").rename(place / "elsewhere")
        (place / "hot").write_bytes(b"")
        with pytest.raises(Unreachable, match="hot tier 'hot' in"):
            store.check(hot=True)


def test_the_agent_verifies_the_hot_tier_though_it_loads_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_SCRUB_S", 0.01)
    paths = hot_files(place)
    flip(paths[0])
    with tierstore.open(place / "store") as store:
        agent = Agent(store)
        runs = Thread(target=agent.run)
        runs.start()
        try:
            local = store._parts.hot.local
            assert local is not None
            wait_until(lambda: local.stats.damaged == 1, "it is found")
        finally:
            agent.stop.set()
            runs.join()
    assert hot_files(place) == paths[1:]


def test_the_gateways_id_of_a_small_file_is_made_of_verified_bytes(place: Path) -> None:
    small = min(hot_files(place), key=lambda path: path.stat().st_size)
    flip(small)
    with tierstore.open(place / "store") as store:
        model = store.load("m")
        file = model._file_entry("config.json")
        assert Blobs().of_file(model, file).etag == blob_id(CONFIG)
        assert hashlib.sha256(model.read_file("config.json")).digest() == file.sha256
