"""The commands that remove versions and bring them back: their text, their JSON and their ids."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.schemas.markdown import outputs
from tierstore.modelstore.home.refs import whoami
from tierstore.serving.agent import TextLines


class Done(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Done]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with m@1 (removed), m@2, m@3 (prod), m@4; n@1, p@1 to p@5, with rules."""
    folder = tmp_path_factory.mktemp("template")
    with tierstore.init(folder / "store") as store:
        store.reclaim.enable(wait_s=0)
        for number in (1, 2, 3, 4):
            store.save("m", {"w": np.full(9, number, np.float32)}, message=f"run {number}")
        store.save("n", {"w": np.ones(9, np.float32)})
        store.alias("m", "prod", "m@3")
        store.remove("m@1", message="old")
        store.retention.set("n", keep_last=3, message="few")
        for number in range(5):
            store.save("p", {"w": np.full(9, number, np.float32)})
        store.retention.set("p", keep_last=4)
    return folder


@pytest.fixture
def run(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Program:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")

    def run(*argv: str) -> Done:
        code = app.run(argv)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


CASES: dict[str, tuple[str, str, str]] = {
    # name: command line, what the text holds, what -q prints
    "rm": ("rm m@2 -m wrong", "m@2      20", "m@2"),
    "rm newest": ("rm m@4 --force", "m@4 ", "m@4"),
    "rm model": ("rm n --all", "n@1 ", "n@1"),
    "undelete": ("undelete m@1", "m@1 is back", "m@1"),
    "forget": ("forget m --keep-last 1 --yes", "1 version removed", "m@2"),
    "forget dry": ("forget m n --keep-last 1 --dry-run", "1 version would be removed", "m@2"),
    "forget nothing": ("forget m --keep-within 2h", "within 2 h", ""),
    "ls deleted": ("ls --deleted", "old", "m@1"),
    "ls deleted none": ("ls n --deleted", "no version of n is removed", ""),
    "retention set": ("retention set m --window 0 --keep-daily 7", "--keep-daily 7", "m"),
    "retention set all": ("retention set --window 36h", "1 d 12 h", "-"),
    "retention set history": ("retention set m --alias-history 2d", "alias history  2 d\n", "m"),
    "retention rm": ("retention rm n", "nothing is set for n itself any more", "n"),
    "retention rm none": ("retention rm m", "nothing was set for m itself", "m"),
    "retention ls": ("retention ls", "--keep-last 3", "n p"),
    "retention ls next": ("retention ls", "next           1 of 5 versions of p goes", "n p"),
    "retention apply": ("retention apply --yes", "1 version removed", "p@1"),
    "retention apply dry": ("retention apply p --dry-run", "p@1      ", "p@1"),
    "retention apply early": ("retention apply p", "or now with --yes", ""),
    "log": ("log m --limit 1", "forget  m@1", "m@1"),
}


def schema_of(line: str) -> type[msgspec.Struct]:
    known, words = outputs(), line.split()
    if "--deleted" in words:
        return known["ls"][2]
    if words[0] == "log":
        return known["log"][1]
    return known[" ".join(words[:2])][0] if words[0] == "retention" else known[words[0]][0]


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, run: Program) -> None:
    line, expected, _ = CASES[name]
    done = run(*line.split())
    assert (done.code, done.err) == (0, "")
    assert expected in done.out, done.out


@pytest.mark.parametrize("name", CASES)
def test_json(name: str, run: Program) -> None:
    line = CASES[name][0]
    done = run(*line.split(), "--json")
    assert (done.code, done.err) == (0, "")
    data = msgspec.json.decode(done.out, type=schema_of(line), strict=True)
    assert msgspec.json.decode(msgspec.json.encode(data)) == json.loads(done.out)


@pytest.mark.parametrize("name", CASES)
def test_quiet(name: str, run: Program) -> None:
    line, _, expected = CASES[name]
    done = run(*line.split(), "-q")
    assert (done.code, done.out.split(), done.err) == (0, expected.split(), "")


