"""Big blobs of the local store are written past the page cache, with the same promises."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tierstore.blobs.local import direct
from tierstore.blobs.local.store import LocalStore
from tierstore.errors import OutOfSpace
from tierstore.ids import ByteRange

MIN = direct.MIN_BYTES


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(count).bytes(count)


@pytest.mark.parametrize("extra", [-1, 0, 1, 4095, 4096, 4097, MIN - 1, MIN, MIN + 5, 2 * MIN + 1])
def test_every_byte_arrives_at_any_size_and_cut(tmp_path: Path, extra: int) -> None:
    data = random_bytes(MIN + extra)
    cuts = [0, 1, 4097, 70_001, MIN // 2 + 3, len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
    store = LocalStore(str(tmp_path))
    store.put("a/b", parts)
    assert bytes(store.get("a/b")) == data
    assert bytes(store.get("a/b", ByteRange(len(data) - 3, len(data)))) == data[-3:]
    assert store.put_if_absent("a/c", data)
    assert (tmp_path / "a" / "c").read_bytes() == data


def test_big_blobs_go_past_the_page_cache_where_the_disk_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = fcntl.fcntl

    def watch(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL:
            asked.append(value & os.O_DIRECT)
        return real(fd, command, value)

    monkeypatch.setattr(fcntl, "fcntl", watch)
    store = LocalStore(str(tmp_path))
    store.put("small", bytes(MIN - 1))
    assert asked == []
    store.put("big", bytes(MIN))
    assert asked == [os.O_DIRECT, 0], "set for the aligned part and cleared for the rest"


def refuse_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def fcntl_(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here")
        return real(fd, command, value)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_)


def refuse_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "alignment")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)


def refuse_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def memfd_create(name: str) -> int:
        raise OSError(errno.EPERM, "not in this container")

    monkeypatch.setattr(os, "memfd_create", memfd_create)


def write_little(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: max(4096, len(data) // 2)]))


@pytest.mark.parametrize("limit", [refuse_flag, refuse_write, refuse_stage, write_little])
def test_a_file_system_that_cannot_is_written_the_usual_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: Callable[[pytest.MonkeyPatch], None],
) -> None:
    data = random_bytes(2 * MIN + 4099)
    limit(monkeypatch)
    store = LocalStore(str(tmp_path))
    store.put("k", data)
    monkeypatch.undo()
    assert (tmp_path / "k").read_bytes() == data


def test_a_disk_that_fills_in_the_middle_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIN + 8192, most))
    try:
        with pytest.raises(OutOfSpace, match="free some space"):
            store.put("k", random_bytes(4 * MIN))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert list(store.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
