"""What a process that was killed has left is swept by the next one; what lives is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.children import die, forked, killed, outlived
from tests.unit.test_tiers_local import STORE, chunk, hot, offer, read
from tierstore import config, locks, unfinished
from tierstore.blobs.local.store import TEMP_DIR, LocalStore
from tierstore.serving.node import Served
from tierstore.serving.vllm import local_files
from tierstore.tiers.activity import Activity
from tierstore.tiers.stats import TierStats
from tierstore.unfinished import TemporaryFolder, is_temporary, written_beside


def instead(name: str, do: Callable[..., object]) -> None:
    """Have this process do something else than a call of the system, but not in other threads."""
    call = getattr(os, name)

    def chosen(*args: object, **kwargs: object) -> object:
        main = threading.current_thread() is threading.main_thread()
        return (do if main else call)(*args, **kwargs)

    setattr(os, name, chosen)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path.name)]


def put(folder: Path) -> None:
    LocalStore(folder / "blobs", create=True).put("a/b", b"content")


def create(folder: Path) -> None:
    LocalStore(folder / "blobs", create=True).put_if_absent("a/c", b"content")


def note(folder: Path) -> None:
    Served(folder / "served" / "of-a-node").note(["m"], "m", "m@1")


def publish(folder: Path) -> None:
    stats = TierStats()
    stats.count(hits=1)
    Activity(folder / "activity", lambda: {"hot": stats}).publish()


def patch(folder: Path) -> None:
    zeros = tierstore.Dense(np.zeros(2, np.float32))
    tierstore.Patch.of("b3:" + 64 * "0", {"w": zeros}, {"w": (2,)}).save(folder / "patch")


def files_for_vllm(folder: Path) -> None:
    local_files(tierstore.open(folder / "store").load("m"), str(folder / "store"))


WRITERS = {
    "blobs": (put, "rename"), "created blobs": (create, "link"), "served": (note, "rename"),
    "activity": (publish, "rename"), "patch": (patch, "rename"),
    "files for vllm": (files_for_vllm, "rename"),
}  # fmt: skip
"""What writes into a folder, and the last call of the system that it makes for that."""


@pytest.fixture(scope="module")
def with_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "store"
    with tierstore.init(path) as store:
        store.save("m", {"w": np.ones(2, np.float32)})
    return path


@pytest.fixture
def folder(tmp_path: Path, with_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, and the cache."""
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "store").symlink_to(with_model)
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_the_next_writer_sweeps_what_a_killed_one_left(folder: Path, name: str) -> None:
    write, last_call = WRITERS[name]

    def die_while_writing() -> None:
        instead(last_call, die)
        write(folder)

    for _ in range(2):
        killed(die_while_writing)
        assert len(left(folder)) == 1, "the second one has swept what the first one left"
    write(folder)
    assert left(folder) == []


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_being_written_is_left_alone(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, last_call = WRITERS[name]
    call = getattr(os, last_call)
    monkeypatch.setattr(os, last_call, call)  # which puts it back
    seen: list[int] = []

    def meanwhile(*args: object, **kwargs: object) -> None:
        setattr(os, last_call, call)
        assert forked({"other": lambda: write(folder)}) == {"other": "None"}
        seen.append(len(left(folder)))
        call(*args, **kwargs)

    instead(last_call, meanwhile)
    write(folder)
    assert seen == [1], "the file of this one; that of the other one is in its place"
    assert left(folder) == []


@pytest.mark.parametrize("name", WRITERS)
def test_a_child_that_outlives_a_killed_writer_holds_nothing(folder: Path, name: str) -> None:
    write, last_call = WRITERS[name]

    def fork_while_writing(fork: Callable[[], None]) -> None:
        instead(last_call, lambda *_args, **_kwargs: fork())
        write(folder)

    with outlived(fork_while_writing):
        assert len(left(folder)) == 1
        write(folder)
        assert left(folder) == []


def test_a_child_that_outlives_a_killed_writer_of_a_chunk_holds_nothing(tmp_path: Path) -> None:
    one = chunk(1)

    def fork_while_writing(fork: Callable[[], None]) -> None:
        tier = hot(tmp_path)
        tier._dir.files.write = lambda *_: fork()  # type: ignore[method-assign]
        offer(tier, one)

    with outlived(fork_while_writing):
        assert len(list((tmp_path / STORE / "tmp~").iterdir())) == 1
        tier = hot(tmp_path)
        assert offer(tier, one) == [True]
        assert read(tier, one[0]) == one[1]


def test_a_child_that_leaves_the_block_removes_nothing_of_its_parents(tmp_path: Path) -> None:
    child = None
    try:
        with written_beside(tmp_path / "file") as fd, TemporaryFolder(tmp_path) as folder:
            os.write(fd, b"the parent's")
            child = os.fork()
            if not child:
                os.write(fd, b"the child's")
                raise ZeroDivisionError
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert len(left(tmp_path)) == 2
            assert folder.is_dir()
    except ZeroDivisionError:
        os._exit(7)
    finally:
        if child == 0:
            os._exit(8)
    assert (tmp_path / "file").read_bytes() == b"the parent's"
    assert left(tmp_path) == []


def test_a_lock_of_this_process_keeps_its_own_sweeps_away(tmp_path: Path) -> None:
    with written_beside(tmp_path / "one"):
        with written_beside(tmp_path / "two"):
            assert len(left(tmp_path)) == 2
        assert len(left(tmp_path)) == 1


def test_a_sweep_between_making_and_locking_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = unfinished._taken
    swept: list[Path] = []

    def late(fd: int) -> bool:
        if not swept:
            swept.extend(left(tmp_path))
            unfinished.sweep_path(tmp_path)
        return taken(fd)

    monkeypatch.setattr(unfinished, "_taken", late)
    for make in (lambda: TemporaryFolder(tmp_path), lambda: written_beside(tmp_path / "file")):
        swept.clear()
        with make():
            assert len(swept) == 1
            assert len(left(tmp_path)) == 1
            assert left(tmp_path) != swept


@pytest.mark.parametrize("why", ["network", "no locks"])
def test_where_locks_prove_nothing_a_day_decides(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if why == "network":
        monkeypatch.setattr(unfinished, "is_network", lambda path: True)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    old, young = (tmp_path / f".tierstore-{digit * 32}.tmp" for digit in "01")
    for path in (old, young):
        path.write_bytes(b"half a file")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    with written_beside(tmp_path / "file") as fd:
        os.write(fd, b"content")
    assert left(tmp_path) == [young]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_blobs_on_a_network_file_system_are_left_for_a_day(tmp_path: Path) -> None:
    def remote() -> LocalStore:
        store = LocalStore(tmp_path, create=True)
        store.__dict__["local"] = False
        return store

    def die_while_writing() -> None:
        instead("rename", die)
        remote().put("a", b"1")

    killed(die_while_writing)
    remote().put("b", b"2")
    [file] = left(tmp_path)
    os.utime(file, (time.time() - 25 * 3600,) * 2)
    remote().put("c", b"3")
    assert left(tmp_path) == []


def test_what_has_another_name_is_left_alone(tmp_path: Path) -> None:
    names = {".tierstore-export.json", "model.tmp", f".tierstore-{'0' * 31}.tmp", "tmp"}
    for name in names:
        (tmp_path / name).write_bytes(b"a user's")
        os.utime(tmp_path / name, (0, 0))
    with written_beside(tmp_path / "file"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*names, "file"}


def test_a_link_with_a_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f".tierstore-{'0' * 32}.tmp").symlink_to(tmp_path / "outside")
    unfinished.sweep_path(tmp_path / "in")
    assert (tmp_path / "outside" / "file").exists()


def test_folders_of_killed_processes_below_the_systems_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a demo, or of a cache where there is no home directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def cache_and_die() -> None:
        folder = config._of_this_process.__wrapped__()
        (folder / "content").write_bytes(b"x")
        die()

    killed(cache_and_die)
    assert len(left(tmp_path)) == 1
    with TemporaryFolder() as folder:
        assert left(tmp_path) == [folder]
        (folder / "content").touch()
    assert list(tmp_path.iterdir()) == []


def test_an_open_file_of_a_parent_leads_nowhere_in_the_child(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert locks.try_lock(fd)

    def child() -> str:
        held = locks.is_held(fd)
        os.write(fd, b"nowhere")
        locks.close(fd)
        return str(held)

    assert forked({"child": child}) == {"child": "False"}
    assert locks.is_held(fd)
    assert (tmp_path / "lock").read_bytes() == b""
    other = os.open(tmp_path / "lock", os.O_RDWR)
    assert not locks.try_lock(other), "the child's end has not unlocked it"
    locks.close(fd)
    locks.wait_lock(other)
    locks.close(other)
    assert not locks.is_held(fd)


def test_what_versions_before_left_in_a_store_goes_after_a_day(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"1")
    temp = store.root / TEMP_DIR
    old, young = temp / "1-old", temp / "1-young"
    for path in (old, young):
        path.write_bytes(b"half a blob")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    store.put("b", b"2")
    assert old.exists(), "not looked for at every write"
    LocalStore(store.root).put("c", b"3")
    assert not old.exists()
    assert young.exists(), "its writer may be at work, and locked nothing"
