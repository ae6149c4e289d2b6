"""One tensor of a version, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from tierstore.deferred import np
from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES, numpy_dtype
from tierstore.format.manifest import TensorEntry
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.origin import pickled
from tierstore.modelstore.chunks.reader import OnChunk
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.arrays import as_array, as_torch, new_bytes
from tierstore.modelstore.loading.overlay import Overlay, lay_over, read_rows
from tierstore.modelstore.loading.stored import Content, StoredTensor, entry_bytes

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch


class Tensor:
    """A tensor of a version: its dtype and shape are known, its bytes stay in the store.

    ``tensor[...]`` reads only the blocks (256 KiB of plain bytes) that hold the rows asked for, by
    the index of the first dimension; further dimensions are taken from those rows in memory.

    Attributes:
        name: The tensor's name in the model.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"emb": np.arange(6, dtype=np.float32).reshape(3, 2)})
        >>> tensor = store.load("ranker").tensor("emb")
        >>> tensor.dtype, tensor.shape, tensor.nbytes
        ('F32', (3, 2), 24)
        >>> tensor[1:]
        array([[2., 3.],
               [4., 5.]], dtype=float32)
        >>> tensor[[2, 0], 1]
        array([5., 1.], dtype=float32)
    """

    __slots__ = ("_base", "_entry", "_file_path", "_overlays", "name")

    def __init__(
        self,
        entry: TensorEntry,
        name: str,
        file_path: str,
        base: StoredTensor,
        overlays: Sequence[Overlay] = (),
    ) -> None:
        self._entry, self._file_path = entry, file_path
        self.name = name
        self._base = base
        """What is stored in chunks; patches lie on it, or it is the tensor itself."""
        self._overlays = tuple(overlays)
        """The patches on it, the oldest first."""

    @property
    def _content(self) -> Content:
        """The layout and the reader of the tensor's version."""
        return self._base.content

    @property
    def file(self) -> str:
        """The path of the file that holds it."""
        return self._file_path

    @property
    def name_in_file(self) -> str:
        """Its name in that file's header."""
        return self._entry.name

    @property
    def dtype(self) -> str:
        """The dtype as safetensors names it, such as ``BF16``."""
        return self._entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; ``()`` for a scalar."""
        return self._entry.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The plain bytes."""
        return entry_bytes(self._entry)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)}, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _tensor_of, (pickled(repr(self), self._content.reader.pool.origin), self.name)

    @property
    def signature(self) -> bytes:
        """Digests of everything the tensor is read from; equal signatures mean equal bytes."""
        return b"".join([self._base.digests, *(overlay.digests for overlay in self._overlays)])

    def _places(self) -> list[ChunkPlace]:
        """Return where all chunks lie that reading it needs, without the bases of deltas."""
        places = [piece.place for piece in self._base.chunks()]
        return [*places, *(place for overlay in self._overlays for place in overlay.places())]

    def numpy(self) -> npt.NDArray[Any]:
        """Read all of it into an array of its own.

        What is hot on this node is mapped instead of copied; writing to it stays private. See
        ``Model`` for bf16, fp8 and dtypes of less than a byte.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)})
            >>> store.load("ranker").tensor("b").numpy()
            array([1., 1.], dtype=float32)
        """
        return self._view(read_tensors([self])[0])

    def torch(self) -> torch.Tensor:
        """Read all of it into a new torch tensor on the CPU; needs ``tierstore[torch]``.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)})
            >>> store.load("ranker").tensor("b").torch()
            tensor([1., 1.])
        """
        return as_torch(read_tensors([self])[0], self.dtype, self.shape)

    def _view(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Its plain bytes as an array of its dtype and shape."""
        return as_array(data, self.dtype, self.shape)

    def read_bytes(self) -> npt.NDArray[np.uint8]:
        """Read all of its plain bytes, in one dimension.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)})
            >>> store.load("ranker").tensor("b").read_bytes()
            array([  0,   0, 128,  63,   0,   0, 128,  63], dtype=uint8)
        """
        return read_tensors([self])[0]

    def read_span(self, low: int, high: int, out: memoryview) -> None:
        """Read a span of its plain bytes.

        Args:
            low: The first byte.
            high: The byte behind the last one.
            out: Where to; ``high - low`` bytes.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)})
            >>> out = bytearray(2)
            >>> store.load("ranker").tensor("b").read_span(2, 4, memoryview(out))
            >>> out.hex()
            '803f'
        """
        self._fill(low, high, out)

    def _fill(self, low: int, high: int, out: memoryview, *, own: bool = False) -> None:
        """Read a span as ``read_span`` does; ``own`` is that of ``ChunkReader.read``."""
        self._base.read_span(low, high, out, own=own)
        for overlay in self._overlays:
            overlay.over(low, high, np.frombuffer(out, np.uint8))

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(f"tensor {self.name!r} lies in the store: reading it makes a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Read a part: the first dimension by int, slice, list or integer array.

        Raises:
            IndexError: A row is out of range.
            UsageError: The dtype has no numpy counterpart (sub-byte dtypes).
        """
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        everything = first is Ellipsis or first is None or (isinstance(key, tuple) and not key)
        if DTYPES[self.dtype].numpy is None and not everything:
            raise UsageError(f"tensor {self.name!r} is {self.dtype}: its packed rows have no index")
        if everything or not self.shape or _is_mask(first):
            return np.asarray(self.numpy()[key])
        if isinstance(first, slice):
            return np.asarray(self._read_slice(first)[(slice(None), *rest)])
        rows = _rows(first, self.shape[0], self.name)
        taken = self._read_rows(rows.reshape(-1))
        if not rest:
            return taken.reshape(rows.shape + self.shape[1:])
        # numpy's rules for the keys together, applied to the rows that were read
        own = np.arange(rows.size).reshape(rows.shape) if rows.ndim else 0
        return np.asarray(taken[(own, *rest)])

    def _read_slice(self, key: slice) -> npt.NDArray[Any]:
        start, stop, step = key.indices(self.shape[0])
        if abs(step) != 1:
            return self._read_rows(np.arange(start, stop, step))
        if step == 1:
            return self._read_span(start, max(start, stop))
        return self._read_span(min(start, stop) + 1, start + 1)[::-1]

    def _read_span(self, first: int, last: int) -> npt.NDArray[Any]:
        item = numpy_dtype(self.dtype)
        row_bytes = prod(self.shape[1:]) * item.itemsize
        out = np.empty((last - first) * row_bytes, np.uint8)
        self._fill(first * row_bytes, last * row_bytes, out.data, own=True)
        return out.view(item).reshape(last - first, *self.shape[1:])

    def _read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        out = self.read_rows(rows).reshape(-1)
        return out.view(numpy_dtype(self.dtype)).reshape(len(rows), *self.shape[1:])

    def read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read rows of the first dimension as plain bytes.

        Args:
            rows: The numbers of the rows, in range, in any order, repeats allowed. A row begins at
                a byte.

        Returns:
            An array of (rows, bytes of a row).

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"emb": np.arange(6, dtype=np.int8).reshape(3, 2)})
            >>> store.load("ranker").tensor("emb").read_rows(np.array([2, 0]))
            array([[4, 5],
                   [0, 1]], dtype=uint8)
        """
        return read_rows(self._base, self._overlays, rows)


def _tensor_of(model: Any, name: str) -> Tensor:
    tensor: Tensor = model.tensor(name)
    return tensor


class VerifiedTensor(Tensor):
    """A tensor whose bytes may be stored again; see ``VerifiedReader``."""

    __slots__ = ()


def read_tensors(
    tensors: Sequence[Tensor], on_chunk: OnChunk | None = None
) -> list[npt.NDArray[np.uint8]]:
    """Read whole tensors of one version, each into bytes of its own.

    This is the one way in which a whole tensor comes: what is hot on this node is mapped, the rest
    is read, and then the patches are laid over.

    Args:
        tensors: The tensors.
        on_chunk: Called with the plain bytes that have come; those of patches are not counted.
    """
    if not tensors:
        return []
    wants: list[Want] = []
    found = []
    for tensor, data in zip(tensors, _hot_bases(tensors), strict=True):
        if data is None:
            data = new_bytes(tensor.nbytes)
            wants += tensor._base.wants(data.data)
        elif on_chunk:
            on_chunk(tensor.nbytes)
        found.append(data)
    reader = tensors[0]._content.reader
    reader.read(wants, on_chunk, own=True)
    lay_over(reader, _overlays(zip(tensors, found, strict=True)))
    return found


def read_into(items: Sequence[tuple[Tensor, npt.NDArray[np.uint8]]], *, own: bool = False) -> None:
    """Read whole tensors of one version into the given bytes, each as long as its tensor.

    ``own`` is that of ``ChunkReader.read``.
    """
    if items:
        reader = items[0][0]._content.reader
        wants = [want for tensor, out in items for want in tensor._base.wants(out.data)]
        reader.read(wants, own=own)
        lay_over(reader, _overlays(items))


def hot_tensors(tensors: Sequence[Tensor]) -> list[npt.NDArray[np.uint8] | None]:
    """Return whole tensors of one version that are hot on this node, as ``read_tensors`` does.

    Returns:
        ``None`` for those that have to be read.
    """
    found = _hot_bases(tensors)
    here = [(t, data) for t, data in zip(tensors, found, strict=True) if data is not None]
    if here:
        lay_over(tensors[0]._content.reader, _overlays(here))
    return found


def _hot_bases(tensors: Sequence[Tensor]) -> list[npt.NDArray[np.uint8] | None]:
    """Return what the patches lie on; ``None`` for what is not hot on this node."""
    if not tensors:
        return []
    content = tensors[0]._content
    return content.reader.local.tensors(
        [(tensor._base.digests, tensor._base.nbytes) for tensor in tensors], content.chunk_size
    )


def _overlays(
    items: Iterable[tuple[Tensor, npt.NDArray[np.uint8]]],
) -> list[tuple[Overlay, npt.NDArray[np.uint8]]]:
    return [(overlay, out) for tensor, out in items for overlay in tensor._overlays]


def _is_mask(key: Any) -> bool:
    array = np.asarray(key) if isinstance(key, list | np.ndarray) else None
    return array is not None and array.dtype == bool


def _rows(key: Any, count: int, name: str) -> npt.NDArray[np.int64]:
    rows = np.asarray(key)
    if rows.size == 0:
        rows = rows.astype(np.int64)
    if rows.dtype.kind not in "iu":
        raise IndexError(f"tensor {name!r} is indexed by ints, slices and arrays of ints")
    outside = (rows < -count) | (rows >= count)  # before the cast: it would wrap a uint64
    if outside.any():
        bad = int(rows[outside].flat[0])
        raise IndexError(f"row {bad} is out of range for tensor {name!r} with {count} rows")
    rows = rows.astype(np.int64)
    return np.where(rows < 0, rows + count, rows)
