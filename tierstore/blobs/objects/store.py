"""A blob store in S3 (or a compatible service), Google Cloud Storage or Azure, through obstore.

Credentials, region and endpoint come from the usual environment variables (``AWS_*``, ``GOOGLE_*``,
``AZURE_*``), which obstore reads itself, where nothing else gives them: they are never part of the
URL. A plain ``http`` endpoint of the environment needs ``allow_http``; a store by URL takes that
from ``AWS_ALLOW_HTTP=true``.

A blob that is created (``put_if_absent``) is one PUT, so that ``If-None-Match`` covers all of it,
and so is every small blob. A large blob goes up in parts, several at once, each of which is sent
again alone when it fails; a crash can leave parts that were never put together, which a lifecycle
rule of the bucket removes (``AbortIncompleteMultipartUpload``).

Nothing hangs: a read fails when no byte came for ``timeout_s``, or when it has brought fewer than
64 KiB/s since then; any other request, of which the largest carries 8 MiB, fails when it has no
answer after ``timeout_s``.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.objects.connect import S3_SCHEMES, BucketAccess, Clients, check_url, connect
from tierstore.blobs.objects.errors import translated
from tierstore.blobs.shared import (
    by_key,
    drop_front,
    each,
    flat_views,
    is_key,
    runs,
    without_refusals,
)
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    TierstoreError,
    Unreachable,
)
from tierstore.forks import OfProcess, begin
from tierstore.ids import Buffer, ByteRange

if TYPE_CHECKING:
    from obstore import Attributes, GetResult

_PART_BYTES = 8 << 20  # a long read is split into requests of this size
_THREADS = 8  # with 8 MiB parts, as fast as raw sockets
_DELETE_BATCH = 1000  # the most that S3's DeleteObjects takes
_ONE_PUT_BYTES = 8 << 20  # a larger blob is written in parts
_PUT_PART_BYTES = 5 << 20  # the least that S3 allows
_PUT_CONCURRENCY = 4  # parts of one blob that are sent at once
_MIN_BYTES_PER_S = 64 << 10  # a slower answer is not worth waiting for
_CREATE_TRIES = 6
_CHANGED_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Part:
    """One request: the buffers to fill, end to end, from ``start`` on."""

    key: str
    start: int
    outs: list[memoryview]


class ObjectStore(BlobStore):
    """Blobs below a prefix of one bucket.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
        storage_class: The storage class of new blobs, as the storage calls it (``STANDARD_IA``); by
            default the bucket's own.
        timeout_s: Seconds without an answer after which a request fails; see the module's
            docstring.
        retry_s: Seconds for which failed requests are sent again, with jittered exponential
            backoff; by default ``timeout_s``.
        access: Fields of ``BucketAccess``: ``endpoint``, ``region``, ``path_style``, ``profile``,
            ``ca``, ``allow_http``, ``login``.

    Raises:
        ConfigError: The URL holds credentials or options, or the environment is incomplete.
    """

    def __init__(
        self,
        url: str,
        *,
        storage_class: str | None = None,
        timeout_s: float = 15.0,
        retry_s: float | None = None,
        **access: Any,
    ) -> None:
        self._url = check_url(url)
        scheme = self._url.partition("://")[0]
        self._is_s3 = scheme in S3_SCHEMES
        self._attributes: Attributes = {"Storage-Class": storage_class} if storage_class else {}
        self._timeout_s = timeout_s
        self._access = BucketAccess(**access)
        retry_s = timeout_s if retry_s is None else retry_s
        self._own = OfProcess(partial(connect, self._url, self._access, timeout_s, retry_s))
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def _clients(self) -> Clients:
        return self._own.get()

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=True, may_keep_versions=self._is_s3)

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        check_key(key)
        views = flat_views(data)
        with self._errors("writing", key):
            if sum(view.nbytes for view in views) > _ONE_PUT_BYTES:
                # a lost response: the upload was completed already, or it is gone
                with contextlib.suppress(self._clients.obstore.exceptions.NotFoundError):
                    self._put(
                        key, views, chunk_size=_PUT_PART_BYTES, max_concurrency=_PUT_CONCURRENCY
                    )
                    return
            self._put(key, views, use_multipart=False)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        check_key(key)
        views = flat_views(data)
        for attempt in range(_CREATE_TRIES):
            with self._errors("creating", key):
                try:
                    self._put(key, views, mode="create", use_multipart=False)
                    return True
                except self._clients.obstore.exceptions.AlreadyExistsError:
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
                clients = self._clients
                answer = clients.obstore.get(clients.reads, key)
                out = memoryview(bytearray(answer.meta["size"]))
                self._receive(key, answer, [out], 0)
            return out
        if not 0 < len(byte_range) <= _PART_BYTES:
            self._check_reach(key, byte_range.stop)  # before that much is allocated
        out = memoryview(bytearray(len(byte_range)))
        self.get_ranges([RangeRead(key, byte_range.start, out)])
        return out

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        parts = []
        for key, group in by_key(reads).items():
            check_key(key)
            for read in group:
                if (
                    not read.out.nbytes
                ):  # a request for no bytes is an error: check that the blob exists
                    self._check_reach(key, read.start)
            for start, outs in runs(group):
                parts += [_Part(key, at, cut) for at, cut in _cuts(start, outs)]
        for _ in range(_CHANGED_TRIES):
            tags = each(self._pool(), self._fill, parts)
            versions = {(part.key, tag) for part, tag in zip(parts, tags, strict=True)}
            if len(versions) == len({key for key, _ in versions}):
                return
        raise BackendError(
            f"{parts[0].key!r} in {self._url} was replaced each time that it was read; try again"
        )

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        wanted = [check_key(key) for key in dict.fromkeys(keys)]

        def one(key: str) -> memoryview | None:
            with contextlib.suppress(NotFound):
                return self.get(key)
            return None

        found = zip(wanted, each(self._pool(), one, wanted), strict=True)
        return {key: data for key, data in found if data is not None}

    def present(self, keys: Sequence[str]) -> set[str]:
        wanted = [check_key(key) for key in dict.fromkeys(keys)]
        found = zip(wanted, each(self._pool(), self._exists, wanted), strict=True)
        return {key for key, there in found if there}

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        for key in blobs:
            check_key(key)
        each(self._pool(), lambda blob: self.put(*blob), list(blobs.items()))

    def info(self, key: str) -> BlobInfo:
        check_key(key)
        with self._errors("reading", key):
            clients = self._clients
            found = clients.obstore.head(clients.others, key)
        version = found["version"] if self._is_s3 else None
        return BlobInfo(key, found["size"], found["last_modified"].timestamp(), version)

    def signs(self, key: str) -> frozenset[str]:
        """Return when it was written, alone and with its bucket and its whole key.

        Many storages tell the time in seconds, and two blobs may be written in one. The endpoint is
        no part of it: nodes name the same storage in several ways.
        """
        where = f"{self._url.partition('://')[2]}/{key}"
        early = super().signs(key)
        return early | {f"{sign} in {where}" for sign in early}

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        refused: list[TierstoreError] = []
        if self._is_s3:
            deleted = without_refusals(self._delete_batch, refused)
            for at in range(0, len(checked), _DELETE_BATCH):
                deleted(checked[at : at + _DELETE_BATCH])
        else:
            each(self._pool(), without_refusals(self._delete_one, refused), checked)
        if refused:
            raise refused[0]

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        with self._errors("listing", prefix):
            clients = self._clients
            found = clients.obstore.list_with_delimiter(clients.others, prefix[:-1] or None)
        return iter(sorted(path[len(prefix) :] for path in found["common_prefixes"]))

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _list(self, prefix: str) -> Iterator[BlobInfo]:
        last = ""
        with self._errors("listing", prefix):
            clients = self._clients
            listing = clients.obstore.list(clients.others, prefix[:-1] or None, chunk_size=1000)
            for chunk in listing:
                for found in chunk:
                    key = found["path"]
                    if key <= last:
                        if not found["size"]:  # "a/" of a strange program, behind "a-b"
                            continue
                        raise BackendError(f"{self._url} does not list its keys in order")
                    last = key
                    if is_key(key):
                        yield BlobInfo(key, found["size"], found["last_modified"].timestamp())

    def _put(self, key: str, views: Sequence[memoryview], **how: Any) -> None:
        clients = self._clients
        attributes = self._attributes or None
        clients.obstore.put(clients.others, key, views, attributes=attributes, **how)

    def _fill(self, part: _Part) -> str | None:
        """Fetch one part; return the version of the blob that it was taken from."""
        stop = part.start + sum(out.nbytes for out in part.outs)
        with self._errors("reading", part.key):
            clients, span = self._clients, {"range": (part.start, stop)}
            answer = clients.obstore.get(clients.reads, part.key, options=span)
            self._receive(part.key, answer, part.outs, part.start)
        version: str | None = answer.meta["e_tag"]
        return version

    def _receive(self, key: str, answer: GetResult, outs: Sequence[memoryview], start: int) -> None:
        """Fill ``outs`` from an answer while it arrives."""
        room, begun, got = list(outs), time.monotonic(), 0
        stop = start + sum(out.nbytes for out in outs)
        for chunk in answer.stream(min_chunk_size=1):
            view = memoryview(chunk)
            got += view.nbytes
            if start + got > stop:
                raise BackendError(
                    f"{self._url} answers with more of {key!r} than it was asked for; check what "
                    "lies between here and the storage"
                )
            while view.nbytes:
                count = min(view.nbytes, room[0].nbytes)
                room[0][:count] = view[:count]
                view = view[count:]
                drop_front(room, count)
            passed = time.monotonic() - begun
            if passed > self._timeout_s and got < passed * _MIN_BYTES_PER_S:
                raise Unreachable(
                    f"reading {key!r} in {self._url} failed: {got} bytes in {passed:.0f} s are "
                    "too slow; check the network"
                )
        if start + got < stop:
            raise self._too_short(key, stop, answer.meta["size"])

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

    def _delete_batch(self, keys: Sequence[str]) -> None:
        with self._errors("deleting", keys[0]):
            clients = self._clients
            clients.obstore.delete(clients.others, keys)

    def _delete_one(self, key: str) -> None:
        with contextlib.suppress(NotFound), self._errors("deleting", key):
            clients = self._clients
            clients.obstore.delete(clients.others, key)

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
        except self._clients.errors as error:
            raise translated(error, f"{doing} {key!r} in", self._url, self._access.proxy) from None

    def _too_short(self, key: str, stop: int, size: int) -> Damaged:
        return Damaged(
            f"blob {key!r} in {self._url} has {size} bytes, but {stop} were expected: it was "
            "cut short; restore it from another copy"
        )


def _cuts(start: int, outs: Sequence[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield the start and the buffers of parts of a run, each of at most ``_PART_BYTES``."""
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
