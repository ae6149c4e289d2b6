"""SIGTERM ends a command as Ctrl-C does: what it has begun is cleaned up, and one line says so."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The program was asked to end by SIGTERM."""

    code = 128 + signal.SIGTERM


def end_on_sigterm() -> None:
    """Have SIGTERM raise ``Terminated``, as SIGINT raises ``KeyboardInterrupt``.

    Nothing happens where the signal is ignored, or handled by whoever called us.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def end_at_once() -> None:
    """Let a signal end the process without a word: the command is done, and all is cleaned up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated
