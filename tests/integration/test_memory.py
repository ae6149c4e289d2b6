"""How much memory saving and loading take, measured in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.integration.kit import MIB, finished, python

# xorshift over a counter: cheap, and every word differs; the exponents repeat, so it compresses
WRITE = """
import json, sys
import numpy as np
size, path = int(sys.argv[1]), sys.argv[2]
rows = size // 4096
header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, size]}})
header += " " * (-len(header) % 8)
with open(path, "wb") as file:
    file.write(len(header).to_bytes(8, "little") + header.encode())
    for at in range(0, size, 1 << 22):
        words = np.arange(at, at + (1 << 22), 4, dtype=np.uint32) * np.uint32(2654435761)
        words ^= words >> np.uint32(13)
        file.write(((words & np.uint32(0x81FFFFFF)) | np.uint32(0x3C000000)).tobytes())
"""

MEASURE = """
import resource, sys, tierstore
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
url, what = sys.argv[1:3]
with tierstore.open(url) as store:
    store.save("warm", {"w": __import__("numpy").zeros(9)})
    store.load("warm").load()
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    if what == "save":
        store.save("m", sys.argv[3])
    elif what == "export":
        store.load("m").export(sys.argv[3])
    elif what == "sync":
        with tierstore.init(sys.argv[3]) as other:
            assert not store.sync(other).failed
    else:
        loaded = store.load("m").load()
        assert loaded["w"].nbytes == int(sys.argv[3])
print(peak() - before)
"""


@pytest.fixture
def made(tmp_path: Path, cache: Path) -> Path:
    import tierstore

    tierstore.init(tmp_path / "store").close()
    return tmp_path


def source(root: Path, size: int) -> Path:
    path = root / "model.safetensors"
    finished(python(WRITE, size, path))
    return path


def measure(root: Path, what: str, arg: object, **settings: str) -> int:
    process = python(MEASURE, root / "store", what, arg, env=os.environ | settings)
    return int(json.loads(finished(process)))


def test_memory_does_not_grow_with_the_model(made: Path) -> None:
    """256 MiB and 1 GiB: both within the bound, and what four times the size costs more is what
    packs wait in: of the small one the first is hardly full before the last is written.
    """
    saved = {}
    for size in (256 * MIB, 1024 * MIB):
        path = source(made, size)
        saved[size] = measure(made, "save", path)
        path.unlink()
    assert max(saved.values()) < 512 * MIB, saved
    assert saved[1024 * MIB] < saved[256 * MIB] + 256 * MIB, saved
    size = 1024 * MIB
    loaded = measure(made, "load", size)
    assert size <= loaded < size + 300 * MIB, f"{loaded / MIB:.0f} MiB"
    out = made / "out"
    exported = measure(made, "export", out)
    assert exported < 400 * MIB, f"{exported / MIB:.0f} MiB"
    (out / "model.safetensors").unlink()


@pytest.mark.parametrize("chunk", [4 * MIB, 16 * MIB])
def test_many_threads_keep_within_the_bound(tmp_path: Path, cache: Path, chunk: int) -> None:
    import tierstore

    tierstore.init(tmp_path / "store", chunk_size=chunk).close()
    path = source(tmp_path, 512 * MIB)
    saved = measure(tmp_path, "save", path, TIERSTORE_THREADS="64")
    path.unlink()
    assert saved < 512 * MIB, f"{saved / MIB:.0f} MiB"
    copied = measure(tmp_path, "sync", tmp_path / "other", TIERSTORE_THREADS="64")
    assert copied < 512 * MIB, f"{copied / MIB:.0f} MiB"
    loaded = measure(tmp_path, "load", 512 * MIB, TIERSTORE_THREADS="64")
    assert loaded < 812 * MIB, f"{loaded / MIB:.0f} MiB"
