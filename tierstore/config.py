"""Settings from the environment and the node's file: the only reader of ``TIERSTORE_*``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlsplit

from tierstore.errors import ConfigError, UsageError
from tierstore.forks import at_end
from tierstore.modelstore.settings import PartVerification, Settings
from tierstore.shown import nearest, why_unread
from tierstore.unfinished import TemporaryFolder

PREFIX = "TIERSTORE_"
STORE = "TIERSTORE_STORE"
CACHE_DIR = "TIERSTORE_CACHE_DIR"
THREADS = "TIERSTORE_THREADS"
MEMORY_LIMIT = "TIERSTORE_MEMORY_LIMIT"
NATIVE = "TIERSTORE_NATIVE"
DEBUG = "TIERSTORE_DEBUG"
NODE = "TIERSTORE_NODE"
LABELS = "TIERSTORE_LABELS"
CONFIG = "TIERSTORE_CONFIG"
PROFILE = "TIERSTORE_PROFILE"
METRICS = "TIERSTORE_METRICS"
LOG = "TIERSTORE_LOG"
VERIFY_PARTS = "TIERSTORE_VERIFY_PARTS"
VARIABLES: dict[str, tuple[str, str]] = {
    STORE: (
        "The store to use when none is named: a directory, `s3://bucket/prefix`, `gs://…`, "
        "`az://…` or `fsspec+<protocol>://…`.",
        "none",
    ),
    CACHE_DIR: (
        "Where the local index for deduplication lies. It can be deleted at any time.",
        "`~/.cache/tierstore`",
    ),
    THREADS: ("Threads that hash, encode and decode, from 1 to 1024.", "the number of CPUs"),
    MEMORY_LIMIT: (
        "Memory in which loads stage what they read, such as `512MiB`; at least 32 MiB.",
        "2 GiB, or 25 % of the cgroup's limit or of RAM if that is less",
    ),
    NODE: ("This node's name, which decides its turn in a rollout.", "the host name"),
    LABELS: ("This node's labels, for rollouts that ask for some: `region=eu,gpu=h100`.", "none"),
    PROFILE: (
        "The lossy variants that this node prefers, in order, such as `int8-channel,full`.",
        "none: the version itself",
    ),
    VERIFY_PARTS: (
        "How rows, slices and ranges of chunks that were stored without proofs are verified: "
        "`blocks` by checksums, which find damage but no forgery, or `chunks` by the digest of the "
        "whole chunk, which is read for that.",
        "`blocks`",
    ),
    CONFIG: (
        "This node's file; empty for none at all. `tierstore tier example` prints one.",
        "`~/.config/tierstore/tierstore.toml`, then `/etc/tierstore/tierstore.toml`",
    ),
    METRICS: (
        "`[HOST:]PORT` where a process that loads through the library serves `/metrics`.",
        "none",
    ),
    LOG: ("`text` or `json`: such a process logs to stderr in this form.", "none"),
    NATIVE: ("`0`: numpy is used instead of the native kernels; the same bytes, slower.", "`1`"),
    DEBUG: ("`1`: the command line prints tracebacks.", "off"),
}
"""What this module and the program read, each with its meaning and its default. Each option of a
command has a variable of its own beside these."""

KNOWN = tuple(VARIABLES)

_AWS_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE",
)  # fmt: skip
_SERVICE = re.compile(
    r"TIERSTORE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"TIERSTORE(_\w+)?_PORT")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
_CLOUD_TEXTS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_ENDPOINT", "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip
_OFF = {"", "0", "false", "no", "off"}
_TIME = re.compile(r"0*([0-9]+)([smhd]?)\Z")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST_DAYS = 36_500
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*%\Z")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(i?)B?\Z", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Parse ``512MiB``, ``2G`` (binary) or ``50GB`` (decimal) into bytes, or ``ConfigError``."""
    match = _SIZE.match(text.strip())
    if not match:
        raise ConfigError(f"invalid size {text!r}: expected 512MiB, 2GiB or 50GB")
    number, unit, binary = match.groups()
    decimal = text.strip().upper().endswith("B") and not binary
    return int(float(number) * (1000 if decimal else 1024) ** " KMGT".index(unit.upper() or " "))


