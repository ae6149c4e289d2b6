"""Struct types that msgspec has looked through.

msgspec does so when it first meets a type, by running Python code; when two threads do it for the
same type at once, the process crashes (seen with msgspec 0.22). So the first time is one at a time.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

_S = TypeVar("_S", bound=msgspec.Struct)

_lock = threading.Lock()
_done: set[type] = set()


def prepared(model: type[_S]) -> type[_S]:
    """Return ``model``, once it may be decoded in several threads at once."""
    if model not in _done:
        with _lock:
            msgspec.msgpack.Decoder(model)
            _done.add(model)
    return model
