"""FsspecStore: what it promises of which file system, and how its failures read."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from tierstore.blobs.base import RangeRead
from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.errors import (
    BackendError,
    ConfigError,
    Damaged,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)


def test_capabilities(tmp_path: Path) -> None:
    local = FsspecStore(f"file://{tmp_path}").capabilities
    assert (local.put_if_absent, local.durable, local.atomic_put) == (True, False, True)
    memory = FsspecStore("memory://caps").capabilities
    assert (memory.put_if_absent, memory.durable, memory.atomic_put) == (True, False, True)


def test_a_foreign_file_system_creates_nothing() -> None:
    store = FsspecStore("data://x")
    with pytest.raises(BackendError, match="creates nothing atomically"):
        store.put_if_absent("k", b"x")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutOfSpace),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionDenied),
        (PermissionError("token=SECRET"), PermissionDenied),
        (TimeoutError("token=SECRET"), Unreachable),
        (ConnectionResetError("token=SECRET"), Unreachable),
        (RuntimeError("token=SECRET"), BackendError),
    ],
)
def test_failures_are_translated_without_their_text(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[TierstoreError],
) -> None:
    store = FsspecStore(f"file://{tmp_path}")
    store.put("k", b"old")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise raised

    monkeypatch.setattr(LocalFileSystem, "mv", fail)
    with pytest.raises(TierstoreError, match="'k'") as caught:
        store.put("k", b"new")
    assert type(caught.value) is kind
    assert "SECRET" not in str(caught.value)
    assert bytes(store.get("k")) == b"old"
    assert list((tmp_path / ".tmp~").iterdir()) == []


def test_short_reads_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecStore(f"file://{tmp_path}")
    store.put("k", b"0123456789")
    cat = LocalFileSystem.cat_file
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *args, **kw: cat(*args, **kw)[:-1])
    with pytest.raises(Damaged, match="1 bytes before"):
        store.get_ranges([RangeRead("k", 2, memoryview(bytearray(5)))])


def test_a_blob_that_cannot_be_deleted_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FsspecStore(f"file://{tmp_path}/s")
    for key in ("a", "b", "c"):
        store.put(key, b"x")
    remove = LocalFileSystem.rm_file

    def refusing(self: LocalFileSystem, path: str) -> None:
        if path.endswith("/a"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        remove(self, path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", refusing)
    with pytest.raises(PermissionDenied, match="'a'"):
        store.delete(["a", "b", "c"])
    assert [info.key for info in store.list()] == ["a"]


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        FsspecStore("nonsense://host/path")


def test_the_first_write_removes_what_a_killed_writer_left_a_day_ago(tmp_path: Path) -> None:
    FsspecStore(f"file://{tmp_path}").put("a", b"1")
    old, young = tmp_path / ".tmp~/old", tmp_path / ".tmp~/young"
    for path in (old, young):
        path.write_bytes(b"half a blob")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    FsspecStore(f"file://{tmp_path}").put("b", b"2")
    assert not old.exists()
    assert young.exists(), "its writer may be at work"