def parse_seconds(text: str, *, none: bool = False) -> int:
    """Parse ``90s``, ``30m``, ``2h`` or ``7d`` into seconds, or ``ConfigError``.

    Args:
        text: A whole number with its unit; at most 36,500 days.
        none: Whether ``0`` is meant as well: no time at all.
    """
    expected = "90s, 30m, 2h or 7d" + (", or 0" if none else "")
    match = _TIME.match(text.strip())
    if not match:
        raise ConfigError(f"invalid time {text!r}: expected {expected}")
    digits, unit = match.groups()
    if digits == "0":
        if none:
            return 0
        raise ConfigError(f"invalid time {text!r}: expected more than 0, such as {expected}")
    if not unit:
        raise ConfigError(f"invalid time {text!r}: the unit is missing; expected {expected}")
    most = _MOST_DAYS * _UNIT_S["d"] // _UNIT_S[unit]
    if len(digits) > len(str(most)) or int(digits) > most:
        raise ConfigError(f"invalid time {text!r}: the longest possible is {_MOST_DAYS}d")
    return int(digits) * _UNIT_S[unit]


def parse_share(text: str) -> float:
    """Parse ``5%``, ``0.5%`` or ``100%`` into a share above 0 and up to 1, or ``ConfigError``."""
    match = _PERCENT.match(text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"invalid share {text!r}: expected more than 0% and at most 100%, as 5%")
    return share


def parse_labels(text: str) -> dict[str, str]:
    """Parse labels such as ``region=eu,gpu=h100``, or ``ConfigError``."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not equals for name, equals, _ in pairs):
        raise ConfigError(f"invalid labels {text!r}: expected NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def expanded(place: str) -> str:
    """Return a path or URL of a setting with the home directory where ``~`` or ``~user`` begins it.

    A shell does that in few places only: not in ``--to=~/out``, and not in files and variables.

    Raises:
        ConfigError: It is not known where that is.
    """
    scheme = "file://" if place.startswith("file://~") else ""
    path = place.removeprefix(scheme)
    if not path.startswith("~"):
        return place
    found = os.path.expanduser(path)  # noqa: PTH111 - of a URL, too
    if found.startswith("~"):
        raise ConfigError(f"{place!r}: there is no such home directory; write the whole path")
    return scheme + (quote(found) if scheme else found)


def settings_from(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this process; ``ConfigError`` names an invalid variable."""
    chosen: dict[str, Any] = {}
    node_file = node_config(environ)
    if node_file.node:
        chosen["node"] = node_file.node
    chosen |= {"labels": node_file.labels, "profiles": node_file.profiles}
    chosen["profile"] = node_file.profile
    if text := environ.get(THREADS):
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
            raise ConfigError(f"invalid {THREADS}={text!r}: expected a number from 1 to 1024")
        chosen["threads"] = int(text)
    if text := environ.get(MEMORY_LIMIT):
        chosen["memory_limit_bytes"] = parse_size(text)
        if chosen["memory_limit_bytes"] < 32 << 20:
            raise ConfigError(f"{MEMORY_LIMIT}={text!r} is too small: give 32MiB or more")
    if node := environ.get(NODE):
        chosen["node"] = node
    if profile := environ.get(PROFILE):
        chosen["profile"] = profile
    if parts := environ.get(VERIFY_PARTS):
        if parts not in get_args(PartVerification):
            raise ConfigError(f"invalid {VERIFY_PARTS}={parts!r}: expected blocks or chunks")
        chosen["verify_parts"] = parts
    if labels := environ.get(LABELS):
        chosen["labels"] = parse_labels(labels)
    return Settings(cache_dir=_cache_dir(environ), **chosen)


