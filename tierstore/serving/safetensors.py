"""Drop-in for safetensors: ``safe_open`` and ``load_file`` that also read ``tierstore://`` URLs.

>>> from tierstore import safe_open
>>> store = tierstore.init("store")  # or what TIERSTORE_STORE names, without ?store= below
>>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)}, alias="prod")
>>> url = "tierstore://ranker@prod/model.safetensors?store=store"
>>> with safe_open(url, framework="np") as f:
...     f.get_slice("w")[1:2]
array([[1., 1.]], dtype=float32)

``install()`` puts ``safe_open`` into the safetensors library itself, and into every module that has
imported it from there, so that unchanged code reads from the store.

The installed library itself decides what a file contains, refuses and returns: it opens a shadow of
the stored file (the header and holes), and takes slices and unusual dtypes from a shadow that holds
the bytes it needs. Tensors for numpy, and for torch on the CPU, are read from the store straight
into their arrays, or mapped from this node's hot tier.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import safetensors

from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.format.safetensors import build_header
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.loading.tensor import Tensor
from tierstore.serving.location import is_stored, open_file, url_of
from tierstore.serving.shadow import shadow

_library_open = safetensors.safe_open
"""The library's own class, also after ``install``."""

_TORCH = {"pt", "torch", "pytorch"}
_NUMPY = {"np", "numpy"}
_NOT_IN_NUMPY = {"BF16", "F4"} | {name for name in DTYPES if name.startswith(("F8", "F6"))}
_NOT_IN_TORCH = {"F4", "F6_E2M3", "F6_E3M2"}
_PEEK_BYTES = 1 << 20


class safe_open:
    """Opens a safetensors file lazily; see ``safetensors.safe_open`` for arguments and methods.

    For a ``tierstore://`` URL it returns an object of this class, with the methods of the library's
    class; for any other path it returns the library's own object.

    Raises:
        FileMissing: There is no such model, version or file; a ``FileNotFoundError``.
        InvalidName: The URL is malformed, or its path leaves the version.
        SafetensorError: As the library raises it.
        TierstoreError: The store fails; ``Damaged`` and ``Unreachable`` are such errors.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)}, alias="prod")
        >>> url = "tierstore://ranker@prod/model.safetensors?store=store"
        >>> with tierstore.safe_open(url, framework="np") as file:
        ...     file.keys(), file.get_tensor("w").shape
        (['w'], (3, 2))
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            filename: str | os.PathLike[str],
            framework: str,
            device: str | int = "cpu",
            *,
            backend: str = "mmap",
        ) -> None: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        path = args[0] if args else kwargs.get("filename")
        if not is_stored(path):
            return _library_open(*args, **kwargs)
        assert isinstance(path, str | os.PathLike)
        rest = args[1:]
        if not args:
            del kwargs["filename"]
        self = super().__new__(cls)
        self._model, self._view = open_file(url_of(path))
        self._reopen = lambda shadow_path: _library_open(shadow_path, *rest, **kwargs)
        self._library = _opened_header(self._view, self._reopen)
        self._framework = rest[0] if rest else kwargs["framework"]
        self._on_cpu = (rest[1] if len(rest) > 1 else kwargs.get("device")) in (None, "cpu")
        self._tensors = {
            tensor.name_in_file: tensor
            for tensor in map(self._model.tensor, self._model)
            if tensor.file == self._view.path
        }
        if not self._tensors and self._library.keys():
            raise UsageError(
                f"no tensor of {path} can be read alone: its header breaks the rules of the "
                "format, so it is stored as a plain file; export the version, and open it there"
            )
        return self

    _model: Model
    _view: FileView
    _library: Any
    _reopen: Callable[[str], Any]
    _framework: str
    _on_cpu: bool
    _tensors: dict[str, Tensor]

    def __enter__(self) -> safe_open:
        self._library.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._library.__exit__(kind, error, trace)

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._library.keys())

    def offset_keys(self) -> list[str]:
        """Return the names of the tensors in the order of their bytes."""
        return list(self._library.offset_keys())

    def metadata(self) -> dict[str, str] | None:
        """Return ``__metadata__`` of the header; ``None`` without any."""
        found: dict[str, str] | None = self._library.metadata()
        return found

    def get_tensor(self, name: str) -> Any:
        """Read one tensor."""
        self._library.get_slice(name)  # refuses what the library refuses
        tensor = self._tensors[name]
        if self._is_direct(tensor):
            return tensor.torch() if self._framework in _TORCH else tensor.numpy()
        return self._from_shadow(tensor, 0, tensor.nbytes).get_tensor(name)

    def get_tensors(self) -> dict[str, Any]:
        """Read all tensors, in parallel."""
        names = self.offset_keys()
        tensors = [self._tensors[name] for name in names]
        direct = [tensor.name for tensor in tensors if self._is_direct(tensor)]
        into_torch = self._framework in _TORCH
        read = self._model.to_torch(direct) if into_torch else self._model.load(direct)
        return {
            name: read[tensor.name] if tensor.name in read else self.get_tensor(name)
            for name, tensor in zip(names, tensors, strict=True)
        }

    def get_slice(self, name: str) -> Slice:
        """Return a tensor of which ``[...]`` reads only the rows that are asked for."""
        library = self._library.get_slice(name)
        return Slice(self, self._tensors[name], library)

    def _is_direct(self, tensor: Tensor) -> bool:
        if not self._on_cpu:
            return False
        if self._framework in _TORCH:
            return tensor.dtype not in _NOT_IN_TORCH
        return self._framework in _NUMPY and tensor.dtype not in _NOT_IN_NUMPY

    def _from_shadow(self, tensor: Tensor, low: int, high: int) -> Any:
        """Open, with the library, a file of this tensor that holds its bytes [low, high)."""
        name = tensor.name_in_file
        header = build_header([(name, tensor.dtype, tensor.shape)], None).raw
        at = len(header)
        with shadow(
            header,
            at + tensor.nbytes,
            at + low,
            at + high,
            lambda out: tensor.read_span(low, high, out),
        ) as path:
            return self._reopen(path)


class Slice:
    """One tensor of a ``safe_open``, read slice by slice, like the library's ``PySafeSlice``."""

    def __init__(self, file: safe_open, tensor: Tensor, library: Any) -> None:
        self._file, self._tensor, self._library = file, tensor, library

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self._library.get_shape())

    def get_dtype(self) -> str:
        """Return the safetensors dtype, such as ``BF16``."""
        return str(self._library.get_dtype())

    def __getitem__(self, key: Any) -> Any:
        tensor = self._tensor
        if key is Ellipsis and tensor.nbytes and self._file._is_direct(tensor):
            return tensor.torch() if self._file._framework in _TORCH else tensor.numpy()
        first, last = _rows(key, tensor.shape)
        row = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else tensor.nbytes
        opened = self._file._from_shadow(tensor, first * row, last * row)
        return opened.get_slice(tensor.name_in_file)[key]


