"""From a URL to the store behind it: the only place that knows every kind of store.

Libraries are imported when they are needed: a local directory loads no network client.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tierstore import config
from tierstore.blobs.base import BlobStore
from tierstore.config import NodeTier
from tierstore.errors import ConfigError
from tierstore.format.tiers import DURABLE, TierSpec
from tierstore.modelstore.home.tierlist import MOVER_OPTIONS
from tierstore.tiers.durable.archive import Archive

if TYPE_CHECKING:
    from tierstore.blobs.redis.endpoint import RedisEndpoint
    from tierstore.blobs.redis.heat import RedisHeat

_OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_FSSPEC_SCHEMES = ("memory", "hdfs", "webhdfs", "sftp", "smb")
REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")
_FSSPEC_LOGIN = {"webhdfs": ("user", "password"), "s3": ("key", "secret")}
"""What fsspec's file systems call a user and a password, where it is not just that."""
_KNOWN = (
    "a directory, file:///path, memory://name, s3://bucket/prefix, gs://bucket/prefix, "
    "az://container/prefix, hdfs://, webhdfs://, sftp://, or fsspec+<protocol>://… for any fsspec "
    "file system"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A tier as this node has it: the list's and the node's settings together."""

    spec: TierSpec
    node: NodeTier
    store_id: str


def open_blobs(url: str, *, create: bool = False) -> BlobStore:
    """Open the blob store at ``url``.

    Args:
        url: a path (``./dir``, ``/abs``), ``file:///abs``, ``memory://name`` (shared by everything
            in this process that opens the same name), ``s3://``, ``gs://`` or ``az://`` with a
            bucket and a prefix, or ``fsspec+<protocol>://…``.
        create: make a local directory that is missing.

    Raises:
        ConfigError: the scheme is not known, or the URL is not complete.
        NotFound: a local directory is missing and ``create`` is false.
    """
    return _open(url, {}, create=create)


def _open(
    url: str,
    options: Mapping[str, str],
    *,
    create: bool,
    node: NodeTier | None = None,
    timeout_s: float | None = None,
) -> BlobStore:
    """Open a store that can hold blobs for good."""
    scheme, colon, rest = url.partition("://")
    if not url:
        raise ConfigError(f"the store's URL is empty: use {_KNOWN}")
    if not colon or scheme == "file":
        from tierstore.blobs.local.store import LocalStore

        read_options(url, options, {})
        return LocalStore(_local_path(url) if colon else url, create=create)
    if scheme in _OBJECT_SCHEMES:
        from tierstore.blobs.objects.store import ObjectStore

        chosen = read_options(url, options, _OBJECT_OPTIONS)
        chosen["login"] = _login(url, node)
        if scheme in ("s3", "s3a"):
            chosen.setdefault("profile", config.aws_profile())
        chosen.setdefault("allow_http", config.http_allowed())
        ca = (node.ca if node else None) or config.aws_ca()
        if timeout_s is not None:
            chosen["timeout_s"] = timeout_s
        return ObjectStore(url, ca=ca, **chosen)
    if scheme in _FSSPEC_SCHEMES or scheme.startswith("fsspec+"):
        from tierstore.blobs.fsspec.store import FsspecStore

        protocol = scheme.removeprefix("fsspec+")
        more: dict[str, Any] = dict(options)
        user, password = _FSSPEC_LOGIN.get(protocol, ("username", "password"))
        if node is not None:
            more |= {user: node.username} if node.username else {}
            more |= {password: node.password} if node.password else {}
        limit = {} if timeout_s is None else {"timeout_s": timeout_s}
        return FsspecStore(f"{protocol}://{rest}", more, **limit)
    if scheme in REDIS_SCHEMES or scheme == "memcached":
        raise ConfigError(f"a cache ({scheme}://) can only be a shared tier: it forgets")
    raise ConfigError(f"stores of the kind {scheme[:40]!r} are not known: use {_KNOWN}")


def _login(url: str, node: NodeTier | None) -> tuple[str, str] | None:
    """The access key that this node's file names for a tier."""
    if node is None or not (node.username or node.password):
        return None
    if not url.startswith(("s3://", "s3a://")):
        raise ConfigError(
            f"{url} takes no username and no password in this node's file: use the environment"
        )
    if not (node.username and node.password):
        raise ConfigError(
            f"{url} takes an access key in two parts: its id as username, and the secret key by "
            "password_env or password_file"
        )
    return node.username, node.password


