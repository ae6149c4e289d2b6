"""The sources of a save: files on disk and arrays in memory, read once and in order.

A source is never mapped: a file that shrinks under a mapping kills the process, and one that
changes between hashing and encoding would be stored under a digest that is not its own.
"""

from __future__ import annotations

import bisect
import contextlib
import fnmatch
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tierstore.arguments import as_table, as_texts
from tierstore.errors import (
    InvalidName,
    InvalidSafetensors,
    NotFound,
    PermissionDenied,
    SourceChanged,
    SourceError,
    TierstoreError,
    UnsafeSource,
    UsageError,
)
from tierstore.format.checks import xxh3
from tierstore.format.exportlist import ExportList
from tierstore.format.manifest import FileEntry
from tierstore.format.paths import EXPORT_LIST, alike, check_new_path, is_own
from tierstore.format.reflog import Summary
from tierstore.format.safetensors import (
    Header,
    build_header,
    header_length,
    parse_header,
)
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.loading.arrays import ArrayBytes, array_bytes
from tierstore.modelstore.loading.exportdir import read_list
from tierstore.modelstore.places import StorePlaces
from tierstore.modelstore.saving.kinds import (
    BEGIN_BYTES,
    INDEX_SUFFIX,
    check_index,
    is_beside,
    library_opens,
    looks_like,
    may_be_safetensors,
    refuse_cache,
    refuse_pointer,
)
from tierstore.modelstore.saving.pickles import is_pickle
from tierstore.shown import counted

_log = logging.getLogger("tierstore.save")

SUFFIX = ".safetensors"
SKIPPED_FOLDERS = (".git", ".cache/huggingface")
_ARRAYS_PATH = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ReusedChunks:
    """A file that the store has already.

    Attributes:
        entry: The file's entry in the manifest.
        places: Places of its chunks, in order, with the sizes of their packs.
        bases: Places of the bases of those chunks that are deltas, with the sizes of their packs.
    """

    entry: FileEntry
    places: Sequence[tuple[ChunkPlace, int]]
    bases: Sequence[tuple[ChunkPlace, int]]


