"""Blobs in S3 (and what speaks it), Google Cloud Storage or Azure Blob Storage, through obstore.

Credentials, region and endpoint come from the usual environment variables (``AWS_*``,
``GOOGLE_*``, ``AZURE_*``), which obstore reads itself: they are never part of the URL. A plain
``http`` endpoint needs ``allow_http``; a store by URL takes that from ``AWS_ALLOW_HTTP=true``.

A blob is one PUT, never a multipart upload, so that a crash leaves nothing that has to be aborted
and ``If-None-Match`` covers all of it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from tierstore.blobs._object_errors import translated
from tierstore.blobs._shared import by_key, drop_front, flat_views, is_key, runs
from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.errors import (
    BackendError,
    ConfigError,
    Damaged,
    NotFound,
    TierstoreError,
    Unreachable,
)
from tierstore.ids import Buffer, ByteRange

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_PART_BYTES = 8 << 20  # a long read is split into requests of this size
_THREADS = 8  # with 8 MiB parts, as fast as raw sockets
_DELETE_BATCH = 1000  # the most that S3's DeleteObjects takes
_READ_TIMEOUT_S = 30  # of one request for at most one part
_WRITE_TIMEOUT_S = 300  # of one request for a whole blob
_CREATE_TRIES = 6
_CHANGED_TRIES = 3

_OBSTORE_ERRORS = (BaseError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class _Part:
    """One request: the buffers to fill, laid end to end, from ``start`` on."""

    key: str
    start: int
    outs: list[memoryview]


class ObjectStore(BlobStore):
    """Blobs below a prefix of one bucket.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
        allow_http: whether the endpoint may be plain ``http``.
        retry_s: requests that failed are sent again for this long, in seconds, with jittered
            exponential backoff; the last one may then run into its own timeout.

    Raises:
        ConfigError: the URL holds credentials or options, or the environment is incomplete.
    """

    def __init__(self, url: str, *, allow_http: bool = False, retry_s: float = 30.0) -> None:
        parts = urlsplit(url)
        # The URL is not repeated: what is wrong with it may be that it holds a secret.
        if "@" in parts.netloc and parts.scheme not in {"abfs", "abfss"}:
            raise ConfigError("a store's URL must not hold credentials: use the environment")
        if parts.query or parts.fragment:
            raise ConfigError("a store's URL must not hold '?' or '#': use the environment")
        if not parts.netloc:
            raise ConfigError(f"{url!r} names no bucket: use {parts.scheme}://bucket/prefix")
        self._url = url.rstrip("/")
        self._bulk_delete = parts.scheme in {"s3", "s3a"}
        try:
            self._quick = from_url(url, **_settings(retry_s, _READ_TIMEOUT_S, allow_http))
            self._slow = from_url(url, **_settings(retry_s, _WRITE_TIMEOUT_S, allow_http))
        except _OBSTORE_ERRORS as error:
            raise ConfigError(
                f"{self._url} cannot be opened ({type(error).__name__}): check the URL and the "
                "region, endpoint and credentials in the environment"
            ) from None
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=True, local=False)

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        check_key(key)
        with self._errors("writing", key):
            obstore.put(self._slow, key, flat_views(data), use_multipart=False)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        check_key(key)
        views = flat_views(data)
        for attempt in range(_CREATE_TRIES):
            with self._errors("creating", key):
                try:
                    obstore.put(self._slow, key, views, mode="create", use_multipart=False)
                    return True
                except AlreadyExistsError:
                    # S3 also says this (409 ConditionalRequestConflict) when another request for
                    # the key was under way, which may have been a deletion: look.
                    if self._exists(key):
                        return False
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise Unreachable(
            f"creating {key!r} in {self._url} was refused {_CREATE_TRIES} times because of other "
            "requests for it, but it does not exist; try again later"
        )

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        check_key(key)
        if byte_range is None:
            with self._errors("reading", key):
                return memoryview(obstore.get(self._slow, key).bytes())
        if 0 < len(byte_range) <= _PART_BYTES:
            return self._fetch(key, byte_range.start, byte_range.stop)[0]
        self._check_reach(key, byte_range.stop)  # before so much is allocated
        out = memoryview(bytearray(len(byte_range)))
        self.get_ranges([RangeRead(key, byte_range.start, out)])
        return out

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        parts = []
        for key, group in by_key(reads).items():
            check_key(key)
            for read in group:
                if not read.out.nbytes:  # asking for no bytes is an error: see that it is there
                    self._check_reach(key, read.start)
            for start, outs in runs(group):
                parts += [_Part(key, at, cut) for at, cut in _cuts(start, outs)]
        for _ in range(_CHANGED_TRIES):
            if len(parts) == 1:
                tags = [self._fill(parts[0])]
            else:
                tags = list(self._pool().map(self._fill, parts))
            versions = {(part.key, tag) for part, tag in zip(parts, tags, strict=True)}
            if len(versions) == len({key for key, _ in versions}):
                return
        raise BackendError(
            f"{parts[0].key!r} in {self._url} was replaced each time that it was read; try again"
        )

    def info(self, key: str) -> BlobInfo:
        check_key(key)
        with self._errors("reading", key):
            found = obstore.head(self._quick, key)
        return BlobInfo(key, found["size"], found["last_modified"].timestamp())

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        if not self._bulk_delete:
            list(self._pool().map(self._delete_one, checked))
            return
        for at in range(0, len(checked), _DELETE_BATCH):
            batch = checked[at : at + _DELETE_BATCH]
            with self._errors("deleting", batch[0]):
                obstore.delete(self._quick, batch)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        with self._errors("listing", prefix):
            found = obstore.list_with_delimiter(self._quick, prefix[:-1] or None)
        return iter(sorted(path[len(prefix) :] for path in found["common_prefixes"]))

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _list(self, prefix: str) -> Iterator[BlobInfo]:
        last = ""
        with self._errors("listing", prefix):
            for chunk in obstore.list(self._quick, prefix[:-1] or None, chunk_size=1000):
                for found in chunk:
                    key = found["path"]
                    if key <= last:
                        raise BackendError(f"{self._url} does not list its keys in order")
                    last = key
                    if is_key(key):
                        yield BlobInfo(key, found["size"], found["last_modified"].timestamp())

    def _fill(self, part: _Part) -> str | None:
        """Fetch one part; return the version of the blob that it was taken from."""
        stop = part.start + sum(out.nbytes for out in part.outs)
        data, tag = self._fetch(part.key, part.start, stop)
        at = 0
        for out in part.outs:
            out[:] = data[at : at + out.nbytes]
            at += out.nbytes
        return tag

    def _fetch(self, key: str, start: int, stop: int) -> tuple[memoryview, str | None]:
        with self._errors("reading", key):
            answer = obstore.get(self._quick, key, options={"range": (start, stop)})
            data = memoryview(answer.bytes())
        if data.nbytes != stop - start:
            raise self._too_short(key, stop, answer.meta["size"])
        return data, answer.meta["e_tag"]

    def _check_reach(self, key: str, stop: int) -> None:
        size = self.info(key).size
        if stop > size:
            raise self._too_short(key, stop, size)

    def _exists(self, key: str) -> bool:
        try:
            self.info(key)
        except NotFound:
            return False
        return True

    def _delete_one(self, key: str) -> None:
        with contextlib.suppress(NotFound), self._errors("deleting", key):
            obstore.delete(self._quick, key)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tierstore-get")
            return self._threads

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except TierstoreError:
            raise
        except _OBSTORE_ERRORS as error:
            raise translated(error, f"{doing} {key!r} in", self._url) from None

    def _too_short(self, key: str, stop: int, size: int) -> Damaged:
        return Damaged(
            f"blob {key!r} in {self._url} has {size} bytes, but {stop} were expected: it was "
            "cut short; restore it from another copy"
        )


def _cuts(start: int, outs: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """Cut a run into parts of at most ``_PART_BYTES``."""
    left = list(outs)
    while left:
        room, part = _PART_BYTES, []
        for out in left:
            part.append(out[:room])
            room -= part[-1].nbytes
            if not room:
                break
        length = _PART_BYTES - room
        yield start, part
        start += length
        drop_front(left, length)


def _settings(retry_s: float, timeout_s: float, allow_http: bool) -> dict[str, Any]:
    client: ClientConfig = {"timeout": timedelta(seconds=timeout_s), "connect_timeout": "5s"}
    if allow_http:
        client["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": 20,
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"max_backoff": timedelta(seconds=5)},
    }
    return {"client_options": client, "retry_config": retry}
