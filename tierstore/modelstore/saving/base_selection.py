"""Chooses the base version for a save's deltas and pairs its tensors with the new ones."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import nlargest
from itertools import takewhile

from tierstore.errors import NotFound, TierstoreError
from tierstore.format.keys import version_key
from tierstore.format.manifest import (
    Manifest,
    TensorEntry,
    named_tensors,
    parse_manifest,
    patch_info,
)
from tierstore.format.reflog import RefEntry
from tierstore.format.table import ChunkPlace
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import bottom_manifest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.stored import entry_bytes
from tierstore.modelstore.names.names import Before
from tierstore.modelstore.saving.delta import LEAST_CHUNK_BYTES, BaseTensor, BaseVersion
from tierstore.modelstore.saving.framing import ChunkBase
from tierstore.modelstore.saving.source import SourceFile
from tierstore.modelstore.version import Version, version_of

_log = logging.getLogger("tierstore.delta")
_MODELS = 64
"""How many other models are looked at, by their newest manifest: those with the likest names."""
_PROBED = 4
_LEAST_SHARED = 0.25
"""Share of the new model's bytes in tensors of the same names and rows that makes a candidate."""
_LEAST_SAVED = 0.2
"""Least share of bytes that deltas must save in the samples for a version to be a base."""
_SAMPLES, _SAMPLE_BYTES, _AROUND = 4, 64 << 10, 2 << 20

TensorKey = tuple[str, str]
"""Path of the file and the tensor's name in it."""

Newest = Callable[[str, RefEntry | None], RefEntry | None]
"""Returns the entry of the newest version of a model that is not removed, if any.

It gets the model's name, and the last entry of its versions if that was just read.
"""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor that is being saved and may have a base."""

    key: TensorKey
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """Bytes of a new tensor that are compared with candidates, and what is around them."""

    tensor: NewTensor
    begin: int
    window: memoryview
    at: int
    size_bytes: int


def wanted_tensors(files: Iterable[SourceFile]) -> list[NewTensor]:
    """Return the tensors that can have a base, named as ``named_tensors`` names a version's."""
    every = [(file, info) for file in files if file.header for info in file.header.tensors]
    count = Counter(info.name for _, info in every)
    return [
        NewTensor(
            (file.path, info.name),
            info.name if count[info.name] == 1 else f"{file.path}::{info.name}",
            info.dtype,
            info.shape,
            info.end - info.begin,
        )
        for file, info in every
        if info.end - info.begin >= LEAST_CHUNK_BYTES and file.reused is None
    ]


def matches(wanted: Sequence[NewTensor], manifest: Manifest) -> dict[TensorKey, TensorEntry]:
    """Return the tensor of a version that each of ``wanted`` continues.

    Its name and dtype are the same, and its shape but for the number of rows. Where all names
    differ by one prefix (``model.`` added or removed), the prefix is ignored.
    """
    held = {name: entry for name, _, entry in named_tensors(manifest)}
    found = {one.key: held[one.name] for one in wanted if one.name in held}
    if 2 * len(found) < len(wanted):
        votes: Counter[tuple[str, str]] = Counter()
        for one in wanted[:_MODELS]:
            for name in held:
                if name.endswith("." + one.name):
                    votes["", name.removesuffix(one.name)] += 1
                elif one.name.endswith("." + name):
                    votes[one.name.removesuffix(name), ""] += 1
        for (gone, new), _ in votes.most_common(1):
            for one in wanted:
                name = new + one.name.removeprefix(gone)
                if one.name.startswith(gone) and name in held:
                    found.setdefault(one.key, held[name])
    fitting = {one.key: one for one in wanted}
    return {key: entry for key, entry in found.items() if _fits(fitting[key], entry)}


def _fits(new: NewTensor, old: TensorEntry) -> bool:
    if new.dtype != old.dtype or not entry_bytes(old):
        return False
    return new.shape[1:] == old.shape[1:] or new.nbytes == entry_bytes(old)


