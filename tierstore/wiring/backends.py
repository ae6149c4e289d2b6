"""From a URL to the store behind it: the only place that knows every kind of storage.

``BACKENDS`` is the table of kinds. Libraries are imported when they are needed: a local directory
loads no network client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tierstore import config
from tierstore.arguments import as_path
from tierstore.blobs.base import BlobStore
from tierstore.config import NodeTier
from tierstore.errors import ConfigError
from tierstore.folders import path_of
from tierstore.format.tiers import DURABLE, Role, TierSpec
from tierstore.modelstore.home.tierlist import MOVER_OPTIONS
from tierstore.shown import nearest, shown_url
from tierstore.tiers.durable.archive import Archive
from tierstore.wiring.servers import Server

if TYPE_CHECKING:
    from tierstore.blobs.redis.endpoint import RedisEndpoint
    from tierstore.blobs.redis.heat import RedisHeat

OptionParsers = Mapping[str, Callable[[str], Any]]
"""Parsers of a backend's options by name; each raises ``ConfigError`` for a bad text."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tier as this node has it: the store's list and the node's file taken together."""

    spec: TierSpec
    node: NodeTier
    store_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """A request to open storage.

    Attributes:
        url: URL, or path of a directory.
        options: Parsed options of the backend.
        node: Login and certificate authority of this node.
        timeout_s: Seconds that one request may take; ``None`` for the backend's own default.
        create: Whether a directory that is missing is made.
    """

    url: str
    options: dict[str, Any]
    node: NodeTier
    timeout_s: float | None = None
    create: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of storage.

    Attributes:
        name: Short name, in messages; a flag of ``tierstore init`` for a cache has the same.
        schemes: URL schemes; a plain path is a ``file``, and ``fsspec+`` stands for every scheme
            that begins so.
        roles: Roles that a tier there may have; the first is the one that its URL suggests.
        opener: Function that opens the storage.
        example: How its URL is written, for messages.
        options: Parsers of its options; ``None`` passes any option on to fsspec as text. A cache
            needs ``prefix``, which it is always given.
        libraries: Packages that are imported to open it, beside those that tierstore always has.
        extra: Extra of tierstore that installs these packages.
        servers: Function that asks the servers of an opened cache about themselves.
        heat: Function that opens the counters that nodes share in a cache.
        archive: Function that opens what freezes and restores packs, where there are archive
            storage classes.
    """

    name: str
    schemes: tuple[str, ...]
    roles: tuple[Role, ...]
    opener: Callable[[Request], BlobStore]
    example: str = ""
    options: OptionParsers | None = None
    libraries: tuple[str, ...] = ()
    extra: str = ""
    servers: Callable[[BlobStore], tuple[Server, ...]] | None = None
    heat: Callable[[Request], RedisHeat] | None = None
    archive: Callable[[Request], Archive] | None = None

    @property
    def durable(self) -> bool:
        """Whether a tier there can be warm or cold: a cache forgets."""
        return not DURABLE.isdisjoint(self.roles)


def _open_directory(asked: Request) -> BlobStore:
    from tierstore.blobs.local.store import LocalStore

    path = directory_of(asked.url)
    assert path is not None
    return LocalStore(path, create=asked.create)


def _open_objects(asked: Request) -> BlobStore:
    from tierstore.blobs.objects.store import ObjectStore

    if asked.node.username or asked.node.password:
        raise ConfigError(
            f"{shown_url(asked.url)} takes no username and no password in this node's file: use "
            "the environment"
        )
    return ObjectStore(asked.url, **_object_settings(asked))


def _open_s3(asked: Request) -> BlobStore:
    from tierstore.blobs.objects.store import ObjectStore

    asked.options.setdefault("profile", config.aws_profile())
    return ObjectStore(asked.url, login=_access_key(asked), **_object_settings(asked))


def _object_settings(asked: Request) -> dict[str, Any]:
    limit = {} if asked.timeout_s is None else {"timeout_s": asked.timeout_s}
    variables = config.cloud_variables()
    named = [variables[name] for name in variables if name.startswith("AWS_ENDPOINT")]
    address = asked.options.get("endpoint") or next(iter(named), "https://s3.amazonaws.com")
    found = {
        "allow_http": config.http_allowed(),
        "ca": asked.node.ca or config.aws_ca(),
        "variables": variables,
        "proxy": config.proxy_of(address),
    }
    return found | limit | asked.options


def _open_s3_archive(asked: Request) -> Archive:
    from tierstore.blobs.objects.archive import S3Archive

    chosen = {"profile": config.aws_profile(), "region": config.aws_region(), **asked.options}
    kind, timeout_s = chosen.pop("storage_class"), asked.timeout_s
    assert timeout_s is not None
    return S3Archive(
        asked.url,
        kind,
        timeout_s=timeout_s,
        ca=asked.node.ca or config.aws_ca(),
        login=_access_key(asked),
        **chosen,
    )


def _access_key(asked: Request) -> tuple[str, str] | None:
    """Return the access key that this node's file names for a tier."""
    username, password = asked.node.username, asked.node.password
    if not (username or password):
        return None
    if not (username and password):
        raise ConfigError(
            f"{shown_url(asked.url)} takes an access key in two parts: its id as username, and the "
            "secret key by password_env or password_file"
        )
    return username, password