class SourceFile(ABC):
    """One file to be saved: its path in the version, its size and its safetensors header.

    A file with ``reused`` is stored already, and is not read. One with ``sha256`` is known by that,
    and what is stored of it must have it.
    """

    path: str
    size: int
    header: Header | None
    reused: ReusedChunks | None = None
    sha256: bytes | None = None

    @property
    def data_start(self) -> int:
        """Offset of the first byte behind the header."""
        return len(self.header.raw) if self.header else 0

    @abstractmethod
    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from ``offset`` on; ``SourceChanged`` when the file ends before."""

    @abstractmethod
    def finish(self) -> None:
        """Check that the source is unchanged (else ``SourceChanged``), and release it."""

    def close(self) -> None:  # noqa: B027 - arrays hold nothing open
        """Release the source; calling it twice is fine."""


def summary_of_files(files: Iterable[SourceFile]) -> Summary:
    """Return how large a version of these files is, as ``summary_of`` its manifest."""
    given = [*files]
    tensors = [len(file.header.tensors) for file in given if file.header]
    return Summary(bytes=sum(file.size for file in given), files=len(given), tensors=sum(tensors))


class DiskFile(SourceFile):
    """A regular file on disk.

    Args:
        path: Path in the version.
        where: Path on disk.
        sha256: The SHA-256 that the file must have, if it is known by that.
    """

    def __init__(self, path: str, where: Path, sha256: bytes | None = None) -> None:
        self.path, self.sha256 = path, sha256
        self._where = where
        # an upload lies under its digest, which its sender does not know
        self._shown = str(where) if sha256 is None else path
        self._fd: int | None = None
        with _explained(self._shown):
            found = where.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would have no size, and opening it waits
            raise UnsafeSource(f"{self._shown} is not a regular file; save a file or a directory")
        self._identity = _identity(found)
        self.size = self._identity[2]
        try:
            self.header = self._examined()
        finally:
            self.close()

    def _examined(self) -> Header | None:
        """Return the header, if this is a safetensors file; refuse what is no content."""
        begin = self.read(0, min(BEGIN_BYTES, self.size))
        assert self._fd is not None  # it was opened to be read
        if os.pread(self._fd, 1, self.size):  # as those of /proc, which have content and no size
            raise SourceError(
                f"{self._shown} goes on behind the {self.size} bytes that it is said to have: save "
                "a copy of it, or leave it out with exclude (--exclude)"
            )
        refuse_pointer(self._shown, begin, self.size)
        if self.path.endswith(SUFFIX):
            return self._named_header(begin)
        if may_be_safetensors(begin, self.size):
            with contextlib.suppress(InvalidSafetensors):
                return parse_header(self.read(0, header_length(begin[:8]) + 8), self.size)
        if self.size:
            refuse_pickle(self.path, begin, self._shown)
        return None

    def _named_header(self, begin: bytes) -> Header | None:
        """Return the header of what is called a safetensors file; ``None`` if it is to be bytes."""
        raw = b""
        try:
            length = header_length(begin[:8]) + 8
            if length > self.size:
                raise InvalidSafetensors(
                    f"the header of {length - 8} bytes is longer than the file of {self.size}"
                )
            raw = self.read(0, length)
            return parse_header(raw, self.size)
        except InvalidSafetensors as error:
            if not (raw and library_opens(raw, self.size)):
                why = f"{error}{looks_like(begin)}"
                raise InvalidSafetensors(f"{self._shown}: {why}; nothing was saved") from None
            _log.warning(
                "%s: %s. The safetensors library opens it, so it is stored as a plain file, of "
                "which no tensor can be read alone",
                self._shown,
                error,
            )
        return None

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on; ``SourceChanged`` if the file ends before."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, out: memoryview) -> None:
        with _explained(self._shown):
            if self._fd is None:
                self._fd = os.open(self._where, os.O_RDONLY | os.O_CLOEXEC)
                if _identity(os.fstat(self._fd)) != self._identity:
                    self._changed()
            done = 0
            while done < len(out):
                count = os.preadv(self._fd, [out[done:]], offset + done)
                if count == 0:
                    self._changed()
                done += count

    def finish(self) -> None:
        """Close the file; ``SourceChanged`` when somebody wrote to it meanwhile."""
        if self._fd is not None:
            same = _identity(os.fstat(self._fd)) == self._identity
            self.close()
            if not same:
                self._changed()

    def _changed(self) -> None:
        self.close()
        raise SourceChanged(
            f"{self._shown} changed while it was being saved; nothing was published. "
            "Save again once it is complete"
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _explained:
    """Turns OS errors of reading a source into tierstore's, naming the file."""

    def __init__(self, where: Path | str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TierstoreError):
            return
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"{self._where} does not exist; check the path") from None
        if isinstance(error, PermissionError):
            raise PermissionDenied(
                f"{self._where} cannot be read: permission denied; check its owner and mode"
            ) from None
        if isinstance(error, OSError):
            raise SourceError(f"{self._where} cannot be read: {error.strerror}") from error


