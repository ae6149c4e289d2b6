"""The store's list of tiers, pins, and who may move packs: sealed objects (SPEC.md section 13)."""

import re
from typing import Literal

import msgspec

from tierstore.format.checks import damaged
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, seal_body, unseal_body
from tierstore.ids import Buffer

TIERS = "tiers/"
PINS = "pins/"
HEAT = "heat/"
MOVERS = "movers/"
FEATURE = "tiers"
"""The feature name in config.json: a client that does not know it would miss packs."""

Role = Literal["hot", "shared", "warm", "cold"]
"""``hot``: this node; ``shared``: Redis or Memcached; ``warm`` and ``cold``: durable."""

DURABLE: frozenset[Role] = frozenset({"warm", "cold"})
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_SECRET = re.compile(
    r"(.*(password|passwd|secret|token|credential|signature|access.?key).*|sig|pass|pwd|key)\Z",
    re.IGNORECASE,
)
HOME_NAME = "home"
"""The name of home as a durable tier; no other tier may have it."""


class TierSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier as all nodes agree on it; a node's own file may override what is local to it.

    Attributes:
        name: short name, unique in the store.
        role: what the tier is for.
        url: where it is; never holds a credential.
        size: quota in bytes; ``None`` for no limit.
        high: percent of the quota above which the tier is emptied ...
        low: ... down to this percent.
        timeout_ms: how long one request may take before it counts as failed.
        state: a draining tier is read, but nothing is written to it.
        options: what the kind of backend knows: ``endpoint``, ``region``, ``path_style``,
            ``storage_class``, ``ttl_s``, ``policy`` ...; the opener refuses unknown ones.
        prices: decimals as text by what is paid for: ``gb_month``, ``put_1000``, ``get_1000``,
            ``retrieve_gb``, ``egress_gb``, ``min_days``.
    """

    name: str
    role: Role
    url: str
    size: int | None = None
    high: int = 95
    low: int = 85
    timeout_ms: int = 5000
    state: Literal["active", "draining"] = "active"
    options: dict[str, str] = {}
    prices: dict[str, str] = {}


class TierList(Body, frozen=True, kw_only=True):
    """The tiers of a store, in the order in which they are read; one revision of the list."""

    seq: int
    write_id: Hex32
    tiers: list[TierSpec]
    time_us: int
    who: str
    message: str = ""


class Pin(Body, frozen=True, kw_only=True):
    """A version that is kept where it is fast.

    Attributes:
        version: digest of its manifest.
        ref: what the user named.
        roles: tiers it is pinned in, ``hot`` or ``warm``.
        until_us: end, microseconds since the epoch; ``None`` until it is unpinned.
        who: ``user@host``.
    """

    version: Hex64
    ref: str
    roles: list[Role]
    until_us: int | None
    who: str


class MoverLease(Body, frozen=True, kw_only=True):
    """Who may move packs between tiers; renewed by writing it again.

    Attributes:
        seq: its number, in its key as well.
        id: random, to know one's own.
        who: ``user@host``.
        host: name of the machine.
        pid: process id.
        ttl_s: it has ended when home's clock says that it is older than this ...
        done: ... or when its mover said so.
    """

    seq: int
    id: Hex32
    who: str
    host: str
    pid: int
    ttl_s: int
    done: bool = False


def has_secret(url: str) -> bool:
    """Whether a URL has a password, or what looks like a key, in its authority or query."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    query = re.split(r"[&;]", rest.partition("?")[2])
    return ":" in authority.rpartition("@")[0] or any(
        _SECRET.match(field.partition("=")[0]) for field in query
    )


def is_tier_name(name: str) -> bool:
    """Whether a tier may be called so."""
    return _NAME.match(name) is not None and name != HOME_NAME


def check_spec(spec: TierSpec, name: str) -> TierSpec:
    """Return a tier that is in range; ``Damaged`` names what is not."""
    if not is_tier_name(spec.name):
        damaged(name, f"{spec.name[:40]!r} is no name for a tier")
    if not spec.url or not 0 < spec.low <= spec.high <= 100 or spec.timeout_ms < 1:
        damaged(name, f"the URL, watermarks or timeout of tier {spec.name} are out of range")
    if has_secret(spec.url) or any(map(_SECRET.match, spec.options)):
        damaged(name, f"the URL or options of tier {spec.name} hold a password or key")
    if spec.size is not None and spec.size < 0:
        damaged(name, f"the size of tier {spec.name} is negative")
    return spec


def tiers_key(seq: int) -> str:
    """The key of one revision of the list of tiers."""
    return f"{TIERS}{seq:09d}"


def mover_key(seq: int) -> str:
    """The key of one mover's lease."""
    return f"{MOVERS}{seq:09d}"


def pin_key(version: str) -> str:
    """The key of the pin of a version (hex digest of its manifest)."""
    return PINS + version


def seal_tiers(tiers: TierList) -> bytes:
    """The stored form of one revision."""
    return seal_body(Kind.TIERS, tiers)


def parse_tiers(data: Buffer, seq: int, name: str) -> TierList:
    """Unseal and check the revision ``seq``."""
    body = unseal_body(Kind.TIERS, data, TierList, name)
    if body.seq != seq or not 0 <= body.time_us < 1 << 57:
        damaged(name, f"its number is {body.seq}, or its time is out of range")
    names = [check_spec(spec, name).name for spec in body.tiers]
    if len(set(names)) != len(names):
        damaged(name, "two tiers have one name")
    return body
