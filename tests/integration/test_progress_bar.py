"""``progress=True`` in a terminal, in a pipe and in a notebook."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import tqdm.auto
import tqdm.std

from tierstore.progress import reported

_PROGRAM = """
import sys
import numpy as np
import tierstore
with tierstore.init(sys.argv[1], chunk_size=1 << 20) as store:
    store.save("m", {"w": np.random.default_rng(1).standard_normal((1 << 20,), np.float32)},
               progress=True)
    store.load("m").load(progress=True)
    store.load("m").export(sys.argv[1] + "/../out", progress=True)
print("done")
"""


def command(folder: Path) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, str(folder / "store")]


def test_in_a_terminal(tmp_path: Path) -> None:
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 100))
    done = subprocess.run(
        command(tmp_path), stdout=subprocess.PIPE, stderr=other, check=True, timeout=120
    )
    os.close(other)
    with os.fdopen(main, "rb") as terminal:
        shown = _rest(terminal)
    assert done.stdout == b"done\n"
    for what in ("saving m", "loading m@1", "exporting m@1"):
        assert f"{what}: 100%" in shown
        assert "4.00M/4.00M" in shown


def _rest(terminal: io.BufferedReader) -> str:
    found = b""
    try:
        while data := os.read(terminal.fileno(), 1 << 16):
            found += data
    except OSError:  # EIO: nobody has the other end open any more
        pass
    return found.decode()


def test_in_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), capture_output=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"done\n", b"")


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is a terminal, and tqdm chooses the class of this name."""

    class tqdm_notebook(tqdm.std.tqdm):
        """Writes to a page, which stands for the widgets of a real one."""

        page = io.StringIO()

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, file=self.page, **kwargs)

    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm_notebook)
    with reported(True, "saving m") as told:
        assert told is not None
        told(512, 1024)
        told(1024, 1024)
    assert "saving m: 100%" in tqdm_notebook.page.getvalue()


def test_threads_share_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    bars: list[tqdm.std.tqdm] = []

    class Bar(tqdm.std.tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "file": page, "disable": False})
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    with reported(True, "loading") as told:
        assert told is not None
        threads = [threading.Thread(target=told, args=(n, 100)) for n in range(1, 101)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (bar,) = bars
    assert (bar.n, bar.total) == (100, 100)
    assert bar.disable, "it is closed"


def test_a_bar_is_closed_when_the_call_fails() -> None:
    def fails() -> None:
        with reported(True, "saving") as told:
            assert told is not None
            told(1, 2)
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fails()
    assert not tqdm.auto.tqdm._instances
