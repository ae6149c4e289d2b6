"""``progress``: a function of the caller's hears of every byte; without tqdm there is no bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.errors import UsageError
from tierstore.progress import reported

MIB = 1 << 20


def weights() -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {name: generator.standard_normal((512, 1024), np.float32) for name in "ab"}


Told = list[tuple[int, int]]


Calls = dict[str, Callable[[Any], object]]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    """By name, calls that take ``progress``."""
    store = tierstore.init(tmp_path / "store", chunk_size=MIB)
    store.save("m", weights())
    model = store.load("m")
    yield {
        "save": lambda progress: store.save("n", weights(), progress=progress),
        "load": lambda progress: model.load(progress=progress),
        "export": lambda progress: model.export(tmp_path / "out", progress=progress),
        "export_tensors": lambda progress: model.export_tensors(
            ["a"], tmp_path / "a.safetensors", progress=progress
        ),
        "check": lambda progress: store.check(read_data=True, progress=progress),
        "derive": lambda progress: store.derive("m", {"cast": "bf16"}, progress=progress),
    }
    store.close()


@pytest.mark.parametrize("name", ["save", "load", "export", "export_tensors", "check", "derive"])
def test_a_function_hears_of_every_byte(name: str, calls: Calls) -> None:
    told: Told = []
    calls[name](lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1] >= (2 * MIB if name == "export_tensors" else 4 * MIB)


@pytest.mark.parametrize("progress", [None, False])
def test_nobody_is_told(progress: bool | None) -> None:
    with reported(progress, "saving m") as told:
        assert told is None


def test_a_function_is_given_as_it_is() -> None:
    def function(done: int, total: int) -> None:
        """Take what is told."""

    with reported(function, "saving m") as told:
        assert told is function


def test_a_bar_needs_tqdm(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    for call in calls.values():
        with pytest.raises(UsageError, match=r"pip install 'tierstore\[progress\]'"):
            call(True)
