"""The commands cp and sync of the real program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.kit import equal
from tierstore.cli.kit import app
from tierstore.cli.schemas import copying as schemas

Run = Callable[..., tuple[int, str, str]]
TABLE = np.random.default_rng(0).standard_normal((3000, 100), np.float32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    with tierstore.init(tmp_path / "store", chunk_size=1 << 20) as store:
        store.save("m", {"emb": TABLE}, alias="prod")
        store.save("m", {"emb": TABLE * 2}, message="two")
        store.save("other", {"emb": TABLE + 1})
    tierstore.init(tmp_path / "backup").close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")

    def go(*argv: object) -> tuple[int, str, str]:
        code = app.run([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def parsed(run: Run, schema: Any, *argv: object, code: int = 0) -> Any:
    got, out, _ = run(*argv, "--json")
    assert got == code
    return msgspec.json.decode(out.encode(), type=schema)


def test_cp_as_text_json_and_ids(run: Run, tmp_path: Path) -> None:
    made = parsed(run, schemas.Copied, "cp", "m", "prod", "backup")
    [one] = made.versions
    assert (one.source, one.version, one.outcome) == ("m@1", "m@1", "copied")
    assert made.sent_bytes == one.sent_bytes > 1000
    assert made.store == f"file://{tmp_path}/backup"
    assert run("cp", "m@prod", "backup") == (0, "m@1: there already\n", "")
    assert run("cp", "m@prod", "backup", "--as", "n", "-q") == (0, "n@1\n", "")
    code, out, _ = run("cp", "m@2", "backup", "--as", "n")
    assert code == 0
    assert out.startswith("m@2: copied as n@2, ")
    with tierstore.open("backup") as backup:
        equal(backup.load("n").load(), {"emb": TABLE * 2})


def test_sync_as_text_json_and_ids(run: Run) -> None:
    code, out, _ = run("sync", "store", "backup", "--dry-run")
    assert code == 0
    assert "m@1: would be copied, " in out
    assert "\n3 versions to copy, 0 there already, 0 left, 0 failed; " in out
    assert run("sync", "store", "backup", "--models", "m", "-q") == (0, "m@1\nm@2\n", "")
    report = parsed(run, schemas.SyncJson, "sync", "store", "backup", "--aliases")
    assert [one.outcome for one in report.versions] == ["there", "there", "copied"]
    assert [(one.alias, one.version) for one in report.aliases] == [("m@prod", "m@1")]
    assert not report.dry_run
    code, out, _ = run("sync", "store", "backup")
    assert out == "0 versions copied, 3 there already, 0 left, 0 failed; 0 B sent\n"


def test_what_a_release_names_is_told_once_and_other_numbers_are_said(run: Run) -> None:
    with tierstore.open("store") as store:
        store.reclaim.enable(wait_s=0)
        store.remove_alias("m", "prod")
        store.remove("m@1")
        store.releases.create("r", ["m@2", "other@1"])
    code, out, _ = run("sync", "store", "backup")
    assert code == 0
    assert "m@2: copied as m@1, " in out
    assert "\n3 versions copied, 0 there already, 0 left, 0 failed; " in out
    assert "\n1 version has another number there than here: " in out


def test_exit_codes_of_sync(run: Run, tmp_path: Path) -> None:
    assert run("sync", "store", "store")[0] == 2
    assert run("sync", "store", "backup", "--versions", "x")[0] == 2
    assert run("sync", "store", "backup", "--models", "none")[0] == 5
    assert run("sync", "store", "nowhere")[0] == 5
    with tierstore.open("backup") as backup:
        backup.save("x", {"w": TABLE})
        backup.releases.create("m", ["x@1"])
    report = parsed(run, schemas.SyncJson, "sync", "store", "backup", code=3)
    assert [one.outcome for one in report.versions] == ["failed", "copied"]
    with tierstore.open("store") as store:
        lost = store.save("lost", {"emb": TABLE + 3}).digest
    (tmp_path / "store" / "versions" / lost.hex).unlink()
    code, out, _ = run("sync", "store", "backup", "--models", "lost")
    assert code == 4
    assert f"lost@1: failed: manifest versions/{lost.hex} is missing" in out


def test_sync_removes_where_it_is_told_to(run: Run) -> None:
    run("sync", "store", "backup")
    for name in ("store", "backup"):
        assert run("gc", "--enable", "--yes", "--wait", "0", "--store", name)[0] == 0
    assert run("rm", "m@1")[0] == 6  # its alias
    run("alias", "rm", "m@prod")
    assert run("rm", "m@1")[0] == 0
    assert "m@1: removed" not in run("sync", "store", "backup")[1]
    code, out, _ = run("sync", "store", "backup", "--delete")
    assert (code, out.splitlines()[0]) == (0, "m@1: removed")
