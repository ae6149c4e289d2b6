"""Loading into torch: state dicts and modules, whole or one rank's part, on any device.

>>> import torch
>>> import tierstore.torch
>>> module = torch.nn.Linear(4, 2)
>>> store = tierstore.init("store")
>>> _ = store.save("ranker", module.state_dict(), alias="prod")
>>> tierstore.torch.load_model(module, "ranker@prod", store=store, device="cpu")
Loaded(missing_keys=[], unexpected_keys=[])
>>> mine = tierstore.torch.state_dict("ranker@prod", store=store, shard=(0, 2), dim={"weight": 1})
>>> mine["weight"].shape, mine["bias"].shape
(torch.Size([2, 2]), torch.Size([2]))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from tierstore.arguments import as_whole, wrong
from tierstore.errors import NotFound, TensorMissing, UsageError
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.loading.arrays import as_torch, new_bytes, typed_torch
from tierstore.modelstore.loading.model import Model, checked_names
from tierstore.modelstore.loading.shards import Shard, StripRead, read_strips, shard_of, whole
from tierstore.modelstore.loading.tensor import Tensor, hot_tensors
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.serving.location import SCHEME, open_ref

try:
    import torch
    from torch.nn.parameter import is_lazy

    from tierstore.serving.modules import check_whole, counters, loads_itself
    from tierstore.serving.ties import bind_ties, ties_of
    from tierstore.serving.upload import upload
except ImportError as error:
    raise UsageError("torch is not installed: pip install 'tierstore[torch]'") from error

Dim: TypeAlias = (
    int | Mapping[str, int | None] | Callable[[str, tuple[int, ...]], int | None] | None
)
"""The dimension in which tensors are cut: one for all, one by name (other names are not cut), or a
function of name and shape. ``None`` is for a tensor that every rank has whole."""

WINDOW_BYTES = 256 << 20
"""Bytes that ``iter_weights`` reads at once."""

_CPU = torch.device("cpu")


class Loaded(NamedTuple):
    """Names that only one side of ``load_model`` has, as ``load_state_dict`` returns them."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def state_dict(
    ref: str | Version,
    *,
    store: Store | None = None,
    names: Iterable[str] | None = None,
    device: str | int | torch.device = "cpu",
    shard: tuple[int, int] | None = None,
    dim: Dim = 0,
) -> dict[str, torch.Tensor]:
    """Read the tensors of a version and return them by name.

    Tensors that are hot on this node are mapped instead of copied; writing to them stays private.
    For a CUDA device bytes are read into pinned memory, and copied from there while the next ones
    are read.

    Args:
        ref: Reference such as ``ranker@prod``, a version, or a ``tierstore://`` URL. A URL of a
            file or folder reads only the tensors in there, under their names in their files.
        store: Store to read from; by default the one in the URL, or the configured one.
        names: Tensors to read; by default all.
        device: Device to put the tensors on; on ``meta`` nothing is read.
        shard: ``(rank, world)`` to read one rank's part of every tensor, and no other bytes.
        dim: Dimension to cut in with ``shard``; a tensor with fewer dimensions is read whole.

    Raises:
        NotFound: There is no such version, file or tensor.
        UsageError: ``shard`` or ``dim`` is out of range, or torch has no such dtype.
    """
    tensors = _tensors(*open_ref(ref, store))
    chosen = _chosen(ref, tensors, names)
    some = {name: tensors[name] for name in chosen}
    return _read(some, _parts(some, shard, dim), torch.device(device))