class BaseSelection:
    """The base of one save, found when the first new chunk asks for it. Thread-safe.

    Args:
        files: The files to be saved.
        find: Finds the base version, or returns ``None``; called once.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        find: Callable[[Sequence[NewTensor]], BaseVersion | None],
    ) -> None:
        self._wanted = wanted_tensors(files)
        self._find = find
        self._lock = threading.Lock()
        self._found = False
        self.version: BaseVersion | None = None
        self._tensors: dict[TensorKey, BaseTensor] = {}

    def nearest(self, key: TensorKey, begin: int, plain: memoryview) -> ChunkBase | None:
        """Return a base for the chunk ``plain`` at ``begin`` of a tensor; ``None`` if none pays."""
        self._take()
        tensor = self._tensors.get(key)
        return tensor.nearest(begin, plain) if tensor else None

    def stored(self, digest: bytes) -> list[tuple[ChunkPlace, int]]:
        """Return the place of a chunk that the base version has itself, and those of its bases.

        Such a chunk is reused: a delta against itself could never be read.
        """
        self._take()
        return self.version.stored(digest) if self.version else []

    def places(self, bases: Iterable[bytes]) -> list[tuple[ChunkPlace, int]]:
        """Return the places of chunks that ``nearest`` named, with the sizes of their packs."""
        assert self.version is not None
        return [self.version.place(digest) for digest in bases]

    def _take(self) -> None:
        with self._lock:
            if not self._found:
                self._load()
                self._found = True

    def _load(self) -> None:
        try:
            self.version = self._find(self._wanted)
        except TierstoreError as error:
            _log.warning("no base was found, all new chunks are stored standalone: %s", error)
        if self.version is not None:
            self._tensors = tensors_of(self.version, self._wanted)


def tensors_of(base: BaseVersion, wanted: Sequence[NewTensor]) -> dict[TensorKey, BaseTensor]:
    """Return the base tensor of every wanted tensor that has one in this version."""
    found = matches(wanted, base.manifest)
    shapes = {one.key: one.shape for one in wanted}
    return {key: BaseTensor(base, entry, shapes[key]) for key, entry in found.items()}


class BaseFinder:
    """Finds the version most similar to a new one of ``model``, mostly from metadata.

    The newest version of the same model comes first. If that is not similar, or there is none, the
    newest versions of other models are compared by names and shapes of their tensors, and the best
    of them by samples: some blocks of the four largest tensors.

    Args:
        home: The store's home.
        open_base: Opens a version as a base.
        model: Name of the model that is saved.
        files: The files to be saved; samples of them are read at once.
        newest: Finds the newest version of a model that is not removed; see ``Newest``.
        before: What there is of the model; see ``Before``.

    Attributes:
        has_candidates: Whether the store had any version to look at.
    """

    def __init__(
        self,
        home: Home,
        open_base: Callable[[Version], BaseVersion],
        model: str,
        files: Sequence[SourceFile],
        newest: Newest,
        before: Before,
    ) -> None:
        self._home, self._open, self._model, self._last = home, open_base, model, newest
        last, self._models = before
        self._own = self._newest(model, last) if last else None
        if last and not self._own:
            self._models = self._all_others()
        self.has_candidates = bool(self._own or self._models)
        self._samples = list(_samples(files)) if self.has_candidates else []

    def find(self, wanted: Sequence[NewTensor]) -> BaseVersion | None:
        """Return the most similar version, or ``None`` when none is similar enough."""
        best: tuple[float, BaseVersion | None] = (_LEAST_SAVED, None)
        if self._own is not None:
            best = max(best, self._compared(self._own, wanted), key=lambda pair: pair[0])
        if best[1] is None:
            for version in self._others(wanted):
                best = max(best, self._compared(version, wanted), key=lambda pair: pair[0])
        return best[1]

    def _all_others(self) -> Sequence[str]:
        return [name for name in self._home.models() if name != self._model]

    def _newest(self, model: str, seen: RefEntry | None = None) -> Version | None:
        try:
            entry = self._last(model, seen)
        except NotFound:  # every version of it is removed
            return None
        return None if entry is None else version_of(model, entry)

    def _others(self, wanted: Sequence[NewTensor]) -> list[Version]:
        """Return versions of other models that have the same tensors, the most similar first."""

        def shared(model: str) -> tuple[float, Version] | None:
            try:
                version = self._newest(model)
                if version is None:
                    return None
                key = version_key(version.digest)
                sealed = self._home.blobs.get(key)
                with parsing:
                    manifest = parse_manifest(sealed, version.digest, f"manifest {key}")
                    if patch_info(manifest) is not None:
                        manifest = bottom_manifest(self._home, version.digest)
                    found = matches(wanted, manifest)
                    del manifest  # before the next one is parsed
            except TierstoreError as error:  # its damage is nothing to this save
                _log.info("%s is not looked at as a base: %s", model, error)
                return None
            return sum(size for key, size in sizes.items() if key in found), version

        parsing = threading.Lock()  # one of 100,000 tensors takes 100 MB, and threads gain nothing
        sizes = {one.key: one.nbytes for one in wanted}
        models = self._models or self._all_others()
        near = nlargest(_MODELS, models, self._common_prefix)
        with ThreadPoolExecutor(8, "tierstore-base") as pool:
            scored = [pair for pair in pool.map(shared, near) if pair is not None]
        seen: set[Digest] = {self._own.digest} if self._own else set()
        found: list[Version] = []
        for bytes_shared, version in sorted(scored, key=lambda pair: -pair[0]):
            if bytes_shared < _LEAST_SHARED * sum(sizes.values()) or len(found) == _PROBED:
                break
            if version.digest not in seen:
                seen.add(version.digest)
                found.append(version)
        return found

    def _common_prefix(self, model: str) -> int:
        pairs = zip(model, self._model, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _compared(
        self, version: Version, wanted: Sequence[NewTensor]
    ) -> tuple[float, BaseVersion | None]:
        try:
            base = self._open(version)
            tensors = tensors_of(base, wanted)
            similarity = [self._similarity(tensors, sample, version) for sample in self._samples]
        except TierstoreError as error:
            _log.warning("%s cannot be a base: %s", version, error)
            return 0.0, None
        return sum(similarity) / max(1, len(similarity)), base

    def _similarity(
        self, tensors: dict[TensorKey, BaseTensor], sample: _Sample, version: Version
    ) -> float:
        tensor = tensors.get(sample.tensor.key)
        if tensor is None:
            return 0.0
        found = tensor.similarity(sample.begin, sample.window, sample.at, sample.size_bytes)
        if tensor.has_other_rows and version.model == self._model:
            # rows came or went in our own model: the others may have moved far
            return max(found, 0.5)
        return found


def _samples(files: Sequence[SourceFile]) -> Iterator[_Sample]:
    """Yield a sample from the middle of each of the largest tensors, and what is around it."""
    starts = {
        (file.path, info.name): (file, file.data_start + info.begin)
        for file in files
        if file.header
        for info in file.header.tensors
    }
    for one in nlargest(_SAMPLES, wanted_tensors(files), lambda one: one.nbytes):
        at = max(0, one.nbytes - _SAMPLE_BYTES) // 2 & -8
        sample_bytes = min(_SAMPLE_BYTES, one.nbytes - at)
        begin, end = max(0, at - _AROUND), min(one.nbytes, at + sample_bytes + _AROUND)
        window = memoryview(bytearray(end - begin))
        file, start = starts[one.key]
        file.read_into(start + begin, window)
        yield _Sample(one, begin, window, at, sample_bytes)


def select_base(
    files: Sequence[SourceFile],
    base: str | Version | None,
    model: str,
    home: Home,
    as_base: Callable[[Version], BaseVersion],
    resolve: Callable[[str | Version], Version],
    newest: Newest,
    before: Before,
) -> BaseSelection | None:
    """Choose the base version of a save: ``auto`` looks for one, a reference names it.

    Returns ``None`` when no base is asked for, or the store has no version to look at.
    """
    if base != "auto":
        return named_base(files, base, as_base, resolve)
    finder = BaseFinder(home, as_base, model, files, newest, before)
    return BaseSelection(files, finder.find) if finder.has_candidates else None


def named_base(
    files: Sequence[SourceFile],
    base: str | Version | None,
    as_base: Callable[[Version], BaseVersion],
    resolve: Callable[[str | Version], Version],
) -> BaseSelection | None:
    """Take the version that a reference names as the base of a save; ``None`` takes none."""
    if base is None:
        return None
    version = as_base(resolve(base))
    return BaseSelection(files, lambda _: version)
