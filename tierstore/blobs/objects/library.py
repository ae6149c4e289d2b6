"""The library obstore, of which each process needs a copy of its own.

obstore's requests run in threads of a runtime that its native module keeps for good. A forked child
has that runtime without the threads, and every request hangs there, also one of a new client; what
it sends or frees reaches the parent's connections. So a child loads the native module once more,
from a copy in memory: to the loader that is another library, which starts with nothing. That takes
some 50 ms and 16 MB, at the child's first use of a bucket. Where there are no files in memory
(Linux alone has them), the child is refused.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import obstore

from tierstore.errors import BackendError
from tierstore.forks import begin, forks, leave

_NATIVE = "obstore._obstore"
_FILE = getattr(sys.modules[_NATIVE], "__file__", None)


class _Library:
    def __init__(self) -> None:
        self._module: Any = obstore
        self._loaded_after = forks()
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def module(self, url: str) -> Any:
        """Return obstore for this process; ``url`` is for the message of ``BackendError``."""
        if self._loaded_after != forks():
            with self._lock:
                if self._loaded_after != forks():
                    self._module = _loaded_again(url)
                    self._loaded_after = forks()
        return self._module


_library = _Library()


def library(url: str) -> Any:
    """Return the module obstore, as this process may use it.

    Args:
        url: The bucket's URL, for the message.

    Raises:
        BackendError: This process was forked, and obstore cannot be loaded once more here.
    """
    return _library.module(url)


def _loaded_again(url: str) -> ModuleType:
    names = [name for name in sys.modules if name == "obstore" or name.startswith("obstore.")]
    old = {name: sys.modules.pop(name) for name in names}
    leave(*old.values())
    try:
        with _Copy() as copy:
            sys.meta_path.insert(0, copy)
            try:
                import_module("obstore")
                import_module("obstore.store")
                import_module("obstore.exceptions")
            finally:
                sys.meta_path.remove(copy)
    except (OSError, AttributeError, ImportError, TypeError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
            del sys.modules[name]
        sys.modules.update(old)
        raise BackendError(
            f"{url} cannot be used in this process, which was forked from one that had it open "
            f"({type(error).__name__}): start processes by 'spawn' or 'forkserver', or open the "
            "store in the children alone"
        ) from None
    return sys.modules["obstore"]


class _Copy:
    """Finds obstore's native module in a file in memory, which exists within the block."""

    def __enter__(self) -> _Copy:
        content = Path(_FILE or "").read_bytes()
        self._fd = os.memfd_create("obstore")
        with open(self._fd, "wb", closefd=False) as file:
            file.write(content)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _NATIVE:
            return None
        where = f"/proc/self/fd/{self._fd}"
        return ModuleSpec(name, ExtensionFileLoader(name, where), origin=where)