def _open_fsspec(asked: Request) -> BlobStore:
    from tierstore.blobs.fsspec.store import FsspecStore

    scheme, _, rest = asked.url.partition("://")
    protocol = scheme.removeprefix("fsspec+")
    user, password = _FSSPEC_LOGIN.get(protocol, ("username", "password"))
    more = dict(asked.options)
    more |= {user: asked.node.username} if asked.node.username else {}
    more |= {password: asked.node.password} if asked.node.password else {}
    limit = {} if asked.timeout_s is None else {"timeout_s": asked.timeout_s}
    return FsspecStore(f"{protocol}://{rest}", more, **limit)


_FSSPEC_LOGIN = {"webhdfs": ("user", "password"), "s3": ("key", "secret")}
"""Names of user and password in fsspec's file systems, where they are not the usual ones."""


def _open_redis(asked: Request) -> BlobStore:
    from tierstore.blobs.redis.store import RedisStore

    return RedisStore(_redis_endpoint(asked), **asked.options)


def _open_redis_heat(asked: Request) -> RedisHeat:
    from tierstore.blobs.redis.heat import RedisHeat

    return RedisHeat(_redis_endpoint(asked), prefix=asked.options["prefix"])


def _redis_endpoint(asked: Request) -> RedisEndpoint:
    """Make the endpoint, taking its own options out of ``asked.options``."""
    from tierstore.blobs.redis.endpoint import RedisEndpoint

    node, timeout_s = asked.node, asked.timeout_s
    assert timeout_s is not None
    return RedisEndpoint(
        asked.url,
        username=node.username,
        password=node.password,
        ca=node.ca,
        timeout_s=timeout_s,
        connections=asked.options.pop("connections", 8),
    )


def _redis_servers(store: BlobStore) -> tuple[Server, ...]:
    from tierstore.blobs.redis.store import RedisStore

    assert isinstance(store, RedisStore)
    return tuple(
        Server(
            h.node,
            h.version,
            h.used_bytes,
            h.max_memory_bytes,
            h.evicted,
            policy=h.policy,
            persistent=h.persistent,
            findings=h.findings,
        )
        for h in store.health()
    )


def _open_memcached(asked: Request) -> BlobStore:
    from tierstore.blobs.memcached.store import MemcachedStore

    timeout_s = asked.timeout_s
    assert timeout_s is not None
    return MemcachedStore(asked.url, timeout_s=timeout_s, **asked.options)


def _memcached_servers(store: BlobStore) -> tuple[Server, ...]:
    from tierstore.blobs.memcached.store import MemcachedStore

    assert isinstance(store, MemcachedStore)
    return tuple(
        Server(
            h.node,
            h.version,
            h.used_bytes,
            h.max_memory_bytes,
            h.evicted,
            h.max_item_bytes,
            findings=h.findings,
        )
        for h in store.health()
    )


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ConfigError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} must be a count")
    return int(text)


_OBJECT_OPTIONS: OptionParsers = {
    "endpoint": str, "region": str, "path_style": _flag, "storage_class": str, "profile": str,
    "allow_http": _flag,
}  # fmt: skip
_CACHE_OPTIONS: OptionParsers = {"prefix": str, "ttl_s": _count, "connections": _count}

