"""Every command of the real program against real local stores: as text, as JSON and quietly."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.kit.command import walk
from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas import health
from tierstore.cli.schemas.markdown import outputs
from tierstore.format.keys import pack_key


@dataclass
class Done:
    code: int
    out: str
    err: str


Program = Callable[..., Done]


def tensors(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "emb.weight": np.random.default_rng(0).standard_normal((2000, 300), np.float32),
        "layer.0.weight": random.standard_normal((64, 64), np.float32),
        "layer.0.bias": random.standard_normal(64, np.float32),
        "ids": np.arange(512, dtype=np.int64),
    }


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir()
    save_file(tensors(seed), folder / "model.safetensors", {"format": "np"})
    (folder / "config.json").write_text('{"layers": 1}')
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ranker@1, ranker@2 (prod, and stable, which is 1), and org/other@1."""
    folder = tmp_path_factory.mktemp("template")
    with tierstore.init(folder / "store") as store:
        store.save("ranker", write_model(folder / "a", 1), alias="prod", message="first")
        store.save("ranker", write_model(folder / "b", 2), alias="prod", message="second")
        store.alias("ranker", "stable", "ranker@1")
        store.save("org/other", folder / "a" / "model.safetensors")
    return folder


@pytest.fixture
def place(
    template: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A copy of it in the working directory, which is named by TIERSTORE_STORE.

    With a cache of its own: the copies have one id, and do not have each other's packs.
    """
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Program:
    def go(*argv: str) -> Done:
        code = app.run(argv)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return go


def test_a_directory_without_tensors_has_to_be_meant(run: Program, place: Path) -> None:
    (place / "texts").mkdir()
    (place / "texts/a.txt").write_text("a")
    refused = run("save", "texts", "texts")
    assert refused.code == 1
    assert "texts holds no tensors" in refused.err
    assert run("save", "texts", "texts", "--allow-no-tensors", "-q").out == "texts@1\n"


def test_an_alias_is_one_word_or_two(run: Program, place: Path) -> None:
    assert run("alias", "set", "ranker@new", "ranker@1", "-q").out == "ranker@1\n"
    assert run("alias", "set", "ranker@new", "2", "-q").out == "ranker@2\n"
    assert run("alias", "set", "ranker", "new", "1", "-q").out == "ranker@1\n"
    assert run("rollback", "ranker@new", "-q").out == "ranker@2\n"
    assert run("alias", "rm", "ranker@new", "-q").out == "ranker@new\n"
    assert run("alias", "set", "ranker", "new", "ranker", "stable", "-q").out == "ranker@1\n"
    assert run("alias", "set", "ranker@new", "ranker", "prod", "-q").out == "ranker@2\n"
    assert run("alias", "set", "ranker", "new", "ranker@stable", "-q").out == "ranker@1\n"
    for command, said in (
        ("alias set ranker new", "ranker names no alias: give MODEL@ALIAS REF, or MODEL ALIAS REF"),
        ("alias set ranker@new", "Missing argument 'REF'; see 'tierstore alias set --help'"),
        ("rollback ranker", "ranker names no alias: give MODEL@ALIAS, or MODEL ALIAS"),
        ("alias rm ranker", "ranker names no alias: give MODEL@ALIAS, or MODEL ALIAS"),
    ):
        done = run(*command.split())
        assert (done.code, done.err) == (2, f"tierstore: error: {said}\n")


ONE_REF = {
    "stat": "", "tensors": "", "load": "--to out", "log": "", "rebase": "", "fold": "",
    "patch": "change.safetensors", "patches": "", "derive": "", "variants": "",
    "lineage": "", "explain": "", "mv": "--to home", "restore": "", "warmup": "", "evict": "",
    "pin": "", "unpin": "", "report": "p99_ms=12.5", "release show": "", "rollback": "",
    "rollout start": "--to 1", "rollout status": "", "rollout pause": "", "rollout resume": "",
    "rollout step": "", "rollout abort": "", "alias rm": "", "undelete": "",
    "cp": "./store",
}  # fmt: skip
"""What is given to each command that takes one reference, beside that."""
TWO_REFS = {"diff", "alias set"}


@pytest.mark.parametrize("command", ONE_REF)
def test_every_reference_is_one_word_or_two(command: str, run: Program, place: Path) -> None:
    rest = ONE_REF[command].split()
    one = run(*command.split(), "ranker@none", *rest)
    two = run(*command.split(), "ranker", "none", *rest)
    more = run(*command.split(), "ranker", "none", "more", *rest)
    assert one == two
    assert "unexpected" not in one.err
    assert (more.code, "'more'" in more.err) == (2, True)


def test_all_commands_with_a_reference_are_tried() -> None:
    root, _ = app.command_tree()
    taking = {
        " ".join(path)
        for path, node in walk(root)
        for one in node.params
        if one.param_type_name == "argument"
        and (one.metavar in {"REF", "REF|PACK", "SINCE", "NEW"} or "@ALIAS" in one.metavar)
    }
    assert taking == ONE_REF.keys() | TWO_REFS


def test_two_words_are_what_one_is(run: Program, place: Path) -> None:
    assert run("stat", "ranker", "stable", "-q").out == "ranker@1\n"
    assert run("stat", "ranker", "1", "-q").out == "ranker@1\n"
    assert json.loads(run("pin", "ranker", "stable", "--json").out)["ref"] == "ranker@stable"
    assert run("report", "ranker", "stable", "p99_ms=1", "-q").out == "ranker@1\n"
    assert run("report", "ranker", "stable").err.endswith("missing: give METRIC=NUMBER\n")
    for words in ("ranker 1 ranker prod", "ranker@1 ranker prod", "ranker stable ranker@2"):
        found = json.loads(run("diff", *words.split(), "--json").out)
        assert (found["old"]["version"], found["new"]["version"]) == (1, 2)
    refused = run("diff", "ranker@1", "ranker@2", "ranker")
    assert (refused.code, refused.err) == (
        2,
        "tierstore: error: unexpected extra argument 'ranker': a reference is MODEL@ALIAS in one "
        "word, or MODEL ALIAS in two\n",
    )


def test_what_is_quarantined_is_shown(run: Program, place: Path) -> None:
    assert "good copy" not in run("doctor").out + run("stat", "ranker").out
    pack = json.loads(run("stat", "org/other", "--json").out)["packs"][0]["pack"]
    path = place / "store" / pack_key(bytes.fromhex(pack))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert run("check", "--read-data").code == 4
    said = (
        "1 pack without a good copy in any tier: 'tierstore repair' repairs what can be repaired, "
        "and lists what is lost; saving that content again heals it"
    )
    assert said in run("doctor").out
    assert said in run("doctor", "-q").out
    assert json.loads(run("doctor", "--json").out)["store"]["quarantined_packs"] == 1
    assert said in run("stat", "org/other").out
    packs = json.loads(run("stat", "org/other", "--json").out)["packs"]
    assert [one["pack"] for one in packs if one["quarantined"]] == [pack]
    run("save", "fresh", "b/config.json", "--allow-no-tensors")
    assert said not in run("stat", "fresh").out, "it rests on none of them"


def test_a_tilde_in_paths_of_the_command_line(
    run: Program, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("TIERSTORE_STORE", "~/store")
    monkeypatch.setenv("TIERSTORE_LOAD_TO", "~/out")
    assert run("load", "ranker").code == 0
    assert (place / "out/model.safetensors").is_file()
    assert run("save", "again", "~/out", "-q").out == "again@1\n"
    assert run("--store", "~/store", "ls", "-q").code == 0
    assert not (place / "~").exists()


def test_names_of_tensors_that_look_like_globs(run: Program, place: Path) -> None:
    with tierstore.open("store") as store:
        store.save("odd", {"a[0].w": np.zeros(1), "a0.w": np.zeros(1)})
    assert run("tensors", "odd", "--filter", "a[0].w", "-q").out.split() == ["a0.w", "a[0].w"]
    assert run("tensors", "odd", "--filter", "a[0].*", "-q").out.split() == ["a0.w"]


def test_what_is_no_reference_is_said(run: Program, place: Path) -> None:
    assert run("stat", "tierstore://ranker@1", "-q").out == "ranker@1\n"
    assert run("load", "tierstore://ranker@prod", "--to", "out").code == 0
    for path in ("/tmp/ranker", "./ranker", "../ranker"):  # a model may be named ~/ranker
        done = run("load", path, "--to", "out")
        assert (done.code, f"'{path.removeprefix('./')}' is a path" in done.err) == (2, True)
    done = run("stat", "tierstore://ranker?store=s")
    assert (done.code, "names a store, too" in done.err) == (2, True)


CASES: dict[str, tuple[list[str], str, str]] = {
    # name: command line, what the text holds, what -q prints
    "init": (["init", "new"], "made a store at file://", "file://{place}/new"),
    "save": (["save", "ranker", "a", "--alias", "x"], "ranker@3 = ranker@x: ", "ranker@3"),
    "load": (
        ["load", "ranker@prod", "--to", "out"],
        "ranker@2: 2 files, 2.3 MiB in out",
        "out/config.json\nout/model.safetensors",
    ),
    "load some": (
        ["load", "ranker", "--to", "out", "--tensors", "layer.*", "--tensors", "ids"],
        "ranker@2: 1 file, ",
        "out/subset.safetensors",
    ),
    "ls": (["ls"], "org/other         1  ", "org/other\nranker"),
    "ls model": (["ls", "ranker"], "second", "ranker@2\nranker@1"),
    "stat": (["stat", "ranker@stable"], "4 tensors in 2 files", "ranker@1"),
    "tensors": (["tensors", "ranker", "--filter", "emb*"], "[2000,300]", "emb.weight"),
    "diff": (
        ["diff", "ranker@1", "ranker@prod"],
        "2 of 4 tensors and 0 of 1 other file changed",
        "layer.0.bias\nlayer.0.weight",
    ),
    "log": (["log"], "org/other", "org/other@1\nranker@1\nranker@2\nranker@2\nranker@1\nranker@1"),
    "log model": (["log", "ranker"], "publish", "ranker@2\nranker@1"),
    "log some": (["log", "--limit", "1"], "org/other", "org/other@1"),
    "log alias": (["log", "ranker@prod"], "second", "ranker@2\nranker@1"),
    "alias set": (["alias", "set", "ranker", "new", "ranker@1"], "ranker@new is now", "ranker@1"),
    "alias rm": (["alias", "rm", "ranker", "stable"], "removed", "ranker@stable"),
    "alias ls": (["alias", "ls", "ranker"], "stable", "ranker@prod\nranker@stable"),
    "rollback": (["rollback", "ranker", "prod", "-m", "bad"], "is now ranker@1", "ranker@1"),
    "rebase": (["rebase", "ranker"], "0 of 0 deltas stored in full", "ranker@2"),
    "du": (["du"], "saved by dedup", "{stored}"),
    "du model": (["du", "ranker"], "saved by codecs", "{stored}"),
    "check": (["check"], "no damage", ""),
    "check data": (["check", "--read-data"], "of data", ""),
    "doctor": (["doctor"], "put-if-absent works", ""),
    "version": (["version"], "tierstore 0.", "0.1.0"),
}


def schema_of(name: str) -> type[schemas.Schema]:
    known = outputs()
    command = name if name in known else name.split()[0]
    of_a_model = name in {"ls model", "log model", "log alias", "alias ls"}
    return known[command][1 if of_a_model else 0]


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, place: Path, run: Program) -> None:
    argv, expected, _ = CASES[name]
    done = run(*argv)
    assert (done.code, done.err) == (0, "")
    assert expected in done.out, done.out


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("name", CASES)
def test_json(name: str, before: bool, place: Path, run: Program) -> None:
    argv = CASES[name][0]
    done = run(*(["--json", *argv] if before else [*argv, "--json"]))
    assert (done.code, done.err) == (0, "")
    data = msgspec.json.decode(done.out, type=schema_of(name), strict=True)
    keys = list(json.loads(done.out))
    assert keys == sorted(keys)
    assert msgspec.json.decode(msgspec.json.encode(data)) == json.loads(done.out)


@pytest.mark.parametrize("name", CASES)
def test_quiet(name: str, place: Path, run: Program) -> None:
    argv, _, expected = CASES[name]
    if "{stored}" in expected:
        expected = str(json.loads(run(*argv, "--json").out)["stored_bytes"])
    done = run(*argv, "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip() == expected.format(place=place)


def answer(run: Program, *argv: str) -> Any:
    done = run(*argv, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_save_says_what_it_cost(place: Path, run: Program) -> None:
    again = answer(run, "save", "ranker", "a", "-m", "again")
    assert (again["version"], again["new_bytes"], again["new_chunks"]) == (3, 0, 0)
    assert again["message"] == "again"
    files = answer(run, "stat", "ranker")["files"]
    assert again["logical_bytes"] == sum(file["bytes"] for file in files)
    without = answer(run, "save", "ranker", "a", "--exclude", "*.json")
    assert without["logical_bytes"] < again["logical_bytes"]
    assert [f["path"] for f in answer(run, "stat", "ranker")["files"]] == ["model.safetensors"]


def test_load_is_byte_identical(place: Path, run: Program) -> None:
    files = answer(run, "load", "ranker@1", "--to", "out")["files"]
    assert len(files) == 2
    for file in files:
        data = (place / "out" / file["path"]).read_bytes()
        assert data == (place / "a" / file["path"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()


def test_load_some_tensors(place: Path, run: Program) -> None:
    (file,) = answer(run, "load", "ranker@2", "--to", "out", "--tensors", "layer.*")["files"]
    path = place / "out" / file["path"]
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert sorted(loaded) == ["layer.0.bias", "layer.0.weight"]
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, tensors(2)[name])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_du_adds_up(place: Path, run: Program) -> None:
    du = answer(run, "du")
    assert du["logical_bytes"] == du["unique_bytes"] + du["dedup_saved_bytes"]
    saved = du["codec_saved_bytes"] + du["delta_saved_bytes"] + du["header_bytes"]
    assert du["unique_bytes"] == du["stored_bytes"] + saved
    assert du["pack_bytes"] == du["stored_bytes"] + du["overhead_bytes"]
    packs = sum(
        path.stat().st_size for path in (place / "store/packs").rglob("*") if path.is_file()
    )
    assert du["pack_bytes"] == packs
    lines = run("du").out.splitlines()
    shown = [float(line.split("%")[0].split()[-1]) for line in lines[2:7]]
    assert sum(shown) == pytest.approx(100.0)


def test_stat_and_tensors_agree(place: Path, run: Program) -> None:
    stat, listed = answer(run, "stat", "ranker"), answer(run, "tensors", "ranker")
    assert stat["aliases"] == ["prod"]
    assert stat["tensors"] == len(listed["tensors"]) == 4
    assert stat["stored_bytes"] == sum(pack["used_bytes"] for pack in stat["packs"])
    (weights,) = (file for file in stat["files"] if file["tensors"])
    assert sum(tensor["bytes"] for tensor in listed["tensors"]) < weights["bytes"]
    emb = next(tensor for tensor in listed["tensors"] if tensor["name"] == "emb.weight")
    assert (emb["dtype"], emb["shape"], emb["bytes"]) == ("F32", [2000, 300], 2_400_000)
    assert emb["codecs"] == {"planes": 1}
    assert emb["ratio"] == pytest.approx(emb["stored_bytes"] / emb["bytes"], abs=1e-4)


def test_deltas_are_chosen_and_undone(place: Path, run: Program) -> None:
    table = np.random.default_rng(3).standard_normal((300, 200), np.float32)
    save_file({"emb": table}, place / "one.safetensors")
    save_file({"emb": table * np.float32(1.00001)}, place / "two.safetensors")
    assert answer(run, "save", "d", "one.safetensors")["base"] is None
    assert answer(run, "save", "plain", "two.safetensors", "--base", "none")["delta_bytes"] == 0
    save_file({"emb": table * np.float32(1.00003)}, place / "three.safetensors")
    saved = answer(run, "save", "d", "three.safetensors", "--base", "d@1")
    assert (saved["base"], saved["delta_bytes"]) == ("d@1", table.nbytes)
    assert 0 < saved["delta_stored_bytes"] < saved["stored_bytes"]
    save_file({"emb": table * np.float32(1.00002)}, place / "four.safetensors")
    assert "as deltas against d@2" in run("save", "d", "four.safetensors").out
    change = answer(run, "diff", "d@1", "d@2")
    assert change["stored_bytes"] == saved["delta_stored_bytes"]
    assert change["delta_saved_bytes"] == table.nbytes - saved["delta_stored_bytes"]
    assert answer(run, "du", "d")["delta_saved_bytes"] > 0
    assert run("du", "plain").code == 0
    done = answer(run, "rebase", "d@2", "--above", "1")
    assert (done["deltas"], done["chunks"], done["cost_after"]) == (1, 1, 1.0)
    assert answer(run, "rebase", "d@2")["deltas"] == 0
    assert run("save", "d", "one.safetensors", "--base", "nobody@1").code == 5
    assert run("rebase", "d", "--above", "0.1").code == 2


def test_aliases_and_rollback(place: Path, run: Program) -> None:
    def pointed() -> dict[str, int]:
        found: dict[str, int] = answer(run, "ls")["models"][1]["aliases"]
        return found

    assert pointed() == {"prod": 2, "stable": 1}
    assert run("rollback", "ranker", "prod", "-m", "worse").code == 0
    assert run("alias", "rm", "ranker", "stable").code == 0
    assert pointed() == {"prod": 1}
    entries = answer(run, "log", "ranker@prod")["entries"]
    assert [entry["action"] for entry in entries] == ["rollback", "set", "set"]
    assert entries[0]["message"] == "worse"
    assert answer(run, "log", "ranker@stable")["entries"][0]["version"] is None
    done = run("rollback", "ranker", "prod")
    assert (done.code, "nothing to go back to" in done.err) == (5, True)


def test_variables_stand_for_options(
    place: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERSTORE_SAVE_ALIAS", "fromenv")
    monkeypatch.setenv("TIERSTORE_SAVE_EXCLUDE", "*.json *.txt")
    monkeypatch.setenv("TIERSTORE_JSON", "1")
    assert json.loads(run("save", "ranker", "a").out)["alias"] == "fromenv"
    assert [f["path"] for f in json.loads(run("stat", "ranker").out)["files"]] == [
        "model.safetensors"
    ]
    assert json.loads(run("save", "ranker", "a", "--alias", "mine").out)["alias"] == "mine"


def test_the_nearest_store_option_wins(place: Path, run: Program) -> None:
    assert run("init", "second").code == 0
    assert run("--store", "second", "ls", "-q").out == ""
    assert run("ls", "-q", "--store", "second").out == ""
    assert run("--store", "second", "ls", "-q", "--store", "store").out == "org/other\nranker\n"


def test_an_empty_store_says_what_to_do(place: Path, run: Program) -> None:
    assert run("init", "second").code == 0
    assert "tierstore save" in run("--store", "second", "ls").out
    assert run("--store", "second", "du").code == 0
    assert run("--store", "second", "check", "--read-data").code == 0


ERRORS: dict[str, tuple[list[str], int, str]] = {
    "no store": (["--store", "nowhere", "ls"], 5, "nowhere"),
    "not a store": (["--store", "store/refs", "ls"], 5, "is not a store"),
    "unknown scheme": (["--store", "foo://x", "ls"], 2, "'foo'"),
    "existing store": (["init"], 6, "is a store already"),
    "bad chunk size": (["init", "new", "--chunk-size", "3MiB"], 2, "power of two"),
    "no size": (["init", "new", "--chunk-size", "much"], 2, "invalid size 'much'"),
    "no model": (["stat", "nope"], 5, "'nope'"),
    "no version": (["load", "ranker@9", "--to", "x"], 5, "versions 1 to 2"),
    "no alias": (["tensors", "ranker@nope"], 5, "ranker@nope"),
    "no digest": (["diff", "ranker@b3:00000000", "ranker"], 5, "b3:00000000"),
    "bad ref": (["stat", "a@@b"], 2, "not allowed"),
    "bad name": (["save", "../up", "a"], 2, "not allowed"),
    "log of a version": (["log", "ranker@1"], 2, "ranker@1 names one version"),
    "log of nothing": (["log", "nope@prod"], 5, "'nope'"),
    "log of no alias": (["log", "ranker@nope"], 5, "there is no log of ranker@nope"),
    "log of no variant": (["log", "ranker@+nope"], 5, "there is no log of ranker@+nope"),
    "no such tensors": (["load", "ranker", "--to", "x", "--tensors", "zz*"], 5, "'zz*'"),
    "aliases of nothing": (["alias", "ls", "nope"], 5, "'nope'"),
    "removing nothing": (["alias", "rm", "ranker", "nope"], 5, "ranker@nope"),
    "no source": (["save", "x", "nowhere"], 5, "nowhere"),
    "hostile header": (["save", "x", "hostile.safetensors"], 1, "hostile.safetensors"),
    "pickle": (["save", "x", "model.pt"], 1, "pickle"),
    "target is a file": (["load", "ranker", "--to", "a/config.json"], 2, "a/config.json"),
    "no permission": (["load", "ranker", "--to", "/sys/tierstore"], 1, "/sys/tierstore"),
    "no such command": (["foo"], 2, "'foo'; see 'tierstore --help'"),
    "no such option": (["ls", "--foo"], 2, "see 'tierstore ls --help'"),
    "no argument": (["stat"], 2, "REF"),
    "no subcommand": (["alias"], 2, "see 'tierstore alias --help'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, place: Path, run: Program) -> None:
    (place / "hostile.safetensors").write_bytes(b"\xff" * 64)
    (place / "model.pt").write_bytes(b"\x80\x04K\x01.")
    argv, code, expected = ERRORS[name]
    done = run(*argv)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("tierstore: error: ")
    assert done.err.count("\n") == 1, done.err
    assert expected in done.err
    as_json = run("--json", *argv)
    assert (as_json.code, as_json.out) == (code, "")
    detail = msgspec.json.decode(as_json.err, type=schemas.ErrorJson, strict=True).error
    assert detail.exit_code == code
    assert expected in detail.message
    assert run("ls", "-q").out == "org/other\nranker\n"


def test_no_store_is_named(place: Path, run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIERSTORE_STORE")
    done = run("ls")
    assert (done.code, "TIERSTORE_STORE" in done.err) == (2, True)
    assert run("doctor").code == 0


def test_unknown_variables(place: Path, run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERSTORE_SAVE_ALAIS", "x")
    done = run("ls", "-q")
    assert (done.code, done.out) == (0, "org/other\nranker\n")
    assert done.err == (
        "tierstore: warning: the environment variable TIERSTORE_SAVE_ALAIS is not known: did you "
        "mean 'TIERSTORE_SAVE_ALIAS'? see 'tierstore --help'\n"
    )
    assert run("doctor").code == 0
    done = run("doctor", "--strict")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'TIERSTORE_SAVE_ALIAS'?" in done.err
    assert run("ls", "--help").code == 0


def test_a_damaged_manifest(place: Path, run: Program) -> None:
    digest = answer(run, "stat", "ranker@1")["digest"].removeprefix("b3:")
    manifest = place / "store/versions" / digest
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data)
    whole = answer(run, "du", "org/other")
    done = run("du")
    assert (done.code, "saved by dedup" in done.out) == (4, True)
    assert "not counted, as it cannot be read: ranker@1: " in done.err
    assert digest in done.err
    done = run("du", "--json")
    du = msgspec.json.decode(done.out, type=schemas.Du)
    assert (done.code, [one.name for one in du.left_out]) == (4, ["ranker@1"])
    assert du.versions == 2
    assert du.stored_bytes > whole["stored_bytes"]
    done = run("stat", "ranker@1")
    assert (done.code, digest in done.err) == (4, True)
    done = run("check")
    assert (done.code, done.err) == (4, "")
    assert f"damage: versions/{digest[:12]}…: " in done.out
    assert run("check", "-q").out == f"versions/{digest}\n"
    found = run("check", "--json")
    report = msgspec.json.decode(found.out, type=schemas.CheckJson)
    assert (found.code, report.damaged) == (4, True)
    assert report.findings[0].needed_by == ["ranker@1"]
    assert run("check", "-q").out == f"versions/{digest}\n"
    assert run("load", "ranker@2", "--to", "out").code == 0


def test_doctor_tells_of_a_store_that_cannot_be_used(place: Path, run: Program) -> None:
    config = place / "store/config.json"
    config.write_text(config.read_text()[:60])
    done = run("doctor")
    assert done.code == 4
    assert "NOT usable" in done.out
    assert done.err.count("\n") == 1
    data = msgspec.json.decode(run("doctor", "--json").out, type=health.Doctor)
    assert data.store is not None
    assert "config.json" in (data.store.error or "")


def test_doctor_tells_of_native_parts_that_were_not_built(
    place: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["tierstore.tiers.node._chunkio", "tierstore.serving._scatter"]
    tree = "tierstore.format._tree"
    data = msgspec.json.decode(run("doctor", "--json").out, type=health.Doctor)
    assert data.native_parts == dict.fromkeys([tree, *parts], True), "reinstall with a C compiler"
    monkeypatch.setitem(sys.modules, parts[0], None)
    done = run("doctor")
    assert done.code == 0
    out = " ".join(done.out.split())
    assert f"{parts[0]}, not built" in out
    assert f"{parts[0]} was not built, so loading from this node's hot tier is slower" in out
    assert f"{parts[1]}, built" in out
    data = msgspec.json.decode(run("doctor", "--json").out, type=health.Doctor)
    assert data.native_parts == {tree: True, parts[0]: False, parts[1]: True}


def test_doctor_leaves_nothing_behind(place: Path, run: Program) -> None:
    before = sorted(path for path in (place / "store").rglob("*") if path.is_file())
    assert run("doctor").code == 0
    assert sorted(path for path in (place / "store").rglob("*") if path.is_file()) == before


def test_control_characters_do_not_reach_the_terminal(place: Path, run: Program) -> None:
    with tierstore.open("store") as store:
        store.save("evil", {"w\x1b[2J": np.zeros(3, np.float32)}, message="a\nb\x1b[31m")
    for argv in (["tensors", "evil"], ["ls", "evil"], ["log", "evil"], ["tensors", "evil", "-q"]):
        assert "\x1b" not in run(*argv).out
    assert answer(run, "tensors", "evil")["tensors"][0]["name"] == "w\x1b[2J"


def test_the_demo(tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("demo", "--json", "--dir", str(tmp_path))
    assert (done.code, done.err) == (0, "")
    demo = msgspec.json.decode(done.out, type=schemas.Demo, strict=True)
    assert list(tmp_path.iterdir()) == []
    original, bf16, trained, again = demo.steps
    assert original.reused_bytes == again.new_bytes == 0
    assert trained.new_bytes < trained.logical_bytes / 4
    assert bf16.stored_bytes < original.stored_bytes / 2
    assert all(file.identical for file in demo.exported)
    assert all(read.bytes_fetched < read.model_bytes / 20 for read in demo.reads)
    assert demo.rolled_back.version == 2
    assert demo.usage.stored_bytes < demo.usage.logical_bytes / 2


def test_the_demo_for_people(tmp_path: Path, run: Program) -> None:
    done = run("demo", "--dir", str(tmp_path), "--keep")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("identical") == 13
    (kept,) = tmp_path.iterdir()
    assert f"tierstore --store {kept}/store ls minilm" in done.out
    assert run("--store", str(kept / "store"), "ls", "-q").out == "minilm\nminilm-bf16\n"
    assert run("demo", "--dir", str(tmp_path / "nowhere")).code == 1