def _rows(key: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the range of rows that ``key`` needs: all rows when that is not obvious.

    A key that the library refuses needs none.
    """
    count = shape[0] if shape else 1
    first = key[0] if isinstance(key, tuple) and key else key
    if not shape or isinstance(first, bool):
        return 0, count
    if isinstance(first, slice):
        try:
            start, stop, step = first.indices(count)
        except (TypeError, ValueError):
            return 0, count
        return (start, max(start, stop)) if step > 0 else (0, 0)
    try:
        row = operator.index(first)
    except TypeError:
        return 0, count
    row += count if row < 0 else 0
    return (row, row + 1) if 0 <= row < count else (0, 0)


def _opened_header(view: FileView, reopen: Callable[[str], Any]) -> Any:
    """Open the header with the library, which raises for what is no safetensors file."""
    header = view.header or view.read(0, _PEEK_BYTES)
    with shadow(header, view.size) as path:
        return reopen(path)


def load_file(
    filename: str | os.PathLike[str], device: str | int = "cpu", *, backend: str | None = None
) -> dict[str, Any]:
    """Read a whole file into torch tensors by name, as ``safetensors.torch.load_file`` does.

    Args:
        filename: The path of a file, or a ``tierstore://`` URL of one.
        device: Where torch puts the tensors.
        backend: A parameter of the library, for a path.

    Returns:
        The tensors by name.

    Raises:
        FileMissing: There is no such model, version or file; a ``FileNotFoundError``.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones((3, 2), np.float32)}, alias="prod")
        >>> url = "tierstore://ranker@prod/model.safetensors?store=store"
        >>> tierstore.load_file(url)["w"].shape
        torch.Size([3, 2])
    """
    import safetensors.torch

    options = {} if backend is None else {"backend": backend}
    if not is_stored(filename):
        return safetensors.torch.load_file(filename, device=device, **options)
    with safe_open(filename, "pt", device, **options) as file:
        return file.get_tensors()


class _Installed(safe_open):
    """Takes the place of the library's own class; ``safe_open`` is what others import from here."""


_Installed.__name__ = _Installed.__qualname__ = "safe_open"


def install() -> None:
    """Replace the library's ``safe_open`` by the one here; ``uninstall`` undoes it.

    It is replaced in ``safetensors``, in its modules, and in every module that has imported it by
    name. So ``safetensors.torch.load_file``, ``load_model`` and the like read from stores too.
    """
    _rebind(_library_open, _Installed)


def uninstall() -> None:
    """Restore the library's own ``safe_open`` everywhere."""
    _rebind(_Installed, _library_open)


def _rebind(old: object, new: object) -> None:
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and module.__name__ != __name__:
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
