"""The rollout and report commands of the real program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.schemas import rollout as schemas

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program on a store with m@1 (prod) to m@3."""
    with tierstore.init(tmp_path / "store") as store:
        for number in range(3):
            store.save("m", {"w": np.full(9, number, np.float32)})
        store.alias("m", "prod", "m@1")
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))

    def go(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def parsed(run: Run, schema: Any, *argv: str) -> Any:
    code, out, err = run(*argv, "--json")
    assert (code, err) == (0, "")
    return msgspec.json.decode(out.encode(), type=schema)


def test_a_whole_rollout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERSTORE_NODE", "a-node")
    started = parsed(
        run, schemas.RolloutJson, "rollout", "start", "m", "--to", "2", "--stages", "0.5,25,100",
        "--gate", "p99_ms<=12.5", "--label", "region=eu", "-m", "nightly",
    )  # fmt: skip
    assert (started.alias, started.old, started.new, started.stage) == ("m@prod", 1, 2, 1)
    assert (started.stages, started.percent, started.due) == ([0.5, 25, 100], 0.5, None)
    assert started.labels == {"region": "eu"}
    code, _, err = run("rollout", "step", "m@prod")
    assert code == 6
    assert "waits for 'tierstore report'" in err
    reported = parsed(run, schemas.Reported, "report", "m@2", "p99_ms=3", "auc=0.75")
    assert (reported.node, reported.values) == ("a-node", {"p99_ms": "3", "auc": "0.75"})
    (state,) = parsed(run, schemas.RolloutsJson, "rollout", "status").rollouts
    assert (state.gates[0].mean, state.gates[0].passes) == (3, True)
    assert parsed(run, schemas.RolloutJson, "rollout", "step", "m").stage == 2
    assert parsed(run, schemas.RolloutJson, "rollout", "pause", "m").paused
    assert run("rollout", "step", "m", "--force")[0] == 6
    assert not parsed(run, schemas.RolloutJson, "rollout", "resume", "m").paused
    assert run("rollout", "step", "m", "--force", "-q") == (0, "m@prod\n", "")
    done = parsed(run, schemas.RolloutDone, "rollout", "step", "m", "--force")
    assert (done.alias, done.version) == ("m@prod", 2)
    code, out, _ = run("log", "m@prod")
    assert code == 0
    assert "25 % m@2" in out
    assert "nightly" in out


def test_abort_and_what_is_shown(run: Run) -> None:
    assert "no rollout is in progress" in run("rollout", "status")[1]
    code, out, _ = run("rollout", "start", "m", "--to", "m@3", "--every", "30m",
                       "--window", "22:00-06:00", "--gate", "auc>=0.5")  # fmt: skip
    assert code == 0
    for text in ("m@1 -> m@3", "[1 %] 10 % 50 % 100 %", "22:00-06:00 UTC", "waits for reports"):
        assert text in out
    code, out, _ = run("rollout", "abort", "m")
    assert (code, out) == (0, "m@prod now points to m@1 on every node\n")
    entries = json.loads(run("log", "m@prod", "--json")[1])["entries"]
    assert [(entry["action"], entry["to"], entry["percent"]) for entry in entries] == [
        ("abort", None, None), ("start", 3, 1.0), ("set", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["rollout", "start", "m", "--to", "9"], 5, "m@9 does not exist"),
        (["rollout", "start", "m@none", "--to", "2"], 5, "m@none does not exist"),
        (["rollout", "start", "m", "--to", "1"], 2, "already"),
        (["rollout", "start", "m", "--to", "2", "--stages", "5,1"], 2, "stages"),
        (["rollout", "start", "m", "--to", "2", "--every", "soon"], 2, "time"),
        (["rollout", "start", "m", "--to", "2", "--gate", "p99"], 2, "gate"),
        (["rollout", "start", "m", "--to", "2", "--label", "eu"], 2, "NAME=VALUE"),
        (["rollout", "start", "m", "--to", "2", "--window", "2-6"], 2, "invalid rollout"),
        (["rollout", "start", "m@2", "--to", "2"], 2, "expected MODEL@ALIAS"),
        (["rollout", "step", "m"], 5, "has no rollout"),
        (["rollout", "abort", "m"], 5, "has no rollout"),
        (["report", "m@2", "p99_ms=fast"], 2, "decimal number"),
        (["report", "m@2", "p99_ms"], 2, "NAME=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_change_nothing(run: Run, argv: list[str], code: int, text: str) -> None:
    found, out, err = run(*argv)
    assert (found, out) == (code, "")
    assert text in err
    assert err.count("\n") == 1
    assert len(json.loads(run("log", "m@prod", "--json")[1])["entries"]) == 1
