"""Errors of ours that are OSErrors: what guards against those treats them right.

A block that may run code of ours lets them pass unchanged: an unreachable store is no full disk. A
block that asks the operating system alone meets none of them, and treats them as it does any
OSError. See ``tests.guards``; the places that need optional extras are in
``tests/integration/test_guards_of_extras.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.guards import EXTRAS, OURS, PASSES, Case, check, checks_of_types, places
from tests.unit.test_tiers_local import chunk, hot, offer, read
from tierstore import config, locks, unfinished
from tierstore.admin import doctor
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.fsspec.kinds import SftpFileSystem
from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.blobs.local import direct, files
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.blobs.objects import connect, library
from tierstore.cli.kit import streams
from tierstore.errors import (
    BackendError,
    ConfigError,
    NotDurable,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.folders import ALONE, mounts, remove_empty, sync_entries
from tierstore.format.exportlist import ExportList, encode_list
from tierstore.format.paths import EXPORT_LIST, EXPORT_STAGING
from tierstore.format.tiers import TierSpec
from tierstore.modelstore import places as store_places
from tierstore.modelstore import settings
from tierstore.modelstore.care.check_hot import check_hot
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.care.readtimes import ReadTimes
from tierstore.modelstore.home import clock, refs
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.loading import arrays, export, exportdir
from tierstore.modelstore.reclaim.repair.hot import HotRepair
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.saving import kinds, source
from tierstore.modelstore.store import Store
from tierstore.serving import opened
from tierstore.serving.filesystem import TierstoreFileSystem
from tierstore.serving.node import Served
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers import activity
from tierstore.tiers.guard.breaker import Breaker
from tierstore.tiers.heat.home import HomeLedger
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node import mapping, tensors
from tierstore.tiers.node.claims import Claims
from tierstore.tiers.node.files import kernel_boot_id
from tierstore.tiers.node.local import LocalHot
from tierstore.tiers.stats import TierStats
from tierstore.variants.spool import ArraySpool
from tierstore.wiring import below

MIB = 1 << 20
CHUNK = chunk(1)
LEFT = f".tierstore-{'0' * 32}.tmp"


def blobs(folder: Path) -> LocalStore:
    return LocalStore(folder, create=True)


def written(store: LocalStore | FsspecStore) -> bytes:
    store.put("a/b", b"content")
    return bytes(store.get("a/b"))


def generation(folder: Path) -> int | None:
    with (folder / "file").open("wb") as file:
        return files.generation(file.fileno())


def direct_file(folder: Path) -> tuple[bool, bytes]:
    path = folder / "file"
    with path.open("wb") as file:
        done = direct.write_direct(file.fileno(), [memoryview(b"content")])
    return done, path.read_bytes()


def synced(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        sync_entries(fd)
    finally:
        os.close(fd)


def sftp_create(_: Path) -> bool:
    """Whether it was created; another client has just done that."""
    client: Any = SimpleNamespace(ftp=None, exists=lambda path: True)
    return SftpFileSystem.create(object.__new__(SftpFileSystem), client, "temporary", "name")


def node_config(folder: Path) -> object:
    (folder / "tierstore.toml").touch()
    return config.node_config({"TIERSTORE_CONFIG": str(folder / "tierstore.toml")})


def password(folder: Path) -> object:
    (folder / "secret").write_text("s")
    (folder / "tierstore.toml").write_text(f"[tiers.t]\npassword_file = '{folder}/secret'\n")
    return node_config(folder)


def index(folder: Path) -> int:
    found = ChunkIndex(MemoryStore(), folder / "index.sqlite")
    found.sync()
    found.close()
    return len(list(folder.iterdir()))


def damaged_index(folder: Path) -> int:
    (folder / "index.sqlite").write_bytes(b"no database" * 1000)
    return index(folder)


def read_times(folder: Path) -> tuple[int, int]:
    """Times that are kept in memory: how many, and how many files there are."""
    with ReadTimes(folder / "checked.sqlite", "check") as times:
        times.note(("home", "packs/1"))
        known = times.of({("home", "packs/1")}).values()
    return sum(time_us > 0 for time_us in known), len(list(folder.iterdir()))


def read_before(folder: Path) -> int:
    cache, info = ReadCache(folder / "id" / "gc.sqlite"), BlobInfo("key", 1, 1)
    cache.put([(info, b"value")], now_s=100)
    return len(cache.get([info]))


def damaged_read_before(folder: Path) -> int:
    (folder / "id").mkdir(0o700)
    (folder / "id" / "gc.sqlite").write_bytes(b"no database" * 1000)
    return read_before(folder)


def exported(folder: Path) -> None:
    with export.explained(folder):
        pass


def put(out: Path, *paths: str) -> list[str]:
    """Export empty files; what is there then."""
    wanted = ExportList(version="m@1", digest="b3:00", whole=True, files=list(paths))
    with exportdir.exporting(out, wanted, "refuse") as target:
        for path in paths:
            with target.file(path):
                pass
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))


def left(folder: Path) -> list[str]:
    """Names of the files that are there after a sweep of one that was left."""
    (folder / LEFT).touch()
    unfinished.sweep_path(folder)
    return [path.name for path in folder.iterdir()]


def discarded(folder: Path) -> int:
    at = os.open(folder, os.O_RDONLY)
    try:
        fd, name = unfinished.create(at)
        unfinished.discard(fd, name, at)
        locks.close(fd)
    finally:
        os.close(at)
    return len(list(folder.iterdir()))


def beside(folder: Path) -> bytes:
    with unfinished.written_beside(folder / "file") as fd:
        os.write(fd, b"content")
    return (folder / "file").read_bytes()


def put_where_one_was_left(out: Path) -> list[str]:
    (out / LEFT).touch()
    return put(out, "a")


def locked_again(folder: Path) -> bool:
    """Whether a file can be locked once its lock was closed."""
    for _ in range(2):
        fd = ALONE.open(folder / "file")
        taken = locks.try_lock(fd)
        locks.close(fd)
    return taken


def put_instead(out: Path) -> list[str]:
    (out / "folder").mkdir(parents=True)
    (out / "folder/a").touch()
    (out / EXPORT_LIST).write_bytes(
        encode_list(ExportList(version="m@1", digest="b3:00", whole=True, files=["folder/a"]))
    )
    return put(out, "b")


def put_beside_others(folder: Path) -> None:
    """Fail to export into a new directory."""
    with exportdir.exporting(
        folder / "out", ExportList(version="m@1", digest="b3:00", whole=True, files=[]), "refuse"
    ):
        raise BackendError("what failed")


def counted(tiers: Path) -> activity.Activity:
    stats = TierStats()
    stats.count(hits=1)
    return activity.Activity(tiers, lambda: {"hot": stats})


def published(folder: Path) -> int:
    counted(folder).publish()
    return len(list(folder.iterdir()))


def old_ones(folder: Path) -> bool:
    old = folder / "1-0.json"
    old.touch()
    os.utime(old, (0, 0))
    counted(folder).publish()
    return old.exists()


def seen(folder: Path) -> list[object]:
    counted(folder).publish()
    return list(activity.activities(folder, 0.0))


def locked(folder: Path) -> None:
    from tierstore.placement.heat import HeatMap

    HomeLedger(MemoryStore(), "node", folder / "lock").add(HeatMap(3600.0, 0.0))


def claimed(folder: Path) -> list[bool]:
    """What two processes get that ask for the same chunk."""
    first, second = Claims(folder, ALONE), Claims(folder, ALONE)
    try:
        return [*first.take([b"d" * 32]), *second.take([b"d" * 32])]
    finally:
        first.close()
        second.close()


def filled(folder: Path) -> list[bool]:
    tier = hot(folder)
    try:
        return [*offer(tier, CHUNK), read(tier, CHUNK[0]) == CHUNK[1]]
    finally:
        tier.close()


def emptied(folder: Path) -> list[str]:
    """Folders of the chunks from before the machine's last start that are left, once empty."""
    hot(folder).close()
    tier = hot(folder, boot="boot-2")
    tier.evict(None)
    tier.close()
    return sorted(path.name for path in (folder / ("s" * 32)).iterdir() if path.is_dir())


