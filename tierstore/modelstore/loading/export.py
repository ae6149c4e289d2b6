"""Exports files byte-identical to what was saved."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path

from tierstore.errors import (
    BackendError,
    Damaged,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
)
from tierstore.format.exportlist import ExportList
from tierstore.format.manifest import FileEntry
from tierstore.format.safetensors import build_header
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.exportdir import Others, check_others, exporting
from tierstore.modelstore.loading.stored import PlacedPiece, VerifiedContent
from tierstore.modelstore.loading.tensor import VerifiedTensor
from tierstore.modelstore.version import FileInfo, Version
from tierstore.unfinished import written_beside

_WINDOW_BYTES = 64 << 20


def export_files(
    content: VerifiedContent,
    version: Version,
    files: Sequence[FileEntry],
    directory: str | os.PathLike[str],
    others: Others,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make ``directory`` hold exactly ``files`` of ``version``; see ``Model.export``."""
    check_others(others)
    total = sum(file.size for file in files)
    done = 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        if progress:
            progress(done, total)

    wanted = ExportList(
        version=str(version),
        digest=str(version.digest),
        whole=True,
        files=[file.path for file in files],
    )
    with explained(Path(directory)), exporting(directory, wanted, others) as target:
        for file in files:
            with explained(Path(directory, file.path)), target.file(file.path) as fd:
                _write_file(content, wanted.version, file, fd, count)


def export_tensors(
    content: VerifiedContent,
    tensors: Mapping[str, VerifiedTensor],
    metadata: Mapping[str, str] | None,
    target: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
) -> FileInfo:
    """Write ``tensors`` as one safetensors file; see ``Model.export_tensors``."""
    target = Path(target)
    header = build_header(
        [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()],
        metadata,
    )
    windows = _windows_of([tensors[info.name] for info in header.tensors], content)
    sha = hashlib.sha256()
    done, total = 0, len(header.raw) + header.data_size
    with explained(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with explained(target), written_beside(target) as fd:
        for window in chain([memoryview(header.raw)], windows):
            sha.update(window)
            _write_all(fd, window)
            done += len(window)
            if progress:
                progress(done, total)
    return FileInfo(target.name, total, sha.hexdigest(), header.metadata)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn OS errors of writing ``target`` into tierstore's; let the store's own errors pass."""
    try:
        yield
    except TierstoreError:
        raise
    except OSError as error:
        why = f"{target} cannot be written: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpace(f"{why}; free some space and export again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionDenied(f"{why}; choose another directory") from error
        raise BackendError(why) from error


def _write_file(
    content: VerifiedContent, title: str, file: FileEntry, fd: int, count: Callable[[int], None]
) -> None:
    sha = hashlib.sha256(file.header)
    _write_all(fd, file.header)
    count(len(file.header))
    for window in _windows(content, content.file_pieces(file)):
        sha.update(window)
        _write_all(fd, window)
        count(len(window))
    if sha.digest() != file.sha256:
        raise Damaged(
            f"{file.path} of {title} does not give the SHA-256 recorded when it was saved; "
            "nothing was exported; run 'tierstore check --read-data'"
        )


def _windows_of(
    tensors: Sequence[VerifiedTensor], content: VerifiedContent
) -> Iterator[memoryview]:
    """Yield the bytes of tensors, one after the other, in windows."""
    if any(tensor._overlays for tensor in tensors):  # patched: in no chunks as they are
        for tensor in tensors:
            for low in range(0, tensor.nbytes, _WINDOW_BYTES):
                out = memoryview(bytearray(min(_WINDOW_BYTES, tensor.nbytes - low)))
                tensor._fill(low, low + len(out), out, own=True)
                yield out
        return
    begins = accumulate((tensor.nbytes for tensor in tensors), initial=0)
    yield from _windows(
        content,
        [
            PlacedPiece(piece.place, begin + piece.begin, piece.plain_bytes)
            for tensor, begin in zip(tensors, begins, strict=False)
            for piece in tensor._base.chunks()
        ],
    )


def _windows(content: VerifiedContent, pieces: Iterable[PlacedPiece]) -> Iterator[memoryview]:
    """Yield a file's bytes behind its header; while one window is used the next one is read.

    ``pieces`` are the file's chunks in order, ``begin`` counting from behind its header.
    """
    window = min(_WINDOW_BYTES, content.reader.pool.memory_limit_bytes // 8)
    groups = list(batches(pieces, lambda piece: piece.plain_bytes, window))
    sizes = [sum(piece.plain_bytes for piece in group) for group in groups]
    buffers = [memoryview(bytearray(max(sizes, default=0))) for _ in groups[:2]]

    def read(number: int) -> memoryview:
        group = groups[number]
        out = buffers[number % 2][: sizes[number]]
        start = group[0].begin
        content.reader.read(
            [Want(p.place, out[p.begin - start : p.begin - start + p.plain_bytes]) for p in group],
            own=True,
        )
        return out

    with ThreadPoolExecutor(1, "tierstore-export") as ahead:
        pending = [ahead.submit(read, number) for number in range(min(1, len(groups)))]
        for number in range(len(groups)):
            current = pending.pop().result()
            if number + 1 < len(groups):
                pending.append(ahead.submit(read, number + 1))
            yield current


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
