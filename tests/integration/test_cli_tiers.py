"""The commands on tiers of the real program, with real caches and directories."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tests.servers.memcached import MemcachedServer, memcached_running
from tests.servers.moto import Moto
from tests.servers.redis import PASSWORD, USER, RedisServer
from tierstore.admin import manage
from tierstore.blobs.local.store import LocalStore
from tierstore.cli.kit import app
from tierstore.cli.schemas import tiers as tier_schemas
from tierstore.config import _parse_node
from tierstore.errors import OutOfSpace
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.wiring.backends import role_of
from tierstore.wiring.places import claim_tiers

WEIGHTS = {"w": np.random.default_rng(0).standard_normal((600, 500)).astype(np.float32)}


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code in (0, 3), self.err
        return json.loads(self.out)


Program = Callable[..., Done]


@pytest.fixture(scope="module")
def memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemcachedServer]:
    """A server with the item limit that memcached has by default, 1 MiB."""
    with memcached_running(tmp_path_factory.mktemp("memcached")) as server:
        yield server


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """The program in an empty directory, where ``store`` is the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")
    monkeypatch.setenv("TIERSTORE_CONFIG", "")

    def go(*argv: str) -> Done:
        code = app.run(argv)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return go


@pytest.fixture
def durable(run: Program) -> Program:
    """With a warm and a cold tier in directories, and one model, which is in the warm one."""
    assert run("init", "--warm", "warm", "--cold", "cold").code == 0
    with tierstore.open("store") as store:
        store.save("m", WEIGHTS)
    return run


def tree() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*"))


def refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr, the right code, and nothing on stdout."""
    assert (done.code, done.out) == (code, ""), done
    (line,) = done.err.splitlines()
    assert line.startswith("tierstore: error: ")
    for word in words:
        assert word in line, line


# init


@pytest.mark.server
def test_init_with_every_kind_of_tier(
    run: Program, redis_plain: RedisServer, memcached: MemcachedServer
) -> None:
    done = run(
        "init", "./store", "--hot", "nvme", "--hot-size", "1GB", "--redis", redis_plain.url,
        "--memcached", f"memcached://{memcached.address}",
        "--warm", "warm", "--warm-size", "2TB",
        "--cold", Path("cold").absolute().as_uri(), "--price", "cold.gb_month=0.0125",
        "--option", "redis.ttl_s=60",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "with hot tier hot: file://" in done.out
    tiers = msgspec.json.decode(run("tier", "ls", "--json").out, type=tier_schemas.TiersJson).tiers
    assert [(tier.name, tier.role) for tier in tiers] == [
        ("hot", "hot"), ("redis", "shared"), ("memcached", "shared"), ("warm", "warm"),
        ("cold", "cold"),
    ]  # fmt: skip
    by_name = {tier.name: tier for tier in tiers}
    assert by_name["warm"].url == Path("warm").absolute().as_uri(), "absolute, for other processes"
    assert by_name["warm"].size_bytes == 2 * 10**12
    assert by_name["cold"].prices == {"gb_month": "0.0125"}
    assert by_name["redis"].options == {"ttl_s": "60"}
    assert not list(Path("warm").rglob("probes/*")), "the proof is cleaned up"
    with tierstore.open("store") as store:
        store.save("m", WEIGHTS)
        assert store.load("m")["w"].tobytes() == WEIGHTS["w"].tobytes()
    assert list(Path("warm/packs").rglob("*"))
    assert not Path("store/packs").exists()


BAD_INITS: dict[str, tuple[list[str], int, list[str]]] = {
    "secret": (["--redis", "redis://me:sesame@h"], 2, ["password_env", "'redis'"]),
    "secret in a query": (["--cold", "s3://b/p?secret_key=sesame"], 2, ["'cold'"]),
    "no size": (["--hot", "hot"], 2, ["has no size"]),
    "size alone": (["--warm-size", "1GB"], 2, ["--warm"]),
    "bad size": (["--warm", "warm", "--warm-size", "many"], 2, ["50GB"]),
    "unreachable": (["--warm", "w", "--redis", "redis://127.0.0.1:1"], 8, ["'redis'", "refused"]),
    "not redis": (["--redis", "http://h"], 2, ["--redis", "redis://"]),
    "cache as warm": (["--warm", "redis://h"], 2, ["shared tier"]),
    "in the store": (["--warm", "store/warm"], 6, ["lies in the store itself"]),
    "around the store": (["--warm", "."], 6, ["holds the store itself"]),
    "same place": (["--warm", "w", "--cold", "w"], 6, ["tier 'warm'"]),
    "option": (["--warm", "w", "--option", "warm.pth=1"], 2, ["no option 'pth'"]),
    "near option": (["--cold", "s3://b", "--option", "cold.storage_clas=A"], 2, ["storage_class"]),
    "option of nothing": (["--warm", "w", "--option", "cold.region=x"], 2, ["no tier 'cold'"]),
    "option without tier": (["--warm", "w", "--option", "region=x"], 2, ["TIER.NAME=VALUE"]),
    "price": (["--warm", "w", "--price", "warm.gb_mnth=1"], 2, ["gb_month"]),
    "price value": (["--warm", "w", "--price", "warm.gb_month=-1"], 2, ["0.023"]),
    "not a directory": (["--warm", "file"], 1, ["'warm'"]),
    "forgets": (["--warm", "memory://x"], 2, ["does not keep its data"]),
    "chunk size": (["--warm", "w", "--chunk-size", "3MiB"], 2, ["power of two"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INITS)
def test_a_bad_init_leaves_nothing(name: str, run: Program) -> None:
    argv, code, words = BAD_INITS[name]
    Path("file").write_text("")
    before = tree()
    done = run("init", *argv)
    refused(done, code, *words)
    assert tree() == before
    assert "sesame" not in done.err
    line = json.loads(run("init", *argv, "--json").err)
    assert line["error"]["exit_code"] == code
    assert "sesame" not in str(line)
    assert run("init", "--warm", "w").code == 0, "and it works the next time"


def test_another_stores_tier_is_refused(durable: Program) -> None:
    before = tree()
    refused(durable("init", "other", "--warm", "warm"), 6, "a tier of another store")
    refused(durable("init", "other", "--cold", "cold2", "--warm", "warm"), 6, "another store")
    refused(durable("init", "other", "--warm", "store"), 6, "is a store itself")
    assert tree() == before
    assert durable("init", "other").code == 0
    before = tree()
    refused(durable("--store", "other", "tier", "add", "x", "warm"), 6, "another store")
    refused(durable("tier", "add", "x", "other"), 6, "is a store itself")
    assert tree() == before


# tier add and set

BAD_ADDS: dict[str, tuple[list[str], int, list[str]]] = {
    "name taken": (["warm", "w2"], 6, ["'warm' already"]),
    "place taken": (["w2", "warm"], 6, ["warm is tier 'warm'; choose a place apart"]),
    "the store": (["w2", "store"], 6, ["is the store itself"]),
    "name": (["W2", "w2"], 2, ["a-z, 0-9"]),
    "home": (["home", "w2"], 2, ["the store itself"]),
    "role": (["w2", "w2", "--role", "tepid"], 2, ["hot, shared, warm, cold"]),
    "secret": (["r", "redis://:sesame@h:1"], 2, ["password_env"]),
    "secret option": (["w2", "s3://b/p", "--option", "secret_key=sesame"], 2, ["password or key"]),
    "no value": (["w2", "w2", "--option", "sesame"], 2, ["NAME=VALUE"]),
    "watermarks": (["w2", "w2", "--high", "50"], 2, ["low one (85)"]),
    "watermark": (["w2", "w2", "--high", "101"], 2, ["--high", "100"]),
    "timeout": (["w2", "w2", "--timeout", "soon"], 2, ["500ms"]),
    "second hot": (["h2", "h2", "--role", "hot", "--size", "1GB"], 2, ["one hot tier"]),
    "size of a cache": (["r", "redis://h", "--size", "1GB"], 2, ["maxmemory"]),
    "bucket": (["c", "s3://"], 2, ["bucket"]),
    "kind": (["c", "ftps://h/p"], 2, ["'ftps'"]),
}


@pytest.mark.parametrize("name", BAD_ADDS)
def test_a_bad_tier_changes_nothing(name: str, run: Program) -> None:
    assert run("init", "--warm", "warm", "--hot", "hot", "--hot-size", "1GB").code == 0
    before = tree()
    argv, code, words = BAD_ADDS[name]
    done = run("tier", "add", *argv)
    assert "sesame" not in done.err or name == "no value"
    refused(done, code, *words)
    assert tree() == before


def test_add_and_set(durable: Program) -> None:
    done = durable("tier", "add", "cache", "h", "--role", "hot", "--size", "5GB", "-m", "nvme")
    assert (done.code, done.out) == (0, f"added hot tier cache: {Path('h').absolute().as_uri()}\n")
    changed = durable(
        "tier", "set", "cache", "--size", "6GB", "--high", "80", "--low", "70", "--timeout", "2s",
        "--price", "gb_month=0.1", "--json",
    ).json  # fmt: skip
    assert (changed["size_bytes"], changed["timeout_ms"]) == (6 * 10**9, 2000)
    assert (changed["high_percent"], changed["low_percent"]) == (80, 70)
    out = durable("tier", "set", "cache", "--price", "gb_month=", "--price", "min_days=30").out
    assert "min_days=30" in out
    assert "gb_month" not in out
    assert durable("tier", "set", "warm", "--size", "none", "--json").json["size_bytes"] is None
    refused(durable("tier", "set", "cache"), 2, "nothing to change")
    refused(durable("tier", "set", "cahce", "--high", "90"), 5, "cache, warm, cold")
    refused(durable("tier", "set", "cache", "--url", "s3://b/p"), 2, "directory of this node")


def test_a_quota_below_what_is_there(durable: Program) -> None:
    refused(durable("tier", "set", "warm", "--size", "1KB"), 2, "holds ", "KiB", "--force")
    done = durable("tier", "set", "warm", "--size", "1KB", "--force", "--json")
    assert done.json["size_bytes"] == 1000


def test_a_tier_that_was_moved(durable: Program) -> None:
    done = durable("tier", "set", "warm", "--url", "elsewhere")
    refused(done, 8, "there is no tier.json", "copy all of the tier there first")
    assert "--force" not in done.err, "it is where it was, and nothing of it is to be given up"
    assert not Path("elsewhere").exists()
    refused(durable("tier", "set", "warm", "--url", "cold"), 6, "is tier 'cold'")
    shutil.move("warm", "elsewhere")
    assert durable("load", "m", "--to", "out").code == 8, "its packs are not where the list says"
    assert durable("tier", "set", "warm", "--url", "elsewhere").code == 0
    assert durable("load", "m", "--to", "out").code == 0


def test_two_tiers_that_became_one_place_are_not_taken_for_two(
    durable: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving packs from one to the other would delete them."""
    Path("node.toml").write_text(f'[tiers.cold]\nurl = "{Path("warm").absolute().as_uri()}"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", "node.toml")
    assert durable("load", "m", "--to", "out").code == 0
    refused(durable("tier", "drain", "warm"), 8, "is the tier 'warm' of the store, not 'cold'")


def test_two_who_change_at_once(durable: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody adds the same tier while we try ours: theirs stays as it is."""

    def slow(*args: Any) -> None:
        monkeypatch.setattr(manage, "claim_tiers", claim_tiers)
        claim_tiers(*args)
        with tierstore.open("store") as store:
            manage.add_tier(store, tierstore.TierSpec(name="x", role="warm", url="x"))

    monkeypatch.setattr(manage, "claim_tiers", slow)
    refused(durable("tier", "add", "x", "x"), 6, "'x' already")
    assert Path("x/tier.json").exists()


# tier drain and rm


def pack_bytes(tier: str) -> int:
    return sum(path.stat().st_size for path in Path(tier, "packs").rglob("*") if path.is_file())


def test_a_tier_is_drained_and_removed(durable: Program) -> None:
    refused(durable("tier", "rm", "warm"), 6, "tier drain warm")
    size = pack_bytes("warm")
    left = durable("tier", "drain", "warm", "--dry-run", "--json").json
    assert (left["packs"], left["only_packs"], left["only_bytes"]) == (1, 1, size)
    assert (left["state"], left["dry_run"]) == ("active", True)
    assert (left["moved_packs"], left["moved_bytes"]) == (1, size)
    assert (pack_bytes("warm"), pack_bytes("cold")) == (size, 0)
    done = durable("tier", "drain", "warm", "-m", "worn out")
    assert (done.code, done.err) == (0, "")
    assert "moved 1 pack" in done.out
    assert "it is empty" in done.out
    assert (pack_bytes("warm"), pack_bytes("cold")) == (0, size)
    again = durable("tier", "drain", "warm", "--json").json
    assert (again["state"], again["moved_packs"], again["packs"]) == ("draining", 0, 0)
    removed = durable("tier", "rm", "warm", "--json").json
    assert (removed["left_packs"], removed["left_bytes"]) == (0, 0)
    assert not Path("warm/tier.json").exists(), "another store may have the place now"
    assert durable("tier", "ls", "-q").out == "cold\n"
    assert durable("load", "m", "--to", "out").code == 0
    assert durable("tier", "drain", "cold", "-q").code == 0, "home takes what is left"
    assert durable("tier", "rm", "cold").code == 0
    assert pack_bytes("store") == size
    assert durable("load", "m", "--to", "out2").code == 0


def test_a_tier_with_last_copies_is_not_removed(
    durable: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be moved out is said, and stays."""
    monkeypatch.setattr(LocalStore, "put", refusing(LocalStore.put))
    done = durable("tier", "drain", "warm")
    assert done.code == 3
    assert "it holds 1 pack" in done.out
    assert "in no other tier" in done.out
    assert "disk full" in done.out
    assert len(durable("tier", "drain", "warm", "-q").out.split()) == 1
    refused(durable("tier", "rm", "warm"), 6, "1 pack that no other tier has")
    refused(durable("tier", "rm", "warm", "--force"), 6, "1 pack that no other tier has")
    assert durable("load", "m", "--to", "out").code == 0


def refusing(put: Callable[..., None]) -> Callable[..., None]:
    def refuse(store: LocalStore, key: str, data: Any) -> None:
        if key.startswith("packs/"):
            raise OutOfSpace("disk full")
        put(store, key, data)

    return refuse


def test_copies_may_be_left(durable: Program) -> None:
    shutil.copytree("warm/packs", "cold/packs")
    with tierstore.open("store") as store:
        manage.drain_tier(store, "warm")
    removed = durable("tier", "rm", "warm", "--json").json
    assert (removed["left_packs"], removed["left_bytes"]) == (1, pack_bytes("cold"))
    assert durable("load", "m", "--to", "out").code == 0


def test_a_tier_that_a_pin_needs_is_not_removed(durable: Program) -> None:
    """A pin keeps packs in a warm tier, even where the cold one has them too."""
    shutil.copytree("warm/packs", "cold/packs")
    assert durable("pin", "m").code == 0
    done = durable("tier", "drain", "warm")
    assert done.code == 3
    assert "pinned" in done.out
    assert "it holds 1 pack" in done.out
    assert "removes it" not in done.out
    refused(durable("tier", "rm", "warm"), 6, "1 pack of ", "pins")
    assert durable("unpin", "m").code == 0
    assert durable("tier", "drain", "warm").code == 0
    assert durable("tier", "rm", "warm").code == 0


def test_no_tier_is_removed_while_a_mover_is_at_work(durable: Program) -> None:
    """It may be dropping from another tier what this one has."""
    assert durable("tier", "drain", "warm").code == 0
    with tierstore.open("store") as store, HeldLease(store._parts.home.blobs):
        refused(durable("tier", "rm", "warm"), 6, "mover")
    assert durable("tier", "rm", "warm").code == 0


def test_what_is_saved_while_a_tier_drains_goes_elsewhere(durable: Program) -> None:
    assert durable("tier", "drain", "warm").code == 0
    with tierstore.open("store") as store:
        store.save("n", {"w": WEIGHTS["w"] + 1})
    assert durable("tier", "drain", "warm", "--json").json["packs"] == 0
    done = durable("tier", "drain", "warm", "--undo", "--json").json
    assert done["state"] == "active"
    refused(durable("tier", "drain", "warm", "--undo"), 2, "not being drained")
    refused(durable("tier", "drain", "warm", "--undo", "--dry-run"), 2, "cannot be combined")
    for argv in (("drain", "home"), ("set", "home", "--price", "gb_month=1"), ("ls", "home")):
        refused(durable("tier", *argv), 5, "home is the store itself")


def test_removing_waits_for_saves_that_may_know_the_old_list(
    durable: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert durable("tier", "drain", "warm").code == 0
    monkeypatch.setattr(manage, "_POLL_S", 0.01)
    with tierstore.open("store") as store, WriterLease(store._parts.home.blobs):
        monkeypatch.setattr(manage, "WAIT_S", 0.05)
        refused(durable("tier", "rm", "warm"), 6, "are in progress")
        told = threading.Event()
        seen: list[Any] = []

        def rm() -> None:
            with tierstore.open("store") as own:
                seen.append(manage.remove_tier(own, "warm", waiting=lambda who: told.set()))

        monkeypatch.setattr(manage, "WAIT_S", 60.0)
        thread = threading.Thread(target=rm)
        thread.start()
        assert told.wait(30)
        assert not seen
    thread.join(30)
    assert seen[0].spec.name == "warm"


def test_a_save_that_began_before_does_not_lose_its_pack(durable: Program) -> None:
    """A writer with the old list finds that its pack went to a place that is no tier any more."""
    with tierstore.open("store") as late:
        late._parts.home.packs.get("packs/" + next(Path("warm/packs").rglob("*/*")).relative_to(
            "warm/packs").as_posix())  # fmt: skip
        assert durable("tier", "drain", "warm").code == 0
        assert durable("tier", "rm", "warm").code == 0
        late._parts.home.packs.put("packs/00/" + "0" * 64, b"pack")
    assert Path("cold/packs/00").exists()


def test_a_tier_that_is_gone(durable: Program) -> None:
    shutil.rmtree("warm")
    done = durable("tier", "rm", "warm")
    refused(done, 8, "--force", "that it is mounted")
    assert durable("tier", "ls", "-q").out == "warm\ncold\n"
    done = durable("tier", "rm", "warm", "--force")
    assert done.code == 0
    assert "could not be asked" in done.out
    assert durable("tier", "add", "warm", "warm").code == 0, "an empty one in its place"


def test_caches_are_removed_at_once(run: Program, redis_plain: RedisServer) -> None:
    assert run("init", "--hot", "h", "--hot-size", "1GB", "--redis", redis_plain.url).code == 0
    refused(run("tier", "drain", "redis"), 2, "tier rm redis")
    assert "expires by itself" in run("tier", "rm", "redis").out
    assert "left in file://" in run("tier", "rm", "hot").out
    refused(run("tier", "rm", "hot"), 5, "none")


# This node


def test_a_password_from_the_nodes_file(
    run: Program, redis_acl: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("init", "--redis", redis_acl.url, "--option", "redis.prefix=tier:x:")
    refused(run(*argv), 1, "'redis'")
    Path("node.toml").write_text(f'[tiers.redis]\nusername = "{USER}"\npassword_env = "SESAME"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", "node.toml")
    refused(run(*argv), 2, "SESAME", "not set")
    monkeypatch.setenv("SESAME", PASSWORD)
    for done in (
        run(*argv),
        run("tier", "ls"),
        run("tier", "ls", "redis"),
        run("tier", "ls", "--json"),
    ):
        assert done.code == 0, done.err
        assert PASSWORD not in done.out + done.err
    assert PASSWORD.encode() not in b"".join(
        path.read_bytes() for path in Path("store").rglob("*") if path.is_file()
    )


def test_what_this_node_has_otherwise(durable: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("node.toml").write_text('[tiers.cold]\nenabled = false\n[tiers.warm]\nurl = "/mnt/w"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", "node.toml")
    out = durable("tier", "ls").out
    assert "off here" in out
    assert "own URL here" in out
    warm, cold = durable("tier", "ls", "--json").json["tiers"]
    assert (warm["node_url"], cold["enabled"]) == ("/mnt/w", False)
    assert "has it at /mnt/w" in durable("tier", "ls", "warm").out
    assert durable("tier", "add", "hot", "h", "--size", "1GB").code == 0
    Path("node.toml").write_text('[hot]\nsize = "2GiB"\n')
    assert re.search(
        r"hot +hot +2.0 GiB +85-95 % +active, own quota here", durable("tier", "ls").out
    )
    hot = durable("tier", "ls", "hot", "--json").json["tiers"][0]
    assert (hot["size_bytes"], hot["node_size_bytes"]) == (10**9, 2 << 30)
    assert "gives it a quota of 2.0 GiB" in durable("tier", "ls", "hot").out
    assert re.search(r"hot +hot +0 B +2.0 GiB", durable("df").out)


def test_the_example_of_a_nodes_file_is_read(run: Program) -> None:
    import tomllib

    text = run("tier", "example").out
    assert run("tier", "example", "--json").json == {"text": text}
    node = _parse_node(tomllib.loads(text), "example", {"TIER_REDIS_PASSWORD": "x"})
    assert node.hot is not None
    assert node.hot.size == 50 * 10**9
    assert node.tiers["redis"].timeout_ms == 500
    for key in ("enabled", "password_file", "password_env", "ca", "options", "username"):
        assert key in text


def test_each_options_variable(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERSTORE_INIT_WARM", "w")
    monkeypatch.setenv("TIERSTORE_INIT_PRICE", "warm.gb_month=1 warm.min_days=2")
    assert run("init", "--json").json["tiers"][0]["prices"] == {"gb_month": "1", "min_days": "2"}


@pytest.mark.parametrize(
    ("url", "role"),
    [
        ("/mnt/x", "warm"), ("file:///x", "warm"), ("hdfs://h/x", "warm"), ("sftp://h/x", "warm"),
        ("s3://b/x", "cold"), ("fsspec+s3://b/x", "cold"), ("gs://b/x", "cold"),
        ("rediss://h", "shared"), ("unix:///s", "shared"), ("memcached://h:1", "shared"),
    ],
)  # fmt: skip
def test_the_role_that_a_url_suggests(url: str, role: str) -> None:
    assert role_of(url) == role
    assert role_of(url, "hot") == "hot", "a name says more"


def test_a_tier_named_by_its_role(run: Program) -> None:
    assert run("init").code == 0
    refused(run("tier", "add", "hot", "hot"), 2, "has no size", "--size")
    assert run("tier", "add", "hot", "hot", "--size", "1GB", "--json").json["role"] == "hot"
    assert run("tier", "add", "cold", "cold", "--json").json["role"] == "cold"
    assert run("tier", "add", "warm", "w", "--role", "cold", "--json").json["role"] == "cold"


# store validate


def validated(done: Done) -> tier_schemas.Validation:
    assert done.code == 0, done.err
    return msgspec.json.decode(done.out, type=tier_schemas.Validation)


def test_validate_a_directory(run: Program) -> None:
    Path("place").mkdir()
    found = validated(run("store", "validate", "place", "--json"))
    assert found.can_be == ["home", "warm", "cold"]
    assert all(check.ok for check in found.checks)
    assert list(Path("place").iterdir()) == [], "nothing is left there"
    out = run("store", "validate", "place").out
    assert "one of 8 writers at once won" in out
    assert "a store's home, a warm tier, a cold tier" in out
    assert run("store", "validate", "place", "-q").out.split() == ["home", "warm", "cold"]


@pytest.mark.server
def test_validate_caches(
    run: Program, redis_plain: RedisServer, memcached: MemcachedServer
) -> None:
    found = validated(run("store", "validate", redis_plain.url, "--json"))
    assert found.can_be == ["shared"]
    assert not list(redis_plain.admin().keys("*validate*"))
    found = validated(run("store", "validate", f"memcached://{memcached.address}", "--json"))
    assert (found.can_be, found.listable) == (["shared"], False)
    assert found.max_object_bytes is not None
    assert found.max_object_bytes < 1 << 20
    seen = {check.what: check.ok for check in found.checks}
    assert seen["large objects"] is None
    assert seen["race to create"]


def test_validate_object_storage(
    run: Program, moto_server: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    moto_server.client().create_bucket(Bucket="validated")
    found = validated(run("store", "validate", "s3://validated/x", "--json"))
    assert found.can_be == ["home", "warm", "cold"]
    assert "Contents" not in moto_server.client().list_objects_v2(Bucket="validated")
    refused(run("store", "validate", "s3://validated/x", "--option", "regio=x"), 2, "'region'")
    found = validated(run("store", "validate", "fsspec+memory://validated", "--json"))
    assert found.can_be == ["shared"]


def test_validate_with_what_the_nodes_file_says(
    run: Program, redis_acl: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("node.toml").write_text(
        f'[tiers.cache]\nusername = "{USER}"\npassword_env = "SESAME"\n'
        '[tiers.cache.options]\nprefix = "tier:x:"\n'
    )
    monkeypatch.setenv("TIERSTORE_CONFIG", "node.toml")
    monkeypatch.setenv("SESAME", PASSWORD)
    refused(run("store", "validate", redis_acl.url), 1, redis_acl.url)
    done = run("store", "validate", redis_acl.url, "--as", "cache", "--json")
    assert validated(done).can_be == ["shared"]


def test_validating_what_cannot_be_used(run: Program) -> None:
    refused(run("store", "validate", "redis://:sesame@h"), 2, "--as NAME")
    assert "sesame" not in run("store", "validate", "redis://:sesame@h").err
    refused(run("store", "validate", "nowhere"), 5, "nowhere")
    refused(run("store", "validate", "redis://127.0.0.1:1"), 8, "refused")
    refused(run("store", "validate", "ftps://h"), 2, "'ftps'")
    assert not Path("nowhere").exists()


# df and doctor


def by_name(done: Done) -> dict[str, Any]:
    return {tier["name"]: tier for tier in done.json["tiers"]}


@pytest.fixture
def filled(run: Program, redis_plain: RedisServer, memcached: MemcachedServer) -> Program:
    """A store with tiers of every kind, one model, and chunks of it in the hot ones."""
    redis_plain.admin().flushall()
    assert run(
        "init", "--hot", "hot", "--hot-size", "1GB", "--redis", redis_plain.url,
        "--memcached", f"memcached://{memcached.address}", "--warm", "warm", "--warm-size", "2MB",
        "--cold", "cold",
    ).code == 0  # fmt: skip
    with tierstore.open("store") as store:
        version = store.save("m", WEIGHTS)
        store.pins.add(version.digest, "m", ["warm"])
        store.load("m").load()
    return run


@pytest.mark.server
def test_df(filled: Program, redis_plain: RedisServer) -> None:
    done = filled("df", "--json")
    msgspec.json.decode(done.out, type=tier_schemas.Df, strict=True)
    tiers = by_name(done)
    assert list(tiers) == ["hot", "redis", "memcached", "warm", "cold", "home"]
    assert tiers["warm"]["used_bytes"] == tiers["warm"]["pinned_bytes"] == pack_bytes("warm")
    assert (tiers["warm"]["objects"], tiers["warm"]["quota_bytes"]) == (1, 2_000_000)
    assert (tiers["cold"]["objects"], tiers["cold"]["used_bytes"]) == (0, 0)
    assert (tiers["hot"]["objects"], tiers["hot"]["quota_bytes"]) == (1, 10**9)
    assert tiers["hot"]["used_bytes"] >= WEIGHTS["w"].nbytes
    keys = redis_plain.admin().keys("ts:*")
    frames = [len(redis_plain.admin().get(key)) for key in keys if b"~" not in key]
    assert tiers["redis"]["used_bytes"] == sum(frames)
    assert tiers["redis"]["objects"] == len(frames) == 1
    assert tiers["redis"]["quota_bytes"] is None, "this one has no maxmemory"
    assert tiers["memcached"]["quota_bytes"] == 64 << 20
    assert tiers["memcached"]["servers"][0]["max_value_bytes"] == 1 << 20
    out = filled("df").out
    (warm,) = (line for line in out.splitlines() if line.startswith("warm "))
    for text in ("1 pack", "1.9 MiB", "85-95 %"):
        assert text in warm
    assert max(map(len, out.splitlines())) <= 80
    assert filled("df", "-q").out.split() == list(tiers)


def test_df_of_a_store_without_tiers(run: Program) -> None:
    assert run("init").code == 0
    assert list(by_name(run("df", "--json"))) == ["home"]


@pytest.mark.server
def test_df_says_what_cannot_be_asked(filled: Program, redis_plain: RedisServer) -> None:
    shutil.rmtree("cold")
    assert filled("tier", "set", "redis", "--timeout", "200ms").code == 0
    redis_plain.pause()
    try:
        done = filled("df")
        health = filled("doctor", "--json")
    finally:
        redis_plain.resume()
    assert done.code == 3
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert rows["cold"].endswith("DOWN") or "that it is mounted" in done.out
    assert "DOWN" in done.out
    assert "1 pack" in done.out, "the others are shown"
    assert health.code == 3
    tiers = by_name(health)
    assert "that it is mounted" in tiers["cold"]["error"]
    assert redis_plain.url in tiers["redis"]["error"]
    assert tiers["warm"]["error"] is None


@pytest.mark.server
def test_doctor_looks_at_every_tier(filled: Program, redis_plain: RedisServer) -> None:
    done = filled("doctor", "--json")
    tiers = by_name(done)
    assert all(tier["error"] is None for tier in tiers.values())
    assert any("volatile-lfu" in text for text in tiers["redis"]["problems"])
    assert any("maxmemory" in text for text in tiers["redis"]["problems"])
    assert tiers["hot"]["disk"]["total_bytes"] > tiers["hot"]["disk"]["free_bytes"] > 0
    assert tiers["hot"]["disk"]["kind"]
    out = filled("doctor").out
    for text in ("evicts by noeviction", "values up to 1.0 MiB", "node file"):
        assert text in out
    redis_plain.admin().config_set("maxmemory-policy", "volatile-lfu")
    redis_plain.admin().config_set("maxmemory", 64 << 20)
    try:
        assert by_name(filled("doctor", "--json"))["redis"]["problems"] == []
        assert by_name(filled("df", "--json"))["redis"]["quota_bytes"] == 64 << 20
    finally:
        redis_plain.admin().config_set("maxmemory-policy", "noeviction")
        redis_plain.admin().config_set("maxmemory", 0)


@pytest.mark.server
def test_a_tier_that_cannot_be_used_is_a_problem(durable: Program) -> None:
    """A timer that mails what doctor -q prints mails it; others are named on stderr."""
    Path("cold").rename("away")
    done = durable("doctor", "-q")
    (problem,) = done.out.splitlines()
    assert done.code == 3
    assert problem.startswith("tier cold cannot be used: ")
    assert "that it is mounted" in problem
    done = durable("df", "-q")
    assert (done.code, done.out) == (3, "warm\ncold\nhome\n")
    assert "tierstore: warning: tier cold could not be asked: " in done.err
    for command in ("check", "repair"):
        done = durable(command, "-q")
        assert (done.code, done.out) == (3, "")
        assert "tierstore: warning: tier cold could not be asked: " in done.err
        done = durable(command)
        assert "tier cold could not be asked: " in done.out
        assert f"; {command} again when it can be" in done.out


def test_top_does_not_say_that_a_pack_is_nowhere_while_a_tier_is_down(durable: Program) -> None:
    with tierstore.open("store") as store:
        store.load("m@1").load()
    out = durable("top", "--once").out
    assert "warm  m@1" in out
    Path("warm").rename("away")
    out = durable("top", "--once").out
    assert "not known  m@1" in out
    assert "nowhere" not in out


def test_doctor_counts_frames_that_memcached_does_not_take(filled: Program) -> None:
    assert by_name(filled("doctor", "--json"))["memcached"]["problems"] == []
    with tierstore.open("store") as store:
        random = np.random.default_rng(1).integers(0, 256, 3 << 20).astype(np.uint8)
        store.save("large", {"w": random, "v": random[: 2 << 20]})
    (problem,) = by_name(filled("doctor", "--json"))["memcached"]["problems"]
    assert problem.startswith("2 of 3 frames (5 MiB) are larger than the ")
    assert "-I" in problem


def test_doctor_on_a_quota_that_the_disk_has_not(run: Program) -> None:
    assert run("init", "--hot", "hot", "--hot-size", "900TB").code == 0
    done = run("doctor")
    assert done.code == 0
    assert "is more than the" in done.out


# top


@pytest.mark.server
def test_top(filled: Program) -> None:
    """``filled`` read the model in a process of its own: this one, which has closed the store."""
    done = filled("top", "--json")
    data = msgspec.json.decode(done.out, type=tier_schemas.Top, strict=True)
    tiers = {tier.name: tier for tier in data.tiers}
    assert list(tiers) == ["hot", "redis", "memcached", "warm", "cold", "home"]
    assert tiers["home"].role == "home"
    assert tiers["warm"].hits >= 1
    assert tiers["warm"].hit_ratio == 1.0
    assert tiers["hot"].misses >= 1
    assert data.served_bytes == sum(tier.served_bytes for tier in data.tiers)
    (leader,) = data.leaders
    assert (leader.tiers, leader.versions) == (["warm"], ["m@1"])
    assert leader.bytes == pack_bytes("warm")
    assert leader.heat_bytes > 0
    for argv in (("top", "--once"), ("top",)):
        out = filled(*argv).out
        assert "most read recently" in out
        assert "m@1" in out
        assert max(map(len, out.splitlines()[1:])) <= 80
    assert filled("top", "-q").out.strip() == leader.pack
    assert filled("top", "-n", "0", "-q").out == ""
    refused(filled("top", "-n", "-1"), 2, "--count")


READS_AND_STAYS = """
import sys, time, tierstore
store = tierstore.open("store")
store.load("m").load()
print("read", flush=True)
time.sleep(600)
"""


@pytest.mark.server
def test_top_sees_other_processes_while_they_run(filled: Program) -> None:
    before = filled("top", "--json").json
    command = [sys.executable, "-c", READS_AND_STAYS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "read\n"
            deadline = time.monotonic() + 60
            while (now := filled("top", "--json").json)["running"] == 0:
                assert time.monotonic() < deadline, now
                time.sleep(0.2)
        finally:
            reader.kill()
    assert now["processes"] == before["processes"] + 1
    assert now["served_bytes"] - before["served_bytes"] >= WEIGHTS["w"].nbytes


@pytest.mark.server
def test_top_on_a_terminal(filled: Program) -> None:
    """It draws again and again on the second screen, until Ctrl-C, which is no error."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "tierstore", "top", "--interval", "1"]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=subprocess.PIPE) as process:
        os.close(side)
        seen = b""
        while seen.count(b"TIER ") < 2:
            seen += os.read(main, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while data := os.read(main, 4096):
                seen += data
        assert process.stderr is not None
        assert (process.wait(30), process.stderr.read()) == (0, b"")
    os.close(main)
    assert seen.startswith(b"\x1b[?1049h")
    assert seen.endswith(b"\x1b[?1049l"), "the first screen is back"


def test_top_of_a_store_that_nobody_reads(run: Program) -> None:
    assert run("init").code == 0
    done = run("top")
    assert (done.code, done.err) == (0, "")
    assert "no process of this node has read" in done.out


@pytest.mark.parametrize("quiet", [False, True], ids=["text", "quiet"])
def test_a_tier_that_is_down_is_told_of_once_and_the_result_is_partial(
    durable: Program, quiet: bool
) -> None:
    with tierstore.open("store") as store:
        store.save("m", {"w": WEIGHTS["w"] * np.float32(1 + 2**-20)}, base="m@1")
        assert store.rebase("m", above=1).chunks, "moves lead into the tier"
    Path("warm").rename("away")
    for command in (
        "gc --dry-run", "gc --explain", "check", "repair --dry-run", "index rebuild",
        "index rebuild --from packs", "rebalance --dry-run", "rebalance", "top --once", "df",
        "mv m@1 --to cold --dry-run",
    ):  # fmt: skip
        done = durable(*command.split(), *(["-q"] if quiet else []))
        assert done.code == 3, command
        assert (done.out + done.err).count("see that it is mounted") == 1, (command, done)
    done = durable("explain", "m")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "is in none of the tiers that could be asked" in done.out
    done = durable("load", "m", "--to", "out")
    assert done.code == 8
    warning, error = done.err.splitlines()
    assert warning.startswith("tierstore: warning: tier warm failed: there is no directory ")
    assert error.startswith("tierstore: error: ")