def with_chunk(folder: Path) -> LocalHot:
    tier = hot(folder)
    assert offer(tier, CHUNK) == [True]
    return tier


def purged(folder: Path) -> tuple[bool, bool]:
    """Whether a purge is done, and whether all caches are known to have dropped it."""
    with tierstore.init(folder / "store") as store:
        for value in (1, 2):
            store.save("m", {"w": np.full(9, value)})
        store.reclaim.enable(wait_s=0)
        [receipt] = store.purge("m@1")
        return receipt.is_done, receipt.is_complete


def kept_up(folder: Path) -> list[bool]:
    """Whether purges are done after an agent's round."""
    with tierstore.init(folder / "store") as store:
        for value in (1, 2):
            store.save("m", {"w": np.full(9, value)})
        store.reclaim.enable(wait_s=0)
        store.purge("m@1")
        store.purges.keep_up()
        return [one.is_done for one in store.purges.all()]


def lost(folder: Path) -> int:
    """Files of a chunk whose bytes the disk has lost."""
    tier = with_chunk(folder)
    tier.failed(CHUNK[0], OSError(5, "bad"))
    return len(list((folder / ("s" * 32) / "boot-1").iterdir()))


def rejected(folder: Path) -> int:
    tier = with_chunk(folder)
    tier.reject(CHUNK[0])
    return tier.stats.damaged


