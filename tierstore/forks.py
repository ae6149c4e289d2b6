"""What a process that was forked begins anew, in one registry, and what a process ends with.

A fork copies one thread and all memory. In the child a lock that another thread held stays locked
for ever, threads and pools of them are gone, and connections, SQLite handles and native clients
are the parent's: what is sent, closed or freed there reaches the parent. So whatever holds such a
thing makes it in one method, and gives that to ``begin``.

The parent is left alone: nothing is done there before or after a fork.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

_methods: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}
"""In the order in which they were registered, so parts come before what is made of them."""
_forks = 0
_at_exit: set[Callable[[], None]] = set()
_at_finalization: set[Callable[[], None]] = set()
"""What ``at_end`` was given; children inherit both registrations."""


def begin(method: Callable[[], None]) -> None:
    """Call a bound method now, and in each process forked from here while its object lives.

    The method makes locks, threads and connections, or ``None`` for what is made at its first use.
    It must not wait, start a thread or use what it replaces: many children only run a program.
    """
    assert isinstance(method, MethodType)
    owner = weakref.ref(method.__self__, _forget)
    _methods[id(owner)] = owner, method.__func__
    method()


class OfProcess(Generic[_T]):
    """What each process needs one of its own of, such as a client. Thread-safe.

    A forked child makes its own at the first use, and leaves its parent's alone.

    Args:
        make: Makes it; called at once, and in each child that uses it.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._made: _T | None = None
        begin(self._begin)
        self._made = make()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        if self._made is not None:  # its connections are the parent's
            leave(self._made)
            self._made = None

    @property
    def made(self) -> _T | None:
        """What this process has made; ``None`` in a child that has not used it."""
        return self._made

    def get(self) -> _T:
        """Return this process's own; raises what making it raises."""
        made = self._made
        if made is None:  # the first use in a forked child
            with self._lock:
                made = self._made = self._made or self._make()
        return made


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


def at_end(end: Callable[[], None]) -> None:
    """Have ``end`` called when this process ends by itself, and when its forked children do.

    Processes of multiprocessing may end without ``atexit``, in a way of their own. Call this again
    whenever there is something to end: multiprocessing may have been imported meanwhile. ``end``
    may be called twice.
    """
    if end not in _at_exit:
        _at_exit.add(end)
        atexit.register(end)
    util = sys.modules.get("multiprocessing.util")
    if util is not None and end not in _at_finalization:
        _at_finalization.add(end)
        util.Finalize(None, end, exitpriority=0)
        # a child forgets what was registered before it runs, also what its arguments registered
        util.register_after_fork(end, lambda end: util.Finalize(None, end, exitpriority=0))


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