class ArrayFile(SourceFile):
    """Tensors in memory, laid out as the safetensors file that the library would write."""

    def __init__(
        self,
        tensors: Mapping[str, Any],
        metadata: Mapping[str, str] | None,
        path: str = _ARRAYS_PATH,
    ) -> None:
        self.path = path
        for text in [*tensors, *(metadata or {}), *(metadata or {}).values()]:
            if not isinstance(text, str):
                raise UsageError(
                    f"names of tensors and metadata are text, not {type(text).__name__}: "
                    f"write {str(text)[:80]!r}"
                )
        self._arrays: dict[str, ArrayBytes] = {
            name: array_bytes(name, value) for name, value in tensors.items()
        }
        specs = [(name, array.dtype, array.shape) for name, array in self._arrays.items()]
        self.header = build_header(specs, metadata)
        self.size = self.data_start + self.header.data_size
        self._sums: list[tuple[str, int, int, int]] = []
        self._ends = [info.end for info in self.header.tensors]

    def read_into(self, offset: int, out: memoryview) -> None:
        assert self.header is not None
        if offset < self.data_start:  # only the header's own bytes, and only as a whole
            out[:] = self.header.raw[offset : offset + len(out)]
            return
        offset -= self.data_start
        tensors = self.header.tensors
        at = bisect.bisect_right(self._ends, offset)
        while out:
            info = tensors[at]
            start = offset - info.begin
            part = out[: info.end - offset]
            if part:
                self._arrays[info.name].read_into(start, part)
                self._sums.append((info.name, start, len(part), xxh3(part)))
            out = out[len(part) :]
            offset += len(part)
            at += 1

    def finish(self) -> None:
        """Read the arrays once more; ``SourceChanged`` when somebody wrote to one meanwhile."""
        again = bytearray(max((length for _, _, length, _ in self._sums), default=0))
        for name, start, length, value in self._sums:
            out = memoryview(again)[:length]
            self._arrays[name].read_into(start, out)
            if xxh3(out) != value:
                raise SourceChanged(
                    f"array {name!r} changed while it was being saved; nothing was published. "
                    "Save a copy of it, or wait until the training step is done"
                )
        self._sums = []


