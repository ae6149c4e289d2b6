"""Wrong calls of the Python API, and what is said of each: the argument, the value, the fix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import tierstore
from tierstore.errors import NotFound, TierstoreError, UsageError
from tierstore.format.keys import LEASES
from tierstore.tiers.durable.marker import MARKER

api: Any = tierstore
"""The package as a user sees it whose types nobody checks."""

Call = Callable[[Any, Path], object]
"""A wrong call of a store that has ``ranker@1`` and ``@2``, the alias prod and the tier warm."""


def spec(folder: Path, name: str = "new", **fields: Any) -> tierstore.TierSpec:
    fields = {"role": "warm", "url": (folder / name).as_uri()} | fields
    return tierstore.TierSpec(name=name, **fields)


def made(folder: Path) -> tierstore.Store:
    opened = tierstore.init(folder / "store", tiers=[spec(folder, "warm")])
    opened.save("ranker", {"w": np.zeros((3, 2), "<f4"), "v": np.zeros(3, "<f4")}, alias="prod")
    opened.save("ranker", {"w": np.ones((3, 2), "<f4"), "v": np.zeros(3, "<f4")})
    return opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with made(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a store that no test changes: what is refused leaves all as it was."""
    folder = tmp_path_factory.mktemp("unchanged")
    made(folder).close()
    return folder


@pytest.fixture
def unchanged(folder: Path) -> Iterator[tierstore.Store]:
    with tierstore.open(folder / "store") as opened:
        yield opened


def model(store: tierstore.Store) -> Any:
    return store.load("ranker")


def written(store: tierstore.Store) -> list[str]:
    """What home holds, without the leases of readers."""
    keys = [info.key for info in store._parts.home.blobs.list("")]
    return [key for key in keys if not key.startswith(LEASES)]


class Module:
    """What torch calls a module: it has its weights, and is not them."""

    def state_dict(self) -> dict[str, Any]:
        return {}


