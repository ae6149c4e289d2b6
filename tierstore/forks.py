"""What a process that was forked begins anew, in one registry.

A fork copies one thread and all memory. In the child a lock that another thread held stays locked
for ever, threads and pools of them are gone, and connections, SQLite handles and native clients
are the parent's: what is sent, closed or freed there reaches the parent. So whatever holds such a
thing makes it in one method, and gives that to ``begin``.

The parent is left alone: nothing is done there before or after a fork.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

_methods: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}
"""In the order in which they were registered, so parts come before what is made of them."""
_forks = 0


def begin(method: Callable[[], None]) -> None:
    """Call a bound method now, and in each process forked from here while its object lives.

    The method makes locks, threads and connections, or ``None`` for what is made at its first use.
    It must not wait, start a thread or use what it replaces: many children only run a program.
    """
    assert isinstance(method, MethodType)
    owner = weakref.ref(method.__self__, _forget)
    _methods[id(owner)] = owner, method.__func__
    method()


def forks() -> int:
    """Return how many forks lie between this process and the one that imported tierstore."""
    return _forks


def leave(*things: object) -> None:
    """Never free objects of the parent's in this child, not even when the interpreter ends.

    For those whose end does something: sends to a server, removes a file, or waits for a thread.
    """
    import ctypes  # slow, and only children need it

    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _forget(owner: weakref.ref[Any]) -> None:
    _methods.pop(id(owner), None)


def _in_child() -> None:
    global _forks
    _forks += 1
    # all at once, so that no object ends before it was told
    methods = [(owner(), begin_in) for owner, begin_in in _methods.copy().values()]
    for owner, begin_in in methods:
        if owner is not None:
            begin_in(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