def test_who_purges_is_asked_about_the_versions_that_are_meant(
    run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alias, or a model alone, may mean another version than who typed it believes."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def confirm(text: str, abort: bool) -> None:
        asked.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr("click.confirm", confirm)
    assert run("rm", "m", "n", "--purge", "--force").code == 130
    assert asked == ["Delete m@4, n@1 for good?"]
    for ref in ("m@stagign", "m@release:nosuch"):
        assert run("rm", ref, "--purge").code == 5
    assert asked[1:] == []


def test_rules_that_remove_too_much_of_one_model_are_kept_for_the_others(run: Program) -> None:
    done = run("forget", "m", "p", "--keep-last", "4", "--keep-tag", "x", "--most-percent", "20")
    assert (done.code, done.err) == (0, "")
    done = run("forget", "m", "n", "x", "--keep-last", "1", "-q")
    assert (done.code, done.out) == (6, "")
    assert "2 models were skipped: m: 1 of the 3 versions of m would be removed" in done.err
    assert "; x: there is no model 'x'" in done.err


def test_a_log_does_not_grow_wider_with_what_is_removed_at_once(run: Program) -> None:
    with tierstore.open("store") as store:
        for number in range(5, 14):
            store.save("p", {"w": np.full(9, number, np.float32)})
        store.remove(*[f"p@{number}" for number in (1, 2, 3, 5, 7, 8, 13)])
    newest = run("log", "p", "--limit", "1").out.splitlines()[1]
    assert newest.startswith("-    20")
    assert "  forget  p@1 to p@3, p@5 and 3 more  -  " in newest
    assert run("log", "p", "--limit", "1", "-q").out.split() == [
        "p@1", "p@2", "p@3", "p@5", "p@7", "p@8", "p@13",
    ]  # fmt: skip


def test_rules_that_are_blocked_keep_no_others_from_being_applied(run: Program) -> None:
    with tierstore.open("store") as store:
        store.retention.set("m", keep_last=1, window=timedelta(0))
        store.retention.set("p", keep_last=4, window=timedelta(0))
    assert "blocked        1 of the 3 versions of m would be" in run("retention", "ls").out
    assert "nothing of m is removed by its rules: 1 of the 3" in run("doctor", "-q").out
    done = run("retention", "apply", "-q")
    assert (done.code, done.out) == (6, "p@1\n")
    assert done.err.startswith("tierstore: error: 1 of the 3 versions of m would be removed by rul")
    assert run("retention", "apply", "m", "--yes", "-q").out == "m@2\n"
    assert "rules" not in run("doctor", "-q").out
    done = run("retention", "apply", "p", "x")
    assert (done.code, done.out) == (5, "")
    assert "no rules are set for 'x'" in done.err


def test_models_are_counted_without_what_is_removed(run: Program) -> None:
    models = json.loads(run("ls", "--json").out)["models"]
    assert [(one["model"], one["versions"]) for one in models] == [("m", 3), ("n", 1), ("p", 5)]


def test_every_time_says_that_it_is_in_utc(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it, or in the title of its column; whatever the time zone of the machine is."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        with tierstore.open("store") as store:
            store.releases.create("all", ["m@3"])
            store.alias("m", "next", "m@3")
            store.rollouts.start("m", "next", "m@4")
        assert run("pin", "m@3", "--until", "2031-05-01").out.endswith("2031-05-01 00:00:00 UTC\n")
        lines = [
            "ls", "ls m", "ls --deleted", "log", "log m", "alias ls m", "stat m", "release ls",
            "release ls all", "release show all", "rollout status m@next", "pins", "retention ls",
            "forget m --keep-last 1 --dry-run", "du", "top --once",
        ]  # fmt: skip
        assert run("gc").code == 0, "du says when that was"
        hours = {f" {datetime.now(UTC):%H}"}
        for line in lines:
            done = run(*line.split())
            assert (done.code, done.err) == (0, ""), line
            times = list(re.finditer(r" \d\d:\d\d(:\d\d)?( UTC)?\b", done.out))
            assert times, line
            for found in times:
                assert found[2] or "(UTC)" in done.out.splitlines()[0], done.out
            hours.add(f" {datetime.now(UTC):%H}")
            assert any(found[0][:3] in hours for found in times) or line == "pins", line
        logged = logging.makeLogRecord({"msg": "m", "created": 0.0})
        assert TextLines("%(asctime)s").format(logged) == "1970-01-01 00:00:00 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_removed_versions_and_retention_fit_80_columns(run: Program) -> None:
    for line in (
        "ls --deleted",
        "retention ls",
        "retention set m --keep-last 50 --keep-within 30d --window 14d --alias-history 2d",
        "retention rm m",
    ):
        shown = run(*line.split()).out.replace(whoami(), "ada@node7")
        assert max(map(len, shown.splitlines())) <= 80, shown
