"""Forked children in tests: each has a time limit, and a hanging one is killed and named."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping

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
