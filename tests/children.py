"""Forked children in tests: those that have a time limit, and those that are killed."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

HANGS = "hangs"


def forked(work: Mapping[str, Callable[[], object]], timeout_s: float = 60.0) -> dict[str, str]:
    """Run each callable in a child of its own, all at once; return what they returned, as text.

    A child that raises gives the error's type and message, one that is not done in time ``hangs``,
    with the stacks of its threads on stderr.
    """
    running: dict[str, tuple[int, int]] = {}
    for name, call in work.items():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(call, write)
        os.close(write)
        running[name] = pid, read
    deadline = time.monotonic() + timeout_s
    return {name: _result(pid, read, deadline) for name, (pid, read) in running.items()}


def _run(call: Callable[[], object], write: int) -> None:
    faulthandler.register(signal.SIGUSR1)  # a timer would need a thread of the parent's
    try:
        said = str(call())
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        said = f"{type(error).__name__}: {error}"
    os.write(write, said.encode()[:60_000])
    os._exit(0)


def _result(pid: int, read: int, deadline: float) -> str:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.2)  # for the stacks alone
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
            return HANGS
        time.sleep(0.01)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return said if status == 0 else f"exit {os.waitstatus_to_exitcode(status)}"


def die(*_args: object, **_kwargs: object) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object]) -> None:
    """Run ``work`` in a child process, which it kills."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@contextmanager
def outlived(work: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """Run ``work`` in a child that forks where ``work`` calls its argument, and is killed there.

    What it forked lives until the end of the block, with a copy of all files that were open.
    """
    waits, ends = os.pipe()
    told, tells = os.pipe()

    def fork() -> None:
        if os.fork():
            os.read(told, 1)
            die()
        os.close(ends)
        os.write(tells, b"x")
        os.read(waits, 1)  # until the test closes its end
        os._exit(0)

    try:
        killed(lambda: work(fork))
        yield
    finally:
        for fd in (ends, waits, told, tells):
            os.close(fd)
