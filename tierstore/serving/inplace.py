"""Applying a new version to weights in service: only what changed is written, under a guard.

The new tensors are compared with the live ones while these serve. What differs is gathered, and the
pages that it goes to are made private to this process, before the guard is taken; so the guard is
held for copying alone, 2 ms for 10 MiB in 40,000 places. In a mapped model each of these places
would otherwise be a page to copy first, 150 ms in all.

The copying is one call that releases the interpreter. Calls of numpy, each of which has to get it
back, would wait up to 5 ms each for a thread that runs Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tierstore.arguments import as_table, as_whole, shown, wrong
from tierstore.errors import UsageError
from tierstore.modelstore.loading.arrays import array_bytes, writable_bytes
from tierstore.modelstore.version import Version
from tierstore.serving.update import Update
from tierstore.shown import counted

if TYPE_CHECKING:
    from tierstore.deferred import Bytes, Indices

_BLOCK_BYTES = 256
"""Smallest number of bytes that are compared and written together."""

_SEGMENT_BYTES = 32 << 20
_PAGE_BYTES = 4096
"""No page is smaller."""

try:
    _native: Any = import_module("tierstore.serving._scatter")
except ImportError:  # not built: no compiler when tierstore was installed
    _native = None

StagedWrite: TypeAlias = "tuple[Bytes, Indices, Bytes]"
"""Live bytes in rows of one unit each, the numbers of the rows to write, and their new content."""


class InPlace:
    """Applies versions to weights that stay where they are in memory; for ``tierstore.follow``.

    Without ``batch_bytes`` the guard is held once for a whole version: who holds it while answering
    never sees a mix of two versions. With it the guard is released after each batch, so that it is
    never held for long; each row is of one version, but between two batches some rows are new and
    some old. Where neither will do, use ``Update.tensors`` as the new weights instead.

    Args:
        state: For each tensor's name a writable, contiguous numpy array, or torch tensor on the
            CPU: your own, such as ``Store.load`` gives them, never those of an update. Names that
            it lacks are not applied.
        guard: A lock that requests take, too; held while live weights are written.
        batch_bytes: How much to write under one hold; a row (of the first dimension) at least.

    Raises:
        UsageError: ``state`` is no mapping, as a module is none; ``guard`` is no lock; or
            ``batch_bytes`` is below 256.

    Attributes:
        longest_pause_s: The longest that the guard was held, waiting for it not counted, in
            seconds.
        written_bytes: The bytes that the last update wrote.

    Examples:
        >>> import threading
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)}, alias="prod")
        >>> live = {"b": np.zeros(2, np.float32)}
        >>> apply = tierstore.InPlace(live, threading.Lock())
        >>> with tierstore.follow("ranker@prod", apply, store=store) as follower:
        ...     follower.wait(60)
        True
        >>> live["b"]
        array([1., 1.], dtype=float32)
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        guard: AbstractContextManager[Any],
        *,
        batch_bytes: int | None = None,
    ) -> None:
        if callable(getattr(state, "state_dict", None)):
            raise UsageError(
                f"state takes tensors by name, not {shown(state)}: give its state_dict()"
            )
        as_table("state", state, "{'weight': array}")
        if not hasattr(guard, "__enter__"):
            raise wrong("guard", "a lock, such as threading.Lock()", guard)
        if batch_bytes is not None:
            meant = f"bytes as a whole number, {_BLOCK_BYTES} or more"
            batch_bytes = as_whole("batch_bytes", batch_bytes, meant, _BLOCK_BYTES)
        self._state, self._guard = state, guard
        self._batch = batch_bytes
        self._applied: Version | None = None
        self.longest_pause_s = 0.0
        self.written_bytes = 0

    def __repr__(self) -> str:
        has = f"has {self._applied}" if self._applied else "nothing applied yet"
        return f"<InPlace of {counted(len(self._state), 'tensor')}: {has}>"

    def __call__(self, update: Update) -> None:
        """Apply an update.

        Raises:
            UsageError: A tensor has another shape or dtype than the live one, or is not in the
                version; nothing was written.
        """
        pairs = self._pairs(update)
        staged = [part for pair in pairs for part in _differences(*pair)]
        self.written_bytes = sum(values.nbytes for _, _, values in staged)
        self._applied = None  # until all of it is written, nobody knows what is there
        _prepare(staged)
        for batch in self._batches(staged):
            with self._guard:
                began = time.perf_counter()
                _write(batch)
                self.longest_pause_s = max(self.longest_pause_s, time.perf_counter() - began)
        self._applied = update.version

    def _pairs(self, update: Update) -> list[tuple[Bytes, Bytes, int]]:
        missing = sorted(self._state.keys() - update.tensors.keys())
        if missing:
            raise UsageError(f"{update.version} has no tensor {missing[0]!r} to apply")
        known = self._applied is not None and str(self._applied) == str(update.previous)
        changed = update.changed if known else tuple(self._state)
        found = []
        for name in changed:
            if name not in self._state:
                continue
            new, target = update.tensors[name], self._state[name]
            here, there = array_bytes(name, target), update.model.tensor(name)
            if (here.dtype, tuple(here.shape)) != (there.dtype, tuple(there.shape)):
                raise UsageError(
                    f"tensor {name!r} is {there.dtype} {list(there.shape)} in {update.version}, "
                    f"and {here.dtype} {list(here.shape)} here: load it anew instead"
                )
            live = np.frombuffer(writable_bytes(name, target, new.nbytes), np.uint8)
            row = new.nbytes // new.shape[0] if new.ndim and new.nbytes else 1
            unit = _BLOCK_BYTES if self._batch is None else _rows_together(row)
            found.append((live, new.reshape(-1).view(np.uint8), unit))
        return found

    def _batches(self, staged: list[StagedWrite]) -> list[list[StagedWrite]]:
        if self._batch is None:
            return [staged] if staged else []
        found = []
        for live, where, values in staged:
            rows = max(1, self._batch // values.shape[1])
            for at in range(0, len(values), rows):
                found.append([(live, where[at : at + rows], values[at : at + rows])])
        return found


def _rows_together(row: int) -> int:
    """Return the bytes of the fewest rows that are ``_BLOCK_BYTES`` or more and whole words."""
    word = row * (8 // math.gcd(row, 8))
    return word * -(-_BLOCK_BYTES // word)


def _prepare(pieces: list[StagedWrite]) -> None:
    """Make the pages that will be written present and private to this process; no byte changes."""
    if _native is not None:
        _native.prepare(tuple(pieces))
        return
    for live, where, _ in pieces:
        for part in (live[:, ::_PAGE_BYTES], live[:, -1:]):
            part[where] = part[where]


def _write(pieces: list[StagedWrite]) -> None:
    if _native is not None:
        _native.write(tuple(pieces))
        return
    for live, where, values in pieces:
        live[where] = values


def _differences(live: Bytes, new: Bytes, unit: int) -> list[StagedWrite]:
    """Return pieces of ``unit`` bytes, a multiple of 8, that differ, and the rest at the end."""
    whole = live.nbytes // unit * unit
    rows, fresh = live[:whole].reshape(-1, unit), new[:whole].reshape(-1, unit)
    found: list[StagedWrite] = []
    step = max(1, _SEGMENT_BYTES // unit)
    for at in range(0, len(rows), step):
        old, now = rows[at : at + step], fresh[at : at + step]
        differs = (old.view(np.uint64) != now.view(np.uint64)).any(axis=1)
        where = np.flatnonzero(differs).astype(np.int64, copy=False)
        if where.size:
            found.append((old, where, now[where]))
    if (live[whole:] != new[whole:]).any():
        tail = live[whole:].reshape(1, -1)
        found.append((tail, np.zeros(1, np.int64), new[whole:].reshape(1, -1).copy()))
    return found
