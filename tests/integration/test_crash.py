"""A save that ends at any moment: what was published stays, what was not is garbage at most."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, created, equal, finished, opened, python, small_disk, tensors
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, OutOfSpace, Unreachable
from tierstore.format.keys import pack_key
from tierstore.format.layout import parse_segment
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

FIRST, SECOND = tensors(1), tensors(2)


def undamaged(store: Store, *, read_data: bool = True) -> CheckReport:
    report = store.check(read_data=read_data)
    assert not report.damaged, report.findings
    return report


def copy_of(blobs: MemoryStore) -> MemoryStore:
    copy = MemoryStore("copy")
    for info in blobs.list():
        copy.put(info.key, blobs.get(info.key))
    return copy


@pytest.fixture
def before(cache: Path) -> MemoryStore:
    """A store with one published version and an alias."""
    blobs = MemoryStore("crash")
    with created(blobs, cache) as store:
        store.save("m", FIRST, alias="prod")
    return blobs


def save_second(store: Store) -> None:
    store.save("m", SECOND, alias="prod")


def mutations(before: MemoryStore, cache: Path) -> list[tuple[str, str]]:
    counted = FaultyStore(copy_of(before))
    with opened(counted, cache / "counting") as store:
        save_second(store)
    return [(op, key) for op, key in counted.calls if op in ("put", "put_if_absent", "delete")]


def intact(blobs: BlobStore, cache: Path) -> int:
    """Everything published loads, the rest is garbage, and saving goes on; how many versions."""
    with opened(blobs, cache) as store:
        versions = store.versions("m")
        equal(store.load("m@1").load(), FIRST)
        if len(versions) == 2:
            equal(store.load("m").load(), SECOND)
        assert store.resolve("m@prod").number in (1, len(versions))
        undamaged(store)
        for info in blobs.list("index/"):  # also of a save that failed: what it names is there
            for pack in parse_segment(blobs.get(info.key), info.key).pack_ids:
                blobs.info(pack_key(pack))
        store.save("m", SECOND, alias="prod")
        equal(store.load("m@prod").load(), SECOND)
        report = undamaged(store)
        garbage = set(report.garbage_keys)
        assert all(key.split("/")[0] in {"packs", "index"} for key in garbage), garbage
    return len(versions)


def test_the_writes_of_a_save_come_in_the_order_of_the_specification(
    before: MemoryStore, cache: Path
) -> None:
    kinds = [(op, key.split("/")[0]) for op, key in mutations(before, cache)]
    assert kinds == [
        ("put", "leases"),
        ("put", "packs"),
        ("put", "versions"),
        ("put", "leases"),
        ("put_if_absent", "layouts"),
        ("put_if_absent", "refs"),
        ("put", "refs"),
        ("put", "index"),
        ("delete", "leases"),
        ("put_if_absent", "refs"),
        ("put", "refs"),
    ]


def test_a_crash_after_every_write(before: MemoryStore, cache: Path) -> None:
    total = len(mutations(before, cache))
    published = []
    for n in range(total + 1):
        blobs = copy_of(before)
        with contextlib.suppress(Crashed):
            save_second(opened(FaultyStore(blobs, crash_after=n), cache / "shared"))
        published.append(intact(blobs, cache / str(n)) == 2)
    assert published == sorted(published), "published once and for all"
    assert published.index(True) == 6, "with the sixth write: the ref entry"


def failing(n: int, error: Fault, *, once: bool) -> Callable[..., Fault]:
    """Fail the n-th changing call, or it and all after it."""
    count = 0

    def plan(op: str, key: str, number: int) -> Fault:
        nonlocal count
        if op not in ("put", "put_if_absent", "delete"):
            return None
        count += 1
        return error if count == n or (count > n and not once and op != "delete") else None

    return plan


@pytest.mark.parametrize("once", [True, False], ids=["one write", "from then on"])
def test_a_full_disk_at_every_write(before: MemoryStore, cache: Path, once: bool) -> None:
    total = len(mutations(before, cache))
    for n in range(1, total + 1):
        blobs = copy_of(before)
        plan = failing(n, OutOfSpace("the disk is full"), once=once)
        store = opened(FaultyStore(blobs, plan), cache / f"writer {n}{once}")
        error: OutOfSpace | None = None
        try:
            save_second(store)
        except OutOfSpace as caught:
            error = caught
        published = intact(blobs, cache / f"{n}{once}") == 2
        if published and error is not None:
            assert "m@2 is published, but m@prod does not point to it" in str(error), n
        assert published == (n > 6), f"write {n}: {error}"
        assert (error is None) == published or n > 6, f"write {n}: {error}"


def test_a_lost_answer_at_every_write(before: MemoryStore, cache: Path) -> None:
    total = len(mutations(before, cache))
    for n in range(1, total + 1):
        blobs = copy_of(before)
        plan = failing(n, "lose-response", once=True)
        store = opened(FaultyStore(blobs, plan), cache / f"writer {n}")
        error: Unreachable | None = None
        try:
            save_second(store)
        except Unreachable as caught:
            error = caught
        published = intact(blobs, cache / str(n)) == 2
        assert published == (error is None) == (n >= 6), f"write {n}: {error}"


def test_a_read_that_fails_publishes_nothing_or_all(before: MemoryStore, cache: Path) -> None:
    counted = FaultyStore(copy_of(before))
    with opened(counted, cache / "counting") as store:
        save_second(store)
    for n in range(1, len(counted.calls) + 1):
        blobs = copy_of(before)

        def plan(op: str, key: str, number: int, n: int = n) -> Fault:
            return Unreachable("no answer") if number == n else None

        with contextlib.suppress(Unreachable):
            save_second(opened(FaultyStore(blobs, plan), cache / "shared"))
        intact(blobs, cache / str(n))


# Real processes and real disks

SAVING = """
import sys, tierstore
from tests.integration.kit import tensors
store = tierstore.open(sys.argv[1])
seed = int(sys.argv[2])
print("ready", flush=True)
while True:
    store.save("m", tensors(seed), message=str(seed), alias="prod")
    seed += 1