def _cache_dir(environ: Mapping[str, str]) -> Path:
    if own := environ.get(CACHE_DIR):
        return Path(expanded(own))
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(expanded(base)) / "tierstore"
    try:
        return Path.home() / ".cache" / "tierstore"
    except RuntimeError:  # no home directory in this container
        return _of_this_process()


@functools.cache
def _of_this_process() -> Path:
    """Make a cache that ends with the process: others could take a name that lasts."""
    folder = TemporaryFolder()
    at_end(folder.close)
    return folder.path


def store_url(given: str | None) -> str:
    """Return the URL that was given, or ``TIERSTORE_STORE``, or ``store`` in the node's file."""
    url = given if given is not None else os.environ.get(STORE) or node_config().store
    if not url:
        raise UsageError(f"no store is named: give its URL (--store URL), or set {STORE}")
    return expanded(url)


@dataclass(frozen=True, slots=True)
class NodeTier:
    """The settings of one tier in this node's file; ``None`` where the store's list holds.

    Attributes:
        url: Where the tier is for this node.
        size: Quota in bytes.
        enabled: Whether this node uses the tier.
        timeout_ms: Milliseconds that one request may take.
        username: User name for Redis, SFTP and the like; on S3 the id of an access key.
        password: Password, or secret key on S3, from a variable or a file; it is never shown.
        ca: Path of a PEM file with the certificate authorities to trust.
        options: Options of the backend, which win over those in the list.
    """

    url: str | None = None
    size: int | None = None
    enabled: bool = True
    timeout_ms: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The content of a node's ``tierstore.toml``.

    Attributes:
        store: URL of the store to open when none is named.
        node: Name of this node.
        labels: Labels of this node for rollouts, such as ``region``.
        profile: Variants that this node prefers, with commas, or a name in ``profiles``.
        profiles: Orders of preference by name, each a text with commas.
        hot: The hot tier, whatever its name in the store's list; with ``url`` and ``size`` this
            node has one even if the list has none.
        tiers: Settings of other tiers by name.
    """

    store: str | None = None
    node: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    profile: str | None = None
    profiles: Mapping[str, str] = field(default_factory=dict)
    hot: NodeTier | None = None
    tiers: Mapping[str, NodeTier] = field(default_factory=dict)

    def tier(self, name: str, role: str) -> NodeTier:
        """Return the settings of one tier; empty ones if the file does not name it."""
        return self.tiers.get(name) or (self.hot if role == "hot" else None) or NodeTier()


def node_config(environ: Mapping[str, str] = os.environ) -> NodeConfig:
    """Read the node's file.

    It is the one that ``TIERSTORE_CONFIG`` names (if empty, none is read), or the first that exists
    of ``$XDG_CONFIG_HOME/tierstore/tierstore.toml`` (by default in ``~/.config``) and
    ``/etc/tierstore/tierstore.toml``.

    Raises:
        ConfigError: The file cannot be read, or a key or value in it is invalid.
    """
    path = node_file(environ)
    if path is None:
        return NodeConfig()
    import tomllib

    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {why_unread(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return _parse_node(raw, str(path), environ)


def node_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the path of the node's file; ``None`` if there is none."""
    if (named := environ.get(CONFIG)) is not None:
        return Path(expanded(named)) if named else None
    base = environ.get("XDG_CONFIG_HOME") or (environ.get("HOME", "") + "/.config")
    for folder in (Path(base) / "tierstore", Path("/etc/tierstore")):
        # os.path: a folder that this user may not enter has no file for this user
        if os.path.isfile(folder / "tierstore.toml"):  # noqa: PTH113
            return folder / "tierstore.toml"
    return None


