"""A version that was opened for reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierstore.errors import NotFound
from tierstore.format.manifest import FileEntry, Manifest, named_tensors
from tierstore.format.safetensors import parse_header
from tierstore.format.table import ChunkTable
from tierstore.modelstore.arrays import as_torch, writable_bytes
from tierstore.modelstore.export import export_files, export_tensors
from tierstore.modelstore.fetch import Want
from tierstore.modelstore.fileview import FileView
from tierstore.modelstore.packs import Packs
from tierstore.modelstore.reader import ChunkReader
from tierstore.modelstore.tensor import Content, PlacedPiece, Tensor
from tierstore.modelstore.version import FileInfo, Version

if TYPE_CHECKING:
    import os

    import torch


@dataclass(frozen=True, slots=True)
class LoadStats:
    """What reading has cost so far.

    Attributes:
        bytes_fetched: bytes read from durable tiers.
        bytes_decoded: plain bytes decoded and verified.
        requests: ranges read from durable tiers.
        bytes_by_tier: bytes read by the tier's name: frames, or plain bytes of this node's tier.
        bytes_mapped: plain bytes of tensors that were mapped from this node's tier instead.
        bytes_reused: plain bytes that came out of hot tiers, mapped ones included, or by another
            reader of this process at the same time.
        bytes_delta: plain bytes of chunks that came from durable tiers as deltas.
        bytes_full: plain bytes of chunks that came from durable tiers standalone.
    """

    bytes_fetched: int
    bytes_decoded: int
    requests: int
    bytes_by_tier: Mapping[str, int]
    bytes_mapped: int
    bytes_reused: int
    bytes_delta: int
    bytes_full: int


class Model(Mapping[str, npt.NDArray[Any]]):
    """The tensors of one version by name, each read when it is asked for.

    ``model["w"]`` reads one tensor into a new numpy array; ``model.tensor("w")`` reads nothing yet.
    bf16 and fp8 arrive as ``ml_dtypes``; F4 and F6, which numpy does not have, as packed ``uint8``
    in one dimension. A name that several files hold is addressed as ``path::name``.
    Thread-safe. Obtained from ``Store.load``.
    """

    def __init__(
        self, version: Version, manifest: Manifest, content: Content, packs: Packs
    ) -> None:
        self.version = version
        self.manifest = manifest
        self._content, self._packs = content, packs
        self._tensors = {
            name: Tensor(content, entry, name, file.path)
            for name, file, entry in named_tensors(manifest)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        return f"<Model {self.version} {self.version.digest.short}, {len(self)} tensors>"

    # Mapping's own would read and compare all tensors
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.tensor(name).numpy()

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of this name as an array, or ``default`` when there is none."""
        found = self._tensors.get(name)
        return default if found is None else found.numpy()

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, not read yet; ``NotFound`` when there is none."""
        try:
            return self._tensors[name]
        except KeyError:
            raise NotFound(
                f"{self.version} has no tensor {name[:200]!r}; "
                f"'tierstore tensors {self.version}' lists its {len(self)}"
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
        """Every file of the version, by path."""
        return [
            FileInfo(
                file.path, file.size, file.sha256.hex(),
                parse_header(file.header, file.size).metadata if file.header else None,
            )
            for file in self.manifest.files
        ]  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Plain bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def stats(self) -> LoadStats:
        """What reading from this object has cost so far."""
        return stats_of(self._content.reader, self._packs)

    def load(
        self,
        names: Iterable[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Read tensors in parallel into arrays of their own, by name.

        What is hot on this node is mapped instead of copied; writing to it stays private.

        Args:
            names: which; all of them by default.
            progress: told the bytes done and the bytes in all.
        """
        return {name: t.view(data) for name, t, data in self._read(names, progress)}

    def to_torch(
        self,
        names: Iterable[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Like ``load``, into torch tensors on the CPU; needs the extra ``tierstore[torch]``."""
        return {
            name: as_torch(data, t.dtype, t.shape) for name, t, data in self._read(names, progress)
        }

    def _read(
        self, names: Iterable[str] | None, progress: Callable[[int, int], None] | None
    ) -> list[tuple[str, Tensor, npt.NDArray[np.uint8]]]:
        chosen = [self.tensor(name) for name in (self._tensors if names is None else names)]
        count = counted(progress, sum(tensor.nbytes for tensor in chosen))
        mapped = self._content.reader.map(lambda tensor: tensor.mapped(), chosen)
        wants: list[Want] = []
        out = []
        for tensor, data in zip(chosen, mapped, strict=True):
            if data is None:
                data = np.empty(tensor.nbytes, np.uint8)
                wants += tensor.wants(data.data)
            elif count:
                count(tensor.nbytes)
            out.append((tensor.name, tensor, data))
        self._content.reader.read(wants, count)
        return out

    def load_into(self, buffers: Mapping[str, Any]) -> None:
        """Read tensors into memory of the caller's.

        Args:
            buffers: for each tensor's name a writable, contiguous numpy array, torch tensor on the
                CPU, or any other buffer, of exactly the tensor's bytes. After an error their
                content is undefined.
        """
        wants: list[Want] = []
        for name, target in buffers.items():
            tensor = self.tensor(name)
            wants += tensor.wants(writable_bytes(name, target, tensor.nbytes))
        self._content.reader.read(wants)

    def read_file(self, path: str) -> bytes:
        """The whole content of one file, such as ``config.json``; ``NotFound`` if there is none."""
        return self.open_file(path).read()

    def open_file(self, path: str) -> FileView:
        """One file, to be read by ranges; ``NotFound`` if there is none."""
        return FileView(self._content, self.file_entry(path))

    def file_entry(self, path: str) -> FileEntry:
        """What the manifest says of one file; ``NotFound`` if there is none."""
        for file in self.manifest.files:
            if file.path == path:
                return file
        raise NotFound(
            f"{self.version} has no file {path[:200]!r}; 'tierstore stat {self.version}' lists them"
        )

    def file_pieces(self, file: FileEntry) -> list[PlacedPiece]:
        """The chunks of a file in order; ``begin`` counts from behind its header."""
        return self._content.file_pieces(file)

    def export(
        self,
        directory: str | os.PathLike[str],
        *,
        weights: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[FileInfo]:
        """Write every file, byte-identical to what was saved, below ``directory``.

        Each file is written beside its place, compared with the SHA-256 recorded at save, and then
        renamed. Files that are there already are replaced; others are left alone.

        Args:
            directory: made if it is missing.
            weights: with ``False`` safetensors files are left out.
            progress: told the bytes done and the bytes in all.

        Returns:
            The files that were written.

        Raises:
            Damaged: the bytes do not give the recorded SHA-256; the file is not put in place.
            OutOfSpace, PermissionDenied: of the target.
        """
        files = [file for file in self.manifest.files if weights or not file.header]
        export_files(self._content, str(self.version), files, directory, progress)
        written = {file.path for file in files}
        return [file for file in self.files if file.path in written]

    def export_tensors(
        self,
        names: Sequence[str],
        file: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> FileInfo:
        """Write some tensors as one new safetensors file, under the names that they have here.

        The file is written beside its place and then renamed; one that is there is replaced.
        ``__metadata__`` is the version's. Errors are those of ``export``, and ``NotFound`` for a
        name that does not exist.
        """
        chosen = {name: self.tensor(name) for name in names}
        return export_tensors(self._content, chosen, self.metadata or None, file, progress)

    @property
    def layout(self) -> ChunkTable:
        """Where each distinct chunk of the version lies; bases of deltas are listed too."""
        return self._content.table


def stats_of(reader: ChunkReader, packs: Packs) -> LoadStats:
    """What a reader and its packs have cost so far."""
    return LoadStats(
        bytes_fetched=packs.bytes_fetched,
        bytes_decoded=reader.bytes_decoded,
        requests=packs.requests,
        bytes_by_tier={**packs.bytes_by_tier, **reader.hot_bytes},
        bytes_mapped=reader.bytes_mapped,
        bytes_reused=reader.plain["reused"],
        bytes_delta=reader.plain["delta"],
        bytes_full=reader.plain["full"],
    )


def counted(
    progress: Callable[[int, int], None] | None, total: int
) -> Callable[[int], None] | None:
    """``progress`` of ``total`` bytes as something that is told the bytes of each chunk."""
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
