"""The command that collects garbage: its text, JSON and ids, and the bytes that it frees."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

import tierstore
from tierstore.blobs.local.store import LocalStore
from tierstore.cli.kit import app
from tierstore.cli.kit.signals import Terminated
from tierstore.cli.schemas.markdown import outputs
from tierstore.format import keys, tiers
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.reclaim import explain, feature, sweep
from tierstore.modelstore.reclaim.mark import Marker
from tierstore.shown import size

MIB = 1 << 20


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Program = Callable[..., Done]


def noise(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.random.default_rng(seed).integers(0, 256, MIB, np.uint8)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of m@1 to m@3, of a MiB each, in home and in a warm tier."""
    folder = tmp_path_factory.mktemp("template")
    with tierstore.init(folder / "store") as store:
        for number in (1, 2, 3):
            store.save("m", noise(number), base=None)
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


@pytest.fixture
def enabled(run: Program) -> Program:
    assert run("gc", "--enable", "--yes", "--wait", "0", "-q").code == 0
    return run


def held_bytes(folder: str = "store/packs") -> int:
    """The bytes of all packs that are there."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def checked(done: Done, which: int = 0) -> Any:
    """The JSON, after it was compared with its schema."""
    msgspec.json.decode(done.out, type=outputs()["gc"][which], strict=True)
    return done.json


def test_nothing_is_collected_before_it_is_enabled(run: Program) -> None:
    before = held_bytes()
    done = run("gc")
    assert done.code == 2
    assert "'tierstore gc --enable' allows it" in done.err
    done = run("gc", "--dry-run")
    assert done.code == 0
    assert "'tierstore gc --enable' does, once for all" in done.out
    assert not checked(run("gc", "--dry-run", "--json"))["enabled"]
    assert run("rm", "m@1").code == 2, "neither the error nor the dry run has enabled it"
    assert held_bytes() == before


def test_enabling_is_asked_for_and_names_who_writes(
    run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for odd in (["--dry-run"], ["--window", "0"], ["--max-bytes", "1"], ["--max-time", "1m"]):
        assert run("gc", "--enable", "--yes", *odd).code == 2
    done = run("gc", "--enable")
    assert done.code == 2
    assert "give --yes" in done.err
    assert "WROTE WITH" in done.out, "who writes can be seen without allowing anything"
    assert run("gc", "--enable", "--json").code == 2
    assert run("rm", "m@1").code == 2
    done = run("gc", "--enable", "--yes", "--wait", "0")
    assert done.code == 0
    assert done.out.splitlines()[1].split()[1] == "tierstore"
    assert "and\ncannot write to it any more. There is no way back." in done.out
    assert "'tierstore gc' work from now on" in done.out
    again = run("gc", "--enable", "--yes", "--wait", "0")
    assert "removal is enabled already" in again.out
    found = checked(run("gc", "--enable", "--yes", "--wait", "0", "--json"), 2)
    assert found["writers"][0]["tool"].startswith("tierstore ")
    assert run("rm", "m@1").code == 0


def test_whoever_is_asked_can_say_no(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    said = {"Enable it for good?": False}
    monkeypatch.setattr("click.confirm", lambda text, abort: _confirm(said[text]))
    done = run("gc", "--enable")
    assert done.code == 130
    assert run("gc").code == 2, "it is not enabled"
    said["Enable it for good?"] = True
    assert run("gc", "--enable", "--wait", "0").code == 0
    assert run("gc").code == 0


def test_explain_says_that_nothing_can_be_removed_yet(run: Program) -> None:
    assert run("gc", "--explain", "--json").json["enabled"] is False
    done = run("gc", "--explain")
    assert done.code == 0
    assert "does not allow removal yet: 'tierstore gc --enable' does" in done.out
    assert run("gc", "--enable", "--yes", "--wait", "0", "-q").code == 0
    assert "gc --enable" not in run("gc", "--explain").out


@pytest.mark.parametrize("how", [KeyboardInterrupt, Terminated])
def test_an_interrupted_collection_says_what_it_has_done(
    enabled: Program, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    code, word = (143, "terminated") if how is Terminated else (130, "interrupted")

    def cut(*_: object, **__: object) -> None:
        raise how

    with monkeypatch.context() as patch:
        patch.setattr(Marker, "mark", cut)
        done = enabled("gc")
    assert (done.code, done.out) == (code, "")
    assert done.err == f"tierstore: error: {word}; nothing was marked or deleted yet\n"
    assert enabled("rm", "m@1", "m@2", "-q").code == 0
    deleted, delete = [], LocalStore.delete

    def second(self: LocalStore, gone: Iterable[str]) -> None:
        packs = [key for key in gone if key.startswith(keys.PACKS)]
        deleted.extend(packs)
        if len(deleted) == 2:
            raise how
        delete(self, gone)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "BATCH", 1)
        patch.setattr(LocalStore, "delete", second)
        done = enabled("gc", "--window", "0")
    assert (done.code, done.out) == (code, "")
    assert done.err == (
        f"tierstore: error: {word}; 2 packs of 2.0 MiB marked for deletion, 1.0 MiB of 2.0 MiB "
        "deleted, and of the last batch there may be more; the next collection looks at these "
        "again and deletes them\n"
    )
    done = enabled("gc", "--json")
    assert (done.code, done.json["deleted_packs"]) == (0, 1)


def _confirm(said: bool) -> None:
    if not said:
        raise KeyboardInterrupt


def test_an_interrupted_wait_goes_on(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def interrupted(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        config = Path("store/config.json")
        past = config.stat().st_mtime - seconds
        os.utime(config, (past, past))

    monkeypatch.setattr(feature.enable, "__defaults__", _sleeping(interrupted))
    done = run("gc", "--enable", "--yes", "--wait", "60s")
    assert done.code == 130
    said = re.search(r"before (.*)\nare waited for until (.*) \(--wait 60s\)", done.out)
    assert said is not None
    began, until = map(datetime.fromisoformat, (one.removesuffix(" UTC") for one in said.groups()))
    assert until - began == timedelta(minutes=1)
    ends = re.search(r"'tierstore gc --enable --yes --wait 60s' ends at (.*) UTC, or", done.err)
    assert ends is not None
    # it counts from the time of config.json, which the first sleep moved
    moved = until - timedelta(seconds=slept[0]) - datetime.fromisoformat(ends[1])
    assert abs(moved) <= timedelta(seconds=1)
    refused = run("rm", "m@1")
    assert refused.code == 2
    assert re.search(r"allowed, at .* UTC, may be running until .* UTC; 'tierstore gc", refused.err)
    assert run("gc", "--enable", "--yes", "--wait", "60s").code == 0
    assert 69 < sum(slept) <= 71, "the second waits for all that is left"


def _sleeping(sleep: Callable[[float], None]) -> tuple[Any, ...]:
    wait_s, _, *others = feature.enable.__defaults__ or ()
    return wait_s, sleep, *others


def test_removed_versions_stay_for_their_window_and_go_then(enabled: Program) -> None:
    before = held_bytes()
    enabled("rm", "m@1")
    done = enabled("gc")
    assert (done.code, held_bytes()) == (0, before)
    assert "m@1 was removed, and can be undeleted until" in done.out
    data = checked(enabled("gc", "--dry-run", "--window", "0", "--json"))
    assert (data["dry_run"], held_bytes()) == (True, before)
    done = enabled("gc", "--window", "0", "--json")
    found = checked(done)
    freed = before - held_bytes()
    assert MIB < freed < MIB * 1.01
    assert [tier["freed_bytes"] for tier in found["tiers"]] == [freed]
    assert found["deleted_bytes"] == data["deleted_bytes"] == freed
    assert found["deleted_packs"] == 1
    [held] = found["tiers"]
    assert sum(one["bytes"] for one in held["holds"]) == held_bytes()
    assert checked(enabled("gc", "--json"))["deleted_packs"] == 0
    assert enabled("check", "--read-data").code == 0


def test_limits_end_it_and_the_next_run_goes_on(enabled: Program) -> None:
    enabled("rm", "m@1", "m@2")
    before = held_bytes()
    done = enabled("gc", "--window", "0", "--max-bytes", "1.5MiB")
    assert done.code == 3
    assert "the limit of bytes is reached: run it again to go on" in done.out
    assert MIB < before - held_bytes() < 1.1 * MIB
    assert enabled("gc", "--window", "0", "--max-time", "1m").code == 0
    assert 2 * MIB < before - held_bytes() < 2.1 * MIB


def test_ids_are_those_of_the_packs_that_went(enabled: Program) -> None:
    before = {path.name for path in Path("store/packs").rglob("*") if path.is_file()}
    enabled("rm", "m@2")
    would = enabled("gc", "--window", "0", "--dry-run", "-q").out.split()
    assert enabled("gc", "--window", "0", "-q").out.split() == would
    after = {path.name for path in Path("store/packs").rglob("*") if path.is_file()}
    assert set(would) == before - after


def test_a_save_that_runs_is_named(enabled: Program) -> None:
    enabled("rm", "m@2")
    with tierstore.open("store") as store, WriterLease(store._parts.home.blobs):
        done = enabled("gc", "--window", "0")
        assert done.code == 0
        assert f"it goes once these saves have ended: {tierstore_user()}" in done.out
        assert f"(pid {os.getpid()} on " in done.out
    found = checked(enabled("gc", "--window", "0", "--json"))
    assert found["deleted_packs"] == 1


def tierstore_user() -> str:
    from tierstore.modelstore.home.refs import whoami

    return whoami()


def test_what_a_killed_save_left_waits_for_the_grace(enabled: Program) -> None:
    live = held_bytes()
    with tierstore.open("store") as store:
        store.save("x", noise(9), base=None)
    for path in Path("store").glob("refs/x/**/*"):
        if path.is_file():
            path.unlink()
    done = enabled("gc")
    assert "a save that was not finished can go on with it until" in done.out
    assert held_bytes() > live + MIB
    assert enabled("gc", "--grace", "1d").code == 0
    assert held_bytes() > live + MIB
    done = enabled("gc", "--grace", "0")
    assert "1 pack of 1.0 MiB deleted" in done.out
    assert held_bytes() == live


def test_a_tier_that_is_down_is_named_and_goes_on_later(enabled: Program) -> None:
    Path("warm").mkdir()
    assert enabled("tier", "add", "warm", "warm", "--role", "warm").code == 0
    with tierstore.open("store") as store:
        store.save("n", noise(7), base=None)
        store.save("n", noise(8), base=None)
    in_warm = held_bytes("warm")
    assert in_warm > 2 * MIB
    enabled("rm", "n@1")
    Path("warm").rename("away")
    done = enabled("gc", "--window", "0")
    assert done.code == 3
    assert "DOWN" in done.out
    assert "tier warm cannot be asked" in done.out
    assert "nothing was deleted" in done.out
    Path("away").rename("warm")
    found = checked(enabled("gc", "--window", "0", "--json"))
    freed = {tier["name"]: tier["freed_bytes"] for tier in found["tiers"]}
    assert freed == {"warm": in_warm - held_bytes("warm"), "home": 0}
    assert freed["warm"] > MIB


def test_a_limit_that_nothing_fits_into_is_said(enabled: Program) -> None:
    """Running it again would go on with nothing."""
    enabled("rm", "m@1")
    done = enabled("gc", "--window", "0", "--max-bytes", "1KB")
    assert done.code == 3
    assert "is reached: nothing fits into it, so give a larger one, or none" in done.out
    done = enabled("gc", "--window", "0", "--max-time", "0s")
    assert "the time is over: run it again to go on" in done.out


def test_what_is_deleted_of_packs_that_another_tier_may_hold_is_said(enabled: Program) -> None:
    Path("warm").mkdir()
    assert enabled("tier", "add", "warm", "warm", "--role", "warm").code == 0
    with tierstore.open("store") as store:
        store.save("n", noise(7), base=None)
        store.save("n", noise(8), base=None)
    Path("other").mkdir()
    assert enabled("tier", "add", "cold", "other", "--role", "cold").code == 0
    enabled("rm", "n@1")
    Path("other").rename("away")
    done = enabled("gc", "--window", "0")
    assert done.code == 3
    assert "nothing was deleted" not in done.out
    assert "1.0 MiB deleted: copies of packs that other tiers may hold still" in done.out
    (row,) = (line for line in done.out.splitlines() if line.startswith("garbage "))
    what, packs, size, why = row.split(maxsplit=3)
    assert (what, packs, size) == ("garbage", "1", "-")
    assert why == "nothing needs it: it goes once tier cold can be asked"


def test_packs_with_much_waste_are_repacked_unless_told_otherwise(enabled: Program) -> None:
    with tierstore.open("store") as store:
        whole = noise(7) | {"v": noise(8)["w"]}
        store.save("n", whole, base=None)
        store.save("n", {"w": whole["w"]}, base=None)  # one of the two chunks of the pack
    enabled("rm", "n@1")
    before = held_bytes()
    assert checked(enabled("gc", "--window", "0", "--no-repack", "--json"))["repacked_packs"] == 0
    assert held_bytes() == before
    would = enabled("gc", "--window", "0", "--dry-run")
    said = (
        "1 pack with much waste would be repacked; waste in packs that stay is 1.0 MiB in one tier"
    )
    assert said in would.out
    assert held_bytes() == before
    found = checked(enabled("gc", "--window", "0", "--json"))
    assert (found["repacked_packs"], found["deleted_packs"]) == (1, 1)
    assert MIB < found["rewritten_bytes"] < 1.01 * MIB
    assert MIB < before - held_bytes() < 1.01 * MIB
    with tierstore.open("store") as store:
        assert (store.load("n@2")["w"] == whole["w"]).all()
    assert enabled("check", "--read-data").code == 0


def walked(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def test_every_byte_of_every_tier_has_one_reason(enabled: Program) -> None:
    Path("warm").mkdir()
    assert enabled("tier", "add", "warm", "warm", "--role", "warm").code == 0
    with tierstore.open("store") as store:
        whole = noise(7) | {"v": noise(8)["w"]}
        store.save("n", whole, base=None)
        store.save("n", {"w": whole["w"]}, base=None)  # one of the two chunks of the pack
        store.patch("n@2", {"w": tierstore.Rows([1], np.ones(1, np.uint8))})
        store.load("n@3")
        store.remove("n@1", "m@1")
        held = store.load("m@2")
        store.alias("n", "prod", "n@3")
        Path("store/mine.txt").write_text("of somebody else")
        found = checked(enabled("gc", "--explain", "--json", "--window", "0"), 1)
        there = {"warm": walked("warm"), "home": walked("store")}
        held.close()
    tiers = {tier["name"]: tier for tier in found["tiers"]}
    for name in there:
        shares = tiers[name]["shares"]
        assert sum(one["bytes"] for one in shares) == tiers[name]["bytes"] == there[name]
        assert len({(one["kind"], one["why"]) for one in shares}) == len(shares)
    warm = {one["kind"]: one for one in tiers["warm"]["shares"]}
    assert set(warm) == {"live", "waste", "metadata"}
    assert MIB < warm["waste"]["bytes"] < 1.01 * MIB, "n@1's second chunk"
    assert warm["metadata"]["why"] == "marker of the tier"
    home = {one["kind"]: one for one in tiers["home"]["shares"]}
    assert MIB < home["deleted"]["bytes"] < 1.01 * MIB, "m@1"
    assert home["foreign"]["bytes"] == len("of somebody else")
    whys = {one["why"] for one in tiers["home"]["shares"]}
    assert {"m@2", "manifests", "layouts", "index of chunks", "settings of the store"} <= whys
    text = enabled("gc", "--explain").out
    assert "removed" in text
    assert "m@1 was removed, and can be undeleted until" in text


def test_a_version_that_an_alias_has_just_left_says_so(enabled: Program) -> None:
    assert enabled("alias", "set", "m@prod", "2").code == 0
    assert enabled("alias", "set", "m@prod", "3").code == 0
    assert enabled("alias", "set", "m@prod", "1").code == 0
    assert enabled("rm", "m@2").code == 0
    assert enabled("rm", "m@3", "--force").code == 0
    found = checked(enabled("gc", "--window", "0", "--explain", "--json"), 1)
    whys = {one["why"] for one in found["tiers"][0]["shares"] if one["kind"] == "live"}
    assert whys == {"m@1", "rollback of m@prod", "alias m@prod left it in the last 30 d"}
    assert checked(enabled("gc", "--window", "0", "--json"))["deleted_packs"] == 0


def test_every_kind_of_key_is_known() -> None:
    """What a later change puts beside these into home is not called foreign."""
    prefixes = {
        value
        for module in (keys, tiers)
        for value in vars(module).values()
        if isinstance(value, str) and re.fullmatch("[a-z]+/", value)
    }
    assert {"refs/", "growth/", "pins/"} <= prefixes
    below = {keys.PACKS, keys.ALIASES, keys.VARIANTS}
    assert prefixes - below <= explain._METADATA.keys()


def test_what_an_archive_still_charges_for_is_shown(enabled: Program) -> None:
    Path("cold").mkdir()
    line = "tier add cold cold --role cold --price list=s3-glacier"
    assert enabled(*line.split()).code == 0
    with tierstore.open("store") as store:
        store.save("n", noise(7), base=None)
        store.save("n", noise(8), base=None)
        store.remove("n@1")
    for path in Path("cold/packs").rglob("*"):
        old = path.stat().st_mtime - 30 * 86_400
        os.utime(path, (old, old))
    found = checked(enabled("gc", "--explain", "--json"), 1)
    [cold] = [tier for tier in found["tiers"] if tier["name"] == "cold"]
    unpaid = {one["kind"]: float(one["unpaid_gb_months"]) for one in cold["shares"]}
    [removed] = [one for one in cold["shares"] if one["kind"] == "window"]
    months = removed["bytes"] / 2**30 * 2  # of 90 days 30 are over
    assert unpaid == {"live": 0, "metadata": 0, "window": pytest.approx(months, rel=1e-3)}
    assert float(removed["fee"]) == pytest.approx(months * 0.0036, rel=1e-3)
    assert "GB-months are still charged" in enabled("gc", "--explain").out


def test_two_at_once_are_refused(enabled: Program) -> None:
    from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease

    with tierstore.open("store") as store, HeldLease(store._parts.home.blobs, COLLECTOR):
        done = enabled("gc")
    assert done.code == 6
    assert "another garbage collection is at work" in done.err


def test_du_df_and_doctor_tell_of_garbage(
    enabled: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert enabled("df", "--json").json["last_gc"] is None
    assert "garbage" not in enabled("df").out + enabled("du").out
    assert enabled("doctor", "--json").json["store"]["uncollected_seconds"] < 60
    enabled("rm", "m@1")
    with tierstore.open("store") as store:
        store.save("x", noise(9), base=None)
    for path in [path for path in Path("store/refs/x").rglob("*") if path.is_file()]:
        path.unlink()
    enabled("gc")
    for command in ("df", "du"):
        last = enabled(command, "--json").json["last_gc"]
        assert (last["garbage_packs"], last["removed_packs"], last["freed_bytes"]) == (1, 1, 0)
        assert MIB < last["garbage_bytes"] < 1.01 * MIB
        assert MIB < last["removed_bytes"] < 1.01 * MIB
        line = "garbage 1.0 MiB, can be undeleted 1.0 MiB, at the last gc, 20"
        assert line in enabled(command).out
    assert enabled("du", "m", "--json").json["last_gc"] is None
    assert "no garbage was collected" not in enabled("doctor", "-q").out
    monkeypatch.setattr("tierstore.admin.doctor._COLLECT_EVERY_S", -1)
    assert "no garbage was collected for 0 days: run 'tierstore gc'" in enabled("doctor", "-q").out


def test_explain_shortens_a_long_list_of_reasons(enabled: Program) -> None:
    with tierstore.open("store") as store:
        for number in range(22):
            store.save("tiny", {"w": np.full(9, number, np.uint8)}, base=None)
    done = enabled("gc", "--explain")
    shares = checked(enabled("gc", "--explain", "--json"), 1)["tiers"][0]["shares"]
    live = [one for one in shares if one["kind"] == "live"]
    rows = [line for line in done.out.splitlines() if " live " in line]
    assert (len(live), len(rows)) == (25, 21)
    assert rows[-1].endswith("5 other reasons, which --json lists")
    rest = sum(one["bytes"] for one in live[20:])
    assert rows[-1].split()[:4] == ["home", *size(rest).split(), "5"]
