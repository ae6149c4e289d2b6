"""The way of a byte through the package, counted: ``python -m tests.walks`` prints it.

A walk is the set of distinct functions of the package that lie on the stack, from the call of a
user to the call of the storage; what a thread does is joined to the stack that submitted it. Both
walks are cold and go to a plain local store: no hot tier, nothing cached, nothing wrapped.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import tierstore
from tierstore.blobs.local.store import LocalStore

PACKAGE = Path(tierstore.__file__).parent


@dataclass(frozen=True)
class Walk:
    """The functions on a stack, the outermost first, each once: (file, qualified name)."""

    functions: list[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(file for file, _ in self.functions))

    def __str__(self) -> str:
        lines = [f"  {file}: {name}" for file, name in self.functions]
        head = f"{len(self.functions)} functions in {len(self.files)} files"
        return "\n".join([head, *lines])


@dataclass
class Watch:
    """The deepest walk to each of the storage's methods that were watched."""

    walks: dict[str, Walk] = field(default_factory=dict)

    def note(self, method: str, stack: list[tuple[str, str]]) -> None:
        own = [
            (Path(file).relative_to(PACKAGE).as_posix(), name)
            for file, name in stack
            if Path(file).is_relative_to(PACKAGE)
        ]
        walk = Walk(list(dict.fromkeys(own)))
        known = self.walks.get(method)
        if known is None or len(walk.functions) > len(known.functions):
            self.walks[method] = walk


def _stack(frame: FrameType | None) -> list[tuple[str, str]]:
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_code.co_qualname))
        frame = frame.f_back
    return found[::-1]


@contextmanager
def watched(*methods: str, key: str = "") -> Iterator[Watch]:
    """Note how the methods of local stores are reached, for keys that begin with ``key``."""
    watch = Watch()
    own = threading.local()
    submit = ThreadPoolExecutor.submit
    real = {method: getattr(LocalStore, method) for method in methods}

    def joined(self: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        above = [*getattr(own, "above", ()), *_stack(sys._getframe(1))]

        def run(*given: Any) -> Any:
            own.above = above
            return work(*given)

        return submit(self, run, *args)

    def watching(method: str) -> Callable[..., Any]:
        def call(self: LocalStore, first: Any, *rest: Any) -> Any:
            named = first if isinstance(first, str) else first[0].key
            if named.startswith(key):
                watch.note(method, [*getattr(own, "above", ()), *_stack(sys._getframe(1))])
            return real[method](self, first, *rest)

        return call

    ThreadPoolExecutor.submit = joined  # type: ignore[method-assign, assignment]
    for method in methods:
        setattr(LocalStore, method, watching(method))
    try:
        yield watch
    finally:
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        for method, function in real.items():
            setattr(LocalStore, method, function)


def save_walk(folder: Path) -> Walk:
    """From ``Store.save`` to the call that stores a pack."""
    with tierstore.init(folder / "saved") as store, watched("put", key="packs/") as watch:
        # more than a pack, so that the first one is written while the save goes on
        store.save("m", {"w": np.random.default_rng(0).standard_normal(25 << 20, np.float32)})
    return watch.walks["put"]


def load_walk(folder: Path) -> Walk:
    """From ``model["w"]`` to the call that reads frames."""
    with tierstore.init(folder / "loaded") as store:
        store.save("m", {"w": np.arange(3 << 20, dtype=np.float32)})
    with tierstore.open(folder / "loaded") as store:
        model = store.load("m")
        with watched("get_ranges") as watch:
            model["w"]
    return watch.walks["get_ranges"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for title, walk in (("save", save_walk(Path(name))), ("load", load_walk(Path(name)))):
            print(f"{title}: {walk}")
