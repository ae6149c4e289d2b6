"""What a tier lies on: the servers of a cache, the file system of a directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tierstore.blobs.local import files
from tierstore.format.tiers import TierSpec
from tierstore.wiring.backends import REDIS_SCHEMES, Place, hot_directory, open_tier


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis or Memcached server; ``None`` is what it did not say.

    Attributes:
        node: its address.
        version: as in ``7.0.15``.
        used: bytes that it holds, whoever's they are.
        limit: bytes that it may hold; 0 for no limit.
        evicted: values evicted since it started.
        max_item: bytes of the largest value that it takes, with what it keeps beside it.
        policy: which values Redis evicts.
        persistent: whether it writes its data to disk.
        findings: what is not as a hot tier needs it.
    """

    node: str
    version: str | None
    used: int | None
    limit: int | None
    evicted: int | None
    max_item: int | None = None
    policy: str | None = None
    persistent: bool | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system below a directory.

    Attributes:
        kind: such as ``ext4``, ``tmpfs`` or ``nfs4``; ``None`` where that is not known.
        network: whether another machine serves it.
        total: bytes.
        free: bytes that this user may still write.
    """

    kind: str | None
    network: bool
    total: int
    free: int


def disk_of(spec: TierSpec) -> Disk | None:
    """What a tier in a directory lies on; ``None`` for other tiers, and where there is nothing."""
    if spec.role == "hot":
        path = hot_directory(spec)
    elif spec.url.startswith("file://"):
        path = Path(unquote(urlsplit(spec.url).path))
    else:
        return None
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    text = str(path)
    return Disk(files.kind_of(text), files.is_network(text), usage.total, usage.free)


def ask_servers(place: Place) -> tuple[Server, ...]:
    """What the servers of a Redis or Memcached say of themselves; none for other places.

    Raises:
        Unreachable, PermissionDenied, BackendError: one cannot be asked.
    """
    scheme = place.spec.url.partition("://")[0]
    if scheme == "memcached":
        from tierstore.blobs.memcached.store import MemcachedStore

        with open_tier(place) as store:
            assert isinstance(store, MemcachedStore)
            return tuple(
                Server(h.node, h.version, h.used, h.maxmemory, h.evicted, h.max_item,
                       findings=h.findings)
                for h in store.health()
            )  # fmt: skip
    if scheme not in REDIS_SCHEMES:
        return ()
    from tierstore.blobs.redis.store import RedisStore

    with open_tier(place) as store:
        assert isinstance(store, RedisStore)
        return tuple(
            Server(h.node, h.version, h.used, h.maxmemory, h.evicted, policy=h.policy,
                   persistent=h.persistent, findings=h.findings)
            for h in store.health()
        )  # fmt: skip
