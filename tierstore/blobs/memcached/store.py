"""A blob store in memcached 1.4.26 or newer: a hot tier that nodes share, on any number of servers.

A blob is one item, and the item's bytes are the blob's. Its flags are the time of writing, in
seconds since the epoch by the writer's clock. memcached cannot list its items, cannot return a part
of one, and takes none above its own limit (``memcached -I``), 1 MiB by default.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.memcached.health import MemcachedHealth, health_of
from tierstore.blobs.shared import batches, by_key, joined, size_of, writable
from tierstore.errors import BackendError, ConfigError, Damaged, NotFound, OutOfSpace
from tierstore.ids import Buffer, ByteRange
from tierstore.shown import shown_url

if TYPE_CHECKING:
    from pymemcache.client.base import Client

    from tierstore.blobs.memcached.client import Address, MemcachedClient

_BATCH_BYTES = 16 << 20
_BATCH_ITEMS = 1000
_FEWEST_ITEMS = 4
_PORT = 11211
_KEY_BYTES = 250
_OVERHEAD = 512  # what an item takes besides its value, at most: header, flags, key of 250 bytes
_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,100}\Z")
_WEEK_S = 7 * 24 * 3600
_RELATIVE_S = 30 * 24 * 3600  # memcached reads a longer time to live as a date


class MemcachedStore(BlobStore):
    """Blobs below a prefix of the keys of one or more memcached servers.

    Each key has one server. While that server is down, its keys are ``Unreachable``; the others
    work.

    Args:
        url: ``memcached://host:port,host:port``; all clients must name the servers in the same way.
        prefix: The beginning of every key; two stores in one memcached need different ones.
        ttl_s: Seconds after which a blob that was not put again is gone.
        timeout_s: Seconds that one request, of at most one batch, may take; connecting, and waiting
            for a free connection, may each take as long again.
        connections: The most connections to each server from one process.

    Raises:
        ConfigError: An argument cannot be used, or the ``memcached`` extra is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "tier:",
        ttl_s: int = _WEEK_S,
        timeout_s: float = 5.0,
        connections: int = 8,
    ) -> None:
        self._client = _connect(url, timeout_s, connections)
        if not _PREFIX.match(prefix):
            raise ConfigError(
                f"{prefix[:80]!r} cannot be a prefix of keys: use letters, digits, . _ : -"
            )
        if ttl_s < 1 or not timeout_s > 0 or connections < 1:
            raise ConfigError(
                f"{shown_url(url)}: time to live, timeout and connections must be positive"
            )
        self._url = url
        self._prefix = prefix.encode()
        self._ttl_s = ttl_s
        self._limits: dict[Address, int] = {}

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities; ``max_blob_bytes`` is the least limit of servers that answer now."""
        for address in self._client.addresses:
            with suppress(BackendError):
                self._limit(address)
        return Capabilities(
            put_if_absent=True,
            durable=False,
            listable=False,
            max_blob_bytes=min(self._limits.values(), default=None),
        )

    def health(self) -> Sequence[MemcachedHealth]:
        """Return the state of each server, and what is wrong with it for a hot tier.

        Raises:
            Unreachable, BackendError: A server does not answer.
        """
        return health_of(self._client)

    # Writing

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self.put_many({key: data})

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        name = self._name(check_key(key))
        address = self._client.server_of(name)
        self._check_size(address, key, size_of(data))
        value = joined(data)
        expire, flags = self._expire(), int(time.time())

        def add(client: Client) -> bool:
            return bool(client.add(name, value, expire=expire, flags=flags))

        return self._client.call(address, f"creating {key!r}", add)

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        sizes = {check_key(key): size_of(data) for key, data in blobs.items()}
        groups = self._by_server(blobs)
        for address, keys in groups.items():
            for key in keys:
                self._check_size(address, key, sizes[key])
        for address, keys in groups.items():
            sized = ((key, sizes[key]) for key in keys)
            for batch in batches(sized, _BATCH_BYTES, _BATCH_ITEMS):
                values = {self._name(key): joined(blobs[key]) for key in batch}
                self._set_many(address, values, batch)

    def delete(self, keys: Iterable[str]) -> None:
        for address, group in self._by_server([check_key(key) for key in keys]).items():
            for batch in batches(((key, 0) for key in group), _BATCH_BYTES, _BATCH_ITEMS):
                self._delete_many(address, batch)

    # Reading

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        value = memoryview(self._whole(key)[0])
        if byte_range is None:
            return value
        self._check_reach(key, value, byte_range.stop)
        return value[byte_range.start : byte_range.stop]

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        groups = by_key(reads)
        for key in groups:
            check_key(key)
        for key, group in groups.items():
            value = memoryview(self._whole(key)[0])
            for read in group:
                stop = read.start + read.out.nbytes
                self._check_reach(key, value, stop)
                if read.out.nbytes:
                    writable(read.out)[:] = value[read.start : stop]

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        found: dict[str, memoryview] = {}
        wanted = list(dict.fromkeys(check_key(key) for key in keys))
        for address, group in self._by_server(wanted).items():
            # What is not there has no size: a batch has room for items as large as can be.
            most = max(_BATCH_BYTES // self._limit(address), _FEWEST_ITEMS)
            for batch in batches(((key, 0) for key in group), _BATCH_BYTES, most):
                names = {self._name(key): key for key in batch}
                for name, (value, _) in self._get_many(address, list(names), batch).items():
                    found[names[name]] = memoryview(value)
        return {key: found[key] for key in wanted if key in found}

    def info(self, key: str) -> BlobInfo:
        """Return size and time of one blob; this costs as much as reading it."""
        value, written = self._whole(key)
        return BlobInfo(key, len(value), float(written))

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        self._cannot_list()

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        self._cannot_list()

    def close(self) -> None:
        self._client.close()

    # Keys and servers

    def _name(self, key: str) -> bytes:
        name = self._prefix + key.encode()
        if len(name) <= _KEY_BYTES:
            return name
        # No key holds a "~", so none has the name of another one that was too long.
        return self._prefix + b"~" + hashlib.blake2b(key.encode()).hexdigest().encode()

    def _by_server(self, keys: Iterable[str]) -> dict[Address, Sequence[str]]:
        groups: dict[Address, list[str]] = {}
        for key in keys:
            groups.setdefault(self._client.server_of(self._name(key)), []).append(key)
        return dict(groups)

    def _limit(self, address: Address) -> int:
        """Return the bytes of the largest value that a server takes, by its own word."""
        known = self._limits.get(address)
        if known is None:
            doing = "asking for the item limit"
            stats = self._client.call(address, doing, lambda client: client.stats("settings"))
            known = self._limits[address] = int(stats[b"item_size_max"]) - _OVERHEAD
        return known

    def _check_size(self, address: Address, key: str, size: int) -> None:
        # The least of the limits that are known: a blob's size decides, not which server its key
        # falls to. Those of other servers are not asked for here: they may hang.
        most = min(self._limit(address), *self._limits.copy().values())
        if size > most:
            raise OutOfSpace(
                f"blob {key!r} has {size} bytes, and the servers of {self._url} take at most "
                f"{most}: start them with a higher limit (-I), or keep such blobs in another tier"
            )

    def _expire(self) -> int:
        return self._ttl_s if self._ttl_s <= _RELATIVE_S else int(time.time()) + self._ttl_s

    # Commands

    def _set_many(
        self, address: Address, values: Mapping[bytes, bytes], keys: Sequence[str]
    ) -> None:
        expire, flags = self._expire(), int(time.time())
        doing = f"writing {keys[0]!r}"

        def set_many(client: Client) -> Sequence[bytes]:
            refused: Sequence[bytes] = client.set_many(values, expire=expire, flags=flags)
            return refused

        try:
            refused = self._client.call(address, doing, set_many)
        except OutOfSpace:
            self._limits.pop(address, None)  # perhaps it came back with another limit
            raise
        if refused:
            raise BackendError(f"{doing} in {self._url} was refused, and nothing said why")

    def _delete_many(self, address: Address, keys: Sequence[str]) -> None:
        names = [self._name(key) for key in keys]
        self._client.call(
            address, f"deleting {keys[0]!r}", lambda client: client.delete_many(names)
        )

    def _get_many(
        self, address: Address, names: Sequence[bytes], keys: Sequence[str]
    ) -> dict[bytes, tuple[bytes, int]]:
        def get_many(client: Client) -> dict[bytes, tuple[bytes, int]]:
            values: dict[bytes, tuple[bytes, int]] = client.get_many(names)
            return values

        return self._client.call(address, f"reading {keys[0]!r}", get_many)

    def _whole(self, key: str) -> tuple[bytes, int]:
        """Return a blob's bytes, and when they were written, in seconds since the epoch."""
        name = self._name(check_key(key))
        found = self._get_many(self._client.server_of(name), [name], [key]).get(name)
        if found is None:
            raise NotFound(f"no blob {key!r} in {self._url}")
        return found

    def _check_reach(self, key: str, value: memoryview, stop: int) -> None:
        if stop > value.nbytes:
            raise Damaged(
                f"blob {key!r} in {self._url} has {value.nbytes} bytes, but {stop} were expected: "
                "it was cut short; restore it from another copy"
            )

    def _cannot_list(self) -> NoReturn:
        raise BackendError(f"{self._url} cannot list what it holds: memcached has no such command")


def _connect(url: str, timeout_s: float, connections: int) -> MemcachedClient:
    if "@" in url:  # the URL is not repeated: it may hold a secret
        raise ConfigError("the URL of a memcached must not hold credentials")
    try:
        parts = [urlsplit(f"//{host}") for host in url.removeprefix("memcached://").split(",")]
        found = [(part.hostname or "", part.port or _PORT) for part in parts]
        good = url.startswith("memcached://") and not any(part.path for part in parts)
    except ValueError:
        good = False
    if not good or not all(host for host, _ in found) or len(set(found)) < len(found):
        raise ConfigError(
            f"{shown_url(url)!r} is not memcached://host:port,host:port, each of them once"
        )
    try:
        from tierstore.blobs.memcached.client import MemcachedClient
    except ImportError as error:
        raise ConfigError(
            f"{shown_url(url)} needs the package pymemcache: pip install 'tierstore[memcached]'"
        ) from error
    return MemcachedClient(found, url, timeout_s, connections)
