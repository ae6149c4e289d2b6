"""Starting real servers for tests: free ports, waiting until they answer, and never leaving any."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_PORTS = range(10_000, 20_000)
"""Of servers: below those that the system gives to clients. The second port of a Redis cluster's
node lies 10,000 above its first, so no other server may have one there."""


def free_port(ports: int = 1) -> int:
    """A TCP port on loopback that nothing listens on now, the first of so many in a row.

    Chosen at random, so that two workers do not find the same one before they use it.
    """
    while True:
        first = random.SystemRandom().choice(_PORTS[:-ports])
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + ports):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def program(name: str, package: str) -> str:
    """The path of a server's program; fails with the Debian package that has it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed: apt-get install --no-install-recommends {package}"
    return found


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Marked:
    """Whether the test that runs now is marked ``server``; outside of a test run everything is."""

    now = True


def need_marker() -> None:
    """Fails in a test that starts a server and does not say so."""
    assert Marked.now, "a test that starts a server is marked: pytestmark = pytest.mark.server"


@contextmanager
def running(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    *,
    log: Path,
    seconds: float = 60.0,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it dies with this process, whatever happens.

    Args:
        command: the program and its arguments; it stays in the foreground.
        ready: asked until it says yes; may raise ``OSError`` while the server is not there.
        log: where its output goes; its end is shown when it does not start.
        seconds: how long it may take to get ready.
        env: its environment, beside this process's own.
        cwd: its working directory.
    """
    need_marker()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})}, cwd=cwd, preexec_fn=_die_with_parent,
        )  # fmt: skip
    try:
        _wait(process, ready, log, seconds, str(command[0]))
        yield process
    finally:
        stop(process)


def _wait(
    process: subprocess.Popen[bytes],
    ready: Callable[[], bool],
    log: Path,
    seconds: float,
    name: str,
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.02)
    end = log.read_text(errors="replace")[-2000:]
    state = "runs but does not answer" if process.poll() is None else f"ended ({process.poll()})"
    raise AssertionError(f"{name} {state} after at most {seconds} s:\n{end}")


def stop(process: subprocess.Popen[Any], seconds: float = 10.0) -> None:
    """End a server: politely, then for sure. A stopped (SIGSTOP) one ends, too."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on the port."""
    with socket.create_connection((host, port), timeout=1):
        return True


def make_certificate(folder: Path) -> None:
    """``ca.pem``, an authority, and ``cert.pem`` and ``key.pem`` that it signed.

    They are for 127.0.0.1 and localhost.
    """
    _openssl(folder, "ca-key.pem", "ca.pem", "tierstore tests", "basicConstraints=critical,CA:TRUE")
    _openssl(
        folder, "key.pem", "cert.pem", "localhost", "basicConstraints=critical,CA:FALSE",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca-key.pem"),
    )  # fmt: skip


def _openssl(folder: Path, key: str, out: str, name: str, kind: str, *more: str) -> None:
    command = [
        program("openssl", "openssl"), "req", "-x509", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", f"/CN={name}",
        "-config", "/dev/null", "-addext", kind,
        "-keyout", str(folder / key), "-out", str(folder / out), *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def pause_process(pid: int) -> None:
    """Pause a process, and wait until each of its threads has stopped: none answers any more."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        if set(states) <= {"T", "t"}:
            return
        time.sleep(0.001)
    raise AssertionError(f"process {pid} does not stop: {states}")
