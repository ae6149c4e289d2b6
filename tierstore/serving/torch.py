"""Weights into torch: state dicts and modules, whole or one rank's part, on any device.

>>> from tierstore.torch import load_model, state_dict
>>> load_model(module, "ranker@prod", device="cuda")
>>> state_dict("ranker@prod", shard=(rank, 4), dim={"head.weight": 1, "norm.weight": None})
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tierstore.errors import NotFound, UsageError
from tierstore.modelstore.arrays import as_torch, new_bytes, typed_torch
from tierstore.modelstore.model import Model
from tierstore.modelstore.patched import lay_over
from tierstore.modelstore.plan import batches
from tierstore.modelstore.shards import Shard, StripRead, read_strips, shard_of, whole
from tierstore.modelstore.store import Store
from tierstore.modelstore.tensor import Tensor, hot_bases
from tierstore.serving.location import open_ref

try:
    import torch

    from tierstore.serving._ties import bind_ties, ties_of
    from tierstore.serving._upload import upload
except ImportError as error:
    raise UsageError("torch is not installed: pip install 'tierstore[torch]'") from error

Dim: TypeAlias = (
    int | Mapping[str, int | None] | Callable[[str, tuple[int, ...]], int | None] | None
)
"""Along which dimension tensors are cut: one for all, by name (names that are missing are not cut),
or a function of name and shape; ``None`` for a tensor that every rank has whole."""

_Shards: TypeAlias = dict[str, tuple[Tensor, Shard]]


WINDOW = 256 << 20
"""Bytes that ``iter_weights`` reads at once."""

_CPU = torch.device("cpu")


class Loaded(NamedTuple):
    """Names that ``load_model`` did not find on one side, as ``load_state_dict`` gives them."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def state_dict(
    ref: str,
    *,
    store: Store | None = None,
    names: Iterable[str] | None = None,
    device: str | int | torch.device = "cpu",
    shard: tuple[int, int] | None = None,
    dim: Dim = 0,
) -> dict[str, torch.Tensor]:
    """Read the tensors of a version, by name.

    What is hot on this node is mapped instead of copied; writing to it stays private. For a CUDA
    device bytes are read into pinned memory, and copied from there while the next ones are read.

    Args:
        ref: ``ranker@prod``, or a ``tierstore://`` URL; one that names a file or folder of the
            version means the tensors in there, by their names in their files.
        store: where; by default the one in the URL, or that is configured.
        names: which; all by default.
        device: where the tensors are put; on ``meta`` nothing is read.
        shard: ``(rank, world)`` to read one rank's part of every tensor and no other bytes.
        dim: along which dimension, with ``shard``; a tensor that has fewer is read whole.

    Raises:
        NotFound: no such version, file or tensor.
        UsageError: ``shard`` or ``dim`` is out of range, or torch has no such dtype.
    """
    tensors = _tensors(*open_ref(ref, store))
    chosen = _chosen(ref, tensors, names)
    shards = {name: (tensors[name], _shard(name, tensors[name], shard, dim)) for name in chosen}
    return _read(shards, torch.device(device))


