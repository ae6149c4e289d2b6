"""Weights that stay where they are: what one hold of the guard does, and what it does not."""

from __future__ import annotations

import mmap
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.kit import equal
from tierstore.serving import inplace
from tierstore.serving.inplace import InPlace
from tierstore.serving.update import Update, read_update

RNG = np.random.default_rng(5)
ROWS = np.arange(0, 16_384, 16)
"""The rows that change: each 256 bytes lie in a page of their own."""


def model(version: int) -> dict[str, np.ndarray]:
    """All values of rows that change are the version's number, in three tables."""
    tables = {name: np.zeros((16_384, 64), np.float32) for name in ("a", "b", "c")}
    for table in tables.values():
        table[ROWS] = version
    return {**tables, "odd": np.full(331, version, np.int8)}  # no whole words


PLAIN = {name: RNG.standard_normal(array.shape).astype(array.dtype) for name, array in
         model(0).items()}  # fmt: skip


@pytest.fixture(params=["native", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with each of the two ways to write."""
    assert inplace._native, "tierstore.serving._scatter is missing: reinstall with a C compiler"
    if request.param == "numpy":
        monkeypatch.setattr(inplace, "_native", None)
    return str(request.param)


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[list[Update]]:
    """Versions 1 to 3, read one after the other."""
    with tierstore.init(tmp_path / "store") as store:
        found: list[Update] = []
        for number in (1, 2, 3):
            version = store.save("m", model(number))
            before = found[-1] if found else None
            found.append(read_update(store, version, before, warm=False, read=True))
        yield found


class Guard:
    """Tells what happened under it: how many pages had to be made."""

    def __init__(self) -> None:
        self.faults: list[int] = []
        self._before = 0

    def __enter__(self) -> None:
        self._before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    def __exit__(self, *_: object) -> None:
        now = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        self.faults.append(now - self._before)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Version 1, mapped from a file as a hot tier does it: every page is the file's until it is
    written to.
    """
    state = {}
    for name, array in model(1).items():
        file = path / name
        file.write_bytes(array.tobytes())
        with file.open("rb") as opened:
            memory = mmap.mmap(
                opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        state[name] = np.frombuffer(memory, array.dtype).reshape(array.shape)
        assert state[name].sum()  # read, as what serves is
    return state


def test_no_page_of_a_mapped_model_is_copied_under_the_guard(
    updates: list[Update], tmp_path: Path, way: str
) -> None:
    guard = Guard()
    state = mapped(tmp_path)
    applied = InPlace(state, guard)
    applied(updates[1])
    equal(state, model(2))
    assert applied.written_bytes >= 3 * len(ROWS) * 256
    (faults,) = guard.faults
    assert faults < len(ROWS) // 8, f"{faults} pages made under the guard, {3 * len(ROWS)} written"
    for name in ("a", "b", "c", "odd"):  # and the file has what it had
        assert (tmp_path / name).read_bytes() == model(1)[name].tobytes()


def test_one_hold_is_one_call(updates: list[Update], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each further one would wait for its turn with the interpreter."""
    calls: list[int] = []

    class Native:
        prepare = staticmethod(inplace._native.prepare)

        @staticmethod
        def write(pieces: tuple[Any, ...]) -> None:
            calls.append(len(pieces))
            native.write(pieces)

    native = inplace._native
    monkeypatch.setattr(inplace, "_native", Native)
    state = model(1)
    applied = InPlace(state, threading.Lock())
    for update in updates:
        applied(update)
    equal(state, model(3))
    assert calls == [5, 5]  # "odd" is two pieces; of version 1 nothing differs


def test_no_answer_is_mixed(updates: list[Update], way: str) -> None:
    state, lock, stop = model(1), threading.Lock(), threading.Event()
    seen: set[tuple[float, ...]] = set()

    def answer() -> None:
        while not stop.is_set():
            with lock:
                parts = [np.unique(table[ROWS] if table.ndim == 2 else table)
                         for table in state.values()]  # fmt: skip
            seen.add(tuple(np.concatenate(parts).tolist()))

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            for update in updates:
                InPlace(state, lock)(update)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    equal(state, model(3))
    assert seen <= {(float(n),) * 4 for n in (1, 2, 3)}, seen


def test_every_byte_arrives_whatever_was_there(updates: list[Update], way: str) -> None:
    for batch in (None, 4096):
        state = {name: array.copy() for name, array in PLAIN.items()}
        InPlace(state, threading.Lock(), batch_bytes=batch)(updates[2])
        equal(state, model(3))


def test_what_prepares_changes_nothing(way: str) -> None:
    live = RNG.integers(0, 256, 100_000, np.uint8)
    for unit in (256, 5000, 20_000):
        rows = live.reshape(-1, unit) if live.size % unit == 0 else live[:99_840].reshape(-1, unit)
        before = live.copy()
        where = np.arange(len(rows), dtype=np.int64)
        inplace._prepare([(rows, where, np.zeros_like(rows))])
        np.testing.assert_array_equal(live, before)


@pytest.mark.parametrize(
    ("where", "nbytes"),
    [([4], 8), ([-1], 8), ([0, 1 << 62], 16), ([0, 1], 15), ([0, 1, 2], 2), ([], 8), ([0], 0)],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    where: list[int], nbytes: int
) -> None:
    live = np.zeros(32, np.uint8)
    fits = (live, np.array([0], np.int64), np.ones(8, np.uint8))
    wrong = (live, np.array(where, np.int64), np.ones(nbytes, np.uint8))
    for act in (inplace._native.prepare, inplace._native.write):
        with pytest.raises(ValueError, match="do not fit"):
            act((fits, wrong))
        with pytest.raises((TypeError, BufferError, ValueError)):
            act((fits, (b"read-only", fits[1], fits[2])))
    assert not live.any()
