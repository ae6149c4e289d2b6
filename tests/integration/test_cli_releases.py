"""The release commands of the real program, and rollouts and rollback of a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.test_cli_rollout import Run, parsed
from tierstore.cli.kit import app
from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas import releases, rollout


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program on a store with two versions of ranker and retrieval each."""
    with tierstore.init(tmp_path / "store") as store:
        for number in range(2):
            for model in ("ranker", "retrieval"):
                store.save(model, {"w": np.full(9, number, np.float32)})
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))

    def go(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def named(release: releases.ReleaseJson) -> list[tuple[str, int, int | None]]:
    return [(one.model, one.version, one.was) for one in release.members]


def test_a_release_from_its_making_to_rollback(run: Run, tmp_path: Path) -> None:
    assert "no releases" in run("release", "ls")[1]
    first = parsed(
        run, releases.ReleaseJson, "release", "create", "search", "ranker@1", "retrieval@1",
        "--alias", "prod", "-m", "the first",
    )  # fmt: skip
    assert (first.model, first.version, first.message) == ("search", 1, "the first")
    assert named(first) == [("ranker", 1, None), ("retrieval", 1, None)]
    assert run("release", "create", "search", "ranker@2", "--from", "search@prod", "-q") == (
        0, "search@2\n", "",
    )  # fmt: skip
    code, out, _ = run("release", "show", "search@2")
    assert code == 0
    assert "search@2" in out
    shown = parsed(run, releases.ReleaseJson, "release", "show", "search@2")
    assert named(shown) == [("ranker", 2, 1), ("retrieval", 1, 1)]
    assert run("release", "show", "search@prod", "-q")[1] == "ranker@1\nretrieval@1\n"
    (listed,) = parsed(run, releases.ReleaseNames, "release", "ls").names
    assert (listed.name, listed.releases, listed.aliases) == ("search", 2, {"prod": 1})
    every = parsed(run, releases.ReleaseList, "release", "ls", "search").releases
    assert [one.version for one in every] == [2, 1]
    assert "ranker@2 retrieval@1" in run("release", "ls", "search")[1]
    assert "prod=1" in run("release", "ls")[1]
    assert run("ls", "-q")[1] == "ranker\nretrieval\n", "ls lists models"

    started = parsed(run, rollout.RolloutJson, "rollout", "start", "search", "--to", "2")
    assert (started.alias, started.old, started.new) == ("search@prod", 1, 2)
    for _ in range(3):
        run("rollout", "step", "search", "--force")
    assert parsed(run, rollout.RolloutDone, "rollout", "step", "search", "--force").version == 2
    loaded = parsed(
        run, schemas.Load, "load", "ranker@release:search", "--to", str(tmp_path / "out")
    )
    assert (loaded.model, loaded.version) == ("ranker", 2)
    assert run("rollback", "search", "prod", "-m", "ctr fell")[1].startswith(
        "search@prod is now search@1"
    )
    assert run("tensors", "ranker@release:search")[0] == 0
    entries = parsed(run, schemas.Log, "log", "search@prod").entries
    assert (entries[0].action, entries[0].version, entries[0].message) == (
        "rollback", 1, "ctr fell",
    )  # fmt: skip
    assert [e.action for e in parsed(run, schemas.Log, "log", "search").entries] == ["release"] * 2
    assert run("check")[0] == 0
    for argv in (["pin", "search@1"], ["warmup", "search@1", "--tier", "warm"]):
        code, _, err = run(*argv)
        assert (code, "is a release" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["release", "create", "s"], 2, "1 to 1000 members"),
        (["release", "create", "s", "ranker@7"], 5, "ranker@7 does not exist"),
        (["release", "create", "ranker", "retrieval"], 6, "name of a model"),
        (["release", "create", "s", "ranker@1", "ranker@2"], 2, "give one"),
        (["release", "show", "ranker"], 2, "is not a release"),
        (["release", "ls", "none"], 5, "there is no model"),
        (["load", "ranker@release:s", "--to", "x"], 5, "s@prod does not exist"),
    ],
)  # fmt: skip
def test_mistakes(run: Run, argv: list[str], code: int, text: str) -> None:
    found, out, err = run(*argv)
    assert (found, out) == (code, "")
    assert text in err
    assert err.count("\n") == 1
    assert msgspec.json.decode(run("release", "ls", "--json")[1]) == {"names": []}
    names: Any = parsed(run, schemas.Models, "ls").models
    assert [one.model for one in names] == ["ranker", "retrieval"]
