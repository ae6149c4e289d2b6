"""A full disk: versions are removed from it, and their bytes come back."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_collector import packs_of
from tests.integration.test_tiers import Tiered
from tierstore.admin.doctor import diagnose
from tierstore.admin.health import nearly_full
from tierstore.admin.survey import survey
from tierstore.blobs.base import BlobStore
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit import app
from tierstore.errors import Conflict, Damaged, NotFound, OutOfSpace, PermissionDenied
from tierstore.format.keys import (
    COLLECTED,
    LEASES,
    PACKS,
    QUARANTINE,
    REFS,
    RESERVE,
    SWEEPS,
    entry_key,
    layout_key,
    pack_key,
)
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.tiers import MoverLease
from tierstore.ids import Buffer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease, new_lease
from tierstore.modelstore.home.reserve import RESERVE_BYTES
from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent
from tierstore.serving.collecting import CollectingPlan
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.wiring.below import Disk

NUMBERS = range(1, 5)


class Quota(MemoryStore):
    """A store in memory that takes no more than ``limit_bytes``."""

    limit_bytes = 1 << 40

    @property
    def used_bytes(self) -> int:
        return sum(info.size for info in self.list())

    def fill(self) -> None:
        self.limit_bytes = self.used_bytes

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self._fits(data)
        super().put(key, data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        self._fits(data)
        return super().put_if_absent(key, data)

    def _fits(self, data: Buffer | Sequence[Buffer]) -> None:
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        if self.used_bytes + sum(len(part) for part in parts) > self.limit_bytes:
            raise OutOfSpace("the quota is used up")


def model(number: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(number).standard_normal(300_000, np.float32)}


def filled(blobs: BlobStore, cache: Path) -> Store:
    store = created(blobs, cache)
    enable(store._parts.home, wait_s=0)
    for number in NUMBERS:
        store.save("m", model(number), base=None)
    return store


@pytest.fixture
def blobs() -> Quota:
    return Quota("quota")


@pytest.fixture
def store(blobs: Quota, cache: Path) -> Iterator[Store]:
    with filled(blobs, cache) as store:
        yield store


def collect(blobs: BlobStore, **how: object) -> Report:
    return Collector(Home(blobs)).run(**{"grace_s": 0, "window_s": 0, **how})  # type: ignore[arg-type]


def packs(blobs: BlobStore) -> list[str]:
    return [info.key for info in blobs.list(PACKS)]


def has_reserve(blobs: BlobStore) -> bool:
    return RESERVE in {info.key for info in blobs.list()}


@contextmanager
def disk(path: Path) -> Iterator[Path | None]:
    """A file system of 24 MiB; ``None`` where nothing can be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until not a byte fits any more."""
    fd = os.open(path / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while os.write(fd, bytes(size)):
                    pass
    finally:
        os.close(fd)


def test_a_file_system_that_is_full(tmp_path: Path, cache: Path) -> None:
    with disk(tmp_path / "disk") as path:
        blobs = Quota("quota") if path is None else LocalStore(path / "home", create=True)
        with filled(blobs, cache) as store:
            if isinstance(blobs, Quota):
                blobs.fill()
            elif path is not None:
                fill(path)
            with pytest.raises(OutOfSpace):
                store.save("m", model(9), base=None)
            store.remove("m@1", "m@2")
            report = collect(blobs)
            assert report.amounts()["deleted"].packs == 2
            assert report.freed["home"] > 1_000_000
            assert len(packs(blobs)) == 2
            for number in (3, 4):
                equal(store.load(f"m@{number}").load(), model(number))
            store.save("m", {"w": np.ones(1000, np.float32)}, base=None)


def test_the_reserve_is_made_used_and_made_again(store: Store, blobs: Quota) -> None:
    assert blobs.info(RESERVE).size == RESERVE_BYTES
    first = bytes(blobs.get(RESERVE))
    blobs.fill()
    store.remove("m@1")
    assert blobs.info(RESERVE).size < RESERVE_BYTES, "the removal needed it"
    store.remove("m@2")
    assert collect(blobs).amounts()["deleted"].packs == 2
    assert blobs.info(RESERVE).size == RESERVE_BYTES
    assert bytes(blobs.get(RESERVE)) != first


def test_what_is_left_of_the_reserve_serves_again(store: Store, blobs: Quota) -> None:
    """Whoever saves meanwhile finds no room, and so removals and collections go on."""
    blobs.fill()
    for number in (1, 2):
        store.remove(f"m@{number}")
        assert blobs.info(RESERVE).size > RESERVE_BYTES * 3 // 4
        with pytest.raises(OutOfSpace):
            store.save("m", model(9), base=None)
        assert collect(blobs, window_s=3600).freed == {}
    assert collect(blobs).amounts()["deleted"].packs == 2
    assert blobs.info(RESERVE).size == RESERVE_BYTES


def test_it_says_how_to_get_room(
    store: Store, blobs: Quota, caplog: pytest.LogCaptureFixture
) -> None:
    blobs.fill()
    store.remove("m@1")
    collect(blobs, window_s=3600)
    assert "'tierstore gc --window 0' deletes them now" in caplog.text
    blobs.delete([RESERVE])
    blobs.fill()
    with pytest.raises(OutOfSpace, match="1 MiB of room is enough to remove versions"):
        store.remove("m@2")
    blobs.limit_bytes += 1 << 20
    store.remove("m@2")
    assert collect(blobs).amounts()["deleted"].packs == 2


def test_a_collection_uses_the_reserve_where_it_finds_no_room(store: Store, blobs: Quota) -> None:
    store.remove("m@1", "m@2", "m@3")
    free = sum(blobs.info(key).size for key in packs(blobs)) * 3 // 4
    for left in range(0, 2000, 100):  # its lease, its probe or a list is what does not fit
        other = Quota("copy")
        other._blobs = dict(blobs._blobs)
        other.limit_bytes = other.used_bytes + left
        assert collect(other).freed["home"] == pytest.approx(free, rel=0.01)
        assert len(packs(other)) == 1


@pytest.mark.parametrize("what", ["entry", "pack"])
def test_a_repair_uses_the_reserve_where_it_finds_no_room(
    store: Store, blobs: Quota, cache: Path, what: str
) -> None:
    store.alias("m", "prod", "m@2")
    bad = entry_key(f"{REFS}m/alias/prod/", 1)
    if what == "pack":
        small = {name: model(number)["w"][:5000] for number, name in enumerate("ab", 8)}
        before = set(packs(blobs))
        store.save("m", small, base=None)
        [bad] = set(packs(blobs)) - before
    data = bytearray(blobs.get(bad))
    data[-len(data) // 2] ^= 1
    blobs.put(bad, data)
    for left in range(0, 2400, 200):  # any of what it writes is what does not fit
        other = Quota("copy")
        other._blobs = dict(blobs._blobs)
        other.limit_bytes = other.used_bytes + left
        with opened(other, cache) as repairing:
            report = repairing.repair()
            assert not report.of("left")
            assert repairing.repair().of("left") == []
            if what == "pack":
                assert [info.key[-64:] for info in other.list(QUARANTINE)] == [bad[-64:]]
            else:
                assert repairing.aliases("m") == []


def spoil_several(store: Store, blobs: Quota) -> None:
    """Lose a layout, and damage a pack and the entry of an alias if there is one."""
    blobs.delete([layout_key(store.resolve("m@1").digest)])
    [pack] = packs_of(store, "m@3")
    entry = entry_key(f"{REFS}m/alias/prod/", 1)
    for key in (pack_key(pack), *([entry] if store.aliases("m") else [])):
        data = bytearray(blobs.get(key))
        data[-len(data) // 2] ^= 1
        blobs.put(key, data)


@pytest.mark.parametrize("left", [0, 400, 1200])
@pytest.mark.parametrize("and_entry", [False, True])
def test_one_repair_does_all_that_the_reserve_has_room_for(
    store: Store, blobs: Quota, cache: Path, left: int, and_entry: bool
) -> None:
    """Whatever comes first: an entry, else a layout."""
    if and_entry:
        store.alias("m", "prod", "m@2")
    spoil_several(store, blobs)
    blobs.limit_bytes = blobs.used_bytes + left
    with opened(blobs, cache) as other:
        report = other.repair()
        assert (report.of("left"), report.full) == ([], "")
        assert other.repair().of("repaired") == []
        equal(other.load("m@1").load(), model(1))


def test_a_repair_without_room_says_so_of_each_object_and_goes_on_later(
    store: Store, blobs: Quota, cache: Path
) -> None:
    store.alias("m", "prod", "m@2")
    spoil_several(store, blobs)
    blobs.delete([RESERVE])
    blobs.fill()
    with opened(blobs, cache) as other:
        before = {one.key for one in other.repair(dry_run=True).objects}
        report = other.repair()
        assert {one.key for one in report.of("left")} == before
        assert report.full == "the quota is used up"
        blobs.limit_bytes = 1 << 40
        report = other.repair()
        assert (report.of("left"), report.full) == ([], "")


def test_a_bad_copy_is_left_where_home_is_full_and_has_no_reserve(tmp_path: Path) -> None:
    made = Tiered(tmp_path)
    store = made.open()
    store.save("m", model(1))
    made.copy("warm", "cold")
    [key] = made.packs("warm")
    warm = made.stores["warm"].inner
    warm.put(key, bytes(warm.get(key))[:-1])
    full = OutOfSpace("no room")
    made.plans["home"] = lambda op, key, n: full if op in ("put", "put_if_absent") else None
    report = store.repair()
    assert [(one.outcome, one.key, one.tier) for one in report.objects] == [("left", key, "warm")]
    assert (report.full, report.is_whole) == ("no room", False)
    home = made.stores["home"].inner
    home.put(RESERVE, bytes(9))
    without = made.plans["home"]
    made.plans["home"] = lambda *call: without(*call) if has_reserve(home) else None
    report = store.repair()
    assert [(one.outcome, one.key, one.tier) for one in report.objects] == [
        ("repaired", key, "warm")
    ]
    store.close()


def test_the_command_lists_what_is_left_and_exits_with_7(tmp_path: Path, cache: Path) -> None:
    """Of a process that can write no file: what it found is printed all the same."""
    home = LocalStore(tmp_path / "home", create=True)
    with filled(home, cache) as store:
        layout = layout_key(store.resolve("m@1").digest)
    home.delete([layout, RESERVE])
    done = subprocess.run(
        [sys.executable, "-m", "tierstore", "repair"],
        env={**os.environ, "TIERSTORE_STORE": str(tmp_path / "home")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == OutOfSpace.exit_code
    told = f"left: {layout[:20]}…: it is missing: it could not be made anew, as there is"
    assert told in done.stdout
    assert "'tierstore rm' and 'tierstore gc' make some: repair again then" in done.stderr


def test_a_repair_of_what_is_whole_needs_no_room(store: Store, blobs: Quota, cache: Path) -> None:
    blobs.delete([RESERVE])
    blobs.fill()
    with opened(blobs, cache) as other:
        assert other.repair().is_whole


def test_what_is_condemned_goes_before_the_reserve(store: Store, blobs: Quota) -> None:
    store.remove("m@1", "m@2", "m@3")
    collect(blobs, max_bytes=0)
    blobs.delete([RESERVE])
    blobs.fill()
    report = collect(blobs)
    assert len(packs(blobs)) == 1
    assert report.freed["home"] > 2_900_000


def test_the_limit_holds_for_what_goes_first(store: Store, blobs: Quota) -> None:
    store.remove("m@1", "m@2", "m@3")
    collect(blobs, max_bytes=0)
    blobs.fill()
    size = blobs.info(packs(blobs)[0]).size
    report = collect(blobs, max_bytes=size + 1000)
    assert len(packs(blobs)) == 3
    assert report.stopped == "the limit of bytes is reached"


def test_the_right_is_given_back_where_nothing_was_freed(store: Store, blobs: Quota) -> None:
    for left in range(0, 2000, 100):  # behind its note the end of its lease may not fit
        other = Quota("copy")
        other._blobs = dict(blobs._blobs)
        other.limit_bytes = other.used_bytes + left
        for _ in range(2):
            assert collect(other).stopped is None


def test_old_leases_that_stay_keep_nobody_from_collecting(store: Store, blobs: Quota) -> None:
    def refuse(op: str, key: str, n: int) -> Fault:
        return PermissionDenied("no") if op == "delete" and key.startswith(SWEEPS) else None

    store.remove("m@1")
    collect(blobs, max_bytes=0)
    for _ in range(2):
        report = collect(FaultyStore(blobs, refuse), max_bytes=0)
        assert report.stopped == "the limit of bytes is reached"
    assert collect(blobs).amounts()["deleted"].packs == 1


def test_without_a_reserve_it_says_that_there_is_no_room(store: Store, blobs: Quota) -> None:
    store.remove("m@1")
    blobs.delete([RESERVE])
    blobs.fill()
    with pytest.raises(OutOfSpace, match="the quota is used up"):
        collect(blobs)
    assert len(packs(blobs)) == 4
    with pytest.raises(OutOfSpace, match="the quota is used up"):
        store.remove("m@2")


def test_nothing_goes_first_while_another_one_collects(store: Store, blobs: Quota) -> None:
    store.remove("m@1")
    collect(blobs, max_bytes=0)
    other = MoverLease(seq=9, id=uuid.uuid4().hex, who="ada", host="node7", pid=7, ttl_s=60)
    blobs.put(f"{SWEEPS}000000009", seal_body(Kind.MOVER, other))
    blobs.fill()
    with pytest.raises(Conflict, match="ada, process 7 on node7"):
        collect(blobs)
    assert len(packs(blobs)) == 4
    assert has_reserve(blobs)


def test_who_has_no_right_writes_no_reserve(
    store: Store, blobs: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may be at work in its room."""
    blobs.delete([RESERVE])
    with HeldLease(blobs, COLLECTOR), pytest.raises(Conflict, match="another garbage collection"):
        collect(blobs)
    assert not has_reserve(blobs), "it was refused"
    mark = Marker.mark

    def overtaken(self: Marker, *how: Any) -> Mark:
        other = MoverLease(seq=99, id=uuid.uuid4().hex, who="ada", host="h", pid=7, ttl_s=60)
        blobs.put(f"{SWEEPS}000000099", seal_body(Kind.MOVER, other))
        return mark(self, *how)

    monkeypatch.setattr(Marker, "mark", overtaken)
    with pytest.raises(Conflict, match="has taken over"):
        collect(blobs)
    assert not has_reserve(blobs), "it has lost the right"


