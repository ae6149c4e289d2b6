"""A version that was opened for reading."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tierstore import shown as display
from tierstore.arguments import as_list, as_path, as_table, shown
from tierstore.deferred import np
from tierstore.errors import NotFound, TensorMissing, UsageError
from tierstore.format.manifest import FileEntry
from tierstore.format.safetensors import parse_header
from tierstore.modelstore.chunks.origin import pickled
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.loading.arrays import as_torch, buffer_of_tensor
from tierstore.modelstore.loading.export import export_files, export_tensors
from tierstore.modelstore.loading.exportdir import Others
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.loading.stored import PlacedPiece
from tierstore.modelstore.loading.tensor import Tensor, read_into, read_tensors
from tierstore.modelstore.version import FileInfo, Version
from tierstore.progress import Progress, reported

_log = logging.getLogger("tierstore.load")

if TYPE_CHECKING:
    import os

    import numpy.typing as npt
    import torch


@dataclass(frozen=True, slots=True)
class LoadStats:
    """The cost of reading so far, in bytes.

    Attributes:
        bytes_fetched: Bytes read from durable tiers.
        bytes_decoded: Plain bytes decoded and verified.
        requests: Number of ranges read from durable tiers.
        bytes_by_tier: Bytes read by the tier's name: frames, or plain bytes of this node's tier.
        bytes_mapped: Plain bytes of tensors that were mapped from this node's tier instead.
        bytes_reused: Plain bytes that came out of hot tiers, mapped ones included, or by another
            reader of this process at the same time.
        bytes_delta: Plain bytes of chunks that came from durable tiers as deltas.
        bytes_full: Plain bytes of chunks that came from durable tiers standalone.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones(1000, np.float32)})
        >>> model = store.load("ranker")
        >>> _ = model.load()
        >>> model.stats.bytes_decoded, model.stats.requests
        (4000, 1)
    """

    bytes_fetched: int
    bytes_decoded: int
    requests: int
    bytes_by_tier: Mapping[str, int]
    bytes_mapped: int
    bytes_reused: int
    bytes_delta: int
    bytes_full: int

    def __add__(self, other: LoadStats) -> LoadStats:
        tiers = dict(self.bytes_by_tier)
        for name, nbytes in other.bytes_by_tier.items():
            tiers[name] = tiers.get(name, 0) + nbytes
        return LoadStats(
            self.bytes_fetched + other.bytes_fetched, self.bytes_decoded + other.bytes_decoded,
            self.requests + other.requests, tiers, self.bytes_mapped + other.bytes_mapped,
            self.bytes_reused + other.bytes_reused, self.bytes_delta + other.bytes_delta,
            self.bytes_full + other.bytes_full,
        )  # fmt: skip


class Model(Mapping[str, "npt.NDArray[Any]"]):
    """The tensors of one version by name, each read when it is asked for.

    A read-only mapping: ``model["w"]`` reads one tensor into a new numpy array, and
    ``model.tensor("w")`` reads nothing yet. bf16 and fp8 arrive as dtypes of ``ml_dtypes``; F4 and
    F6, which numpy does not have, as packed ``uint8`` in one dimension. A name that several files
    hold is addressed as ``path::name``. Thread-safe; pickled, it is what opens the same version
    again. Obtained from ``Store.load``.

    Attributes:
        version: The version that is read.

    Raises:
        TensorMissing: There is no tensor of a name; also a ``KeyError``.
        Damaged: Stored bytes do not match their digest.
        Unreachable: The storage does not answer. Both are raised by whatever reads.

    Examples:
        >>> store = tierstore.init("store")
        >>> weights = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
        >>> _ = store.save("ranker", weights)
        >>> model = store.load("ranker")
        >>> sorted(model), "w" in model, len(model)
        (['b', 'w'], True, 2)
        >>> model["b"]
        array([0., 0.], dtype=float32)
    """

    def __init__(self, version: Version, opened: Opened, fold: Callable[[], Opened]) -> None:
        """Read a version through ``opened``; ``fold`` folds it first, for what needs its files."""
        self.version = version
        self._fold = fold
        self._opened = opened
        """What the version is read through: for the code of tierstore alone, see ``Opened``."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.tensors)

    def __len__(self) -> int:
        return len(self._opened.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._opened.tensors

    def __repr__(self) -> str:
        return f"<Model {self._title()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        origin = self._opened.content.reader.pool.origin
        return _itself, (pickled(repr(self), origin),)

    def _title(self) -> str:
        version, count = self.version, display.counted(len(self), "tensor")
        return f"{version} {version.digest.short}, {count}, {display.size(self.nbytes)}"

    def _repr_html_(self) -> str:
        rows = (
            (tensor.name, tensor.dtype, str(list(tensor.shape)), display.size(tensor.nbytes))
            for tensor in self._opened.tensors.values()
        )
        return display.html_table(
            self._title(), ("tensor", "dtype", "shape", "size"), rows, len(self)
        )

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    # Mapping's own would read and compare all tensors
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.tensor(name).numpy()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the tensor of this name as an array, or ``default`` when there is none.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"b": np.zeros(2, np.float32)})
            >>> store.load("ranker").get("b"), store.load("ranker").get("c", 0)
            (array([0., 0.], dtype=float32), 0)
        """
        found = self._opened.tensors.get(_one_name(name))
        return default if found is None else found.numpy()

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of this name, not read yet.

        Args:
            name: The tensor's name; ``path::name`` where several files hold it.

        Raises:
            TensorMissing: There is none; also a ``KeyError``.
            UsageError: ``name`` is a list.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> store.load("ranker").tensor("w")
            Tensor('w', F32, [3, 2], 24 bytes)
        """
        try:
            return self._opened.tensors[_one_name(name)]
        except KeyError:
            where = f"'tierstore tensors {self.version}' lists its {len(self)}"
            raise TensorMissing(
                f"{self.version} has no tensor {str(name)[:200]!r}; "
                + display.nearest(str(name)[:200], self, where)
            ) from None

    @property
    def metadata(self) -> dict[str, str]:
        """``__metadata__`` of all safetensors files together; the first file wins."""
        merged: dict[str, str] = {}
        for file in self.files:
            for key, value in (file.metadata or {}).items():
                merged.setdefault(key, value)
        return merged

    @property
    def files(self) -> list[FileInfo]:
        """Every file of the version, by path; what patches change has no SHA-256 until a fold."""
        return [
            FileInfo(
                file.path, file.size, file.sha256.hex(),
                parse_header(file.header, file.size).metadata if file.header else None,
            )
            for file in self._opened.manifest.files
        ]  # fmt: skip

    @property
    def nbytes(self) -> int:
        """The plain bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._opened.tensors.values())

    @property
    def stats(self) -> LoadStats:
        """The cost of reading from this object so far."""
        return stats_of(self._opened.content.reader.pool)

    def load(
        self,
        names: Iterable[str] | None = None,
        *,
        progress: Progress | bool | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Read tensors in parallel into arrays of their own.

        What is hot on this node is mapped instead of copied; writing to it stays private.

        Args:
            names: The names of the tensors, as a list; all of them by default.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            For each name an array of the tensor's shape and dtype.

        Raises:
            TensorMissing: There is no tensor of a name.
            UsageError: ``names`` is one text and no list.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> {name: array.shape for name, array in store.load("ranker").load().items()}
            {'w': (3, 2)}
        """
        return {name: t._view(data) for name, t, data in self._read(names, progress)}

    def to_torch(
        self,
        names: Iterable[str] | None = None,
        *,
        progress: Progress | bool | None = None,
    ) -> dict[str, torch.Tensor]:
        """Read tensors in parallel into torch tensors on the CPU; needs ``tierstore[torch]``.

        Takes the same arguments and raises the same errors as ``load``. ``tierstore.torch`` reads
        into modules and onto other devices.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> store.load("ranker").to_torch()["w"].dtype
            torch.float32
        """
        return {
            name: as_torch(data, t.dtype, t.shape) for name, t, data in self._read(names, progress)
        }

    def close(self) -> None:
        """Release the version: garbage collection may remove what it alone needs.

        That happens anyway when the model is no longer used, or its store is closed.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> model = store.load("ranker")
            >>> model.close()
        """
        hold = self._opened.content.reader.pool.hold
        if hold is not None:
            hold.release()

    def _read(
        self, names: Iterable[str] | None, progress: Progress | bool | None
    ) -> list[tuple[str, Tensor, npt.NDArray[np.uint8]]]:
        chosen = [
            self.tensor(name)
            for name in (self._opened.tensors if names is None else checked_names(names))
        ]
        with reported(progress, f"loading {self.version}") as told:
            out = read_tensors(chosen, counted(told, sum(t.nbytes for t in chosen)))
        if _log.isEnabledFor(logging.INFO):
            pool = self._opened.content.reader.pool
            fields: dict[str, Any] = {f"{how}_bytes": n for how, n in pool.plain_bytes.items()}
            fields |= {"version": str(self.version), "fetched_bytes": pool.bytes_fetched}
            _log.info("read %d tensors of %s", len(out), self.version, extra={"fields": fields})
        return [(t.name, t, data) for t, data in zip(chosen, out, strict=True)]

    def load_into(self, buffers: Mapping[str, Any]) -> None:
        """Read tensors into memory of the caller's.

        Args:
            buffers: For each tensor's name a writable, contiguous numpy array, torch tensor on the
                CPU, or any other buffer: of the tensor's dtype and shape, or raw bytes (``uint8``
                in one dimension, as many as the tensor has). After an error their content is
                undefined.

        Raises:
            TensorMissing: There is no tensor of a name.
            UsageError: A buffer has another dtype or shape, or cannot be written to; nothing was
                read.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> mine = np.empty((3, 2), np.float32)
            >>> store.load("ranker").load_into({"w": mine})
            >>> float(mine.sum())
            6.0
        """
        items = []
        for name, target in as_table("buffers", buffers, "{'w': array}").items():
            tensor = self.tensor(name)
            view = buffer_of_tensor(name, target, tensor.dtype, tensor.shape)
            items.append((tensor, np.frombuffer(view, np.uint8)))
        read_into(items)

    def read_file(self, path: str | os.PathLike[str]) -> bytes:
        """Return the whole content of one file, such as ``config.json``.

        Args:
            path: The file's path in the version, ``/`` between its parts.

        Raises:
            NotFound: There is no such file.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> len(store.load("ranker").read_file("model.safetensors"))
            96
        """
        return self.open_file(path).read()

    def open_file(self, path: str | os.PathLike[str]) -> FileView:
        """Open one file, to be read by ranges.

        Args:
            path: The file's path in the version, ``/`` between its parts.

        Raises:
            NotFound: There is no such file.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> view = store.load("ranker").open_file("model.safetensors")
            >>> view.size, view.read(8, 6)
            (96, b'{"w":{')
        """
        path = as_path("path", path, "the path of a file in the version")
        return self._opened.view(self._file_entry(path))

    def _file_entry(self, path: str) -> FileEntry:
        """Return the manifest's entry of one file; ``NotFound`` if there is none."""
        for file in self._opened.manifest.files:
            if file.path == path:
                return file
        raise NotFound(
            f"{self.version} has no file {path[:200]!r}; 'tierstore stat {self.version}' lists them"
        )

    def _file_pieces(self, file: FileEntry) -> list[PlacedPiece]:
        """Return the chunks of a file in order; ``begin`` counts from behind its header.

        Raises ``UsageError`` for a file that patches change: its bytes lie in no chunks.
        """
        if file.path in self._opened.patched:
            raise UsageError(
                f"{file.path} of {self.version} lies in patches: 'tierstore fold {self.version}' "
                "makes it a file"
            )
        return self._opened.content.file_pieces(file)

    def fold(self) -> None:
        """Fold a version that lies on patches, so that its files have a SHA-256.

        See ``Store.fold``. Nothing happens to any other version.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> store.load("ranker").fold()
        """
        if self._opened.patched:
            self._opened = self._fold()

    def export(
        self,
        directory: str | os.PathLike[str],
        *,
        weights: bool = True,
        others: Others = "refuse",
        progress: Progress | bool | None = None,
    ) -> list[FileInfo]:
        """Make a directory that holds exactly this version, byte-identical to what was saved.

        All files are written and compared with the SHA-256 recorded at save before the first one is
        put in place: if that fails, the directory is as it was. Then files of an earlier export are
        removed, and the new ones come in their stead; meanwhile there are fewer files, but never
        those of two versions. ``.tierstore-export.json`` in the directory says what was exported. A
        version that lies on patches is folded first, as a SHA-256 is that of a whole file.

        Args:
            directory: Where to write; made if it is missing.
            weights: With ``False`` safetensors files are left out.
            others: What to do about files in the directory that no export wrote: ``"refuse"`` to
                export, ``"delete"`` them, or ``"merge"``, which keeps them and replaces only those
                that the version has too.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            The files that were written.

        Raises:
            UsageError: The directory overlaps with the store, a tier or the cache.
            Conflict: There are other files in the directory, another export writes to it, or its
                file system takes two names of the version for one.
            InvalidName: A path of the version must not be written, as it has control characters.
            Damaged: The bytes do not give the recorded SHA-256; nothing is put in place.
            OutOfSpace: The disk is full. For a moment it has to hold what was there, too.
            PermissionDenied: The directory cannot be written to.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)})
            >>> [(file.path, file.size) for file in store.load("ranker").export("out")]
            [('model.safetensors', 96)]
        """
        self._opened.places.check(directory)
        return self._export(directory, weights=weights, others=others, progress=progress)

    def _export(
        self,
        directory: str | os.PathLike[str],
        *,
        weights: bool,
        others: Others = "refuse",
        progress: Progress | bool | None = None,
    ) -> list[FileInfo]:
        """Export into a directory that may lie in the cache."""
        self.fold()
        files = [file for file in self._opened.manifest.files if weights or not file.header]
        with reported(progress, f"exporting {self.version}") as told:
            content = self._opened.content.verified()
            export_files(content, self.version, files, directory, others, told)
        written = {file.path for file in files}
        return [file for file in self.files if file.path in written]

    def export_tensors(
        self,
        names: Sequence[str],
        file: str | os.PathLike[str],
        *,
        progress: Progress | bool | None = None,
    ) -> FileInfo:
        """Write some tensors as one new safetensors file, under the names that they have here.

        The file is written beside its place and then renamed; one that is there is replaced.
        ``__metadata__`` is the version's.

        Args:
            names: The names of the tensors, as a list.
            file: Where to write.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            The file's name, size in bytes and SHA-256.

        Raises:
            TensorMissing: There is no tensor of a name.
            UsageError: ``names`` is one text and no list, or the file lies in the store, a tier or
                the cache.
            OutOfSpace: The disk is full.
            PermissionDenied: The file cannot be written.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
            >>> store.load("ranker").export_tensors(["a"], "a.safetensors").size
            76
        """
        self._opened.places.check(file)
        wanted = [self.tensor(name).name for name in checked_names(names)]
        verified = self._opened.verified()
        chosen = {name: verified.tensors[name] for name in wanted}
        with reported(progress, f"exporting {self.version}") as told:
            return export_tensors(verified.content, chosen, self.metadata or None, file, told)


