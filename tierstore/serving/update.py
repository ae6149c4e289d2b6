"""Reading a new version for a follower while the old one serves: only what changed is read.

With a hot tier on this node the version is loaded there and mapped, so that all processes of the
node share it. Without one, the patches between the old version and the new are applied to copies of
the old arrays; only if there are none, tensors that changed are read as a whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tierstore.errors import Conflict, NotFound, OutOfSpace, UsageError
from tierstore.modelstore.loading.arrays import new_bytes
from tierstore.modelstore.loading.model import LoadStats, Model
from tierstore.modelstore.loading.tensor import Tensor
from tierstore.modelstore.patches.patches import Patch
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.progress import Progress

if TYPE_CHECKING:
    from tierstore.deferred import Array

_log = logging.getLogger("tierstore.follow")

Arrays: TypeAlias = "Mapping[str, Array]"


@dataclass(frozen=True, slots=True)
class Update:
    """A version that is ready to serve.

    Attributes:
        model: The version, opened.
        tensors: All of its tensors by name, read and verified. Those that did not change are the
            arrays of the update before, so treat all as read-only.
        changed: Names of the tensors that differ from the update before; in the first one, all.
        previous: Version that is still in service; ``None`` for the first update.
        load_s: Seconds that reading took.
        stats: Cost of reading, with that of loading into this node's hot tier.
    """

    model: Model
    tensors: Arrays
    changed: tuple[str, ...]
    previous: Version | None
    load_s: float
    stats: LoadStats

    @property
    def version(self) -> Version:
        """The version itself."""
        return self.model.version


def read_update(
    store: Store,
    wanted: Version,
    before: Update | None,
    *,
    warm: bool,
    read: bool,
    progress: Progress | None = None,
) -> Update:
    """Read a version.

    Args:
        store: Store that has the version.
        wanted: Version to read.
        before: Update that is in service; ``None`` for the first.
        warm: Whether to load the version into this node's hot tier first.
        read: Whether to read the tensors; otherwise only the hot tier gets them, and needs room.
        progress: Called with bytes done and bytes in all, from several threads; an exception that
            it raises ends the reading.

    Raises:
        OutOfSpace: The hot tier has no room, and ``read`` is false.
        NotFound, Damaged, BackendError: The version cannot be read.
    """
    began = time.perf_counter()
    costs = _warmed(store, wanted, progress, needed=not read) if warm else []
    model = store.load(wanted)
    patches = None if before is None else _patches(store, before, model)
    changed = _changed(before, model, patches)
    tensors: dict[str, Array] = {}
    if read:
        if before is not None:
            tensors |= {name: before.tensors[name] for name in model if name not in changed}
        if before is not None and patches is not None and store._parts.hot.local is None:
            tensors |= _laid_over(before, changed, patches)
            costs += [patch.stats for patch in patches if patch.stats is not None]
        else:
            tensors |= model.load(changed, progress=progress)
    return Update(
        model=model,
        tensors=MappingProxyType({name: tensors[name] for name in model if name in tensors}),
        changed=changed,
        previous=None if before is None else before.version,
        load_s=time.perf_counter() - began,
        stats=sum(costs, model.stats),
    )


def _warmed(
    store: Store, wanted: Version, progress: Progress | None, *, needed: bool
) -> list[LoadStats]:
    try:
        warmth = store.warmup(wanted, progress=progress)
    except OutOfSpace as error:
        if needed:
            raise
        _log.warning("%s is read without the hot tier: %s", wanted, error)
        return []
    if needed and not warmth.resident:
        raise OutOfSpace(
            f"{warmth.missing_bytes} of {warmth.tier_bytes} bytes of {wanted} could not be kept "
            f"in tier {warmth.tier!r} of this node; see 'tierstore doctor' and the log for the "
            "reason"
        )
    return [] if warmth.stats is None else [warmth.stats]


def _patches(store: Store, before: Update, model: Model) -> list[Patch] | None:
    """Return the patches from one version to the other; ``None`` if there is no such way."""
    try:
        return list(store.patches(str(before.version), str(model.version)))
    except (Conflict, NotFound, UsageError):
        return None


def _changed(
    before: Update | None, model: Model, patches: Iterable[Patch] | None
) -> tuple[str, ...]:
    if before is None:
        return tuple(model)
    if patches is not None:
        touched = {name for patch in patches for name in patch.parts}
        return tuple(name for name in model if name in touched)
    old = {name: _content(before.model.tensor(name)) for name in before.model}
    return tuple(name for name in model if old.get(name) != _content(model.tensor(name)))


def _content(tensor: Tensor) -> tuple[object, ...]:
    """Return a value that is equal for tensors that are equal bit for bit."""
    return (tensor.dtype, tensor.shape, tensor.signature)


def _laid_over(
    before: Update, changed: Iterable[str], patches: Sequence[Patch]
) -> dict[str, Array]:
    """Apply patches to copies of the old tensors, which stay as they are."""
    fresh: dict[str, Array] = {}
    for name in changed:
        old = before.tensors[name]
        plain = new_bytes(old.nbytes)
        np.copyto(plain, old.reshape(-1).view(np.uint8))
        fresh[name] = plain.view(old.dtype).reshape(old.shape)
    for patch in patches:
        patch.apply_to(fresh, [name for name in patch.parts if name in fresh])
    return fresh