"""


def test_kill_at_any_moment(tmp_path: Path, cache: Path) -> None:
    where = tmp_path / "store"
    with tierstore.init(where, chunk_size=MIB) as store:
        store.save("m", tensors(0), message="0", alias="prod")
    chance = random.Random(20)
    deadline = time.monotonic() + 25
    kills, seen = 0, 1
    while kills < 15 and time.monotonic() < deadline:
        process = python(SAVING, where, 1000 * (kills + 1))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(chance.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        with tierstore.open(where) as store:
            versions = store.versions("m")
            assert len(versions) >= seen
            seen = len(versions)
            equal(store.load("m").load(), tensors(int(versions[0].message)))
            assert store.resolve("m@prod").number >= seen - 1
            undamaged(store, read_data=False)
            message = versions[0].message
            store.save("m", tensors(int(message)), message=message, alias="prod")
            seen += 1
    assert kills >= 5, "too slow to test anything"
    with tierstore.open(where) as store:
        undamaged(store)
        for version in store.versions("m"):
            equal(store.load(str(version)).load(), tensors(int(version.message)))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; where nothing can be mounted, a limit on the size of files."""
    with small_disk(tmp_path / "disk", "2m", 64 << 10) as path:
        yield path


def test_a_disk_that_is_really_full(disk: Path, cache: Path) -> None:
    small = {"w": np.arange(2000, dtype=np.float64)}
    large = {"w": np.random.default_rng(0).integers(0, 256, 4 * MIB, np.uint8)}
    filler = disk / "filler"
    failed = 0
    with tierstore.init(disk / "store", chunk_size=MIB) as store:
        store.save("m", small)
        with pytest.raises(OutOfSpace, match="free some space"):
            store.save("m", large)
        for pages in range(0, 24, 2):
            filler.write_bytes(b"")
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            size = filler.stat().st_size
            os.truncate(filler, max(0, size - 4096 * pages))
            count = len(store.versions("m"))
            other = {"w": small["w"] + pages + 1}
            try:
                store.save("m", other)
                equal(store.load("m").load(), other)
            except OutOfSpace:
                failed += 1
                assert len(store.versions("m")) == count
            equal(store.load("m@1").load(), small)
            filler.unlink()
            undamaged(store)
    assert failed or disk.stat().st_dev == disk.parent.stat().st_dev
    with tierstore.open(disk / "store") as store:
        store.save("m", small)
        equal(store.load("m").load(), small)


NOBODY = """
import os, sys, tierstore
from tests.integration.kit import tensors
from tierstore.errors import TierstoreError
# what is imported late may lie where nobody else can read: use everything once
warm = tierstore.init(sys.argv[4] + "/warm")
warm.save("m", tensors(1))
warm.load("m").export(sys.argv[4] + "/out")
warm.load("m").tensor("emb")[3]
warm.close()
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    with tierstore.open(sys.argv[1]) as store:
        if sys.argv[2] == "save":
            store.save("m", tensors(2))
        elif sys.argv[2] == "load":
            print(store.load("m")["bias"].tobytes() == tensors(1)["bias"].tobytes())
        elif sys.argv[2] == "export":
            store.load("m").export(sys.argv[3])
        else:
            store.save("m", sys.argv[3])
    print("done")
except TierstoreError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="tierstore-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for path in Path(name).rglob("*"):
            path.chmod(path.stat().st_mode | 0o700)


def as_nobody(tmp_path: Path, *args: object) -> str:
    """What another user, or this one without the right to write, is told."""
    environment = os.environ | {"TIERSTORE_CACHE_DIR": "/proc/nowhere"}
    own = tmp_path / str(len(list(tmp_path.iterdir())))
    own.mkdir()
    return finished(python(NOBODY, *[*args, "-"][:3], own, env=environment))


def test_without_the_right_to_write(public: Path, cache: Path, tmp_path: Path) -> None:
    where = public / "store"
    with tierstore.init(where, chunk_size=MIB) as store:
        store.save("m", tensors(1))
    for path in [where, *where.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    answer = as_nobody(tmp_path, where, "save")
    assert answer.startswith("PermissionDenied"), answer
    assert "check the owner and mode" in answer
    answer = as_nobody(tmp_path, where, "load")
    assert answer == "True\ndone\n", "reading needs no right to write"
    target = public / "locked"
    target.mkdir(mode=0o555)
    answer = as_nobody(tmp_path, where, "export", target)
    assert answer.startswith("PermissionDenied"), answer
    assert "choose another directory" in answer
    assert list(target.iterdir()) == []
    secret = public / "secret"
    secret.mkdir()
    (secret / "model.safetensors").write_bytes(b"x")
    (secret / "model.safetensors").chmod(0)
    answer = as_nobody(tmp_path, where, "source", secret)
    assert answer.startswith("PermissionDenied"), answer
    assert "secret/model.safetensors" in answer
    for path in where.rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)
    with tierstore.open(where) as store:
        assert len(store.versions("m")) == 1
        assert store.check(read_data=True).findings == []


def test_a_store_without_a_place_to_write_at_all(before: MemoryStore, cache: Path) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return BackendError("read-only") if op in ("put", "put_if_absent", "delete") else None

    with opened(FaultyStore(before, plan), cache) as store:
        equal(store.load("m@prod").load(), FIRST)
        with pytest.raises(BackendError):
            save_second(store)
    assert intact(before, cache) == 1
