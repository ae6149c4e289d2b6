"""What the tests of the model store share: small stores, small models, and what they must give."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tierstore.blobs.base import BlobStore
from tierstore.format.paths import EXPORT_LIST
from tierstore.modelstore.home.condemned import CondemnedPacks
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.serving import opened as through_urls

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def settings(cache: Path) -> Settings:
    return Settings(cache, threads=2, memory_limit_bytes=64 * MIB)


def opened(blobs: BlobStore, cache: Path) -> Store:
    return Store(blobs, settings(cache))


def created(blobs: BlobStore, cache: Path, chunk_size: int = MIB) -> Store:
    create_config(blobs, chunk_size)
    return opened(blobs, cache)


def close_shared() -> None:
    """Close the stores that were opened through URLs, as at the end of the process."""
    through_urls._opened.close()


def tensors(seed: int, rows: int = 300) -> dict[str, np.ndarray]:
    """A model of two chunks and some small ones; models of different seeds share ``common``."""
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((rows, 1000), np.float32),
        "bias": rng.integers(0, 9, 77).astype(np.int8),
        "common": np.arange(5000, dtype=np.float64),
    }


def equal(got: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), f"the bytes of {name!r} differ"


def safetensors_bytes(
    parts: list[tuple[str, str, list[int], bytes]], metadata: dict[str, str] | None = None
) -> bytes:
    """A file by the plainest writer there is, in the order given."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, dtype, shape, data in parts:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in parts)


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file below ``root`` by its path, without the list of an export."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != EXPORT_LIST
    }


def python(code: str, *args: object, **more: Any) -> subprocess.Popen[str]:
    """Start a process of its own that runs ``code``."""
    command = [sys.executable, "-c", code, *map(str, args)]
    kwargs: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "cwd": ROOT,
    } | more
    return subprocess.Popen(command, text=True, **kwargs)


def finished(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """Wait for a process that must succeed; what it printed."""
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{errors}"
    return out


def condemn(blobs: BlobStore, *packs: str) -> None:
    """Condemn packs, by their keys, as a collector does."""
    ids = [bytes.fromhex(key.rpartition("/")[2]) for key in packs]
    CondemnedPacks(blobs).condemn(ids, run=uuid.uuid4().hex, now_us=time.time_ns() // 1000)


@contextmanager
def small_disk(path: Path, size: str, file_limit: int) -> Iterator[Path]:
    """A new directory that soon is full: a tmpfs of ``size``, or where nothing can be mounted a
    limit of ``file_limit`` bytes on every file of this process.
    """
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        try:
            yield path
        finally:
            subprocess.run(["umount", str(path)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
    try:
        yield path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
