"""The facade: everything a user does with a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, NotFound, TierstoreError, UsageError
from tierstore.format.keys import ALIASES, VERSION_LOG
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import StoreConfig, check_features
from tierstore.ids import ModelRef, check_alias, check_name
from tierstore.modelstore.check import CheckReport, check_store
from tierstore.modelstore.compare import Diff, Usage, compare, measure
from tierstore.modelstore.home import Home
from tierstore.modelstore.index import ChunkIndex
from tierstore.modelstore.leases import ReaderLease, WriterLease
from tierstore.modelstore.model import Model
from tierstore.modelstore.packs import Packs
from tierstore.modelstore.reader import ChunkReader
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.source import open_source
from tierstore.modelstore.tensor import Content
from tierstore.modelstore.version import Version, version_of
from tierstore.modelstore.writer import Progress, Writer
from tierstore.tiers.durable import DurableTiers


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points to a version of a model; it moves, the version does not."""

    model: str
    name: str
    version: Version


class Store:
    """A store of models. Get one from ``tierstore.init`` or ``tierstore.open``.

    Thread-safe; a context manager that closes it. References are written ``model`` (the newest
    version), ``model@alias``, ``model@12`` or ``model@b3:<at least 8 hex digits of the digest>``.
    """

    def __init__(
        self,
        blobs: BlobStore,
        settings: Settings,
        *,
        packs: DurableTiers | None = None,
        config: StoreConfig | None = None,
    ) -> None:
        """Open the store whose home is ``blobs``; see ``Home`` for ``packs`` and ``config``."""
        self._blobs, self._settings = blobs, settings
        self.home = Home(blobs, packs, config)
        cache = settings.cache_dir / self.home.config.store_id / "index.sqlite"
        self._index = ChunkIndex(blobs, cache)
        self._lease = ReaderLease(blobs)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._blobs.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End leases and close files; models loaded from here can no longer be read for sure."""
        self._lease.close()
        self._index.close()
        self.home.packs.close()
        self._blobs.close()

    def save(
        self,
        model: str,
        source: str | os.PathLike[str] | Mapping[str, Any],
        *,
        alias: str | None = None,
        message: str = "",
        metadata: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Version:
        """Store a model as a new version; what the store has already costs nothing.

        Args:
            model: its name; ``org/model`` is fine.
            source: a ``.safetensors`` file, a directory with such files and others, or tensors by
                name (numpy arrays, ml_dtypes included, or torch tensors).
            alias: a name to point to the new version, such as ``prod``.
            message: why; kept in the log.
            metadata: ``__metadata__`` of the header, for tensors in memory.
            exclude: glob patterns of paths in the directory to leave out.
            progress: called with bytes done and bytes in all.

        Raises:
            InvalidSafetensors, UnsafeSource, SourceChanged: of the source; nothing is published.
            OutOfSpace, PermissionDenied, Unreachable: of the storage; nothing is published, or the
                message says that only ``alias`` was not moved.
        """
        model = check_name("model", model)
        _check_case("model", model, self.home.models())
        if alias is not None:
            alias = check_alias(alias)
            _check_case("alias", alias, self.home.aliases(model))
        check_features(self.home.config, "write", self.url)
        if not isinstance(source, Mapping):
            self._refuse_own(Path(source))
        files = open_source(source, metadata=metadata, exclude=exclude)
        try:
            with WriterLease(self._blobs) as lease:
                self._index.sync()
                writer = Writer(
                    self._blobs, self.home.packs, self._index, lease,
                    chunk_size=self.home.config.chunk_size, threads=self._settings.threads,
                    progress=progress,
                )  # fmt: skip
                digest = writer.write(files)
                log = self.home.log(model)
                entry = log.append("publish", lambda _: (0, digest.hex, None), message)
                writer.publish_index()
        finally:
            for file in files:
                file.close()
        if alias is not None:
            try:
                self._point(model, alias, entry, message)
            except TierstoreError as error:
                raise type(error)(
                    f"{model}@{entry.version} is published, but {model}@{alias} does not point to "
                    f"it: {error}"
                ) from error
        return version_of(model, entry, writer.stats())

    def _refuse_own(self, source: Path) -> None:
        home = urlsplit(self.url)
        if home.scheme == "file" and Path(unquote(home.path)).resolve().is_relative_to(
            source.resolve()
        ):
            raise UsageError(f"{source} holds the store itself; keep the store outside of it")

    def load(self, ref: str) -> Model:
        """Open a version for reading; nothing but its metadata is read yet.

        Raises:
            NotFound: no such model, alias or version.
            Damaged: its manifest or layout is damaged.
        """
        version = self.resolve(ref)
        self._lease.add(version.digest.hex)
        manifest = self.home.manifest(version.digest)
        table = self.home.layout(version.digest, manifest)
        packs = Packs(self._blobs, self.home.packs)
        reader = ChunkReader(
            packs,
            table,
            threads=self._settings.threads,
            memory_limit=self._settings.memory_limit,
        )
        return Model(version, manifest, Content(table, reader, manifest.chunk_size), packs)

    def resolve(self, ref: str) -> Version:
        """The version that a reference means now; ``NotFound`` says which part does not exist."""
        parsed = ModelRef.parse(ref)
        log = self.home.log(parsed.model)
        if parsed.number is not None:
            entry = self._version_entry(parsed.model, parsed.number)
        elif parsed.alias is not None:
            pointed = self.home.log(parsed.model, ALIASES + parsed.alias).last()
            if pointed is None or pointed.version is None:
                raise NotFound(f"{parsed} does not exist; {self._hint(parsed.model)}")
            try:
                entry = log.entry(pointed.version)
            except NotFound:
                raise NotFound(
                    f"{parsed} points to {parsed.model}@{pointed.version}, whose entry is missing; "
                    "run 'tierstore check', and restore it from a copy"
                ) from None
        elif parsed.prefix is not None:
            entry = self._by_digest(parsed)
        else:
            last = log.last()
            if last is None:
                raise NotFound(f"there is no model {parsed.model!r}; 'tierstore ls' lists them")
            entry = last
        return version_of(parsed.model, entry)

    def _hint(self, model: str) -> str:
        last = self.home.log(model).last()
        if last is None:
            return f"there is no model {model!r}: 'tierstore ls' lists them"
        return f"{model} has versions 1 to {last.seq}: 'tierstore ls {model}' lists them"

    def _version_entry(self, model: str, number: int) -> RefEntry:
        try:
            return self.home.log(model).entry(number)
        except NotFound:
            raise NotFound(f"{model}@{number} does not exist; {self._hint(model)}") from None

    def _by_digest(self, parsed: ModelRef) -> RefEntry:
        found: dict[str, RefEntry] = {}
        for entry in self.home.log(parsed.model).entries():
            if entry.manifest and entry.manifest.startswith(parsed.prefix or ""):
                found.setdefault(entry.manifest, entry)
        if not found:
            raise NotFound(f"{parsed} does not exist; {self._hint(parsed.model)}")
        if len(found) > 1:
            raise UsageError(f"{parsed} fits {len(found)} versions; give more digits")
        return next(iter(found.values()))

    def models(self) -> list[str]:
        """The names of all models, sorted."""
        return self.home.models()

    def versions(self, model: str, limit: int | None = None) -> list[Version]:
        """The versions of a model, newest first; ``NotFound`` when there is no such model."""
        model = check_name("model", model)
        found = [version_of(model, entry) for entry in self.home.log(model).entries(limit)]
        if not found:
            raise NotFound(f"there is no model {model!r}; 'tierstore ls' lists them")
        return found

    def aliases(self, model: str) -> list[Alias]:
        """The aliases of a model and the versions that they point to now."""
        model = check_name("model", model)
        found = []
        for name in self.home.aliases(model):
            pointed = self.home.log(model, ALIASES + name).last()
            if pointed is not None and pointed.version is not None:
                entry = self.home.log(model).entry(pointed.version)
                found.append(Alias(model, name, version_of(model, entry)))
        return found

    def history(self, model: str, alias: str | None = None) -> Iterator[RefEntry]:
        """Who pointed what where, when and why, newest first: of the versions or of one alias."""
        model = check_name("model", model)
        name = VERSION_LOG if alias is None else ALIASES + check_alias(alias)
        return self.home.log(model, name).entries()

    def alias(self, model: str, name: str, ref: str, *, message: str = "") -> Alias:
        """Point an alias of ``model`` to a version of it (``ref``)."""
        version = self.resolve(ref)
        if version.model != check_name("model", model):
            raise UsageError(f"{ref} is not a version of {model!r}; an alias stays in its model")
        entry = self._version_entry(version.model, version.number)
        self._point(version.model, check_alias(name), entry, message)
        return Alias(version.model, check_alias(name), version)

    def _point(self, model: str, alias: str, entry: RefEntry, message: str) -> None:
        _check_case("alias", alias, self.home.aliases(model))
        check_features(self.home.config, "write", self.url)
        self.home.log(model, ALIASES + alias).append(
            "set",
            lambda last: (entry.version, entry.manifest, last.seq if last else None),
            message,
        )

    def remove_alias(self, model: str, name: str, *, message: str = "") -> None:
        """Remove an alias; the versions stay, and so does its log."""

        def target(last: RefEntry | None) -> tuple[None, None, int]:
            if last is None or last.version is None:
                raise NotFound(f"{model}@{name} does not exist; {self._hint(model)}")
            return None, None, last.seq

        model = check_name("model", model)
        check_features(self.home.config, "write", self.url)
        log = self.home.log(model, ALIASES + check_alias(name))
        log.append("remove", target, message)

    def rollback(self, model: str, alias: str, *, message: str = "") -> Alias:
        """Point an alias back to what it meant before; moves no bytes.

        Twice in a row goes back two steps. Raises ``NotFound`` when there is nothing before.
        """
        model = check_name("model", model)
        check_features(self.home.config, "write", self.url)
        log = self.home.log(model, ALIASES + check_alias(alias))

        def target(last: RefEntry | None) -> tuple[int | None, str | None, int | None]:
            before = last
            while before is not None and (
                before.version is None or (last is not None and before.version == last.version)
            ):
                before = log.entry(before.previous) if before.previous else None
            if last is None or before is None:
                raise NotFound(f"{model}@{alias} has nothing to go back to; see 'tierstore log'")
            return before.version, before.manifest, before.previous

        entry = log.append("rollback", target, message)
        assert entry.version is not None
        version = version_of(model, self.home.log(model).entry(entry.version))
        return Alias(model, alias, version)

    def diff(self, old: str, new: str) -> Diff:
        """What changed between two versions, tensor by tensor; reads only metadata."""
        return compare(self.home, self.resolve(old), self.resolve(new))

    def usage(self, model: str | None = None) -> Usage:
        """Logical, unique and stored bytes, and what dedup, codec and delta saved."""
        names = self.models() if model is None else [check_name("model", model)]
        return measure(self.home, {name: self.versions(name) for name in names})

    def check(
        self, *, read_data: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> CheckReport:
        """Verify everything; with ``read_data`` every chunk is decoded and compared too."""
        return check_store(self.home, read_data=read_data, settings=self._settings,
                           progress=progress)  # fmt: skip


def _check_case(kind: str, name: str, existing: Iterable[str]) -> None:
    for other in existing:
        if other != name and other.casefold() == name.casefold():
            raise Conflict(
                f"{kind} {name!r} differs from the existing {other!r} only in case; "
                "use that name, or a clearly different one"
            )
