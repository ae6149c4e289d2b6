"""The typed view of home: config, manifests, layouts and the names in the ref logs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tierstore.arguments import as_whole
from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Conflict, InvalidName, NotFound, UsageError
from tierstore.format import keys
from tierstore.format.checks import digest_of
from tierstore.format.chunking import DEFAULT_CHUNK, is_chunk_size
from tierstore.format.reflog import LOST_MANIFEST
from tierstore.format.storeconfig import (
    StoreConfig,
    check_features,
    encode_config,
    is_config,
    parse_config,
    will_reclaim,
)
from tierstore.ids import Buffer, Digest, split_digests
from tierstore.modelstore.home.condemned import CondemnedPacks
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.home.news import News
from tierstore.modelstore.home.probe import probe
from tierstore.modelstore.home.quarantine import Quarantine
from tierstore.modelstore.home.refs import RefLog
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

if TYPE_CHECKING:  # a process that looks at names alone reads no manifest and no layout
    from tierstore.format.manifest import Manifest, ManifestChunks
    from tierstore.format.table import ChunkTable


def create_config(blobs: BlobStore, chunk_size: int = DEFAULT_CHUNK) -> None:
    """Make an empty store at ``blobs``.

    Raises:
        UsageError: The chunk size is not a power of two from 1 to 16 MiB.
        Conflict: A store is there already, or one that lost its config, or another object under
            the config's key.
        BackendError: The storage cannot create an object atomically, so it cannot be a home.
    """
    chunk_size = as_whole("chunk_size", chunk_size, "bytes as a whole number, such as 4 << 20")
    if not is_chunk_size(chunk_size):
        raise UsageError(
            f"a chunk size of {chunk_size} bytes is not possible: give a power of two from 1 MiB "
            "to 16 MiB"
        )
    if not (blobs.capabilities.put_if_absent and probe(blobs).put_if_absent):
        raise BackendError(
            f"{blobs.url} cannot create an object only if it is absent, so two writers could "
            "overwrite each other; use a local directory or S3-compatible storage as home"
        )
    if keys.CONFIG not in blobs.get_many([keys.CONFIG]) and _has_models(blobs):
        raise Conflict(f"{_lost_config(blobs)}; for an empty store choose another place")
    config = StoreConfig(store_id=uuid.uuid4().hex, chunk_size=chunk_size)
    if not blobs.put_if_absent(keys.CONFIG, encode_config(config)):
        if not is_config(blobs.get(keys.CONFIG)):
            raise Conflict(
                f"{blobs.url} holds a {keys.CONFIG} that is not a store's, a model's perhaps; "
                "choose another place"
            )
        raise Conflict(f"{blobs.url} is a store already; open it, or choose another place")


def read_config(blobs: BlobStore) -> StoreConfig:
    """Return the config of the store at ``blobs``, checked to be readable by this version.

    Raises:
        NotFound: There is no store.
        UnsupportedFormat: The store was made by a newer version of tierstore.
    """
    name = f"{blobs.url}/{keys.CONFIG}"
    try:
        data = blobs.get(keys.CONFIG)
    except NotFound:
        data = None
    if data is None or not is_config(data):
        if data is None and _has_models(blobs):
            raise NotFound(_lost_config(blobs))
        raise NotFound(
            f"{blobs.url} is not a store; make one with 'tierstore init URL', or check the URL"
        )
    config = parse_config(data, name)
    check_features(config, "read", name)
    return config


def _has_models(blobs: BlobStore) -> bool:
    """Return whether a store has lain here: models and releases have logs below ``refs/``."""
    return any(True for _ in blobs.list_folders(keys.REFS))


def _lost_config(blobs: BlobStore) -> str:
    return (
        f"{blobs.url} has models, but its {keys.CONFIG} is lost: "
        "'tierstore repair --home' makes it anew"
    )


class Home:
    """Reads a store's metadata: config, manifests, layouts and ref logs.

    Args:
        blobs: Storage that holds the store's metadata.
        packs: The tiers that hold the store's packs; by default home alone.
        config: The result of ``read_config``, if it was called already.
    """

    def __init__(
        self,
        blobs: BlobStore,
        packs: DurableTiers | None = None,
        config: StoreConfig | None = None,
    ) -> None:
        self.blobs = blobs
        self.packs = packs or DurableTiers([home_tier(blobs)])
        self.config = config or read_config(blobs)
        self.quarantine = Quarantine(blobs)
        self.condemned = CondemnedPacks(blobs)
        self.identity = Identity(blobs)
        self.news: News | None = None
        """Told of every entry that this process appends to a ref log."""

    def close(self) -> None:
        """Release the tiers and the news channel; ``blobs`` is the caller's and stays open."""
        if self.news is not None:
            self.news.close()
        self.packs.close()

    def log(self, model: str, name: str = keys.VERSION_LOG) -> RefLog:
        """Return the ref log of a model's versions, or of ``alias/<alias>``."""
        return RefLog(self.blobs, model, name, self.news, self.config.store_id, self._config_seen)

    def _config_seen(self, config: StoreConfig) -> None:
        """The store may have got features since it was opened."""
        self.config = config

    def read_cache_path(self, cache_dir: Path) -> Path:
        """Return the local file in which what was read of home is kept; see ``ReadCache``.

        Args:
            cache_dir: This node's folder of what can be lost.
        """
        place = digest_of(self.blobs.url.encode()).hex[:16]  # a copy of a store has its id
        return cache_dir / self.config.store_id / f"gc-{place}.sqlite"

    @property
    def reclaims(self) -> bool:
        """Whether versions may have been removed, or may be soon, as far as this process has seen.

        What is written while others wait for removal to be allowed is looked at as if it was: it
        may be slower than they are.
        """
        return will_reclaim(self.config)

    def reclaims_by_now(self) -> bool:
        """Whether versions may have been removed; asks home as long as they may not."""
        if not self.reclaims:
            self.config = read_config(self.blobs)
        return self.reclaims

    def models(self) -> list[str]:
        """Return the names of all models, sorted; folders that are no model's are skipped."""
        return sorted(names_in(self.blobs.list_folders(keys.REFS)))

    def aliases(self, model: str) -> list[str]:
        """Return the names of all aliases of a model, removed ones included, sorted."""
        return sorted(names_in(self.blobs.list_folders(keys.model_prefix(model) + keys.ALIASES)))

    def variants(self, model: str) -> list[str]:
        """Return the names of all variants that versions of a model have, sorted."""
        return sorted(names_in(self.blobs.list_folders(keys.model_prefix(model) + keys.VARIANTS)))

    def manifest(self, digest: Digest) -> Manifest:
        """Return the manifest with this digest, verified."""
        return self.manifest_as_stored(digest)[0]

    def manifest_as_stored(self, digest: Digest) -> tuple[Manifest, Buffer]:
        """Return the manifest with this digest, verified, and the object that holds it."""
        from tierstore.format.manifest import parse_manifest

        sealed = self._sealed(digest)
        return parse_manifest(sealed, digest, _named(digest)), sealed

    def manifest_chunks(self, digest: Digest) -> ManifestChunks:
        """Return what the manifest with this digest is made of, verified; see there."""
        from tierstore.format.manifest import parse_manifest_chunks

        return parse_manifest_chunks(self._sealed(digest), digest, _named(digest))

    def _sealed(self, digest: Digest) -> Buffer:
        try:
            return self.blobs.get(keys.version_key(digest))
        except NotFound:
            if digest.hex == LOST_MANIFEST:
                raise NotFound(
                    "the entry of this version in its log was lost, and the version was given up: "
                    "only a copy of that entry can bring it back"
                ) from None
            raise NotFound(
                f"{_named(digest)} is missing from {self.blobs.url}; run 'tierstore repair', "
                "then save that content again or restore it from a copy of home"
            ) from None

    def layout(self, digest: Digest, manifest: Manifest) -> ChunkTable:
        """Return the places of all chunks of a manifest.

        Raises:
            Damaged: The layout is damaged.
            NotFound: There is no layout, or it does not list a chunk of the version.
        """
        table = self.layout_if_there(digest, manifest)
        if table is None:
            raise NotFound(
                f"layout {keys.layout_key(digest)} is missing from {self.blobs.url}; 'tierstore "
                "layout rebuild' makes it anew"
            )
        return table

    def layout_if_there(self, digest: Digest, manifest: Manifest) -> ChunkTable | None:
        """Return the same as ``layout``, and ``None`` when there is no layout."""
        from tierstore.format.layout import missing_chunks, parse_layout

        key = keys.layout_key(digest)
        try:
            data = self.blobs.get(key)
        except NotFound:
            return None
        table = parse_layout(data, digest, f"layout {key}")
        missing = missing_chunks(table, chunks_of(manifest))
        if missing:
            raise NotFound(
                f"layout {key} does not say where {len(missing)} chunks are, the first "
                f"b3:{missing[0].hex()}; run 'tierstore repair'"
            )
        return table


def _named(digest: Digest) -> str:
    return f"manifest {keys.version_key(digest)}"


def names_in(segments: Iterable[str]) -> Iterator[str]:
    """Yield the names that segments of keys stand for; segments that are none are skipped."""
    for text in segments:
        with suppress(UnicodeDecodeError, InvalidName):
            name = keys.unsegment(text)
            if keys.segment(name) == text:
                yield name


def chunks_of(manifest: Manifest) -> list[bytes]:
    """Return the digests of all chunks of a version in load order, repeats included."""
    columns = [
        chunks
        for file in manifest.files
        for chunks in ([t.chunks for t in file.tensors] if file.header else [file.chunks])
    ]
    return split_digests(b"".join(columns))
