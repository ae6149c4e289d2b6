"""The program's three streams, whatever they are connected to.

One that was closed when the program began is connected to nothing, so that no file that is opened
later takes its place and gets what is printed. One that breaks while the program runs is connected
to nothing from then on, so that the interpreter does not fail once more when it ends.
"""

from __future__ import annotations

import io
import os
import sys

STDOUT, STDERR = 1, 2


def prepare() -> None:
    """Connect what is closed to nothing, and make what cannot be printed no error."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _connect_to_nothing(fd)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - it lasts as long as the program
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name that the terminal's encoding lacks is escaped, not an error
        sys.stdout.reconfigure(errors="backslashreplace")


def drop(fd: int) -> None:
    """Connect a stream that broke to nothing."""
    _connect_to_nothing(fd)


def _connect_to_nothing(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)
    os.set_inheritable(fd, True)


def print_error(line: str) -> None:
    """Print a line on stderr; where that cannot be written to, nobody is there to be told."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop(STDERR)
