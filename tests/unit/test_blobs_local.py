"""LocalStore: what a directory can do to a blob, and what must not come of it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tierstore.blobs.base import RangeRead
from tierstore.blobs.local.store import TEMP_DIR, LocalStore
from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace, PermissionDenied

_NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store", create=True)


def _keys(store: LocalStore) -> list[str]:
    return [info.key for info in store.list()]


def _temps(store: LocalStore) -> list[str]:
    folder = store.root / TEMP_DIR
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def _fork(work: Callable[[], object]) -> tuple[int, int]:
    """Start ``work`` in a child process; return its id and where its pickled result comes out."""
    out, into = os.pipe()
    child = os.fork()
    if child:
        os.close(into)
        return child, out
    try:
        try:
            result: object = work()
        except Exception as error:
            result = error
        os.write(into, pickle.dumps(result))
    finally:
        os._exit(0)


def _join(child: int, out: int) -> tuple[int, Any]:
    with os.fdopen(out, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, pickle.loads(data) if data else None


# Durability


class _Recorder:
    """Notes each call that matters to durability, by path, and carries it out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.seen: list[tuple[str, str]] = []
        fsync, rename, link, mkdir = os.fsync, os.rename, os.link, os.mkdir

        def on_fsync(fd: int) -> None:
            self.seen.append(("fsync", self._path(fd)))
            fsync(fd)

        def on_rename(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            self.seen.append(("rename", self._below(dst_dir_fd, dst)))
            rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        def on_link(src: str, dst: str, *, dst_dir_fd: int, **rest: Any) -> None:
            self.seen.append(("link", self._below(dst_dir_fd, dst)))
            link(src, dst, dst_dir_fd=dst_dir_fd, **rest)

        def on_mkdir(name: str, *rest: Any, dir_fd: int) -> None:
            self.seen.append(("mkdir", self._below(dir_fd, name)))
            mkdir(name, *rest, dir_fd=dir_fd)

        monkeypatch.setattr(os, "fsync", on_fsync)
        monkeypatch.setattr(os, "rename", on_rename)
        monkeypatch.setattr(os, "link", on_link)
        monkeypatch.setattr(os, "mkdir", on_mkdir)

    def _path(self, fd: int) -> str:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.parent.name == TEMP_DIR:
            return "temp"
        return "/" if path == self.root else f"/{path.relative_to(self.root)}"

    def _below(self, fd: int, name: str) -> str:
        return f"{self._path(fd).rstrip('/')}/{name}"


@pytest.mark.parametrize(("call", "place"), [("put", "rename"), ("put_if_absent", "link")])
def test_a_blob_is_synced_before_it_appears_and_its_directories_after(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, place: str
) -> None:
    recorder = _Recorder(monkeypatch, store.root)
    getattr(store, call)("a/b/k", b"data")
    seen = recorder.seen
    appeared = seen.index((place, "/a/b/k"))
    assert seen.count(("fsync", "temp")) == 1
    assert seen.index(("fsync", "temp")) < appeared, seen
    assert seen[appeared + 1] == ("fsync", "/a/b"), seen
    for made, parent in [("/a", "/"), ("/a/b", "/a")]:
        at = seen.index(("mkdir", made))
        assert seen[at + 1] == ("fsync", parent), seen
    seen.clear()
    getattr(store, call)("a/b/k2", b"data")
    assert seen == [("fsync", "temp"), (place, "/a/b/k2"), ("fsync", "/a/b")]


def test_a_directory_that_another_process_made_is_synced_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "a" / "b").mkdir(parents=True)
    recorder = _Recorder(monkeypatch, store.root)
    store.put("a/b/k", b"")
    appeared = recorder.seen.index(("rename", "/a/b/k"))
    assert {("fsync", "/"), ("fsync", "/a")} <= set(recorder.seen[:appeared]), recorder.seen


