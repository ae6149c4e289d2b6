"""Preparation of msgspec's struct types for use by several threads.

msgspec inspects a type when it first meets it, by running Python code; when two threads do so for
the same type at once, the process crashes (seen with msgspec 0.22). So each type is inspected once,
under a lock.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

from tierstore.forks import begin

_S = TypeVar("_S", bound=msgspec.Struct)


class _Preparation:
    def __init__(self) -> None:
        self.done: set[type] = set()
        begin(self._begin)

    def _begin(self) -> None:
        self.lock = threading.Lock()


_state = _Preparation()


def prepared(model: type[_S]) -> type[_S]:
    """Return ``model`` once several threads may decode it at the same time."""
    if model not in _state.done:
        with _state.lock:
            msgspec.msgpack.Decoder(model)
            _state.done.add(model)
    return model