def _itself(model: Model) -> Model:
    return model


def stats_of(pool: ReadPool) -> LoadStats:
    """Return what reading through a pool has cost so far."""
    return LoadStats(
        bytes_fetched=pool.bytes_fetched,
        bytes_decoded=pool.bytes_decoded,
        requests=pool.requests,
        bytes_by_tier={**pool.bytes_by_tier, **pool.hot_bytes},
        bytes_mapped=pool.bytes_mapped,
        bytes_reused=pool.plain_bytes["reused"],
        bytes_delta=pool.plain_bytes["delta"],
        bytes_full=pool.plain_bytes["full"],
    )


def _one_name(name: str) -> str:
    """Return the name of a tensor as it was given; ``UsageError`` for a list of them."""
    if isinstance(name, list | set | dict):
        raise UsageError(
            f"a tensor has one name, such as 'w', not {shown(name)}: load reads a list of names"
        )
    return name


def checked_names(names: Iterable[str]) -> Iterable[str]:
    """Return names of tensors as they were given; ``UsageError`` for one alone, or no list."""
    hint = (
        "; for those that fit a pattern choose from keys(), for example with "
        "fnmatch.filter(model.keys(), pattern)"
    )
    return as_list("names", names, "['w']", hint if isinstance(names, str) else "")


def counted(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Return a function that takes the bytes of each chunk and tells ``progress`` their sum.

    Args:
        progress: Called with bytes done and bytes in all; ``None`` gives ``None``.
        total: Bytes in all.
    """
    if progress is None:
        return None
    lock = threading.Lock()
    done = 0

    def count(plain: int) -> None:
        nonlocal done
        with lock:
            done += plain
            progress(done, total)

    return count
