"""Processes of one node that want the same chunks at once: each is fetched by one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import MIB, equal
from tierstore.errors import NotFound
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.chunks import sharing
from tierstore.modelstore.store import Store
from tierstore.store import init_store, open_store

MODEL = {
    f"w{n}": np.random.default_rng(n).standard_normal((512 * 1024,), np.float32) for n in range(8)
} | {f"b{n}": np.arange(n, n + 500, dtype=np.int64) for n in range(4)}

LOAD = """
import json, sys
from tierstore.store import open_store
with open_store(sys.argv[1]) as store:
    model = store.load("m")
    print("ready", flush=True)
    sys.stdin.readline()
    arrays = model.load()
    stats = model.stats
    print(json.dumps({"fetched": stats.bytes_fetched, "sum": float(sum(
        array.astype("f8").sum() for array in arrays.values()))}), flush=True)
"""
HOLD = """
import sys, time
from tierstore.store import open_store
store = open_store(sys.argv[1])
model = store.load("m")
digests = [place.digest for name in model for place in model.tensor(name)._places()]
assert all(store._parts.hot.local.claim(digests))
print("holds", flush=True)
time.sleep(600)
"""


@pytest.fixture
def where(tmp_path: Path) -> Path:
    hot = TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=256 * MIB)
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=[hot]) as store:
        store.save("m", MODEL)
    return tmp_path / "store"


def start(code: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def frames(store: Store) -> int:
    model = store.load("m")
    every = [place for name in model for place in model.tensor(name)._places()]
    return sum({place.digest: place.frame_bytes for place in every}.values())


def test_four_processes_fetch_a_model_once(where: Path) -> None:
    processes = [start(LOAD, where) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    found: list[dict[str, Any]] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        found.append(json.loads(out))
    expected = float(sum(array.astype("f8").sum() for array in MODEL.values()))
    assert [one["sum"] for one in found] == pytest.approx([expected] * 4)
    with open_store(where) as store:
        once = frames(store)
    total = sum(one["fetched"] for one in found)
    assert once <= total <= 1.02 * once, f"{total} bytes fetched of {once}: {found}"


def test_who_waits_for_a_process_that_is_killed_goes_on(where: Path) -> None:
    holder = start(HOLD, where)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "holds\n"
        with open_store(where) as store:
            model = store.load("m")
            loaded: list[dict[str, Any]] = []
            reader = threading.Thread(target=lambda: loaded.append(model.load()))
            reader.start()
            reader.join(0.5)
            assert reader.is_alive(), "it did not wait for the chunks that another process claimed"
            assert model.stats.bytes_fetched == 0
            os.kill(holder.pid, signal.SIGKILL)
            reader.join(60)
            assert not reader.is_alive(), "the killed process still holds what it claimed"
            equal(loaded[0], MODEL)
    finally:
        holder.kill()
        holder.communicate()


def test_nobody_waits_for_ever(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.05)
    holder = start(HOLD, where)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "holds\n"
        with open_store(where) as store:
            equal(store.load("m").load(), MODEL)
    finally:
        holder.kill()
        holder.communicate()


def test_a_read_that_failed_claims_nothing_any_longer(where: Path, tmp_path: Path) -> None:
    packs = where / "packs"
    with open_store(where) as store, open_store(where) as other:
        model = store.load("m")
        digests = [place.digest for name in model for place in model.tensor(name)._places()]
        packs.rename(tmp_path / "gone")
        with pytest.raises(NotFound, match="pack"):
            model.load()
        (tmp_path / "gone").rename(packs)
        assert other._parts.hot.local is not None
        assert all(other._parts.hot.local.claim(digests))
        other._parts.hot.local.unclaim(digests)
        equal(store.load("m").load(), MODEL)
        assert store._parts.hot.flush(30)
        assert all(other._parts.hot.local.claim(digests)), "what is written is still claimed"


def test_a_forked_child_has_no_claims_of_its_parents(where: Path) -> None:
    with open_store(where) as store:
        local = store._parts.hot.local
        assert local is not None
        digest = bytes(range(32))
        assert local.claim([digest]) == [True]
        child = os.fork()
        if not child:
            os._exit(17 if local.claim([digest]) == [False] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        local.unclaim([digest])
        child = os.fork()
        if not child:
            os._exit(17 if local.claim([digest]) == [True] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
