"""Locks on open files of this node (flock(2)), which end with the process that took them.

The kernel gives a lock back when its process ends, however it ends, but for one case: a child that
was forked meanwhile has a copy of the open file, and would hold the lock as long as it lives. So a
child gives all its copies up at once. Their numbers stay taken until they are closed, and lead
nowhere: what the child still does with them reaches nothing of its parent's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from tierstore.forks import begin


class _Held:
    """The open files that this process has locked, or that are part of what it has locked."""

    def __init__(self) -> None:
        self.fds: set[int] = set()
        begin(self._begin)

    def _begin(self) -> None:
        given_up, self.fds = self.fds, set()
        with contextlib.suppress(OSError):  # whoever forked has closed one just now
            for fd in given_up:
                nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nothing, fd, inheritable=False)
                os.close(nothing)


_held = _Held()


def hold(fd: int) -> None:
    """Have children that are forked from here on give up their copy of an open file."""
    _held.fds.add(fd)


def is_held(fd: int) -> bool:
    """Return whether an open file is still this process's, and not that of one it was forked from.

    It is if it was held or locked, and not closed since.
    """
    return fd in _held.fds


def try_lock(fd: int) -> bool:
    """Lock an open file until ``close``; return ``False`` if somebody else has.

    Raises:
        OSError: There are no locks in its file system.
    """
    hold(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(fd: int) -> None:
    """Lock an open file until ``close``, as soon as nobody else has it.

    Raises:
        OSError: There are no locks in its file system.
    """
    hold(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)


def close(fd: int) -> None:
    """Unlock and close an open file."""
    if fd in _held.fds:
        _held.fds.discard(fd)
        with contextlib.suppress(OSError):  # no locks there
            fcntl.flock(fd, fcntl.LOCK_UN)  # for whoever has a copy, too
    os.close(fd)