def _parse_node(raw: Mapping[str, Any], path: str, environ: Mapping[str, str]) -> NodeConfig:
    _check_keys(raw, [one.name for one in fields(NodeConfig)], path)
    tiers = _typed(raw, "tiers", dict, path) or {}
    hot = _typed(raw, "hot", dict, path)
    return NodeConfig(
        store=_typed(raw, "store", str, path),
        node=_typed(raw, "node", str, path),
        labels=_texts(raw, "labels", path),
        profile=_typed(raw, "profile", str, path),
        profiles=_texts(raw, "profiles", path),
        hot=None if hot is None else _parse_tier(hot, f"{path} [hot]", environ),
        tiers={
            name: _parse_tier(tier, f"{path} [tiers.{name}]", environ)
            for name, tier in tiers.items()
        },
    )


def _parse_tier(raw: object, where: str, environ: Mapping[str, str]) -> NodeTier:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a table")
    known = [one.name for one in fields(NodeTier)]
    known = ["timeout" if name == "timeout_ms" else name for name in known]
    if "password" in raw:
        raise ConfigError(
            f"{where}: a password must not be in this file; name the variable that holds it "
            "(password_env) or a file of its own (password_file)"
        )
    known.remove("password")
    _check_keys(raw, [*known, "password_env", "password_file"], where)
    options = _typed(raw, "options", dict, where) or {}
    size, timeout = raw.get("size"), raw.get("timeout")
    return NodeTier(
        url=_place(raw, "url", where),
        size=None if size is None else _quantity(size, parse_size, f"{where} size"),
        enabled=raw.get("enabled") is None or bool(_typed(raw, "enabled", bool, where)),
        timeout_ms=None if timeout is None else _quantity(timeout, parse_ms, f"{where} timeout"),
        username=_typed(raw, "username", str, where),
        password=_password(raw, where, environ),
        ca=_place(raw, "ca", where),
        options={name: _option(value) for name, value in options.items()},
    )


def _check_keys(raw: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}: the key {key!r} is not known: {nearest(key, known)}")


def _typed(raw: Mapping[str, Any], key: str, kind: type[Any], where: str) -> Any:
    value = raw.get(key)
    if value is not None and not isinstance(value, kind):
        name = {str: "text", dict: "a table", bool: "true or false"}[kind]
        raise ConfigError(f"{where}: {key} must be {name}")
    return value


