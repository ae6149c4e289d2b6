"""The file in which a variant waits until it is saved."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tierstore.errors import SourceChanged
from tierstore.variants.spool import ArraySpool, Spooled

MIB = 1 << 20


def test_what_was_appended_is_read_at_any_offset(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * MIB + 1000)
    with ArraySpool(tmp_path) as spool:
        parts = [data[:10], data[10 : 2 * MIB], data[2 * MIB :]]
        assert [spool.append(memoryview(part)) for part in parts] == [0, 10, 2 * MIB]
        for start, size in [(0, len(data)), (5, 10), (MIB - 1, MIB + 20), (len(data) - 1, 1)]:
            out = bytearray(size)
            spool.read_into(start, memoryview(out))
            assert out == data[start : start + size]


def test_an_array_in_blocks(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((3000, 100))
    with ArraySpool(tmp_path) as spool:
        spooled = Spooled(spool, array)
        for at in range(0, 3000, 700):
            spooled.append(array[at : at + 700])
        out = bytearray(array.nbytes - 800)
        spooled.read_into(800, memoryview(out))
        assert (spooled.dtype, spooled.shape) == ("F64", (3000, 100))
        assert out == array.tobytes()[800:]


@pytest.mark.parametrize("at", [0, MIB + 5, 3 * MIB - 1])
def test_what_the_disk_changed_is_not_stored(tmp_path: Path, at: int) -> None:
    data = np.random.default_rng(0).bytes(3 * MIB)
    with ArraySpool(tmp_path) as spool:
        spool.append(memoryview(data))
        os.pwrite(spool._file.fileno(), bytes([data[at] ^ 1]), at)
        with pytest.raises(SourceChanged, match="the disk changed a variant"):
            spool.read_into(0, memoryview(bytearray(3 * MIB)))


def test_a_file_that_was_cut_short_is_not_stored(tmp_path: Path) -> None:
    with ArraySpool(tmp_path) as spool:
        spool.append(memoryview(bytes(range(100))))
        os.ftruncate(spool._file.fileno(), 50)
        with pytest.raises(SourceChanged):
            spool.read_into(0, memoryview(bytearray(100)))
