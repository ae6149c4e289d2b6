"""rebalance, mv, explain and agent of the real program."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tierstore
from tests.integration.kit import MIB, ROOT, equal, tensors
from tests.waiting import wait_until
from tierstore.cli.agent import _ended
from tierstore.cli.kit import app
from tierstore.cli.schemas import placing as schemas
from tierstore.format.tiers import TierSpec

Run = Callable[..., tuple[int, str, str]]
PRICES = {"warm": {"gb_month": "300"}, "cold": {"gb_month": "20", "put_1000": "5"}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """m@1 and m@2, 100 days old, in a warm tier above a cold one."""
    tiers = [
        TierSpec(name=name, role=name, url=(tmp_path / name).as_uri(), prices=PRICES[name])
        for name in ("warm", "cold")
    ]
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        for seed in (1, 2):
            store.save("m", tensors(seed), base=None)
    old = time.time() - 100 * 86_400
    for path in (tmp_path / "warm").rglob("*"):
        os.utime(path, (old, old))
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def parsed(run: Run, schema: Any, *argv: str, code: int = 0) -> Any:
    found, out, err = run(*argv, "--json")
    assert (found, err) == (code, "")
    return msgspec.json.decode(out.encode(), type=schema)


def packs(place: Path, tier: str) -> set[str]:
    return {path.name for path in (place / tier / "packs").rglob("*") if path.is_file()}


def test_a_plan_is_shown_and_then_carried_out(run: Run, place: Path) -> None:
    planned = parsed(run, schemas.Moves, "rebalance", "--dry-run")
    assert [one.kind for one in planned.moves] == ["demote", "demote"]
    assert {one.status for one in planned.moves} == {"planned"}
    assert planned.copied_bytes == sum(one.bytes for one in planned.moves) > MIB
    expected = 280 * planned.copied_bytes / 2**30
    assert float(planned.saving_month) == pytest.approx(expected)
    assert float(planned.cost_once) == pytest.approx(0.01)
    assert len(packs(place, "warm")) == 2
    code, out, _ = run("rebalance", "--dry-run")
    assert code == 0
    assert re.search(
        r"demote +[0-9a-f]{64} +warm +cold .* is below 0.2, 0.8 x the threshold of tier", out
    )
    assert "would move 2 packs" in out
    assert "saves 0.52 a month, costs 0.01 once" in out
    done = parsed(run, schemas.Moves, "rebalance", "--budget", "50MB", "--share", "0.9")
    assert [one.status for one in done.moves] == ["done", "done"]
    assert (len(packs(place, "warm")), len(packs(place, "cold"))) == (0, 2)
    code, out, _ = run("rebalance")
    assert (code, out) == (0, "nothing to move\n")


def test_moving_a_version(run: Run, place: Path) -> None:
    code, out, _ = run("mv", "m@1", "--to", "cold", "--quiet")
    assert code == 0
    assert set(out.split()) == packs(place, "cold")
    assert len(packs(place, "cold")) == 1
    [pack] = packs(place, "cold")
    back = parsed(run, schemas.Moves, "mv", pack[:12], "--to", "warm")
    assert [(one.kind, one.status) for one in back.moves] == [("promote", "done")]
    assert pack in packs(place, "warm") & packs(place, "cold")
    code, _, err = run("mv", "m@1", "--to", "ice")
    assert code == 5
    assert "there is no durable tier 'ice'; the store's are: warm, cold, home" in err
    code, _, err = run("mv", "m@9", "--to", "cold")
    assert code == 5
    code, _, err = run("mv", "m", "--to", "cold", "--budget", "fast")
    assert code == 2


def test_what_cannot_be_done_exits_with_3(run: Run, place: Path) -> None:
    with tierstore.open(place / "store") as store:
        store.pins.add(store.resolve("m@1").digest, "m@1", ["warm"])
    done = parsed(run, schemas.Moves, "mv", "m@1", "--to", "cold", code=3)
    assert "it is pinned there" in done.notes[0]
    code, out, _ = run("mv", "m@1", "--to", "cold")
    assert code == 3
    assert out.endswith("nothing to move\n")


def test_explaining(run: Run, place: Path) -> None:
    explained = parsed(run, schemas.Explained, "explain", "m@2")
    assert len(explained.packs) == 2
    one = explained.packs[0]
    assert (one.tiers, one.heat, one.pinned) == (["warm"], 0, False)
    assert one.outlooks[0].leaves_in_s == 0
    assert one.now[0].startswith("demote from warm to cold: its heat of")
    assert [(move.kind, move.target) for move in one.moves] == [("demote", "cold")]
    assert (float(one.moves[0].saving_month), float(one.moves[0].cost_once)) == (
        pytest.approx(280 * one.bytes / 2**30, rel=1e-6), pytest.approx(0.005, rel=1e-6),
    )  # fmt: skip
    assert "a month, costs 0.0050 once, in the currency of the prices" in run("explain", "m@2")[1]
    with tierstore.open(place / "store") as store:
        for _ in range(2):
            equal(store.load("m@1").load(), tensors(1))
    explained = parsed(run, schemas.Explained, "explain", "m@1")
    assert explained.packs[0].heat == pytest.approx(2, rel=0.05)
    code, out, _ = run("explain", explained.packs[0].pack[:10])
    assert code == 0
    assert re.search(r"heat +2 \(recent reads\)", out)
    assert re.search(r"warm +it leaves when its heat is below 0.2: in 1\d.* hours if nobody", out)
    code, _, _ = run("explain", "0123456789")
    assert code == 5
    code, out, _ = run("explain", "m@1", "-q")
    assert out.split() == [explained.packs[0].pack]


@contextmanager
def agent(place: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tierstore", "agent", *argv]
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def holds_its_lease(place: Path) -> bool:
    return any((place / "store" / "movers").glob("*"))


def lines(
    process: subprocess.Popen[str], until: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        found: dict[str, Any] = json.loads(line)
        if until(found):
            return found
    raise AssertionError(f"the agent ended: {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_moves_tells_and_ends(place: Path, number: signal.Signals) -> None:
    with agent(
        place, "--log", "json", "--metrics", "127.0.0.1:0", "--every", "1s", "--json"
    ) as process:
        at = lines(process, lambda line: "metrics at" in line["message"])["message"]
        moved = lines(process, lambda line: line.get("event") == "move")
        assert (moved["kind"], moved["status"], moved["level"]) == ("demote", "done", "info")
        assert moved["pack"] in packs(place, "cold")
        ended = lines(process, lambda line: line.get("event") == "round")
        assert (ended["planned"], ended["done"]) == (2, 2)
        with urllib.request.urlopen(at.split()[-1], timeout=10) as page:
            text = page.read().decode()
        assert "tierstore_moves_total 2.0" in text
        assert 'tierstore_tier_admitted_total{role="cold",tier="cold"} 2.0' in text
        assert 'tierstore_tier_evicted_total{role="warm",tier="warm"} 2.0' in text
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        told = msgspec.json.decode(out, type=schemas.AgentEnded)
        assert (told.moves, told.failed) == (2, 0)
        assert told.rounds >= 1
    with tierstore.open(place / "store") as store:
        equal(store.load("m@2").load(), tensors(2))


def test_the_agent_ends_in_the_middle_of_a_slow_move(place: Path) -> None:
    with agent(place, "--log", "json", "--budget", "300KB", "--every", "1s") as process:
        lines(process, lambda line: "starts" in line["message"])
        wait_until(lambda: holds_its_lease(place), "the agent moves")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert time.monotonic() - began < 20
    assert len(packs(place, "warm")) == 2
    with tierstore.open(place / "store") as store:
        assert store.placement.rebalance().complete, "its lease was given back"


def test_a_budget_has_a_unit(run: Run) -> None:
    code, _, err = run("rebalance", "--budget", "50")
    assert code == 2
    assert "invalid --budget '50': the unit is missing; expected 100MB or 50MiB" in err


def test_what_an_agent_says_at_the_end() -> None:
    nothing = schemas.AgentEnded(*[0] * len(schemas.AgentEnded.__struct_fields__))
    assert _ended(nothing) == "ended after 0 rounds: nothing was to be done"
    done = msgspec.structs.replace(
        nothing, rounds=9, failed_rounds=1, moves=2, moved_bytes=2048, folded=1,
        rewritten_bytes=512, removed_versions=1, deleted_packs=8, freed_bytes=1 << 20,
        verified_bytes=1024, damaged_copies=1,
    )  # fmt: skip
    assert _ended(done) == (
        "ended after 9 rounds: 1 round failed, 2 moves of 2.0 KiB, 0 rebased and 1 folded, 512 B, "
        "1 version removed, 8 packs of 1.0 MiB deleted, 1.0 KiB verified, 1 damaged copy found"
    )


def test_two_agents(place: Path) -> None:
    """The second waits for its turn, and takes over when the first ends."""
    with agent(place, "--log", "json", "--budget", "200KB", "--every", "1s") as first:
        lines(first, lambda line: "starts" in line["message"])
        wait_until(lambda: holds_its_lease(place), "the first one moves")
        with agent(place, "--log", "json", "--every", "1s") as second:
            refused = lines(second, lambda line: "another mover is at work" in line["message"])
            assert refused["level"] == "info"
            first.send_signal(signal.SIGTERM)
            first.communicate(timeout=30)
            lines(second, lambda line: line.get("event") == "round")
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=30)
            assert second.returncode == 0
    assert len(packs(place, "cold")) == 2


def test_the_agent_steps_rollouts(place: Path) -> None:
    with tierstore.open(place / "store") as store:
        store.alias("m", "prod", "m@1")
        store.rollouts.start("m", "prod", store.resolve("m@2"), stages=[500, 10_000], every_s=1)
    with agent(place, "--log", "json", "--every", "1s", "--json") as process:
        lines(process, lambda line: line["message"] == "the rollout of m@prod: finished")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert msgspec.json.decode(out, type=schemas.AgentEnded).rollout_steps >= 1
    with tierstore.open(place / "store") as store:
        assert store.resolve("m@prod").number == 2


def test_what_an_agent_is_not_told(run: Run) -> None:
    assert run("agent", "--log", "xml")[0] == 2
    assert run("agent", "--metrics", "here")[0] == 2
    assert run("agent", "--every", "soon")[0] == 2