def spooled(folder: Path) -> None:
    with ArraySpool(folder):
        pass


def empty_folders(folder: Path) -> bool:
    (folder / "a" / "b").mkdir(parents=True)
    remove_empty(folder / "a")
    return (folder / "a").exists()


def local_files(folder: Path) -> Path:
    from tierstore.serving import vllm

    (folder / "model").mkdir()
    np.save(folder / "model" / "w.npy", np.zeros(3, "<f4"))
    with tierstore.init(folder / "store") as store:
        store.save("m", folder / "model", allow_no_tensors=True)
        return vllm.local_files(store.load("m"), store.url)


def with_streams(use: Callable[[], None]) -> bool:
    """Use this process's three streams, and put them back."""
    kept = [os.dup(fd) for fd in range(3)]
    try:
        use()
    finally:
        for fd, copy in enumerate(kept):
            os.dup2(copy, fd)
            os.close(copy)
    return True


def reserved(_: Path) -> object:
    return mapping.reserve(MIB, MIB)


def mapped(folder: Path) -> list[bool]:
    tier = with_chunk(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_native", None)  # which looks at files for itself
        return [one is not None for one in tier.tensors([(CHUNK[0], MIB)], MIB)]


CASES = {
    "blobs.fsspec.kinds:SftpFileSystem.create#1": Case(sftp_create, False),
    "blobs.fsspec.store:FsspecStore._sweep#1": Case(
        lambda folder: written(FsspecStore(f"file://{folder}")), b"content"
    ),
    "blobs.local.direct:write_direct#1": Case(direct_file, (False, b"")),
    "blobs.local.direct:_write_staged#1": Case(direct_file, (False, b"")),
    "blobs.local.direct:_write_staged#2": Case(direct_file, PASSES),
    "blobs.local.files:generation#1": Case(generation, None),
    "blobs.local.store:LocalStore._link#1": Case(
        lambda folder: blobs(folder).put_if_absent("a", b"1"), PASSES
    ),
    "blobs.local.store:LocalStore._sync#1": Case(lambda folder: written(blobs(folder)), NotDurable),
    "blobs.local.store:LocalStore._walk#2": Case(lambda folder: written(blobs(folder)), PASSES),
    "blobs.local.store:LocalStore._temp_file#1": Case(
        lambda folder: written(blobs(folder)), b"content"
    ),
    "blobs.local.store:LocalStore._temp_file#2": Case(
        lambda folder: written(blobs(folder)), b"content"
    ),
    "blobs.local.store:LocalStore._probe_links#1": Case(
        lambda folder: blobs(folder).capabilities, PASSES
    ),
    "blobs.local.store:LocalStore._walk#1": Case(lambda folder: blobs(folder).get("a"), PASSES),
    "blobs.local.store:LocalStore._entries_below#1": Case(
        lambda folder: list(blobs(folder).list()), PASSES
    ),
    "blobs.local.store:LocalStore._errors#1": Case(
        lambda folder: blobs(folder).delete(["a"]), PASSES
    ),
    "blobs.objects.connect:_certificates#1": Case(
        lambda folder: connect._certificates(str(folder / "ca.pem")), ConfigError
    ),
    "blobs.objects.library:_loaded_again#1": Case(
        lambda _: library._loaded_again("s3://bucket/prefix"), BackendError
    ),
    "cli.kit.streams:prepare#1": Case(lambda _: with_streams(streams.prepare), True),
    "cli.kit.streams:print_error#1": Case(
        lambda _: with_streams(lambda: streams.print_error("a line")), True
    ),
    "modelstore.saving.kinds:_main_of#1": Case(kinds._main_of, None),
    "modelstore.saving.kinds:library_opens#1": Case(
        lambda _: kinds.library_opens(b"\x02" + bytes(7) + b"{}", 10), False
    ),
    "admin.doctor:_bytes_below#1": Case(
        lambda folder: ((folder / "a").write_bytes(b"123"), doctor._bytes_below(folder))[1], 0
    ),
    "config:node_config#1": Case(node_config, ConfigError),
    "config:_password#1": Case(password, ConfigError),
    "folders:remove_empty#1": Case(empty_folders, True),
    "folders:sync_entries#1": Case(synced, PASSES),
    "modelstore.home.index:ChunkIndex._open#1": Case(index, 0),
    "modelstore.home.index:ChunkIndex._recover#1": Case(damaged_index, 1),
    "modelstore.care.readtimes:ReadTimes._db#1": Case(read_times, (1, 0)),
    "modelstore.home.readcache:ReadCache._use#1": Case(read_before, 0),
    "modelstore.home.readcache:ReadCache._use#2": Case(damaged_read_before, 0),
    "modelstore.home.clock:boot#1": Case(lambda _: clock.boot(), ""),
    "modelstore.home.refs:whoami#1": Case(lambda _: refs.whoami().partition("@")[0], "unknown"),
    "modelstore.loading.arrays:new_bytes#1": Case(
        lambda _: len(arrays.new_bytes(64 * MIB)), 64 * MIB
    ),
    "modelstore.loading.export:explained#1": Case(exported, PASSES),
    "modelstore.loading.exportdir:ExportDirectory.exchange#1": Case(
        lambda folder: put(folder, "a"), BackendError
    ),
    "modelstore.loading.exportdir:ExportDirectory._remove_folders#1": Case(
        put_instead, BackendError
    ),
    "modelstore.loading.exportdir:ExportDirectory._left#1": Case(
        put_where_one_was_left, [LEFT, EXPORT_LIST, "a"]
    ),
    "modelstore.loading.exportdir:_leave#1": Case(
        lambda folder: put(folder, "a"),
        [EXPORT_LIST, EXPORT_STAGING, f"{EXPORT_STAGING}/lock", "a"],
    ),
    "modelstore.loading.exportdir:_remove_staging#1": Case(
        lambda folder: put(folder, "a"), [EXPORT_LIST, EXPORT_STAGING, "a"]
    ),
    "folders:mounts#1": Case(lambda _: mounts(), []),
    "locks:_Held._begin#1": Case(lambda _: locks._Held().fds, set()),
    "locks:close#1": Case(locked_again, True),
    "modelstore.places:_ancestries#1": Case(
        lambda folder: store_places._ancestries(str(folder))[0][-1], "/"
    ),
    "modelstore.settings:default_memory_limit#1": Case(
        lambda _: settings.default_memory_limit() > 0, True
    ),
    "serving.node:Served.refs#1": Case(lambda folder: [*Served(folder / "served").refs()], []),
    "serving.node:Served.note#1": Case(
        lambda folder: Served(folder / "served").note(["m"], "m", "m@1"), None
    ),
    "serving.vllm:local_files#1": Case(local_files, PASSES),
    "tiers.activity:Activity.publish#1": Case(published, 0),
    "modelstore.care.check_hot:check_hot#1": Case(
        lambda folder: check_hot(with_chunk(folder), CheckReport(), None), Unreachable
    ),
    "modelstore.reclaim.repair.hot:HotRepair.repair_local#1": Case(
        lambda folder: HotRepair(HotTiers(with_chunk(folder)), RepairReport()).repair_local(),
        Unreachable,
    ),
    "modelstore.reclaim.purge.dropping:Dropping._drop#1": Case(purged, (True, False)),
    "modelstore.reclaim.purge.purging:Purges._drop#1": Case(purged, (True, True)),
    "modelstore.reclaim.purge.purging:Purges.keep_up#1": Case(kept_up, [True]),
    "tiers.activity:_forget_old#1": Case(old_ones, True),
    "tiers.activity:activities#1": Case(seen, []),
    "tiers.activity:activities#2": Case(seen, []),
    "tiers.heat.home:HomeLedger._alone#1": Case(locked, BackendError),
    "tiers.node.claims:Claims.close#1": Case(claimed, [True, False]),
    "tiers.node.claims:Claims._opened#1": Case(claimed, [True, True]),
    "tiers.node.claims:Claims._set#1": Case(
        claimed, {PermissionDenied: [False, False], Unreachable: [True, True]}
    ),
    "tiers.node.directory:HotDirectory.ready#1": Case(filled, [False, False]),
    "tiers.node.directory:HotDirectory.manage#1": Case(
        lambda folder: with_chunk(folder).evict(None), 0
    ),
    "tiers.node.directory:HotDirectory.read_failed#1": Case(lost, 1),
    "tiers.node.files:kernel_boot_id#1": Case(lambda _: kernel_boot_id(), None),
    "tiers.node.files:ChunkFiles.write#1": Case(filled, [False, False]),
    "tiers.node.files:ChunkFiles.tidy#1": Case(emptied, ["boot-1", "boot-2", "tmp~"]),
    "tiers.node.files:_open#1": Case(filled, [False, False]),
    "tiers.node.fill:HotFill._fill#1": Case(filled, [False, False]),
    "tiers.node.fill:HotFill._write#1": Case(filled, [False, False]),
    "tiers.node.fill:_close#1": Case(filled, [True, True]),
    "tiers.node.local:LocalHot.resident#1": Case(
        lambda folder: with_chunk(folder).resident([CHUNK[0]]), [False]
    ),
    "tiers.node.local:LocalHot.read_into#1": Case(filled, [True, False]),
    "tiers.node.local:LocalHot.open#1": Case(
        lambda folder: with_chunk(folder).open(CHUNK[0], MIB), None
    ),
    "tiers.node.local:LocalHot.reject#1": Case(rejected, 1),
    "tiers.node.local:LocalHot.scrub#1": Case(
        lambda folder: with_chunk(folder).scrub(MIB).chunks, 0
    ),
    "tiers.node.local:LocalHot._compare#1": Case(
        lambda folder: with_chunk(folder).scrub(MIB).damaged, [CHUNK[0]]
    ),
    "tiers.node.mapping:reserve#1": Case(reserved, mapping.MappingFailed),
    "tiers.node.mapping:map_limit#1": Case(
        lambda _: mapping.map_limit.__wrapped__(), mapping._DEFAULT_LIMIT
    ),
    "tiers.node.tensors:WholeTensors._one#1": Case(mapped, [False]),
    "unfinished:discard#1": Case(discarded, 1),
    "unfinished:sweep#1": Case(left, [LEFT]),
    "unfinished:_is_left#1": Case(left, [LEFT]),
    "unfinished:_taken#1": Case(beside, b"content"),
    "variants.spool:ArraySpool._told#1": Case(spooled, PASSES),
    "wiring.below:disk_of#1": Case(
        lambda folder: below.disk_of(TierSpec(name="w", role="warm", url=folder.as_uri())), None
    ),
}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", CASES)
def test_an_error_of_ours_in_a_guarded_place(
    place: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(place, CASES[place], kind, tmp_path, monkeypatch)


def test_every_guarded_place_has_a_case() -> None:
    assert set(CASES) == {place for place in places() if not place.startswith(EXTRAS)}


def test_every_test_of_a_type_has_a_case() -> None:
    """Their cases are the functions below, those of the guards above, or in this list."""
    assert checks_of_types() == {
        "cli.kit.app:run", "modelstore.saving.source:_explained.__exit__",
        "tiers.guard.breaker:Breaker.failed",
        "blobs.fsspec.store:_translated",  # of errors that are none of ours, see ``_errors``
        "blobs.memcached.client:_translated", "blobs.redis.client:_translated",  # likewise
        "cli.kit.app:_detail", "shown:why_unread", "variants.spool:ArraySpool._told",  # behind ours
    }  # fmt: skip


_FAILING_COMMAND = """
import sys
from tierstore import errors
from tierstore.cli.kit import app

def fails(argv):
    print("so far")
    raise getattr(errors, sys.argv[1])("what 'happened'")

app.command_tree = fails
code = app.run(["ls"])
print("and later")
sys.exit(code)
"""


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_command_that_fails_keeps_what_it_printed(kind: type[TierstoreError]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILING_COMMAND, kind.__name__], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stderr == "tierstore: error: what 'happened'\n"
    assert done.stdout == "so far\nand later\n"
    assert done.returncode == kind.exit_code


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_reading_a_source_leaves_ours_alone(kind: type[Exception]) -> None:
    error = kind("what 'happened'")
    with pytest.raises(kind) as caught, source._explained(Path("file")):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_breaker_counts_ours(kind: type[Exception]) -> None:
    told: list[bool] = []
    breaker = Breaker("reading", "hot", 60.0, told.append, failures=2, advice="look")
    breaker.failed(kind("one"))
    breaker.failed(kind("two"))
    assert told == [True]
    assert not breaker.ready()


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_fsspec_store_leaves_ours_alone(kind: type[Exception], tmp_path: Path) -> None:
    store, error = FsspecStore(f"file://{tmp_path}"), kind("what 'happened'")
    with pytest.raises(kind) as caught, store._errors("reading", "a"), store._reaching("a", 3):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_store_that_fails_is_not_an_empty_folder(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec takes an OSError of a listing for "nothing is there"."""
    with tierstore.init(tmp_path) as store:
        store.save("m", {"w": np.zeros(3, "<f4")})
    home = FaultyStore(LocalStore(tmp_path))
    fails = Store(home, settings.Settings(tmp_path / "cache"))
    monkeypatch.setattr(opened, "open_store", lambda url: fails)
    fs = TierstoreFileSystem(str(tmp_path), refresh_s=0, skip_instance_cache=True)
    assert fs.find("m") == ["m/model.safetensors"]
    assert (fs.isdir("m"), fs.isdir("m/model.safetensors"), fs.isdir("n")) == (True, False, False)
    assert fs.find("n") == list(fs.walk("n")) == []
    home.plan = lambda op, key, n: kind("what 'happened'")
    for look in (fs.find, fs.isdir, fs.du, lambda path: list(fs.walk(path))):
        with pytest.raises(kind, match="what 'happened'"):
            look("m")
    with pytest.raises(kind):
        fs.glob("m/*")
    told: list[OSError] = []
    assert list(fs.walk("m", on_error=told.append)) == []
    assert [type(error) for error in told] == [kind]
