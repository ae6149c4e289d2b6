"""A progress bar on stderr for commands that take over a second."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tierstore.cli.kit.output import printable, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE_S = 1.0


class ProgressBar:
    """A context manager that shows bytes, rate and remaining time once a second has passed.

    It can be passed as a ``progress`` callback, which takes the bytes done and the bytes in all;
    without such calls it shows the time that has passed. Nothing is shown where stderr is not a
    terminal.
    """

    def __init__(self, what: str, *, wanted: bool) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._bar: tuple[Progress, TaskID] | None = None
        self._state = (0, 0)
        self._ended = False
        self._timer: threading.Timer | None = None
        if wanted and sys.stderr is not None and sys.stderr.isatty():
            self._timer = threading.Timer(_PATIENCE_S, self._start)
            self._timer.daemon = True

    def __call__(self, done: int, total: int) -> None:
        self._state = (done, total)
        if self._bar:
            bar, task = self._bar
            bar.update(task, completed=done, total=total)

    def describe(self, what: str) -> None:
        """Change the text in front of the bar."""
        self._what = what
        if self._bar:
            bar, task = self._bar
            bar.update(task, description=printable(what))

    def __enter__(self) -> Self:
        if self._timer:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._bar:
                self._bar[0].stop()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column
        from rich.text import Text

        # what is counted may be known only later than the bar is there: a task has a total then
        class Bytes(ProgressColumn):
            def render(self, task: Task) -> Text:
                if not task.total:
                    return Text()
                done = f"{size(int(task.completed))} of {size(int(task.total))}"
                return Text(f"{done}, {size(int(task.speed))}/s" if task.speed else done)

        class Time(ProgressColumn):
            def __init__(self) -> None:
                super().__init__()
                self._elapsed, self._remaining = TimeElapsedColumn(), TimeRemainingColumn()

            def render(self, task: Task) -> Text:
                return (self._remaining if task.total else self._elapsed).render(task)

        with self._lock:
            if self._ended:
                return
            done, total = self._state
            bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                Bytes(Column(no_wrap=True)),
                Time(),
                console=Console(stderr=True),
                transient=True,
            )
            what = printable(self._what)
            self._bar = (bar, bar.add_task(what, completed=done, total=total or None))
            bar.start()
