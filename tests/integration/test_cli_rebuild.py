"""The commands that make anew what was lost: their text, JSON and ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.schemas.markdown import outputs


class Done(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Done]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """The program, in a directory with a store of m@1 and m@2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")
    with tierstore.init("store") as store:
        for number in (1, 2):
            store.save("m", {"w": np.full(999, number)}, base=None)

    def run(*argv: str) -> Done:
        code = app.run(argv)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


def checked(command: str, done: Done) -> Any:
    """The JSON, after it was compared with its schema."""
    msgspec.json.decode(done.out, type=outputs()[command][0], strict=True)
    return json.loads(done.out)


def test_layouts_are_rebuilt(run: Program) -> None:
    shutil.rmtree("store/layouts")
    done = run("layout", "rebuild", "m@1")
    assert (done.code, done.out) == (0, "1 layout written, 0 were whole\n")
    found = checked("layout rebuild", run("layout", "rebuild", "--all", "--json"))
    assert found == {"whole": 1, "written": 1, "lost": [], "unread": [], "down": {}}
    assert run("layout", "rebuild", "--all", "-q").out == ""
    with tierstore.open("store") as store:
        assert store.load("m@2")["w"].tolist() == [2] * 999


def test_what_is_lost_is_named(run: Program) -> None:
    shutil.rmtree("store/layouts")
    packs = [path for path in Path("store/packs").rglob("*") if path.is_file()]
    max(packs, key=lambda path: path.stat().st_mtime_ns).unlink()
    done = run("layout", "rebuild", "--all")
    assert done.code == 4
    assert done.out.splitlines()[0].split() == ["LOST", "MANIFEST", "WHY"]
    assert done.out.splitlines()[1].split()[0] == "m@2"
    assert "is in no pack of" in done.out
    assert done.out.splitlines()[-1] == "1 layout written, 0 were whole"
    found = checked("layout rebuild", run("layout", "rebuild", "--all", "--json"))
    assert [one["version"] for one in found["lost"]] == ["m@2"]
    done = run("layout", "rebuild", "--all", "-q")
    assert (done.code, done.out) == (4, "m@2\n")


def test_what_cannot_be_read_is_listed(run: Program) -> None:
    shutil.rmtree("store/layouts")
    for number in range(7):
        place = Path(f"store/packs/{number:02x}")
        place.mkdir(exist_ok=True)
        (place / f"{number:02x}{'0' * 62}").write_bytes(b"no pack")
    lines = run("layout", "rebuild", "--all").out.splitlines()
    assert lines[0] == "2 layouts written, 0 were whole"
    assert lines[1] == f"not read: packs/00/{'0' * 64}"
    assert lines[-1] == "and 2 more; 'tierstore check' says why"


def test_versions_or_all_must_be_named(run: Program) -> None:
    for argv in ([], ["m@1", "--all"]):
        done = run("layout", "rebuild", *argv)
        assert done.code == 2
        assert "name versions, or give --all" in done.err


def test_the_index_is_rebuilt(run: Program) -> None:
    shutil.rmtree("store/index")
    done = run("index", "rebuild")
    assert done.code == 0
    assert done.out.startswith("the index knows 2 chunks, in 1 segment of ")
    found = checked("index rebuild", run("index", "rebuild", "--from", "packs", "--json"))
    assert (found["chunks"], found["segments"], found["replaced"]) == (2, 1, 1)
    assert run("index", "rebuild", "-q").out == ""
    assert run("index", "rebuild", "--from", "memory").code == 2
