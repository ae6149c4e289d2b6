"""The progress bar of commands."""

from __future__ import annotations

import io

import pytest

from tierstore.cli.kit.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_that_is_there_before_anything_is_counted_shows_bytes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A save looks for what is stored before it counts, and takes over a second for that."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ProgressBar("saving m", wanted=True) as bar:
        bar._start()
        assert bar._bar is not None
        bar._bar[0].refresh()
        assert "0:00:00" in terminal.getvalue()
        assert " of " not in terminal.getvalue()
        bar(5 << 20, 10 << 20)
        bar._bar[0].refresh()
    assert "5.0 MiB of 10.0 MiB" in terminal.getvalue()