class BytesFile(SourceFile):
    """A file in memory that holds no tensors."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path, self.size, self.header = check_new_path(path), len(data), None
        refuse_pickle(path, data[:BEGIN_BYTES], path)
        refuse_pointer(path, data[:BEGIN_BYTES], self.size)
        self.data = data

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.data[offset : offset + len(out)]

    def finish(self) -> None:
        """Do nothing: bytes cannot change."""


def refuse_pickle(path: str, begin: bytes, shown: str) -> None:
    """Raise ``UnsafeSource`` for a pickle.

    Args:
        path: Path in the version.
        begin: The first 256 bytes of the file.
        shown: What the file is called in the message.
    """
    if is_pickle(path, begin):
        suffix = Path(path).suffix
        raise UnsafeSource(
            f"{shown} is a pickle: loading it can run any code, so it is not stored. "
            "Convert it with safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'model.safetensors'), or leave it out with exclude (--exclude) "
            f"'{f'*{suffix}' if suffix else Path(path).name}'"
        )


def open_source(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None,
    exclude: Sequence[str],
    allow_no_tensors: bool = False,
) -> list[SourceFile]:
    """Return the files of ``source``, sorted by path.

    Args:
        source: A safetensors file, a directory of a model, or tensors by name.
        metadata: ``__metadata__`` of the header, for tensors in memory only.
        exclude: Glob patterns of paths, relative to the directory, to leave out.
        allow_no_tensors: Whether a directory may hold no tensors at all.
    """
    exclude = as_texts("exclude", exclude, "['*.bin', 'checkpoints/*']")
    if metadata is not None:
        as_table("metadata", metadata, "{'step': '7'}")
    if isinstance(source, Mapping):
        if not source:
            raise SourceError("there are no tensors to save: the mapping is empty")
        return [ArrayFile(source, metadata)]
    if metadata is not None:
        raise UsageError("metadata can be given for tensors in memory only: files have their own")
    where = Path(source)
    with _explained(where):
        folder = where.is_dir()
    if folder:
        files = _open_directory(where, exclude)
        if not allow_no_tensors and not any(one.header and one.header.tensors for one in files):
            raise SourceError(
                f"{where} holds no tensors, only {counted(len(files), 'other file')}: is it the "
                "right directory? allow_no_tensors=True (--allow-no-tensors) saves it as it is"
            )
    else:
        files = [DiskFile(check_new_path(where.name), where)]
    return sorted(files, key=lambda file: file.path)


def _open_directory(where: Path, exclude: Sequence[str]) -> list[DiskFile]:
    before = _export_in(where)
    refuse_cache(where)
    files = [DiskFile(path, where / path) for path in _walk(where, exclude)]
    if _export_in(where) != before:
        raise SourceChanged(f"another version was exported to {where} meanwhile; save again")
    if not files:
        raise SourceError(f"{where} holds no files to save")
    paths = sorted(file.path for file in files)
    warn_of_alike(paths)
    for file in files:
        if file.path.endswith(INDEX_SUFFIX):
            check_index(str(where / file.path), file.path, file.read(0, file.size), paths)
            file.close()
    return files


def _walk(root: Path, exclude: Sequence[str]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        with _explained(Path(error.filename)):
            raise error

    beside: list[str] = []
    # links to files are followed (the Hugging Face cache is made of them), links to folders are
    # not: they can lead in circles
    for folder, folders, names in os.walk(root, onerror=fail):
        base = Path(folder).relative_to(root)
        below = {name: (base / name).as_posix() for name in sorted(folders)}
        folders[:] = [
            name
            for name, path in below.items()
            if path not in SKIPPED_FOLDERS
            and not is_own(name)
            and not _excluded(path, exclude, folder=True)
        ]
        if EXPORT_LIST in names:
            _export_in(Path(folder))
        names = [name for name in names if not is_own(name)]
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise UnsafeSource(
                    f"{Path(folder) / name} is a link to a folder, which save does not follow; "
                    "copy what it points to, or leave it out with exclude (--exclude)"
                )
        for name in names:
            path = (base / name).as_posix()
            if _excluded(path, exclude):
                continue
            if is_beside(name):
                beside.append(path)
                continue
            _check_regular(Path(folder) / name)
            try:
                yield check_new_path(path)
            except InvalidName as error:
                raise InvalidName(
                    f"{error}; rename it, or leave it out with exclude (--exclude)"
                ) from None
    if beside:
        _log.warning(
            "left out of %s, as no part of a model: %s", root, ", ".join(sorted(beside)[:10])
        )


def _check_regular(where: Path) -> None:
    if where.is_file():
        return
    if where.is_symlink() and not where.exists():
        raise UnsafeSource(
            f"{where} is a link to {where.readlink()}, which does not exist: complete what it "
            "links to, or leave it out with exclude (--exclude)"
        )
    raise UnsafeSource(f"{where} is not a regular file; leave it out with exclude (--exclude)")


def _export_in(folder: Path) -> ExportList | None:
    """Return the list of an export; ``SourceError`` if its files are not those of a version."""
    with _explained(folder):
        found = read_list(folder)
    if found is not None and not found.whole:
        raise SourceError(
            f"{folder} holds a part of {found.version} only: an export was interrupted. Export it "
            f"again; or remove {folder / EXPORT_LIST} if its files are those that you mean"
        )
    return found


def warn_of_alike(paths: Iterable[str]) -> None:
    """Log a warning if two names differ only by case: some file systems cannot hold both."""
    if found := alike(paths):
        _log.warning(
            "%r and %r differ only by case: a directory that takes them for one name cannot hold "
            "an export of this version",
            *found,
        )


def _excluded(path: str, patterns: Sequence[str], folder: bool = False) -> bool:
    """Return whether a pattern is the path itself, or matches it; ``sub/`` is a folder alone."""
    for pattern in patterns:
        glob = pattern.removeprefix("./")
        glob = glob.rstrip("/") if folder else glob
        if path == glob or fnmatch.fnmatchcase(path, glob):
            return True
    return False


def _refuse_other(source: object) -> NoReturn:
    what = f"a value of type {type(source).__name__}"
    if callable(getattr(source, "state_dict", None)):
        raise UsageError(f"save takes a path or tensors by name, not {what}: give its state_dict()")
    if hasattr(source, "dtype") and hasattr(source, "shape"):
        raise UsageError(
            f"save takes a path or tensors by name, not {what}: give it a name, {{'weight': …}}"
        )
    raise UsageError(f"save takes a path or tensors by name, {{'weight': array}}, not {what}")


def check_source(source: object, places: StorePlaces) -> None:
    """Raise ``UsageError`` for what cannot be saved whatever it holds, with what to give instead.

    It is neither a path nor tensors by name, or it overlaps with a place of the store.
    """
    if isinstance(source, Mapping):
        return
    if not isinstance(source, str | os.PathLike):
        _refuse_other(source)
    places.check(source)