def test_losing_a_creation_makes_the_winner_durable(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_if_absent("a/k", b"winner")
    recorder = _Recorder(monkeypatch, store.root)
    assert store.put_if_absent("a/k", b"loser") is False
    assert recorder.seen == [("fsync", "/a")]


def test_a_deletion_is_synced(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a/k", b"")
    store.put("a/l", b"")
    recorder = _Recorder(monkeypatch, store.root)
    store.delete(["a/k", "a/l"])
    assert recorder.seen == [("fsync", "/a")]


def test_a_blob_that_cannot_be_deleted_keeps_no_other(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a/1", "a/2", "b/1"):
        store.put(key, b"x")
    unlink = os.unlink

    def refusing(path: str, *, dir_fd: int | None = None) -> None:
        if path == "1" and Path(f"/proc/self/fd/{dir_fd}").readlink().name == "a":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    with pytest.raises(PermissionDenied, match="'a/1'"):
        store.delete(["a/1", "a/2", "b/1"])
    assert _keys(store) == ["a/1"]


@pytest.mark.parametrize("call", ["put", "put_if_absent"])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_failing_sync_is_an_error(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, what: str
) -> None:
    store.put("a/old", b"")
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == (what == "directory"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(BackendError, match=r"'a/new'.*Input/output error"):
        getattr(store, call)("a/new", b"x")
    assert _temps(store) == []
    assert what == "directory" or _keys(store) == ["a/old"]


def test_a_file_system_that_cannot_sync_directories(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def picky(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", picky)
    store.put("a/k", b"x")
    assert bytes(store.get("a/k")) == b"x"


# Crashes


@pytest.mark.parametrize("call", ["put", "put_if_absent"])
@pytest.mark.parametrize("point", ["writev", "fsync", "rename", "link"])
def test_a_killed_writer_leaves_the_old_blob_or_the_new_one(
    store: LocalStore, call: str, point: str
) -> None:
    store.put("old", b"old")  # and the directories are known, so that fsync is the file's
    store.put("a/old", b"old")
    key = "a/old" if call == "put" else "a/new"

    def die_at_that_point() -> None:
        def die(*_args: object, **_kwargs: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, point, die)
        getattr(store, call)(key, b"new content")

    status, _ = _join(*_fork(die_at_that_point))
    reached = point in {"writev", "fsync", "rename" if call == "put" else "link"}
    assert os.WIFSIGNALED(status) == reached
    if reached:
        assert _keys(store) == ["a/old", "old"]
        assert bytes(store.get("a/old")) == b"old"
        assert len(_temps(store)) == 1
    getattr(LocalStore(store.root), call)(key, b"again")
    assert _temps(store) == [], "whoever writes next removes it"


def test_eight_processes_race_to_create(store: LocalStore) -> None:
    rounds = 40
    ready = multiprocessing.get_context("fork").Barrier(8)

    def race(n: int) -> list[bool]:
        mine = LocalStore(store.root)
        ready.wait(60)
        content = [bytes([n]) * 5000, bytes([n]) * 5000]
        return [mine.put_if_absent(f"refs/{turn}", content) for turn in range(rounds)]

    children = [_fork(lambda n=n: race(n)) for n in range(8)]  # type: ignore[misc]
    won = [_join(*child)[1] for child in children]
    for turn in range(rounds):
        winners = [n for n in range(8) if won[n][turn]]
        assert len(winners) == 1, f"refs/{turn} was created by {winners}"
        assert bytes(store.get(f"refs/{turn}")) == bytes([winners[0]]) * 10_000
    assert _temps(store) == []


# Full disks, missing rights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory that takes no file of 1 MiB: a tmpfs, or else a limit on file sizes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, hard))
    try:
        yield disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.put("k", b"old" * 1000)
    for write in (store.put, store.put_if_absent):
        key = "k" if write == store.put else "new"
        with pytest.raises(OutOfSpace, match=f"'{key}'.*free some space"):
            write(key, [b"x" * 1000] * 1100)
        assert _temps(store) == []
        assert _keys(store) == ["k"]
        assert bytes(store.get("k")) == b"old" * 1000
    store.put("k", b"x" * 100_000)
    assert store.info("k").size == 100_000


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A store that only its owner may enter a part of, on a path that everybody may walk."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        store = LocalStore(root)
        for key in ("open/k", "shut/k"):
            store.put(key, b"x")
        (root / "open" / "k").chmod(0o000)
        (root / "shut").chmod(0o000)
        (root / TEMP_DIR).chmod(0o555)
        root.chmod(0o555)
        yield root
        for path in (root, root / TEMP_DIR, root / "shut"):
            path.chmod(0o755)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put("new", b"x"),
        lambda store: store.put_if_absent("new", b"x"),
        lambda store: store.get("open/k"),
        lambda store: store.get("shut/k"),
        lambda store: store.get_ranges([RangeRead("open/k", 0, memoryview(bytearray(1)))]),
        lambda store: store.info("shut/k"),
        lambda store: store.delete(["shut/k"]),
        lambda store: list(store.list()),
    ],
)
def test_missing_rights(closed_directory: Path, call: Callable[[LocalStore], object]) -> None:
    def as_nobody() -> object:
        if os.geteuid() == 0:
            os.setuid(_NOBODY)
        return call(LocalStore(closed_directory))

    _, result = _join(*_fork(as_nobody))
    assert isinstance(result, PermissionDenied), result
    assert closed_directory.as_uri() in str(result)


def test_modes_follow_the_umask(store: LocalStore) -> None:
    old = os.umask(0o027)
    try:
        store.put("a/k", b"x")
        store.put_if_absent("a/l", b"x")
    finally:
        os.umask(old)
    assert [stat.S_IMODE((store.root / name).stat().st_mode) for name in ("a", "a/k", "a/l")] == [
        0o750,
        0o640,
        0o640,
    ]


# Strange directories


def test_symbolic_links_lead_nowhere(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (store.root / "dir").symlink_to(outside)
    (store.root / "blob").symlink_to(outside / "secret")
    for key in ("dir/secret", "blob"):
        for read in (store.get, store.info):
            with pytest.raises(NotFound):
                read(key)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(BackendError, match="'dir/new'"):
            write("dir/new", b"x")
    store.delete(["dir/secret"])
    assert list(store.list()) == []
    assert list(store.list("dir/")) == []
    assert list(store.list_folders()) == []
    with pytest.raises(BackendError, match="a symbolic link is in its place; move that away"):
        store.put_if_absent("blob", b"x")
    store.put("blob", b"mine")
    assert bytes(store.get("blob")) == b"mine"
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_what_is_no_file_is_no_blob(store: LocalStore) -> None:
    os.mkfifo(store.root / "pipe")
    (store.root / "folder").mkdir()
    for key in ("pipe", "folder"):
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound):
            store.info(key)
        with pytest.raises(BackendError, match=f"'{key}'.* special file is in its place; move"):
            store.put_if_absent(key, b"x")
    assert list(store.list()) == []
    with pytest.raises(BackendError, match=r"'folder'.*Is a directory; move that directory away"):
        store.put("folder", b"x")
    store.put("pipe", b"mine")
    assert bytes(store.get("pipe")) == b"mine"


def test_foreign_files_are_not_listed(store: LocalStore) -> None:
    (store.root / "a note~").write_bytes(b"")
    (store.root / "a dir").mkdir()
    (store.root / "a dir" / "x").write_bytes(b"")
    store.put("k", b"")
    assert _keys(store) == ["k"]
    assert list(store.list_folders()) == []


def test_the_root_may_be_a_link_but_must_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = LocalStore(tmp_path / "link")
    store.put("k", b"x")
    assert (tmp_path / "real" / "k").read_bytes() == b"x"
    (tmp_path / "link").unlink()
    calls: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.put("k", b""),
        lambda: store.delete(["k"]),
        lambda: list(store.list()),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="mounted"):
            call()


def test_without_hard_links_nothing_is_created(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not store.capabilities.put_if_absent
    with pytest.raises(BackendError, match="no hard links"):
        store.put_if_absent("k", b"x")
    assert _keys(store) == []
    assert _temps(store) == []


def test_a_link_whose_answer_was_lost_counts(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        link(*args, **kwargs)  # as an NFS client does that heard nothing the first time

    monkeypatch.setattr(os, "link", twice)
    assert store.put_if_absent("k", b"x") is True


# System calls that do less than they were asked for


def test_short_writes_and_reads(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writev, preadv, pread = os.writev, os.preadv, os.pread

    def one_view(views: list[memoryview]) -> list[memoryview]:
        return [views[0][:3]]

    monkeypatch.setattr(os, "writev", lambda fd, views: writev(fd, one_view(views)))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, one_view(views), at))
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 3), at))
    store.put("k", [b"0123456", b"", b"78", b"9"])
    assert bytes(store.get("k")) == b"0123456789"
    out = bytearray(10)
    view = memoryview(out)
    store.get_ranges([RangeRead("k", 0, view[:4]), RangeRead("k", 4, view[4:])])
    assert out == b"0123456789"


def test_a_blob_that_is_cut_while_it_is_read(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat = os.fstat

    def then_cut(fd: int) -> os.stat_result:
        found = fstat(fd)
        if stat.S_ISREG(found.st_mode):
            os.truncate(store.root / "k", 5)
        return found

    reads: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.get_ranges([RangeRead("k", 0, memoryview(bytearray(10)))]),
    ]
    for read in reads:
        store.put("k", b"0123456789")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", then_cut)
            with pytest.raises(Damaged, match="cut short"):
                read()


def test_no_descriptor_is_left_open(store: LocalStore) -> None:
    def use() -> None:
        store.put("a/b/k", b"x")
        store.put_if_absent("a/b/k", b"x")
        store.put_if_absent("a/b/l", b"x")
        store.get("a/b/k")
        next(store.list())
        list(store.list_folders())
        store.delete(["a/b/l", "no/pe"])
        for key in ("nope", "a/b", "a/b/k/x"):
            with contextlib.suppress(NotFound):
                store.get(key)
        with contextlib.suppress(BackendError):
            store.put("a/b/k/x", b"")

    use()
    before = len(list(Path("/proc/self/fd").iterdir()))
    use()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