ROLES = "role takes one of 'hot', 'shared', 'warm', 'cold', not "
A_LIST = "not a value of type list"
NO_DELTA = "a delta never costs less than a standalone frame: give 1 or more, not 0.5"
ONE_TENSOR = (
    "a tensor has one name, such as 'w', not a value of type list: load reads a list of names"
)
CHANGES = (
    "changes takes Rows, Elements or Dense by the tensor's name, such as "
    "{'w': tierstore.Dense(array)}, a Patch, or the path of a patch file, not "
)
WRONG: dict[str, tuple[Call, str]] = {
    "profile": (
        lambda s, _: s.load("ranker", profile=12),
        "profile takes names in one text, such as 'int8-channel,bf16,full', not 12",
    ),
    "profiles": (
        lambda s, _: s.choose("ranker", profile=["bf16"]),
        f"profile takes names in one text, such as 'int8-channel,bf16,full', {A_LIST}",
    ),
    "name of a variant": (
        lambda s, _: s.derive("ranker", {"cast": "bf16"}, name=12),
        "variant takes a name as text, such as 'int8-row', not 12",
    ),
    "a surrogate in keep": (
        lambda s, _: s.derive("ranker", {"cast": "bf16"}, keep="\udc80"),
        "keep holds a lone surrogate, which no text in a store can hold; leave it out",
    ),
    "keep": (
        lambda s, _: s.derive("ranker", {"cast": "bf16"}, keep=["w"]),
        r"keep takes one regular expression as text, such as r'\.(weight|bias)$', " + A_LIST,
    ),
    "max_error as text": (
        lambda s, _: s.derive("ranker", {"cast": "bf16"}, max_error="0.1"),
        "max_error takes a number, 0 or more, not '0.1'",
    ),
    "max_error below 0": (
        lambda s, _: s.derive("ranker", {"cast": "bf16"}, max_error=-0.1),
        "max_error takes a number, 0 or more, not -0.1",
    ),
    "a share alone": (
        lambda s, _: s.derive("ranker", {"prune": 0.5}),
        "prune takes text, such as 'magnitude:0.5', not 0.5",
    ),
    "a method without parameter": (
        lambda s, _: s.derive("ranker", {"int8": None}),
        "int8 takes text, such as 'row', not None",
    ),
    "a method's name": (
        lambda s, _: s.derive("ranker", "bf16"),
        "parameters takes a dict, such as {'int8': 'row'}, not 'bf16'",
    ),
    "an unknown method": (
        lambda s, _: s.derive("ranker", {"cats": "bf16"}),
        "'cats' is not a method: did you mean 'cast'?",
    ),
    "metadata": (
        lambda s, _: s.save("ranker", {"w": np.zeros(3)}, metadata=["a"]),
        f"metadata takes a dict, such as {{'step': '7'}}, {A_LIST}",
    ),
    "a pattern": (
        lambda s, folder: s.save("ranker", folder, exclude=[7]), "exclude[0] takes text, not 7",
    ),
    "base": (
        lambda s, _: s.save("ranker", {"w": np.zeros(3)}, base=7),
        "7 alone is no reference: name the model as well, such as 'ranker@7'",
    ),
    "names in brackets": (lambda s, _: model(s)[["w"]], ONE_TENSOR),
    "names for get": (lambda s, _: model(s).get(["w"]), ONE_TENSOR),
    "a file": (
        lambda s, _: model(s).read_file(7), "path takes the path of a file in the version, not 7",
    ),
    "buffers": (
        lambda s, _: model(s).load_into([np.zeros(3)]),
        f"buffers takes a dict, such as {{'w': array}}, {A_LIST}",
    ),
    "changes": (lambda s, _: s.patch("ranker", [1]), CHANGES + "a value of type list"),
    "no changes": (lambda s, _: s.patch("ranker", None), CHANGES + "None"),
    "at_least": (
        lambda s, _: s.fold("ranker", at_least="2"), "at_least takes a number of patches, not '2'",
    ),
    "above": (lambda s, _: s.rebase("ranker", above="2"), "above takes a number, not '2'"),
    "above below 1": (lambda s, _: s.rebase("ranker", above=0.5), NO_DELTA),
    "limit": (
        lambda s, _: s.versions("ranker", limit="3"),
        "limit takes how many at most, 0 or more, or None for all, not '3'",
    ),
    "limit below 0": (
        lambda s, _: s.versions("ranker", limit=-1),
        "limit takes how many at most, 0 or more, or None for all, not -1",
    ),
    "limit of a log": (
        lambda s, _: s.history("ranker", limit="3"),
        "limit takes how many at most, 0 or more, or None for all, not '3'",
    ),
    "was": (
        lambda s, _: s.alias("ranker", "prod", "ranker@1", was="1"),
        "was takes the number of a version, such as 3, not '1'",
    ),
    "number of a version": (
        lambda s, _: s.rollouts.start("ranker", "prod", 2),
        "2 alone is no reference: name the model as well, such as 'ranker@2'",
    ),
    "stages": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", stages="100"),
        "stages takes a list, such as [100, 10000], not '100'",
    ),
    "a share": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", stages=[0.5, 1.0]),
        "invalid rollout: stages[0]: expected a whole number, got a number",
    ),
    "a gate": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", gates=["p99<1"]),
        "invalid gate 'p99<1': expected METRIC<=NUMBER or METRIC>=NUMBER, such as p99_ms<=12.5",
    ),
    "labels": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", labels=["eu"]),
        f"labels takes a dict, such as {{'region': 'eu'}}, {A_LIST}",
    ),
    "every_s": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", every_s="60"),
        "invalid rollout: every_s: expected a whole number or None, got text",
    ),
    "windows": (
        lambda s, _: s.rollouts.start("ranker", "prod", "ranker@2", windows="22:00-06:00"),
        "windows takes a list, such as ['22:00-06:00'], not '22:00-06:00'",
    ),
    "a reported value": (
        lambda s, _: s.rollouts.report("ranker", "node", {"p99": 1.5}),
        "p99=1.5: write a decimal number as text, such as p99_ms=12.5",
    ),
    "reported values": (
        lambda s, _: s.rollouts.report("ranker", "node", ["p99"]),
        f"values takes a dict, such as {{'p99_ms': '12.5'}}, {A_LIST}",
    ),
    "a node": (
        lambda s, _: s.rollouts.report("ranker", 7, {"p99": "1.5"}),
        "node takes the name of a node as text, not 7",
    ),
    "a pin's version": (
        lambda s, _: s.pins.add("ranker@1", "ranker@1", ["hot"]),
        "version takes a digest, such as store.resolve('ranker').digest, not 'ranker@1'",
    ),
    "a pin's roles": (
        lambda s, _: s.pins.add(s.resolve("ranker").digest, "ranker", "hot"),
        "roles takes a list, such as ['hot'], not 'hot'",
    ),
    "a pin's reference": (
        lambda s, _: s.pins.add(s.resolve("ranker").digest, 7, ["hot"]),
        "such a pin cannot be stored: ref: expected text, not 7",
    ),
    "a pin's end": (
        lambda s, _: s.pins.add(s.resolve("ranker").digest, "ranker", ["hot"], "tomorrow"),
        "until takes a datetime with its time zone, or None for no end, not 'tomorrow'",
    ),
    "chunk_size": (
        lambda _, folder: api.init(folder / "other", chunk_size="1MiB"),
        "chunk_size takes bytes as a whole number, such as 4 << 20, not '1MiB'",
    ),
    "one tier": (
        lambda _, folder: api.init(folder / "other", tiers=spec(folder)),
        "tiers takes a list, such as [tierstore.TierSpec(…)], not a value of type TierSpec",
    ),
    "a role": (
        lambda _, folder: api.init(folder / "other", tiers=[spec(folder, role="tepid")]),
        ROLES + "'tepid'",
    ),
    "no role": (
        lambda _, folder: api.init(folder / "other", tiers=[spec(folder, role=None)]),
        ROLES + "None",
    ),
    "a state": (
        lambda _, folder: api.init(folder / "other", tiers=[spec(folder, state="zz")]),
        "state takes one of 'active', 'draining', not 'zz'",
    ),
    "a size": (
        lambda _, folder: api.init(folder / "other", tiers=[spec(folder, size=20e9)]),
        "tier 'new': size: expected a whole number or None, not 20000000000.0",
    ),
    "a URL": (lambda *_: api.init(7), "url takes a path or a URL, not 7"),
    "URLs": (lambda *_: api.open(["s"]), f"url takes a path or a URL, {A_LIST}"),
    "a tier as a dict": (
        lambda s, _: s.admin.tiers.add({"name": "new"}),
        "a tier is a tierstore.TierSpec(name=…, role=…, url=…), not a value of type dict",
    ),
    "a tier to add": (
        lambda s, folder: s.admin.tiers.add(spec(folder, role="tepid")), ROLES + "'tepid'",
    ),
    "a quota as text": (
        lambda s, _: s.admin.tiers.set("warm", size="5GiB"),
        "tier 'warm': size: expected a whole number or None, not '5GiB'",
    ),
    "a quota as a float": (
        lambda s, _: s.admin.tiers.set("warm", size=20e9),
        "tier 'warm': size: expected a whole number or None, not 20000000000.0",
    ),
    "a role to set": (
        lambda s, _: s.admin.tiers.set("warm", role="hot"),
        "the role of tier 'warm' stays: add another tier, and drain and remove this one",
    ),
    "a name to set": (
        lambda s, _: s.admin.tiers.set("warm", high=90, state="draining"),
        "the state of tier 'warm' is not set: drain and undrain change it",
    ),
    "an unknown field": (
        lambda s, _: s.admin.tiers.set("warm", sise=12),
        "a tier has no 'sise': did you mean 'size'?",
    ),
    "nothing to set": (
        lambda s, _: s.admin.tiers.set("warm"),
        "nothing to change: give url, size, high, low, timeout_ms, options, prices",
    ),
    "a price as a number": (
        lambda s, _: s.admin.tiers.set("warm", prices={"gb_month": 0.02}),
        "tier 'warm': prices[...]: expected text, got a number",
    ),
    "tiers to drain": (
        lambda s, _: s.admin.tiers.drain(["warm"]), f"name takes the name of a tier, {A_LIST}",
    ),
    "a role to try": (lambda s, f: s.admin.validate(f, "tepid"), ROLES + "'tepid'"),
    "a place": (lambda s, _: s.admin.validate(7, "warm"), "url takes a path or a URL, not 7"),
    "options to try": (
        lambda s, folder: s.admin.validate(folder, "warm", options=["x"]),
        f"options takes a dict, such as {{'region': 'eu-1'}}, {A_LIST}",
    ),
    "how many packs": (
        lambda s, _: s.admin.top("3"), "count takes a number of packs, 0 or more, not '3'",
    ),
    "on_ready": (
        lambda s, _: api.follow("ranker", None, store=s),
        "on_ready takes a function that is called with each update, or an InPlace, not None",
    ),
    "poll_s of 0": (
        lambda s, _: api.follow("ranker", print, store=s, poll_s=0),
        "poll_s takes seconds, more than 0, not 0.0",
    ),
    "poll_s as text": (
        lambda s, _: api.follow("ranker", print, store=s, poll_s="5"),
        "poll_s takes seconds, more than 0, not '5'",
    ),
    "a number to follow": (
        lambda s, _: api.follow(7, print, store=s),
        "7 alone is no reference: name the model as well, such as 'ranker@7'",
    ),
    "a URL to follow in": (
        lambda *_: api.follow("ranker", print, store="s3://models"),
        "store takes an open store, such as tierstore.open(url), not 's3://models'",
    ),
    "a profile to follow": (
        lambda s, _: api.follow("ranker", print, store=s, profile=7),
        "profile takes names in one text, such as 'int8-channel,bf16,full', not 7",
    ),
    "a module in place": (
        lambda *_: api.InPlace(Module(), threading.Lock()),
        "state takes tensors by name, not a value of type Module: give its state_dict()",
    ),
    "a list in place": (
        lambda *_: api.InPlace([1], threading.Lock()),
        f"state takes a dict, such as {{'weight': array}}, {A_LIST}",
    ),
    "no guard": (
        lambda *_: api.InPlace({}, None),
        "guard takes a lock, such as threading.Lock(), not None",
    ),
    "batch_bytes": (
        lambda *_: api.InPlace({}, threading.Lock(), batch_bytes=3),
        "batch_bytes takes bytes as a whole number, 256 or more, not 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(unchanged: tierstore.Store, tmp_path: Path, case: str) -> None:
    call, says = WRONG[case]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a")
    before = written(unchanged)
    tiers = unchanged.tiers()
    with pytest.raises(UsageError) as caught:
        call(unchanged, tmp_path / "files")
    assert str(caught.value) == says
    assert written(unchanged) == before
    assert unchanged.tiers() == tiers
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["a.txt"]


NO_PATHS = {
    "save": lambda s, path: s.save("ranker", path),
    "export": lambda s, path: s.load("ranker").export(path),
    "export_tensors": lambda s, path: s.load("ranker").export_tensors(["w"], path),
    "read_file": lambda s, path: s.load("ranker").read_file(path),
    "patch": lambda s, path: s.patch("ranker", path),
    "Patch.save": lambda s, path: next(iter(s.patches("ranker@2", "ranker@3"))).save(path),
    "a tier": lambda s, path: s.admin.tiers.add(spec(Path("/"), "t", url=path)),
    "init": lambda _, path: tierstore.init(path),
    "open": lambda _, path: tierstore.open(path),
    "a URL": lambda _, path: tierstore.init(f"file://{quote(str(Path(path).parent))}/a%00b"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_PATHS)
@pytest.mark.parametrize("end", ["a\0b", "\ud800"], ids=["NUL", "surrogate"])
def test_what_is_no_path(store: tierstore.Store, tmp_path: Path, case: str, end: str) -> None:
    """A file system takes neither of the two: each call says so, and of which argument."""
    store.patch("ranker", {"v": tierstore.Dense(np.ones(3, "<f4"))})
    before = written(store)
    with pytest.raises(UsageError, match=r"^(tier 't': )?\w+(:| holds) .*surrogate"):
        NO_PATHS[case](store, f"{tmp_path}/{end}")
    assert written(store) == before


def test_names_of_files_that_are_too_long(store: tierstore.Store, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 256)
    for call in (
        lambda: store.save("ranker", long),
        lambda: store.load("ranker").export(long),
        lambda: tierstore.init(long),
        lambda: tierstore.open(long),
    ):
        with pytest.raises(TierstoreError, match=r"xxx.*: File name too long"):
            call()


def test_a_user_whose_name_is_no_unicode(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python makes surrogates of such bytes, and an entry can hold none: saves go on."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "jos\udce9")
    version = store.save("ranker", {"w": np.full((3, 2), 2, "<f4")})
    assert store.history("ranker")[0].who == version.who
    assert version.who.startswith("jos\\udce9@")


def test_a_refused_store_can_be_made(tmp_path: Path) -> None:
    """One wrong tier must leave nothing: the store is made with the right one."""
    for wrong in ({"role": "tepid"}, {"state": "zz"}, {"size": 20e9}, {"high": "95"}):
        with pytest.raises(UsageError):
            tierstore.init(tmp_path / "store", tiers=[spec(tmp_path, **wrong)])
        assert not (tmp_path / "store").exists()
        assert not (tmp_path / "new").exists()
    with tierstore.init(tmp_path / "store", tiers=[spec(tmp_path)]) as store:
        assert [tier.name for tier in store.tiers()] == ["new"]


def test_paths_are_as_good_as_text(store: tierstore.Store, tmp_path: Path) -> None:
    file = Path("model.safetensors")
    assert store.load("ranker").read_file(file) == store.load("ranker").read_file(str(file))
    assert store.load("ranker").open_file(file).size == store.load("ranker").files[0].size
    (tmp_path / "place").mkdir()
    assert store.admin.validate(tmp_path / "place", "warm").examination.durable
    added = store.admin.tiers.add(spec(tmp_path, url=tmp_path / "new"))
    assert added.url == (tmp_path / "new").as_uri()
    assert (tmp_path / "new" / MARKER).exists()
    assert [tier.url for tier in store.tiers()][1] == added.url


def test_no_versions_are_asked_for(store: tierstore.Store) -> None:
    assert store.versions("ranker", limit=0) == []
    assert [str(version) for version in store.versions("ranker", limit=1)] == ["ranker@2"]
    assert len(store.versions("ranker", limit=np.int64(2))) == 2  # type: ignore[arg-type]
    for limit in (0, 3, None):
        with pytest.raises(NotFound, match="there is no model 'none'"):
            store.versions("none", limit=limit)


def test_a_rollout_takes_a_reference_and_gates_as_text(store: tierstore.Store) -> None:
    status = store.rollouts.start("ranker", "prod", "ranker@2", gates=["p99_ms <= 12.5"])
    assert str(status.new) == "ranker@2"
    [state] = status.gates
    assert (state.gate.metric, state.gate.op, state.gate.limit) == ("p99_ms", "<=", "12.5")
    store.rollouts.report("ranker@2", "node", {"p99_ms": "13"})
    assert store.rollouts.status("ranker", "prod").gates[0].values == ("13",)
    store.rollouts.abort("ranker", "prod")
    again = store.rollouts.start("ranker", "prod", store.resolve("ranker@2"))
    assert str(again.new) == "ranker@2"


def test_a_version_is_followed(store: tierstore.Store) -> None:
    """It never moves; a reference that means it would."""
    live = {"v": np.ones(3, "<f4")}
    apply = tierstore.InPlace(live, threading.Lock())
    assert repr(apply) == "<InPlace of 1 tensor: nothing applied yet>"
    with tierstore.follow(store.resolve("ranker@1"), apply, store=store) as follower:
        assert follower.wait(60, number=1)
        assert repr(follower) == "<Follower of ranker@1: serves ranker@1>"
    assert repr(follower) == "<Follower of ranker@1: closed, serves ranker@1>"
    assert repr(apply) == "<InPlace of 1 tensor: has ranker@1>"
    assert not live["v"].any()


def test_a_follower_says_why_it_serves_nothing(store: tierstore.Store) -> None:
    def refuse(update: object) -> None:
        raise RuntimeError("not today")

    with tierstore.follow("ranker@prod", refuse, store=store) as follower:
        follower.settle(60)
        assert repr(follower) == (
            "<Follower of ranker@prod: serves nothing yet, failed: not today>"
        )
