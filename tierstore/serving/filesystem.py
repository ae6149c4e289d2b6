"""``tierstore://`` for programs that read through fsspec: pandas, pyarrow, dask, ``fsspec.open``.

::

    tierstore://                                     the models of the store, as folders
    tierstore://ranker/                              the files of its newest version
    tierstore://ranker@prod/sub/model.safetensors    a file of a version

Files can only be read, since versions never change; ``put`` of a local directory saves it as a new
version of a model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from tierstore import config
from tierstore.errors import FileMissing, NotFound, UsageError
from tierstore.format.manifest import FileEntry
from tierstore.ids import ModelRef
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.serving.location import SCHEME, STORE, split_rest
from tierstore.serving.opened import open_model, open_shared

_WINDOW_BYTES = 64 << 20


class TierstoreFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The models of a store as a read-only file system of fsspec.

    Paths are ``tierstore://MODEL[@ALIAS|@NUMBER]/FILE``.

    Args:
        store: URL of the store; by default the one that ``TIERSTORE_STORE`` or the node's file
            names.
        refresh_s: Seconds for which a reference keeps the version that it had at its first use, so
            that files read one after the other are of one version.

    Raises:
        FileMissing: There is no such model, version or file; a ``FileNotFoundError``.
        InvalidName: A path is not allowed, such as one with ``..``.
    """

    protocol = "tierstore"
    root_marker = ""

    def __init__(self, store: str | None = None, refresh_s: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._url, self._refresh_s = store, refresh_s
        self._seen: dict[tuple[str, str], tuple[float, str]] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(stringify_path(path)).removeprefix(SCHEME)
        return text.partition(STORE)[0].strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        _, _, store = path.partition(STORE)
        return {"store": store} if store else {}

    @property
    def store(self) -> Store:
        """The store that is read."""
        return open_shared(self._url)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget which versions references point to, so that they are looked up again."""
        self._seen.clear()

    def _open_version(self, rest: str) -> tuple[Model, str]:
        """Open the version that a path names; returns it and the path in it, or ``NotFound``."""
        ref, path = split_rest(self.store, rest)
        key = config.store_url(self._url), ref
        at, version = self._seen.get(key, (0.0, ""))
        if version and time.monotonic() - at < self._refresh_s:
            return open_model(self._url, version), path
        model = open_model(self._url, ref)
        self._seen[key] = time.monotonic(), str(model.version)
        return model, path

    def _open_view(self, path: str) -> tuple[Model, FileView]:
        rest = self._strip_protocol(path)
        try:
            model, inner = self._open_version(rest)
            return model, model.open_file(inner)
        except NotFound as error:
            _missing(path, error)

    # Listing

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List what is in a folder, or the one file that ``path`` names."""
        rest = self._strip_protocol(path)
        entries = self._folder(rest)
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return ``name``, ``size`` in bytes and ``type`` of a path.

        For a file there are also its ``sha256``, its ``version`` and the time that was ``created``.
        """
        rest = self._strip_protocol(path)
        entries = self._folder(rest)
        alone = len(entries) == 1 and entries[0]["name"] == rest
        return entries[0] if alone else _folder_entry(rest)

    def isdir(self, path: str) -> bool:
        """Return whether there is such a folder; a store that fails raises."""
        try:
            return bool(self.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Any:
        """Walk through every folder below ``path``; see fsspec.

        By default a folder that does not exist is empty, but a store that fails raises: what could
        not be asked must not look empty.
        """
        if on_error == "omit":
            on_error = _raise_unless_missing
        return super().walk(path, maxdepth, topdown, on_error, **kwargs)

    def ukey(self, path: str) -> str:
        """Return the SHA-256 of a file, or version digest and path if patches change the file."""
        model, view = self._open_view(path)
        return view.sha256 or f"{model.version.digest.hex}/{view.path}"

    def created(self, path: str) -> Any:
        """Return the time at which the version was published."""
        return self._open_view(path)[0].version.created

    modified = created

    def _folder(self, rest: str) -> list[dict[str, Any]]:
        """List what is right below ``rest``, or ``rest`` itself if it is a file."""
        if not rest:
            return _children(rest, self.store.models())
        try:
            model, inner = self._open_version(rest)
        except NotFound as error:
            if "@" not in rest:
                below = [name for name in self.store.models() if name.startswith(f"{rest}/")]
                if below:
                    return _children(rest, below)
            _missing(rest, error)
        base = rest.removesuffix(inner).rstrip("/")
        if any(file.path == inner for file in model._opened.manifest.files):
            return [_file_entry(f"{base}/{inner}", model, model._file_entry(inner))]
        prefix = f"{inner}/" if inner else ""
        inside = [file for file in model._opened.manifest.files if file.path.startswith(prefix)]
        if inner and not inside:
            _missing(rest, f"{model.version} has no such file")
        entries = {}
        for file in inside:
            child, slash, _ = file.path[len(prefix) :].partition("/")
            name = f"{base}/{prefix}{child}"
            entries[name] = _folder_entry(name) if slash else _file_entry(name, model, file)
        return list(entries.values())

    # Reading

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any
    ) -> _StoredFile:
        if mode != "rb":
            _refuse(f"opening {path[:200]!r} for writing")
        kwargs.pop("autocommit", None)
        return _StoredFile(self, path, mode, block_size or "default", **kwargs)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Read the bytes ``[start, end)`` of a file; negative numbers count from its end."""
        _, view = self._open_view(path)
        return view.read_ranges([_range(view, start, end)])[0]

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Read many ranges; those of one file are read together and in parallel.

        ``max_gap`` is ignored: the store joins ranges that are close to each other itself.
        """
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("paths, starts and ends must be of one length")
        out: list[Any] = [b""] * len(paths)
        for path in dict.fromkeys(paths):
            mine = [number for number, one in enumerate(paths) if one == path]
            try:
                _, view = self._open_view(path)
                ranges = [_range(view, starts[number], ends[number]) for number in mine]
                read: Sequence[Any] = view.read_ranges(ranges)
            except Exception as error:
                if on_error != "return":
                    raise
                read = [error] * len(mine)
            for number, data in zip(mine, read, strict=True):
                out[number] = data
        return out

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy one file to a local path or an open file; for a folder, only make it."""
        if outfile is None and not isfilelike(lpath):
            if self.isdir(rpath):
                Path(lpath).mkdir(parents=True, exist_ok=True)
                return
            local = LocalFileSystem(auto_mkdir=True)
            local.makedirs(local._parent(lpath), exist_ok=True)
        _, view = self._open_view(rpath)
        callback.set_size(view.size)
        target = outfile if outfile is not None else lpath
        if isfilelike(target):
            _copy(view, target, callback)
            return
        with open(target, "wb") as file:
            _copy(view, file, callback)

    # Saving

    def put(
        self,
        lpath: Any,
        rpath: str,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a local directory as a new version: ``put("dir/", "tierstore://ranker@prod")``.

        Args:
            lpath: Path of one local directory.
            rpath: Model, with an alias if that is to point to the new version.
            recursive: Must be true.
            callback: Called with the bytes done.
            maxdepth: Must be ``None``.
        """
        source = lpath[0] if isinstance(lpath, list) and len(lpath) == 1 else lpath
        ref = ModelRef.parse(self._strip_protocol(rpath))
        source = str(stringify_path(source)).removeprefix("file://")
        if not recursive or maxdepth is not None or not Path(source).is_dir():
            _refuse("putting anything but a whole directory (with recursive=True)")
        if ref.number is not None or ref.prefix is not None or ref.variant is not None:
            _refuse(f"putting into {ref}, a version that exists")

        def progress(done: int, total: int) -> None:
            callback.set_size(total)
            callback.absolute_update(done)

        # files are put by name, whatever they hold
        self.store.save(
            ref.model, source, alias=ref.alias, allow_no_tensors=True, progress=progress
        )
        self.invalidate_cache()

    def put_file(self, lpath: Any, rpath: str, **kwargs: Any) -> None:
        """Raise ``UsageError``: files of a version never change."""
        _refuse(f"putting {str(lpath)[:200]!r}")

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        """Raise ``UsageError``: files of a version never change."""
        _refuse(f"writing {path[:200]!r}")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Raise ``UsageError``: files of a version never change."""
        _refuse(f"copying to {path2[:200]!r}")

    def _rm(self, path: str) -> None:
        _refuse(f"removing {path[:200]!r}")

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Raise ``UsageError``: folders are those of the files that were saved."""
        _refuse(f"making the folder {path[:200]!r}")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Raise ``UsageError``: folders are those of the files that were saved."""
        _refuse(f"making the folder {path[:200]!r}")

    def rmdir(self, path: str) -> None:
        """Raise ``UsageError``: a version never changes."""
        _refuse(f"removing the folder {path[:200]!r}")


class _StoredFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file; it stays the same when the alias that it was opened by moves on."""

    def __init__(
        self, fs: TierstoreFileSystem, path: str, mode: str, block_size: Any, **kwargs: Any
    ) -> None:
        _, self._view = fs._open_view(path)
        kwargs["size"] = self._view.size
        super().__init__(fs, path, mode, block_size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._view.read(start, max(0, end - start))


def _folder_entry(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file_entry(name: str, model: Model, file: FileEntry) -> dict[str, Any]:
    return {
        "name": name,
        "size": file.size,
        "type": "file",
        "sha256": file.sha256.hex(),
        "version": str(model.version),
        "created": model.version.created,
    }


def _children(rest: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the folders right below ``rest`` that hold models."""
    prefix = f"{rest}/" if rest else ""
    below = {prefix + name.removeprefix(prefix).partition("/")[0] for name in names}
    return [_folder_entry(name) for name in sorted(below)]


def _range(view: FileView, start: int | None, end: int | None) -> tuple[int, int]:
    """Return offset and length of ``[start, end)``, which counts as a slice of Python does."""
    low, high, _ = slice(start, end).indices(view.size)
    return low, max(0, high - low)


def _copy(view: FileView, target: Any, callback: Any) -> None:
    buffer = memoryview(bytearray(min(_WINDOW_BYTES, view.size)))
    for offset in range(0, view.size, _WINDOW_BYTES):
        count = view.read_into(offset, buffer)
        target.write(buffer[:count])
        callback.relative_update(count)


def _missing(path: str, why: object) -> NoReturn:
    raise FileMissing(f"No such file or directory: {path[:500]!r}: {why}") from None


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _refuse(what: str) -> NoReturn:
    raise UsageError(
        f"{what} is not possible: versions never change; 'put' a whole directory, or Store.save, "
        "makes a new one"
    )