BACKENDS = (
    Backend(
        name="directory",
        schemes=("file",),
        roles=("warm", "cold", "hot", "shared"),
        opener=_open_directory,
        example="a directory, file:///path",
        options={},
    ),
    Backend(
        name="memory",
        schemes=("memory",),
        roles=("warm", "cold", "shared"),
        opener=_open_fsspec,
        example="memory://name",
    ),
    Backend(
        name="s3",
        schemes=("s3", "s3a"),
        roles=("cold", "warm", "shared"),
        opener=_open_s3,
        example="s3://bucket/prefix",
        options=_OBJECT_OPTIONS,
        archive=_open_s3_archive,
    ),
    Backend(
        name="objects",
        schemes=("gs", "az", "azure", "abfs", "abfss"),
        roles=("cold", "warm", "shared"),
        opener=_open_objects,
        example="gs://bucket/prefix, az://container/prefix",
        options=_OBJECT_OPTIONS,
    ),
    Backend(
        name="hdfs",
        schemes=("hdfs", "webhdfs"),
        roles=("warm", "cold", "shared"),
        opener=_open_fsspec,
        example="hdfs://, webhdfs://",
    ),
    Backend(
        name="sftp",
        schemes=("sftp", "fsspec+sftp"),
        roles=("warm", "cold", "shared"),
        opener=_open_fsspec,
        example="sftp://",
        libraries=("paramiko",),
        extra="sftp",
    ),
    Backend(
        name="s3fs",
        schemes=("fsspec+s3",),
        roles=("cold", "warm", "shared"),
        opener=_open_fsspec,
        libraries=("s3fs",),
        extra="s3",
    ),
    Backend(
        name="fsspec objects",
        schemes=("fsspec+gs", "fsspec+az"),
        roles=("cold", "warm", "shared"),
        opener=_open_fsspec,
    ),
    Backend(
        name="fsspec",
        schemes=("smb", "fsspec+"),
        roles=("warm", "cold", "shared"),
        opener=_open_fsspec,
        example="fsspec+<protocol>://… for any fsspec file system",
    ),
    Backend(
        name="redis",
        schemes=("redis", "rediss", "redis+cluster", "rediss+cluster", "unix"),
        roles=("shared",),
        opener=_open_redis,
        options=_CACHE_OPTIONS,
        libraries=("redis", "hiredis"),
        extra="redis",
        servers=_redis_servers,
        heat=_open_redis_heat,
    ),
    Backend(
        name="memcached",
        schemes=("memcached",),
        roles=("shared",),
        opener=_open_memcached,
        options=_CACHE_OPTIONS,
        libraries=("pymemcache",),
        extra="memcached",
        servers=_memcached_servers,
    ),
)
"""Every kind of storage. The first entry that has a URL's scheme opens the URL."""


def backend_of(url: str) -> Backend | None:
    """Return the kind of storage at a URL; ``None`` for a scheme that is not known."""
    scheme, colon, _ = url.partition("://")
    if not colon:
        scheme = "file"
    for backend in BACKENDS:
        for known in backend.schemes:
            if scheme == known or (known.endswith("+") and scheme.startswith(known)):
                return backend
    return None


_NAMED_ROLES: dict[str, Role] = {"hot": "hot", "warm": "warm", "cold": "cold"}
"""The roles that names of tiers suggest; ``shared`` is not among them: a shared disk is warm."""


def role_of(url: str, name: str = "") -> Role:
    """Return the role that a tier has unless another one is given: its name's, else its URL's."""
    if name in _NAMED_ROLES:
        return _NAMED_ROLES[name]
    backend = backend_of(url)
    return "warm" if backend is None else backend.roles[0]


def open_blobs(url: str, *, create: bool = False) -> BlobStore:
    """Open the blob store at ``url``.

    Args:
        url: A path (``./dir``, ``/abs``), ``file:///abs``, ``memory://name`` (shared by everything
            in this process that opens the same name), ``s3://``, ``gs://`` or ``az://`` with a
            bucket and a prefix, or ``fsspec+<protocol>://…``.
        create: Whether a local directory that is missing is made.

    Raises:
        ConfigError: The scheme is not known, or the URL is not complete.
        NotFound: A local directory is missing and ``create`` is false.
    """
    return _open(Request(url, {}, NodeTier(), create=create), {})


def _open(asked: Request, texts: Mapping[str, str]) -> BlobStore:
    """Open storage that can keep blobs for good, with options that are still texts."""
    if not asked.url:
        raise ConfigError(f"the store's URL is empty: use {_known()}")
    backend, scheme = backend_of(asked.url), asked.url.partition("://")[0]
    if backend is None:
        raise ConfigError(f"stores of the kind {scheme[:40]!r} are not known: use {_known()}")
    if not backend.durable:
        raise ConfigError(f"a cache ({scheme}://) can only be a shared tier: it forgets")
    known = dict.fromkeys(texts, str) if backend.options is None else backend.options
    return _opened(backend, replace(asked, options=read_options(asked.url, texts, known)))


def _opened(backend: Backend, asked: Request) -> BlobStore:
    if any(find_spec(library) is None for library in backend.libraries):
        needed = " and ".join(backend.libraries)
        raise ConfigError(
            f"{shown_url(asked.url)} needs {needed}: pip install 'tierstore[{backend.extra}]'"
        )
    return backend.opener(asked)