def iter_weights(
    ref: str,
    *,
    store: Store | None = None,
    names: Iterable[str] | None = None,
    window: int = WINDOW,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read tensors one after the other onto the CPU; the next ones are read meanwhile.

    What is hot on this node is mapped. At most twice ``window``, or the largest tensor, is held.

    Args:
        ref: as for ``state_dict``.
        store: as for ``state_dict``.
        names: which, in this order; by default all, in the order in which they are stored.
        window: bytes to read at once.

    Raises:
        NotFound, UsageError: as ``state_dict``, before the first tensor.
    """
    tensors = _tensors(*open_ref(ref, store))
    chosen = _chosen(ref, tensors, names)
    groups = list(batches(chosen, lambda name: tensors[name].nbytes, window))

    def read(group: list[str]) -> dict[str, torch.Tensor]:
        return _read_on_cpu({name: (tensors[name], whole(tensors[name])) for name in group})

    return _ahead(read, groups)


def _ahead(
    read: Callable[[list[str]], dict[str, torch.Tensor]], groups: Sequence[list[str]]
) -> Iterator[tuple[str, torch.Tensor]]:
    with ThreadPoolExecutor(1, "tierstore-ahead") as pool:
        pending = deque(pool.submit(read, group) for group in groups[:1])
        for number in range(len(groups)):
            group = pending.popleft().result()
            if number + 1 < len(groups):
                pending.append(pool.submit(read, groups[number + 1]))
            while group:  # what was handed on is not held here any longer
                name = next(iter(group))
                yield name, group.pop(name)


def _chosen(ref: str, tensors: Mapping[str, Tensor], names: Iterable[str] | None) -> list[str]:
    chosen = list(tensors if names is None else names)
    for name in chosen:
        if name not in tensors:
            raise NotFound(f"{ref} has no tensor {name[:200]!r}")
    return chosen


def load_model(
    module: torch.nn.Module,
    ref: str,
    *,
    store: Store | None = None,
    strict: bool = True,
    device: str | int | torch.device | None = None,
    assign: bool | None = None,
    shard: tuple[int, int] | None = None,
    dim: Dim = None,
) -> Loaded:
    """Load a version into a module.

    A module that was made on the meta device gets the tensors that were read themselves. Weights
    that the module ties stay tied, and only one of their names has to be stored. Only tensors that
    the module has are read. Buffers that are not persistent are not stored.

    Args:
        module: its parameters and persistent buffers are filled.
        ref: as for ``state_dict``.
        store: as for ``state_dict``.
        strict: refuse names that only one side has; else they are returned.
        device: where the module goes; by default tensors go where it has them, from meta to the
            CPU.
        assign: take the tensors that were read for its own, instead of copying into what it has:
            dtypes are then the stored ones. By default only for a module on the meta device.
        shard: ``(rank, world)``, for a module that holds one rank's part of some tensors.
        dim: along which dimension, as for ``state_dict``; by default, with ``None``, the one in
            which the module's own shape is that of a part.

    Raises:
        RuntimeError: shapes differ, or names do with ``strict``, as from ``load_state_dict``.
        NotFound, UsageError: as ``state_dict``.
    """
    tensors = _tensors(*open_ref(ref, store))
    if device is not None:
        module._apply(  # type: ignore[no-untyped-call]
            lambda one: one if one.is_meta else one.to(device)
        )
    own = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }
    ties = ties_of(own)
    source = _stored_names(ties, tensors)
    unexpected = [name for name in tensors if name not in own]
    _check(module, ref, strict, Loaded([name for name in own if name not in source], unexpected))
    read: dict[str, torch.Tensor] = {}
    for where, some in _by_device(own, source, tensors, device, shard, dim).items():
        read |= _read(some, where)
    if assign is None:
        assign = any(value.is_meta for value in own.values())
    state = {name: read[found] for name, found in source.items()}
    result = module.load_state_dict(state, strict=False, assign=assign)
    if assign:
        bind_ties(module, ties)
    loaded = Loaded(list(result.missing_keys), unexpected + list(result.unexpected_keys))
    _check(module, ref, strict, loaded)
    return loaded


def _stored_names(ties: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For names of a module that are stored, or whose tied ones are, the stored name."""
    source: dict[str, str] = {}
    for name, group in ties.items():
        stored = [one for one in (name, *group) if one in tensors]
        source |= {name: stored[0]} if stored else {}
    return source


def _by_device(
    own: Mapping[str, torch.Tensor],
    source: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    device: str | int | torch.device | None,
    shard: tuple[int, int] | None,
    dim: Dim,
) -> dict[torch.device, _Shards]:
    """What to read, by where it goes; ``source`` says what is stored for the module's names."""
    shards: dict[torch.device, _Shards] = {}
    for name, found in source.items():
        tensor, value = tensors[found], own[name]
        where = torch.device(device if device is not None else value.device)
        along = _fitting(tensor, value.shape, shard) if dim is None else dim
        some = shards.setdefault(_CPU if where.type == "meta" else where, {})
        some[found] = tensor, _shard(found, tensor, shard, along)
    return shards


def _check(module: torch.nn.Module, ref: str, strict: bool, loaded: Loaded) -> None:
    if not strict or not any(loaded):
        return
    lines = [f"Error(s) in loading {ref} into {type(module).__name__}:"]
    for what, names in zip(("Missing", "Unexpected"), loaded, strict=True):
        if names:
            listed = ", ".join(f'"{name}"' for name in names)
            lines.append(f"\t{what} key(s) in state_dict: {listed}.")
    raise RuntimeError("\n".join(lines))


def _tensors(model: Model, path: str) -> dict[str, Tensor]:
    """The tensors of a version, or of a file or folder of it, by the names they load under."""
    every = {name: model.tensor(name) for name in model}
    if not path:
        return every
    inside = {
        name: tensor
        for name, tensor in every.items()
        if tensor.file == path or tensor.file.startswith(f"{path}/")
    }
    if not any(file.path == path or file.path.startswith(f"{path}/") for file in model.files):
        raise NotFound(f"{model.version} has no file or folder {path[:200]!r}")
    short = {tensor.name_in_file: tensor for tensor in inside.values()}
    return short if len(short) == len(inside) else inside


def _shard(name: str, tensor: Tensor, shard: tuple[int, int] | None, dim: Dim) -> Shard:
    if shard is None:
        return whole(tensor)
    rank, world = shard
    if not 0 <= rank < world:
        raise UsageError(f"shard {shard} is not (rank, world) with 0 <= rank < world")
    if isinstance(dim, Mapping):
        along = dim.get(name)
    elif callable(dim):
        along = dim(name, tensor.shape)
    else:
        along = dim if dim is None or -tensor.ndim <= dim < tensor.ndim else None
    return whole(tensor) if along is None else shard_of(tensor, rank, world, along)


def _fitting(tensor: Tensor, shape: tuple[int, ...], shard: tuple[int, int] | None) -> Dim:
    """The dimension in which ``shape`` is that of the rank's part; ``None`` when there is none."""
    if shard is None or len(shape) != tensor.ndim:
        return None
    differ = [at for at in range(tensor.ndim) if shape[at] != tensor.shape[at]]
    if len(differ) != 1 or shard_of(tensor, *shard, differ[0]).shape != tuple(shape):
        return None
    return differ[0]


def _read(shards: _Shards, device: torch.device) -> dict[str, torch.Tensor]:
    if device.type == "meta":
        return {name: _on_meta(tensor, shard) for name, (tensor, shard) in shards.items()}
    if device.type != "cpu":
        return upload(shards, device)
    return _read_on_cpu(shards)


def _on_meta(tensor: Tensor, shard: Shard) -> torch.Tensor:
    plain = torch.empty(shard.strip.nbytes, dtype=torch.uint8, device="meta")
    return typed_torch(plain, tensor.dtype, shard.shape)


def _read_on_cpu(shards: _Shards) -> dict[str, torch.Tensor]:
    plain: dict[str, npt.NDArray[np.uint8]] = {}
    reads: list[StripRead] = []
    entire = [name for name, (tensor, shard) in shards.items() if shard.shape == tensor.shape]
    hot = hot_bases([shards[name][0] for name in entire])
    plain |= {name: data for name, data in zip(entire, hot, strict=True) if data is not None}
    if plain:
        reader = shards[entire[0]][0].content.reader
        lay_over(reader, [(shards[name][0], data) for name, data in plain.items()])
    for name, (tensor, shard) in shards.items():
        if name not in plain:
            plain[name] = new_bytes(shard.strip.nbytes)
            reads.append(StripRead(tensor, shard.strip, plain[name].data))
    read_strips(reads)
    return {
        name: as_torch(plain[name], tensor.dtype, shard.shape)
        for name, (tensor, shard) in shards.items()
    }
