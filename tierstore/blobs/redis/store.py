"""A blob store in Redis 6 or newer: a hot tier that several nodes share.

It is one server or a cluster, over TCP, TLS or a Unix socket. A blob is one string value, and its
bytes are the blob's. It has a time to live, so that Redis may evict it under ``volatile-lfu`` when
its memory is full, while keys without one (the heat) stay.

An ACL user needs ``~<prefix>* +@read +@write +@connection``, in a cluster also ``+cluster|slots``;
``health`` also ``+info``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.redis.connect import connect
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.health import RedisHealth, health_of
from tierstore.blobs.shared import batches, by_key, folders_of, is_key, joined, size_of, writable
from tierstore.errors import BackendError, ConfigError, Damaged, NotFound, OutOfSpace
from tierstore.ids import Buffer, ByteRange

BATCH_BYTES = 16 << 20
"""The most bytes of values that travel in one request."""

_BATCH_ITEMS = 1000
_MAX_BLOB_BYTES = 512 << 20  # proto-max-bulk-len, unless the server's configuration says otherwise
_MAX_OFFSET = 1 << 62
_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,200}\Z")  # nothing that SCAN MATCH would take as a pattern
_WEEK_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class _CoveringRange:
    """The one range of a blob that covers all that is to be read of it."""

    key: str
    start: int
    stop: int
    reads: Sequence[RangeRead]

    @property
    def reach(self) -> int:
        """The least size of the blob: an empty read, too, must not begin past its end."""
        return max(read.start + read.out.nbytes for read in self.reads)


class RedisStore(BlobStore):
    """Blobs below a prefix of the keys of one Redis.

    Redis keeps no time of writing. ``BlobInfo.mtime`` is computed, by this machine's clock, from
    the time to live that is left, so it is right where all writers use the same ``ttl_s``; a blob
    without one counts as written now.

    Several ranges of one blob are read as the one range that covers them, so that all of them come
    from the same ``put``.

    While a cluster moves slots between its nodes, ``list`` may miss what is being moved.

    Args:
        endpoint: The Redis that keeps the blobs.
        prefix: The beginning of every key; two stores in one Redis need different ones.
        ttl_s: Seconds after which a blob that was not put again is gone.

    Raises:
        ConfigError: An argument cannot be used, or the ``redis`` extra is not installed.
    """

    def __init__(
        self, endpoint: RedisEndpoint, *, prefix: str = "tier:", ttl_s: int = _WEEK_S
    ) -> None:
        self._prefix = check_redis_prefix(prefix)
        if ttl_s < 1:
            raise ConfigError(f"{endpoint.url}: the time to live must be at least 1 second")
        self._ttl_ms = ttl_s * 1000
        self._client = connect(endpoint)

    @property
    def url(self) -> str:
        return self._client.endpoint.url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=False, max_blob_bytes=_MAX_BLOB_BYTES)

    def health(self) -> Sequence[RedisHealth]:
        """Return the state of each server, and what is wrong with it for a hot tier.

        Raises:
            Unreachable, PermissionDenied, BackendError: A server cannot be asked at all.
        """
        return health_of(self._client)

    # Writing

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self.put_many({key: data})

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        self._check_size(check_key(key), size_of(data))
        command = (*self._set(key, joined(data)), "NX")
        [reply] = self._client.run(f"creating {key!r}", [command])
        return reply is not None

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        sized = [(check_key(key), size_of(data)) for key, data in blobs.items()]
        for key, size in sized:
            self._check_size(key, size)
        for batch in batches(sized, BATCH_BYTES, _BATCH_ITEMS):
            commands = [self._set(key, joined(blobs[key])) for key in batch]
            self._client.run(_doing("writing", batch), commands)

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        for batch in batches(((key, 0) for key in checked), BATCH_BYTES, _BATCH_ITEMS):
            commands = [("UNLINK", self._name(key)) for key in batch]
            self._client.run(_doing("deleting", batch), commands)

    # Reading

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        check_key(key)
        if byte_range is None:
            [value] = self._client.run(f"reading {key!r}", [("GET", self._name(key))])
            if value is None:
                raise NotFound(self._no_blob(key))
            return memoryview(value)
        if not len(byte_range):
            self._check_reach(key, byte_range.start)
            return memoryview(b"")
        command = self._getrange(key, byte_range.start, byte_range.stop)
        [value] = self._client.run(f"reading {key!r}", [command])
        self._check_length(key, value or b"", byte_range.start, byte_range.stop)
        return memoryview(value)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        sized = []
        for key, group in by_key(reads).items():
            check_key(key)
            covering = _covering_range(key, group)
            if covering.reach > covering.stop or covering.start == covering.stop:  # for empty reads
                self._check_reach(key, covering.reach)
            if covering.start < covering.stop:
                sized.append((covering, covering.stop - covering.start))
        for batch in batches(sized, BATCH_BYTES, _BATCH_ITEMS):
            commands = [
                self._getrange(covering.key, covering.start, covering.stop) for covering in batch
            ]
            names = [covering.key for covering in batch]
            for covering, value in zip(
                batch, self._client.run(_doing("reading", names), commands), strict=True
            ):
                self._fill(covering, value or b"")

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        wanted = list(dict.fromkeys(check_key(key) for key in keys))
        found: dict[str, memoryview] = {}
        for batch in self._by_size(wanted):
            commands = [("GET", self._name(key)) for key in batch]
            values = self._client.run(_doing("reading", batch), commands)
            for key, value in zip(batch, values, strict=True):
                if value is not None:
                    found[key] = memoryview(value)
        return found

    def present(self, keys: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for batch in batches(((check_key(key), 0) for key in keys), BATCH_BYTES, _BATCH_ITEMS):
            commands = [("EXISTS", self._name(key)) for key in batch]
            replies = self._client.run(_doing("looking for", batch), commands)
            found.update(key for key, exists in zip(batch, replies, strict=True) if exists)
        return found

    def info(self, key: str) -> BlobInfo:
        check_key(key)
        found = self._infos([key])
        if not found:
            raise NotFound(self._no_blob(key))
        return found[0]

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """Return the folders under ``prefix``; this costs a scan of all keys below it."""
        check_prefix(prefix)
        return folders_of(self._scan(prefix), prefix)

    def close(self) -> None:
        self._client.close()

    # Commands

    def _name(self, key: str) -> str:
        return self._prefix + key

    def _set(self, key: str, value: bytes) -> tuple[str | bytes | int, ...]:
        return ("SET", self._name(key), value, "PX", self._ttl_ms)

    def _getrange(self, key: str, start: int, stop: int) -> tuple[str | int, ...]:
        first, last = min(start, _MAX_OFFSET), min(stop, _MAX_OFFSET) - 1
        return ("GETRANGE", self._name(key), first, last)

    def _by_size(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield batches of keys by the sizes that their values have now."""
        if len(keys) < 2:
            yield from ([key] for key in keys)
            return
        sizes: list[int] = []
        for batch in batches(((key, 0) for key in keys), BATCH_BYTES, _BATCH_ITEMS):
            commands = [("STRLEN", self._name(key)) for key in batch]
            sizes += [size or 0 for size in self._client.run(_doing("reading", batch), commands)]
        yield from batches(zip(keys, sizes, strict=True), BATCH_BYTES, _BATCH_ITEMS)

    def _infos(self, keys: Sequence[str]) -> Sequence[BlobInfo]:
        """Return size and time of those keys that exist; ``keys`` are at most a batch."""
        commands: list[tuple[str, ...]] = []
        for key in keys:
            name = self._name(key)
            # Another client's commands may come between: a blob is there only if it still is.
            commands += [("EXISTS", name), ("STRLEN", name), ("PTTL", name)]
        replies = self._client.run(_doing("reading", keys), commands)
        now = time.time()
        found = []
        for n, key in enumerate(keys):
            exists, size, left_ms = replies[3 * n : 3 * n + 3]
            if exists and size is not None and left_ms != -2:
                age_ms = max(0, self._ttl_ms - left_ms) if left_ms >= 0 else 0
                found.append(BlobInfo(key, size, now - age_ms / 1000))
        return found

    def _scan(self, prefix: str) -> Sequence[str]:
        """Return every key below ``prefix``, in order."""
        doing = f"listing {prefix!r}"
        found: set[str] = set()
        for node in self._client.nodes(doing):
            cursor: str | bytes = "0"
            while True:
                command = ("SCAN", cursor, "MATCH", f"{self._prefix}{prefix}*", "COUNT", 1000)
                [(cursor, names)] = self._client.run_on(node, doing, [command])
                found.update(name[len(self._prefix) :].decode("latin-1") for name in names)
                if cursor == b"0":
                    break
        return sorted(key for key in found if is_key(key))

    def _list(self, prefix: str) -> Iterator[BlobInfo]:
        keys = ((key, 0) for key in self._scan(prefix))
        for batch in batches(keys, BATCH_BYTES, _BATCH_ITEMS):
            yield from self._infos(batch)

    # Checks

    def _check_size(self, key: str, size: int) -> None:
        if size > _MAX_BLOB_BYTES:
            raise OutOfSpace(
                f"blob {key!r} has {size} bytes; {self.url} takes at most {_MAX_BLOB_BYTES}"
            )

    def _fill(self, covering: _CoveringRange, value: bytes) -> None:
        self._check_length(covering.key, value, covering.start, covering.stop)
        view = memoryview(value)
        for read in covering.reads:
            if read.out.nbytes:
                at = read.start - covering.start
                writable(read.out)[:] = view[at : at + read.out.nbytes]

    def _check_length(self, key: str, value: bytes, start: int, stop: int) -> None:
        if len(value) != stop - start:
            self._check_reach(key, stop)
            if not value:  # the blob was missing for a moment
                raise NotFound(self._no_blob(key))
            raise BackendError(f"{key!r} in {self.url} was replaced while it was read; try again")

    def _check_reach(self, key: str, stop: int) -> None:
        size = self.info(key).size
        if stop > size:
            raise Damaged(
                f"blob {key!r} in {self.url} has {size} bytes, but {stop} were expected: it was "
                "cut short; restore it from another copy"
            )

    def _no_blob(self, key: str) -> str:
        return f"no blob {key!r} in {self.url}"


def check_redis_prefix(prefix: str) -> str:
    """Return a prefix of 1 to 200 of ``A-Z a-z 0-9 . _ : -``; otherwise raise ``ConfigError``."""
    if not _PREFIX.match(prefix):
        raise ConfigError(
            f"{prefix[:80]!r} cannot be a prefix of keys: use letters, digits, . _ : -"
        )
    return prefix


def _covering_range(key: str, reads: Sequence[RangeRead]) -> _CoveringRange:
    filled = [read for read in reads if read.out.nbytes]
    start = min((read.start for read in filled), default=0)
    stop = max((read.start + read.out.nbytes for read in filled), default=0)
    return _CoveringRange(key, start, stop, reads)


def _doing(what: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{what} {keys[0]!r}{more}"
