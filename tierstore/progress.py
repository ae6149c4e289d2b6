"""The progress of a long call, which is passed to a function of the caller or drawn as a bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from tierstore.errors import UsageError

Progress: TypeAlias = Callable[[int, int], None]
"""A function that is called with the bytes done and the bytes in all, from any thread."""


@contextmanager
def reported(progress: Progress | bool | None, what: str) -> Iterator[Progress | None]:
    """Yield the function to call with the progress of a call, or ``None``.

    Args:
        progress: ``True`` for a bar in a terminal or a notebook, which needs the extra
            ``tierstore[progress]``; or a function, which is yielded as it is; or ``None`` or
            ``False`` for neither.
        what: Text before the bar.

    Raises:
        UsageError: ``progress`` is something else, or there is no tqdm to draw a bar.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _Bar(what) as bar:
            yield bar
    elif callable(progress):
        yield progress
    else:
        raise UsageError(
            "progress is True for a bar, or a function that takes the bytes done and the bytes in "
            f"all, not a value of type {type(progress).__name__}"
        )


class _Bar:
    """A bar of tqdm that appears when the first bytes are done. Thread-safe."""

    def __init__(self, what: str) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise UsageError(
                "progress=True draws its bar with tqdm: pip install 'tierstore[progress]', or give "
                "a function that takes the bytes done and the bytes in all"
            ) from None
        self._tqdm, self._what = tqdm, what
        self._lock = threading.Lock()
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._bar is None:
                notebook = any(base.__name__ == "tqdm_notebook" for base in self._tqdm.__mro__)
                self._bar = self._tqdm(
                    desc=self._what, total=total, unit="B", unit_scale=True, unit_divisor=1024,
                    disable=False if notebook else None,  # None: nothing in a log file or pipe
                )  # fmt: skip
            self._bar.total = total
            self._bar.update(max(0, done - self._bar.n))
