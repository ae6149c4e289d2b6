"""A model whose every answer tells which version it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from blake3 import blake3

from tierstore import Rows

TABLES, WIDTH = 2, 64
SHARE = 0.01
STAMPED = "stamped"
"""The tensor that lists the rows of each table whose first and last number is the version's."""

Array = np.ndarray[Any, np.dtype[Any]]


class Content:
    """Versions of a model of ``mib`` MiB; 1 % of the rows of each table differ."""

    def __init__(self, mib: int) -> None:
        rng = np.random.default_rng(1)
        self.rows = (mib << 20) // TABLES // WIDTH // 4
        self.stamped = np.sort(rng.choice(self.rows, int(self.rows * SHARE), replace=False))
        self._plain = {
            f"table{n}": rng.standard_normal((self.rows, WIDTH), np.float32) for n in range(TABLES)
        }

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(array.nbytes for array in self.version(1).values())

    def version(self, number: int) -> dict[str, Array]:
        """All tensors of a version."""
        found: dict[str, Array] = {STAMPED: self.stamped}
        for name, change in self.changes(number).items():
            found[name] = self._plain[name].copy()
            found[name][self.stamped] = change.values
        return found

    def changes(self, number: int) -> dict[str, Rows]:
        """What makes any other version this one."""
        rng = np.random.default_rng(1000 + number)
        found = {}
        for name in self._plain:
            values = rng.standard_normal((len(self.stamped), WIDTH), np.float32)
            values[:, [0, -1]] = number
            found[name] = Rows(self.stamped, values)
        return found


def answer(tensors: Mapping[str, Array], rng: np.random.Generator) -> set[int]:
    """Look rows up in every table; the versions that they are of."""
    stamped = tensors[STAMPED]
    seen: set[float] = set()
    for name, table in tensors.items():
        if name != STAMPED:
            rows = table[stamped[rng.integers(0, len(stamped), 16)]]
            seen |= set(rows[:, [0, -1]].ravel().tolist())
    return {int(version) for version in seen}


def sum_of(tensors: Mapping[str, Array]) -> str:
    """A digest of all bytes of all tensors."""
    hashed = blake3()
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(_plain(tensors[name]))
    return hashed.hexdigest()


def _plain(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