def _place(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    found = _typed(raw, key, str, where)
    return None if found is None else expanded(found)


def _texts(raw: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """Read a table of texts; a list of texts becomes one text with commas."""
    found = {}
    for name, value in (_typed(raw, key, dict, where) or {}).items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise ConfigError(f"{where} [{key}]: {name} must be text")
        found[name] = ",".join(parts)
    return found


def _quantity(value: object, parse: Callable[[str], int], where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where} must be a number or text")
    try:
        return parse(str(value))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def parse_ms(text: str) -> int:
    """Parse ``500ms``, ``2.5s`` or a count of seconds into milliseconds, or ``ConfigError``."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*(ms|s|)", text.strip())
    found = round(float(match[1]) * (1 if match[2] == "ms" else 1000)) if match else 0
    if not found:
        raise ConfigError(f"invalid time {text!r}: expected 500ms or 5s")
    return found


def _option(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _password(raw: Mapping[str, Any], where: str, environ: Mapping[str, str]) -> str | None:
    variable = _typed(raw, "password_env", str, where)
    path = _place(raw, "password_file", where)
    if variable is not None and path is not None:
        raise ConfigError(f"{where}: give password_env or password_file, not both")
    if variable is not None:
        if variable not in environ:
            raise ConfigError(f"{where}: the variable {variable} (password_env) is not set")
        return environ[variable]
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = why_unread(error)
        raise ConfigError(f"{where}: the password_file {path} cannot be read: {why}") from None


def http_allowed() -> bool:
    """Return whether an object store's endpoint may be plain http: ``AWS_ALLOW_HTTP=true``.

    obstore reads this variable itself, but not if it is given any client options.
    """
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes", "on", "y"}


def aws_profile() -> str | None:
    """Return the profile of AWS's own files to take credentials from.

    It is ``AWS_PROFILE``, or ``default`` if there is a file of credentials; none if the environment
    holds credentials or says where this machine gets them.
    """
    if any(os.environ.get(name) for name in _AWS_CREDENTIALS):
        return None
    if named := os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE"):
        return named
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    path = Path(file) if file else Path(os.environ.get("HOME", "/")) / ".aws" / "credentials"
    return "default" if path.is_file() else None


def aws_region() -> str | None:
    """Return the region in the environment; of the two variables boto3 itself reads only one."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def aws_ca() -> str | None:
    """Return the PEM file with the certificate authorities to trust: ``AWS_CA_BUNDLE``."""
    return os.environ.get("AWS_CA_BUNDLE") or None


def cloud_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables from which the clients of object stores take texts for requests."""
    return {name: environ[name] for name in _CLOUD_TEXTS if environ.get(name)}


def proxy_of(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable that names the proxy for a URL, with its value but for a password."""
    from urllib import request  # few processes need that much

    parts = urlsplit(url)
    if request.proxy_bypass_environment(parts.netloc):  # type: ignore[attr-defined]
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for found in (name, name.upper()):
            if value := environ.get(found):
                return f"{found}={re.sub('//[^/@]*@', '//…@', value)}"
    return None


@dataclass(frozen=True, slots=True)
class Observing:
    """The metrics and the log of a process that loads models.

    Attributes:
        metrics: Host and port to serve ``/metrics`` on; port 0 takes a free one.
        log: Form of the log on stderr, ``text`` or ``json``; ``None`` for no log.
    """

    metrics: tuple[str, int] | None = None
    log: str | None = None


def observing(environ: Mapping[str, str] = os.environ) -> Observing:
    """Parse ``TIERSTORE_METRICS`` and ``TIERSTORE_LOG``; ``ConfigError`` if one is invalid."""
    log = environ.get(LOG) or None
    if log not in (None, "text", "json"):
        raise ConfigError(f"invalid {LOG}={log!r}: expected text or json")
    address = environ.get(METRICS)
    if not address:
        return Observing(None, log)
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"invalid {METRICS}={address!r}: expected PORT or HOST:PORT")
    return Observing((host.strip("[]") or "127.0.0.1", int(port)), log)


def native_wanted() -> bool:
    """Return whether the native kernels may be used: ``TIERSTORE_NATIVE=0`` switches them off."""
    return os.environ.get(NATIVE, "1") not in _OFF


def is_on(name: str) -> bool:
    """Return whether a variable is set to anything but 0, no, off or false."""
    return os.environ.get(name, "").lower() not in _OFF


def is_service_variable(name: str, value: str) -> bool:
    """Return whether Kubernetes sets this variable for a Service whose name begins with tierstore.

    Every pod of the namespace gets them: ``TIERSTORE_SERVICE_HOST``, ``TIERSTORE_PORT=tcp://…``,
    ``TIERSTORE_PORT_80_TCP_ADDR`` and the like. They are told from ours by their form.
    """
    if _SERVICE.fullmatch(name):
        return True
    return _SERVICE_PORT.fullmatch(name) is not None and _SERVICE_URL.match(value) is not None


def is_set_by_service(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a variable has a value, and one that Kubernetes sets for a Service."""
    return name in environ and is_service_variable(name, environ[name])


def unknown_messages(more: Iterable[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each ``TIERSTORE_*`` variable that nothing reads, with the nearest name.

    Args:
        more: Known variables beside those of this module.
        environ: Environment to look at.
    """
    lines = []
    for name in unknown_variables(more, environ):
        hint = nearest(name, sorted({*KNOWN, *more}), "see 'tierstore --help'")
        lines.append(f"the environment variable {name} is not known: {hint}")
    return lines


def unknown_variables(more: Iterable[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the ``TIERSTORE_*`` variables that nothing reads, sorted.

    Those that Kubernetes sets for a Service are not among them.
    """
    ours = {
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and not is_service_variable(name, value)
    }
    return sorted(ours.difference(KNOWN, more))
