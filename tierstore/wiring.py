"""From a URL to the store behind it: the only place that knows every kind of store."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from tierstore import codecs, config
from tierstore.blobs.base import BlobStore
from tierstore.errors import ConfigError
from tierstore.format.manifest import DEFAULT_CHUNK
from tierstore.modelstore.home import create_config
from tierstore.modelstore.store import Store

_OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_KNOWN = (
    "a directory, file:///path, memory://name, s3://bucket/prefix, gs://bucket/prefix, "
    "az://container/prefix, or fsspec+<protocol>://… for any fsspec file system"
)


def open_blobs(url: str, *, create: bool = False) -> BlobStore:
    """Open the blob store at ``url``.

    Libraries are imported when they are needed: a local directory loads no network client.

    Args:
        url: a path (``./dir``, ``/abs``), ``file:///abs``, ``memory://name`` (shared by everything
            in this process that opens the same name), ``s3://``, ``gs://`` or ``az://`` with a
            bucket and a prefix, or ``fsspec+<protocol>://…``.
        create: make a local directory that is missing.

    Raises:
        ConfigError: the scheme is not known, or the URL is not complete.
        NotFound: a local directory is missing and ``create`` is false.
    """
    scheme, colon, rest = url.partition("://")
    if not url:
        raise ConfigError(f"the store's URL is empty: use {_KNOWN}")
    if not colon or scheme == "file":
        from tierstore.blobs.local import LocalStore

        return LocalStore(_local_path(url) if colon else url, create=create)
    if scheme in _OBJECT_SCHEMES:
        from tierstore.blobs.object_store import ObjectStore

        return ObjectStore(url, allow_http=config.http_allowed())
    if scheme == "memory" or scheme.startswith("fsspec+"):
        from tierstore.blobs.fsspec_store import FsspecStore

        return FsspecStore(f"{scheme.removeprefix('fsspec+')}://{rest}")
    raise ConfigError(f"stores of the kind {scheme[:40]!r} are not known: use {_KNOWN}")


def _local_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise ConfigError(f"{url!r} has no absolute path: a file URL is file:///path")
    if parts.query or parts.fragment:
        raise ConfigError(f"{url!r}: write '?' as %3F and '#' as %23 in a file URL")
    return unquote(parts.path)


def init_store(
    url: str | os.PathLike[str] | None = None, *, chunk_size: int = DEFAULT_CHUNK
) -> Store:
    """Make an empty store and open it.

    Args:
        url: as for ``open_store``; a local directory is made if it is missing.
        chunk_size: bytes of a chunk, a power of two from 1 to 16 MiB; fixed for ever.

    Raises:
        Conflict: there is a store already.
        BackendError: the storage lacks what a store needs.
    """
    blobs = open_blobs(config.store_url(_text(url)), create=True)
    try:
        create_config(blobs, chunk_size)
    except BaseException:
        blobs.close()
        raise
    return _store(blobs)


def open_store(url: str | os.PathLike[str] | None = None) -> Store:
    """Open a store.

    Args:
        url: a directory, ``s3://bucket/prefix`` or what else ``open_blobs`` takes; by default what
            ``TIERSTORE_STORE`` says.

    Raises:
        NotFound: there is no store.
        UnsupportedFormat: it was made by a newer tierstore.
    """
    return _store(open_blobs(config.store_url(_text(url))))


def _text(url: str | os.PathLike[str] | None) -> str | None:
    return None if url is None else os.fspath(url)


def _store(blobs: BlobStore) -> Store:
    try:
        codecs.use_native(config.native_wanted())
        return Store(blobs, config.settings_from())
    except BaseException:
        blobs.close()
        raise