def test_nothing_goes_first_that_a_save_or_a_version_may_need(store: Store, blobs: Quota) -> None:
    home = store._parts.home
    lease = new_lease("writer")
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    store.remove("m@1")
    collect(blobs)
    blobs.delete([RESERVE])
    blobs.fill()
    with pytest.raises(OutOfSpace):
        collect(blobs)
    assert len(packs(blobs)) == 4, "the save may rely on it"
    blobs.delete([LEASES + lease.id])
    digest = store.resolve("m@2").digest
    [needed] = home.layout(digest, home.manifest(digest)).pack_ids
    blobs.limit_bytes = 1 << 40
    home.condemned.condemn([needed], run=uuid.uuid4().hex, now_us=1)
    blobs.fill()
    with pytest.raises(OutOfSpace):  # it cannot be healed
        collect(blobs)
    assert pack_key(needed) in packs(blobs)


@pytest.mark.parametrize("has_reserve", [True, False])
def test_nothing_goes_first_that_can_be_undeleted(
    store: Store, blobs: Quota, has_reserve: bool
) -> None:
    store.remove("m@1")
    with WriterLease(blobs):
        collect(blobs)  # condemned, and it waits for the save
    if not has_reserve:
        blobs.delete([RESERVE])
    blobs.fill()
    with nullcontext() if has_reserve else pytest.raises(OutOfSpace):
        collect(blobs, window_s=30 * 24 * 3600)
    blobs.limit_bytes = 1 << 40
    store.undelete("m@1")
    equal(store.load("m@1").load(), model(1))


