"""What check and doctor say of damage that is known, and what to do about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.cli.kit.app import run
from tierstore.cli.kit.objects import short_ids


@pytest.fixture
def root(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one version, in the folder that is named by the environment."""
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(cache))
    root = tmp_path / "store"
    monkeypatch.setenv("TIERSTORE_STORE", str(root))
    with tierstore.init(root) as store:
        store.save("m", {"w": np.random.default_rng(1).standard_normal(5000, np.float32)})
    return root


def damage(root: Path) -> str:
    """Turn a bit of the only pack over; its key."""
    [path] = [path for path in (root / "packs").rglob("*") if path.is_file()]
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return str(path.relative_to(root))


def test_what_was_looked_at_is_counted_in_plain_words(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check"]) == 0
    assert capsys.readouterr().out == (
        "no damage; checked 1 ref, 1 distinct version, 1 pack, 1 chunk (data was not read)\n"
    )


def test_damage_names_the_next_step_and_not_itself(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = damage(root)
    assert run(["check", "--read-data"]) == 4
    *lines, verdict, advice, note = capsys.readouterr().out.splitlines()
    key = short_ids(key)
    assert lines[0].startswith(f"damage: {key}: chunk b3:")
    assert lines[0].endswith("(needed by m@1)")
    assert (
        lines[1] == f"quarantined: {key}: no tier has a good copy; saves store anew what is in it"
    )
    assert verdict.startswith("1 damaged, 1 pack quarantined; checked")
    assert advice == "'tierstore repair' repairs what can be repaired, and lists what is lost"
    assert not any("tierstore check" in line for line in lines)
    assert note == "ids are cut to 12 digits here: -q and --json print keys in full"
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize("how", [[], ["--max-time", "0s"], ["--subset", "1%"]])
def test_what_is_quarantined_is_said_whatever_was_looked_at(
    root: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    key = damage(root)
    run(["check", "--read-data"])
    capsys.readouterr()
    code = run(["check", *how])
    out = capsys.readouterr().out
    assert f"quarantined: {short_ids(key)}: " in out
    assert "1 pack quarantined; checked" in out
    if how == ["--subset", "1%"]:  # what is damaged is read first
        assert (code, out.count("1 damaged,")) == (4, 1)
        return
    assert (code, out.count("no new damage,")) == (0, 1)
    assert "'tierstore check --read-data' says whether anything was lost" in out


def test_what_is_quarantined_and_healed_needs_nothing_more(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(root)
    run(["check", "--read-data"])
    with tierstore.open(root) as store:
        store.save("n", {"w": np.random.default_rng(1).standard_normal(5000, np.float32)})
    capsys.readouterr()
    assert run(["check", "--read-data"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no new damage, 1 pack quarantined;")


@pytest.mark.parametrize("name", ["layouts", "index"])
def test_doctor_tells_what_is_gone_altogether(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run(["doctor", "--json"])
    before = json.loads(capsys.readouterr().out)
    assert before["store"]["lost"] == []
    shutil.rmtree(root / name)
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["store"]["lost"] == [f"{name}/"]
    run(["doctor"])
    command = {"layouts": "layout rebuild --all", "index": "index rebuild"}[name]
    assert f"'tierstore {command}' makes" in " ".join(capsys.readouterr().out.split())
    assert run(command.split()) == 0
    capsys.readouterr()
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["store"]["lost"] == []


def test_doctor_tells_which_models_have_lost_all_versions(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["alias", "set", "m@prod", "m@1"])
    shutil.rmtree(root / "refs" / "m" / "versions")
    capsys.readouterr()
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["store"]["lost"] == ["refs/m/"]
    run(["doctor"])
    assert "refs/m/ has no version, or all" in " ".join(capsys.readouterr().out.split())


def test_doctor_misses_nothing_in_a_store_without_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tierstore.init(tmp_path / "new").close()
    run(["doctor", "--json", "--store", str(tmp_path / "new")])
    assert json.loads(capsys.readouterr().out)["store"]["lost"] == []
