"""The values used last: made once, kept in number, and never an error kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tierstore.modelstore.chunks.recent import Recent


def test_only_the_last_ones_are_kept() -> None:
    made: list[bytes] = []

    def make(key: bytes) -> int:
        made.append(key)
        return len(made)

    recent: Recent[int] = Recent(2)
    assert [recent.get(key, make) for key in (b"a", b"b", b"a", b"c", b"a", b"b")] == [
        1,
        2,
        1,
        3,
        1,
        4,
    ]
    assert made == [b"a", b"b", b"c", b"b"]


def test_a_value_that_many_want_is_made_once() -> None:
    started, go = threading.Barrier(8), threading.Event()
    made: list[bytes] = []

    def make(key: bytes) -> int:
        made.append(key)
        assert go.wait(60)
        return len(made)

    recent: Recent[Any] = Recent(2)

    def want(_: int) -> int:
        started.wait(60)
        return recent.get(b"k", make)

    with ThreadPoolExecutor(8) as pool:
        wanted = [pool.submit(want, number) for number in range(8)]
        go.set()
        assert [future.result(60) for future in wanted] == [1] * 8
    assert made == [b"k"]


def test_an_error_is_given_to_all_and_not_kept() -> None:
    answers: list[object] = [ValueError("first"), 7]

    def make(key: bytes) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recent: Recent[Any] = Recent(2)
    with pytest.raises(ValueError, match="first"):
        recent.get(b"k", make)
    assert recent.get(b"k", make) == 7