def test_nothing_is_promised_of_what_made_room(
    store: Store, blobs: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the run ends before it has marked."""
    store.remove("m@1")
    collect(blobs, max_bytes=0)
    blobs.delete([RESERVE, COLLECTED])
    blobs.fill()
    mark, marks = Marker.mark, list[Any]()

    def marking(self: Marker, *how: Any, **more: Any) -> Mark:
        marks.append(how)
        if len(marks) > 1:
            raise Damaged("a manifest")
        return mark(self, *how, **more)

    monkeypatch.setattr(Marker, "mark", marking)
    with pytest.raises(Damaged):
        collect(blobs)
    assert len(packs(blobs)) == 3, "to make room"
    [one] = store.deleted("m")
    assert one.until == one.removed, "its window is over"


def test_what_is_lost_though_it_could_be_undeleted_keeps_nothing(
    store: Store, blobs: Quota
) -> None:
    store.remove("m@1")
    collect(blobs)
    blobs.put(pack_key(bytes(32)), bytes(1000))  # as of a save that was never finished
    collect(blobs, max_bytes=0)
    blobs.delete([RESERVE])
    blobs.fill()
    assert collect(blobs, window_s=30 * 24 * 3600).freed == {"home": 1000}
    with pytest.raises(NotFound, match="too late"):
        store.undelete("m@1")


def test_doctor_tells_of_a_full_store_what_makes_room(store: Store, blobs: Quota) -> None:
    blobs.fill()
    found = diagnose(store)
    assert found.store is not None
    assert isinstance(found.store.error, OutOfSpace)
    assert found.store.uncollected_s is not None, "what needs no room is asked all the same"
    full = f"{store.url} is full: it can be read, and nothing can be saved until there is room: "
    makes = "'tierstore rm' and 'tierstore gc' make some"
    assert f"{full}{makes}, and have a reserve for it" in found.problems
    blobs.delete([RESERVE])
    blobs.fill()
    found = diagnose(store)
    assert f"{full}{makes}" in found.problems
    assert any("has no reserve of space" in one for one in found.problems)
    blobs.limit_bytes = 1 << 40
    collect(blobs)
    assert not any(f"{store.url} " in one for one in diagnose(store).problems)


def test_an_agent_on_a_full_disk_says_so_once(
    store: Store, blobs: Quota, caplog: pytest.LogCaptureFixture
) -> None:
    blobs.delete([RESERVE])
    blobs.fill()
    agent = Agent(store, scrub_s=1e-3, collecting=CollectingPlan(every=None))
    for _ in range(3):
        agent.round()
    assert agent.stats.failed_rounds == 0, "what needs no room goes on"

    def told() -> list[str]:
        own = [one.getMessage() for one in caplog.records if one.name == "tierstore.agent"]
        return [line.partition(":")[0] for line in own if "quota" in line]

    assert told() == ["nothing is verified now"]
    blobs.limit_bytes = 1 << 40
    agent.round()
    blobs.fill()
    agent.round()
    assert len(told()) == 1, "the scrub has its lease"


def test_a_file_system_with_little_space_left_is_a_problem(tmp_path: Path, cache: Path) -> None:
    with disk(tmp_path / "disk") as path, filled(store_at(path or tmp_path), cache) as store:
        [home] = survey(store)
        assert home.disk is not None
        found = diagnose(store)
        assert found.store is not None
        assert found.store.disk is not None
        assert found.store.disk.total_bytes == home.disk.total_bytes
        if path is None:
            return
        assert home.disk.total_bytes == 24 << 20
        assert not any("left" in problem for problem in found.problems)
        left = shutil.disk_usage(path).free
        (path / "filler").write_bytes(bytes(left - (1 << 20)))
        [problem] = [one for one in diagnose(store).problems if "left" in one]
        assert problem.startswith(f"{store.url}: its file system has only 1.0 MiB of 24.0 MiB left")
        health = diagnose(store).store
        assert health is not None
        assert health.error is None


def test_doctor_on_a_full_disk(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "disk") as path:
        home = (path or tmp_path) / "home"
        filled(LocalStore(home, create=True), cache).close()
        if path is None:
            return
        fill(path)
        capsys.readouterr()
        assert app.run(["doctor", "--store", str(home)]) == OutOfSpace.exit_code
        out = " ".join(capsys.readouterr().out.split())
        assert " full: creating 'probes/" in out
        assert "0 B of 24.0 MiB free" in out
        assert "NOT usable" not in out
        assert "free some space, then try again" in out, "no quota of it can be raised"
        assert app.run(["doctor", "-q", "--store", str(home)]) == OutOfSpace.exit_code
        assert "is full: it can be read" in capsys.readouterr().out


def store_at(path: Path) -> LocalStore:
    return LocalStore(path / "home", create=True)


def test_a_nearly_full_file_system() -> None:
    def left(free_bytes: int) -> tuple[str, ...]:
        return nearly_full(
            Disk("ext4", network=False, total_bytes=100 << 20, free_bytes=free_bytes)
        )

    assert left((5 << 20) - 1) == ("its file system has only 5.0 MiB of 100.0 MiB left",)
    assert left(5 << 20) == ()
    assert nearly_full(None) == ()
