"""warmup, evict, pin and unpin of the real program."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB
from tests.integration.test_cli_tiers import Done, Program
from tests.integration.test_deltas import tuned, weights
from tests.servers.redis import RedisServer
from tierstore.cli.kit import app
from tierstore.cli.schemas.warming import PinsJson, Warmup

V1 = {"emb": weights(1500), "kept": weights(1024, seed=2)}
V2 = V1 | {"emb": tuned(V1["emb"])}
NBYTES = sum(array.nbytes for array in V1.values())


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """The program in an empty directory, where ``store`` is the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")
    monkeypatch.setenv("TIERSTORE_CONFIG", "")

    def run(*words: object) -> Done:
        code = app.run([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def made(run: Program, *words: object) -> None:
    done = run("init", "--chunk-size", "1MiB", *words)
    assert done.code == 0, done.err
    with tierstore.open("store") as store:
        store.save("m", V1)
        store.save("m", V2, base="m@1")
        if store._parts.hot:
            store._parts.hot.flush()
        if store._parts.hot.local is not None:
            store.evict()


def warmup(done: Done) -> Warmup:
    data: dict[str, Any] = done.json
    return Warmup(**data)


def test_warmup_exits_with_0_only_when_resident(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "64MiB")
    cold = run("warmup", "m@1", "--check", "--json")
    assert cold.code == 3
    looked = warmup(cold)
    assert (looked.version, looked.tier, looked.resident) == ("m@1", "hot", False)
    assert looked.fetched_bytes == looked.full_bytes == 0
    warm = run("warmup", "m@1", "--json")
    assert warm.code == 0
    got = warmup(warm)
    assert (got.resident, got.missing_objects, got.full_bytes) == (True, 0, NBYTES)
    assert (got.reused_bytes, got.delta_bytes) == (0, 0)
    assert run("warmup", "m@1", "--check", "-q").out.strip() == looked.digest
    second = warmup(run("warmup", "m@2", "--json"))
    assert second.reused_bytes == V1["kept"].nbytes
    assert second.delta_bytes == V1["emb"].nbytes
    assert second.full_bytes == 0
    assert second.fetched_bytes < V1["emb"].nbytes / 2
    text = run("warmup", "m@2").out
    assert "m@2: resident in hot" in text
    assert "fetched 0 B" in text


def test_evict_wants_to_be_told_what(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "64MiB")
    run("warmup", "m@1")
    for words in ((), ("m@1", "--all")):
        assert run("evict", *words).code == 2
    assert run("evict", "m@1", "--json").json["freed_bytes"] >= NBYTES
    assert run("warmup", "m@1", "--check").code == 3
    run("warmup", "m@1")
    assert int(run("evict", "--all", "-q").out) >= NBYTES
    assert run("evict", "m@9").code == 5
    assert run("evict", "m@1", "--tier", "warm").code == 2


def test_pins(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "64MiB")
    run("warmup", "m@1")
    assert run("pin", "m@1", "--until", "7d").code == 0
    [one] = PinsJson(**run("pins", "--json").json).pins
    assert one["ref"] == "m@1"  # type: ignore[index]
    until = datetime.fromisoformat(one["until"])  # type: ignore[index]
    assert timedelta(days=6) < until - datetime.now(UTC) <= timedelta(days=7)
    assert run("evict", "--all", "-q").out.strip() == "0"
    assert run("warmup", "m@1", "--check").code == 0
    assert "hot, warm" in run("pins").out
    assert run("unpin", "m@1").code == 0
    assert run("unpin", "m@1").code == 5
    assert "'tierstore pins'" in run("unpin", "m@1").err
    assert run("pin", "m@1", "--tier", "warm", "--json").json["tiers"] == ["warm"]
    assert run("evict", "--all", "-q").out.strip() != "0"
    assert run("pin", "m@1", "--until", "2031-05-01", "--json").json["until"] == (
        "2031-05-01T00:00:00Z"
    )
    for until_text in ("2001-01-01", "tomorrow"):
        assert run("pin", "m@1", "--until", until_text).code == 2
    assert run("pin", "m@1", "--tier", "cold").code == 2


def test_warm_tiers(run: Program, tmp_path: Path) -> None:
    made(run, "--warm", f"file://{tmp_path}/warm", "--cold", f"file://{tmp_path}/cold")
    assert run("warmup", "m@1", "--tier", "warm", "--check").code == 0  # saved there
    assert run("mv", "m@1", "--to", "cold").code == 0
    assert run("warmup", "m@1", "--tier", "warm", "--check").code == 3
    back = run("warmup", "m@1", "--tier", "warm", "--json")
    assert back.code == 0, back.err
    got = warmup(back)
    assert (got.resident, got.tier) == (True, "warm")
    assert got.fetched_bytes > NBYTES / 2
    assert list((tmp_path / "warm" / "packs").rglob("*"))
    assert run("warmup", "m@1", "--tier", "hot").code == 2


def test_a_shared_tier_by_name(run: Program, redis_plain: RedisServer) -> None:
    made(run, "--redis", redis_plain.url)
    got = warmup(run("warmup", "m@2", "--tier", "redis", "--json"))
    assert (got.tier, got.resident) == ("redis", True)
    assert run("warmup", "m@2", "--check").code == 0  # there is no hotter tier on this node
    assert int(run("evict", "m@2", "--tier", "redis", "-q").out) > 0
    assert run("warmup", "m@2", "--tier", "redis", "--check").code == 3


def test_waiting_for_what_another_process_brings(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "64MiB")
    started = time.monotonic()
    assert run("warmup", "m@1", "--check", "--wait", "--timeout", "2s").code == 3
    assert time.monotonic() - started < 60
    command = [sys.executable, "-m", "tierstore", "warmup", "m@1"]
    timer = threading.Timer(1.0, lambda: subprocess.run(command, check=True))
    timer.start()
    try:
        assert run("warmup", "m@1", "--check", "--wait", "--timeout", "2m").code == 0
    finally:
        timer.join()


def test_what_does_not_fit_says_so(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "2MiB")
    done = run("warmup", "m@1", "--json")
    assert done.code == 7
    assert "holds at most" in json.loads(done.err)["error"]["message"]


def test_arrays_stay_right_while_their_version_is_evicted(run: Program) -> None:
    made(run, "--hot", "hot", "--hot-size", "64MiB")
    run("warmup", "m@1")
    with tierstore.open("store") as store:
        array = store.load("m@1")["emb"]
        assert run("evict", "--all").code == 0
        assert np.array_equal(array, V1["emb"])
        assert array.nbytes > MIB