def iter_weights(
    ref: str | Version,
    *,
    store: Store | None = None,
    names: Iterable[str] | None = None,
    window: int = WINDOW_BYTES,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors on the CPU one after the other, while the next ones are read.

    Tensors that are hot on this node are mapped. At most twice ``window`` bytes, or the largest
    tensor, are held at a time.

    Args:
        ref: Reference, version or URL, as for ``state_dict``.
        store: Store to read from, as for ``state_dict``.
        names: Tensors to read, in this order; by default all, in the order of the version.
        window: Bytes to read at once.

    Raises:
        NotFound, UsageError: As for ``state_dict``, before the first tensor.
    """
    as_whole("window", window, "bytes as a whole number, 1 or more", 1)
    tensors = _tensors(*open_ref(ref, store))
    chosen = _chosen(ref, tensors, names)
    groups = list(batches(chosen, lambda name: tensors[name].nbytes, window))

    def read(group: list[str]) -> dict[str, torch.Tensor]:
        return _read_on_cpu({name: tensors[name] for name in group}, {})

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


def _chosen(
    ref: str | Version, tensors: Mapping[str, Tensor], names: Iterable[str] | None
) -> list[str]:
    chosen = list(tensors if names is None else checked_names(names))
    for name in chosen:
        if name not in tensors:
            raise TensorMissing(f"{ref} has no tensor {str(name)[:200]!r}")
    return chosen


def load_model(
    module: torch.nn.Module,
    ref: str | Version,
    *,
    store: Store | None = None,
    strict: bool = True,
    device: str | int | torch.device | None = None,
    assign: bool | None = None,
    shard: tuple[int, int] | None = None,
    dim: Dim = None,
) -> Loaded:
    """Load a version into a module.

    It does what ``load_state_dict`` does with hooks of the module, with ``weight_norm``, lazy
    layers and the like. A module on the meta device takes the tensors that were read as its own.
    Weights that the module ties stay tied, and only one of their names has to be stored. Only
    tensors that the module has are read; but all of them, where names differ and the module loads
    in a way of its own, which may want any. Buffers that are not persistent are not stored.

    Args:
        module: Module whose parameters and persistent buffers are filled.
        ref: Reference, version or URL, as for ``state_dict``.
        store: Store to read from, as for ``state_dict``.
        strict: Whether to refuse names that only one side has; otherwise they are returned.
        device: Device to move the module to; by default its tensors stay on their devices, and
            those on ``meta`` go to the CPU.
        assign: Whether the module takes the tensors that were read, with their dtypes, instead of
            copying their values into its own. By default only if it is on the meta device.
        shard: ``(rank, world)``, for a module that holds one rank's part of some tensors.
        dim: Dimension to cut in, as for ``state_dict``; with ``None`` it is the one in which the
            module's own shape is that of a part.

    Raises:
        RuntimeError: Shapes differ, or with ``strict`` names do, as from ``load_state_dict``.
        NotFound, UsageError: As for ``state_dict``; or the module is distributed, or several files
            of the version have a tensor that it wants.
    """
    if not isinstance(module, torch.nn.Module):
        raise wrong("module", "the torch module to fill, before the reference", module)
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
    check_whole(own)
    _check_one_each(ref, own, tensors)
    ties = ties_of(own)
    source = _stored_names(own, ties, tensors)
    missing = [name for name in own if name not in source]
    unexpected = [name for name in tensors if name not in own]
    if (missing or unexpected) and loads_itself(module):
        source |= {name: name for name in unexpected}
        unexpected = []
    else:  # before anything is read, or written
        absent = [name for name in missing if name not in counters(module)]
        _check(module, ref, strict, Loaded(absent, unexpected))
    read = _read_for(own, source, tensors, device, shard, dim)
    if assign is None:
        assign = any(value.is_meta for value in own.values())
    state = {name: read[found] for name, found in source.items()}
    result = module.load_state_dict(state, strict=False, assign=assign)
    if assign:
        bind_ties(module, ties)
    loaded = Loaded(list(result.missing_keys), unexpected + list(result.unexpected_keys))
    _check(module, ref, strict, loaded)
    return loaded


def _check_one_each(
    ref: str | Version, own: Mapping[str, torch.Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raise ``UsageError`` if two files of a version have a tensor that a module wants."""
    for name, tensor in tensors.items():
        short = tensor.name_in_file
        if short != name and short in own and short not in tensors:
            files = sorted(one.file for one in tensors.values() if one.name_in_file == short)
            raise UsageError(
                f"{len(files)} files of {ref} have a tensor {short[:200]!r}, such as {files[0]}: "
                f"name the one that is meant, {SCHEME}MODEL/{files[0]}"
            )


def _stored_names(
    own: Iterable[str], ties: Mapping[str, list[str]], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the stored name of each name in a module that is stored, itself or by a tie."""
    source: dict[str, str] = {}
    for name in own:
        if name in tensors:
            source[name] = name
        elif stored := [one for one in ties.get(name, ()) if one in tensors]:
            source[name] = stored[0]
    return source


def _read_for(
    own: Mapping[str, torch.Tensor],
    source: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    device: str | int | torch.device | None,
    shard: tuple[int, int] | None,
    dim: Dim,
) -> dict[str, torch.Tensor]:
    """Read the stored tensors in ``source``, each onto the device that it goes to."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    everywhere = None if device is None else torch.device(device)
    usual = next((value.device for value in own.values()), _CPU)
    for name, stored in source.items():
        where = everywhere
        if where is None:
            where = own[name].device if name in own else usual
        some = by_device.setdefault(_CPU if where.type == "meta" else where, {})
        some[stored] = tensors[stored]
    along = _fitting(own, source, tensors, shard) if dim is None else dim
    read: dict[str, torch.Tensor] = {}
    for where, some in by_device.items():
        read |= _read(some, _parts(some, shard, along), where)
    return read


def _check(module: torch.nn.Module, ref: str | Version, strict: bool, loaded: Loaded) -> None:
    if not strict or not any(loaded):
        return
    lines = [f"Error(s) in loading {ref} into {type(module).__name__}:"]
    for what, names in zip(("Missing", "Unexpected"), loaded, strict=True):
        if names:
            listed = ", ".join(f'"{name}"' for name in names)
            lines.append(f"\t{what} key(s) in state_dict: {listed}.")
    raise RuntimeError("\n".join(lines))


def _tensors(model: Model, path: str) -> dict[str, Tensor]:
    """Return the tensors of a version, or of a file or folder of it, by name in the result."""
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


def _parts(
    tensors: Mapping[str, Tensor], shard: tuple[int, int] | None, dim: Dim
) -> dict[str, Shard]:
    """Return a rank's parts of the tensors that it does not read whole."""
    if shard is None:
        return {}
    rank, world = shard
    if not 0 <= rank < world:
        raise UsageError(f"shard {shard} is not (rank, world) with 0 <= rank < world")
    parts: dict[str, Shard] = {}
    for name, tensor in tensors.items():
        if isinstance(dim, Mapping):
            along = dim.get(name)
        elif callable(dim):
            along = dim(name, tensor.shape)
        else:
            along = dim if dim is None or -tensor.ndim <= dim < tensor.ndim else None
        part = None if along is None else shard_of(tensor, rank, world, along)
        if part is not None and part.shape != tensor.shape:
            parts[name] = part
    return parts


def _fitting(
    own: Mapping[str, torch.Tensor],
    source: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    shard: tuple[int, int] | None,
) -> Dim:
    """Return the dimension in which the module's own shape is that of the rank's part, if any."""
    if shard is None:
        return None
    shapes = {
        stored: tuple(own[name].shape)
        for name, stored in source.items()
        if name in own and not is_lazy(own[name])
    }

    def along(name: str, stored: tuple[int, ...]) -> int | None:
        shape = shapes.get(name, stored)
        differ = [at for at, extent in enumerate(stored) if shape[at : at + 1] != (extent,)]
        if len(shape) != len(stored) or len(differ) != 1:
            return None
        part = shard_of(tensors[name], *shard, differ[0])
        return differ[0] if part.shape == shape else None

    return along


def _read(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Shard], device: torch.device
) -> dict[str, torch.Tensor]:
    """Read tensors of one version onto a device, those in ``parts`` only in part."""
    if device.type == "cpu":
        return _read_on_cpu(tensors, parts)
    shards = {name: (tensor, parts.get(name, whole(tensor))) for name, tensor in tensors.items()}
    if device.type == "meta":
        return {name: _on_meta(tensor, shard) for name, (tensor, shard) in shards.items()}
    return upload(shards, device)


def _on_meta(tensor: Tensor, shard: Shard) -> torch.Tensor:
    plain = torch.empty(shard.strip.nbytes, dtype=torch.uint8, device="meta")
    return typed_torch(plain, tensor.dtype, shard.shape)


def _read_on_cpu(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Shard]
) -> dict[str, torch.Tensor]:
    entire = {name: tensor for name, tensor in tensors.items() if name not in parts}
    hot = hot_tensors(list(entire.values()))
    plain = {name: data for name, data in zip(entire, hot, strict=True) if data is not None}
    reads: list[StripRead] = []
    for name, tensor in tensors.items():
        if name not in plain:
            strip = parts[name].strip if name in parts else whole(tensor).strip
            plain[name] = new_bytes(strip.nbytes)
            reads.append(StripRead(tensor, strip, plain[name].data))
    read_strips(reads)
    shapes = {name: part.shape for name, part in parts.items()}
    return {
        name: as_torch(plain[name], tensor.dtype, shapes.get(name, tensor.shape))
        for name, tensor in tensors.items()
    }