def _known() -> str:
    *most, last = [each.example for each in BACKENDS if each.durable and each.example]
    return f"{', '.join(most)}, or {last}"


def read_options(what: str, given: Mapping[str, str], known: OptionParsers) -> dict[str, Any]:
    """Parse options; ``ConfigError`` names the nearest of those that are known."""
    chosen = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{what} has no option {name!r}: {nearest(name, known)}")
        try:
            chosen[name] = known[name](value)
        except ConfigError as error:
            raise ConfigError(f"{what}, option {name}: {error}") from None
    return chosen


def open_tier(place: Place, *, create: bool = False) -> BlobStore:
    """Open a tier's own store; ``ConfigError`` for an option that its kind does not know."""
    spec = place.spec
    if spec.role == "hot":
        return _open(Request(str(hot_directory(spec)), {}, NodeTier(), create=create), {})
    if spec.role == "shared":
        return _open_shared(place, create=create)
    texts = _own_options(spec)
    if is_archive(spec):
        del texts["storage_class"]  # packs are frozen once they were written and verified
    return _open(replace(_request(place), create=create), texts)


def _open_shared(place: Place, *, create: bool) -> BlobStore:
    spec, backend = place.spec, backend_of(place.spec.url)
    if backend is not None and not backend.durable:
        return _opened(backend, _cache_request(place, backend))
    if _freezes(spec):
        raise ConfigError(
            f"tier {spec.name!r}: storage_class={spec.options['storage_class']} is read only after "
            "a restore, so it is for warm and cold tiers; a shared tier is read at once"
        )
    return _open(replace(_request(place), create=create), spec.options)


def is_archive(spec: TierSpec) -> bool:
    """Return whether a tier's packs can be read only after a restore."""
    return spec.role in DURABLE and _freezes(spec)


def _freezes(spec: TierSpec) -> bool:
    """Return whether a tier's storage class is one of an archive."""
    chosen, backend = spec.options.get("storage_class"), backend_of(spec.url)
    if not chosen or backend is None or backend.archive is None:
        return False
    from tierstore.blobs.objects.archive import ARCHIVE_CLASSES

    return chosen in ARCHIVE_CLASSES


def open_archive(place: Place) -> Archive | None:
    """Open what freezes and restores a tier's packs; ``None`` for a tier that is read at once."""
    backend = backend_of(place.spec.url)
    if not is_archive(place.spec) or backend is None or backend.archive is None:
        return None
    chosen = read_options(place.spec.url, _own_options(place.spec), backend.options or {})
    return backend.archive(replace(_request(place), options=chosen))


def open_heat(place: Place) -> RedisHeat:
    """Open the counters of heat that nodes share through a tier's Redis."""
    backend = backend_of(place.spec.url)
    assert backend is not None
    assert backend.heat is not None
    return backend.heat(_cache_request(place, backend))


def counts_heat(spec: TierSpec) -> bool:
    """Return whether nodes can share their counters of heat through a tier."""
    backend = backend_of(spec.url)
    return spec.role == "shared" and backend is not None and backend.heat is not None


def _request(place: Place) -> Request:
    return Request(place.spec.url, {}, place.node, place.spec.timeout_ms / 1000)


def _cache_request(place: Place, cache: Backend) -> Request:
    assert cache.options is not None
    options = read_options(f"tier {place.spec.name!r}", place.spec.options, cache.options)
    options.setdefault("prefix", f"ts:{place.store_id[:16]}:")
    return replace(_request(place), options=options)


def _own_options(spec: TierSpec) -> dict[str, str]:
    """Return the options of a durable tier that are for its backend."""
    return {name: text for name, text in spec.options.items() if name not in MOVER_OPTIONS}


def hot_directory(spec: TierSpec) -> Path:
    """Return the directory of this node's hot tier."""
    path = directory_of(spec.url)
    if path is None:
        raise ConfigError(f"the hot tier {spec.name!r} must be a directory of this node")
    return path


def directory_of(url: str) -> Path | None:
    """Return the directory that a path or file URL names; ``None`` for any other URL.

    Raises:
        ConfigError: A file URL has no absolute path, or has a query or fragment.
        UsageError: No file system takes its path.
    """
    path = path_of(url)
    if path is None or "://" not in url:
        return None if path is None else Path(path)
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise ConfigError(f"{shown_url(url)!r} has no absolute path: a file URL is file:///path")
    if parts.query or parts.fragment:
        raise ConfigError(f"{shown_url(url)!r}: write '?' as %3F and '#' as %23 in a file URL")
    return Path(as_path("url", path, "a path"))