def _local_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise ConfigError(f"{url!r} has no absolute path: a file URL is file:///path")
    if parts.query or parts.fragment:
        raise ConfigError(f"{url!r}: write '?' as %3F and '#' as %23 in a file URL")
    return unquote(parts.path)


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ConfigError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} must be a count")
    return int(text)


_OBJECT_OPTIONS: dict[str, Callable[[str], Any]] = {
    "endpoint": str, "region": str, "path_style": _flag, "storage_class": str, "profile": str,
    "allow_http": _flag,
}  # fmt: skip
_CACHE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "prefix": str, "ttl_s": _count, "connections": _count,
}  # fmt: skip


def read_options(
    what: str, given: Mapping[str, str], known: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """Parsed options; ``ConfigError`` names the nearest of those that are known."""
    chosen = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
            )
            raise ConfigError(f"{what} has no option {name!r}: {hint}")
        try:
            chosen[name] = known[name](value)
        except ConfigError as error:
            raise ConfigError(f"{what}, option {name}: {error}") from None
    return chosen


def open_tier(place: Place, *, create: bool = False) -> BlobStore:
    """Open the tier's own store; ``ConfigError`` for an option that its kind does not know."""
    spec, node = place.spec, place.node
    scheme = spec.url.partition("://")[0]
    if spec.role in DURABLE:
        limit = spec.timeout_ms / 1000
        own = {name: text for name, text in spec.options.items() if name not in MOVER_OPTIONS}
        if is_archive(spec):
            del own["storage_class"]  # packs are frozen once they were written and verified
        return _open(spec.url, own, create=create, node=node, timeout_s=limit)
    if spec.role == "hot":
        return _open(str(hot_directory(spec)), {}, create=create)
    options = _cache_options(place)
    if scheme in REDIS_SCHEMES:
        from tierstore.blobs.redis.store import RedisStore

        return RedisStore(_redis_endpoint(place, options), **options)
    if scheme == "memcached":
        from tierstore.blobs.memcached.store import MemcachedStore

        return MemcachedStore(spec.url, timeout_s=spec.timeout_ms / 1000, **options)
    return _open(spec.url, {}, create=create, node=node)


def is_archive(spec: TierSpec) -> bool:
    """Whether a tier's packs are read only after a restore."""
    chosen = spec.options.get("storage_class")
    if not chosen or spec.role not in DURABLE or not spec.url.startswith(("s3://", "s3a://")):
        return False
    from tierstore.blobs.objects.archive import ARCHIVE_CLASSES

    return chosen in ARCHIVE_CLASSES


def open_archive(place: Place) -> Archive | None:
    """What freezes and restores a tier's packs; ``None`` for a tier that is read at once."""
    if not is_archive(place.spec):
        return None
    from tierstore.blobs.objects.archive import S3Archive

    spec, node = place.spec, place.node
    own = {name: text for name, text in spec.options.items() if name not in MOVER_OPTIONS}
    chosen = read_options(spec.url, own, _OBJECT_OPTIONS)
    kind = chosen.pop("storage_class")
    chosen.setdefault("profile", config.aws_profile())
    chosen.setdefault("region", config.aws_region())
    chosen["login"] = _login(spec.url, node)
    ca = node.ca or config.aws_ca()
    return S3Archive(spec.url, kind, timeout_s=spec.timeout_ms / 1000, ca=ca, **chosen)


def open_sums(place: Place) -> RedisHeat:
    """The heat that nodes share through a tier's Redis."""
    from tierstore.blobs.redis.heat import RedisHeat

    options = _cache_options(place)
    return RedisHeat(_redis_endpoint(place, options), prefix=options["prefix"])


def _cache_options(place: Place) -> dict[str, Any]:
    options = read_options(f"tier {place.spec.name!r}", place.spec.options, _CACHE_OPTIONS)
    options.setdefault("prefix", f"ts:{place.store_id[:16]}:")
    return options


def _redis_endpoint(place: Place, options: dict[str, Any]) -> RedisEndpoint:
    """Takes what is its own out of ``options``."""
    from tierstore.blobs.redis.endpoint import RedisEndpoint

    node = place.node
    return RedisEndpoint(
        place.spec.url, username=node.username, password=node.password, ca=node.ca,
        timeout_s=place.spec.timeout_ms / 1000, connections=options.pop("connections", 8),
    )  # fmt: skip


def hot_directory(spec: TierSpec) -> Path:
    """Where this node's hot tier lies."""
    scheme, colon, _ = spec.url.partition("://")
    if colon and scheme != "file":
        raise ConfigError(f"the hot tier {spec.name!r} must be a directory of this node")
    return Path(_local_path(spec.url) if colon else spec.url)
