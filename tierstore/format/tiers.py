"""The list of tiers, pins, and movers' leases: sealed objects (SPEC.md section 13)."""

import re
from typing import Literal

import msgspec

from tierstore.format.checks import Broken, damaged
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, seal_body, unseal_body
from tierstore.ids import Buffer
from tierstore.shown import SECRET_NAME

TIERS = "tiers/"
PINS = "pins/"
HEAT = "heat/"
MOVERS = "movers/"
FEATURE = "tiers"
"""The feature's name in ``config.json``: a client that does not know it would miss packs."""

Role = Literal["hot", "shared", "warm", "cold"]
"""The role of a tier.

``hot`` is a cache of this node, ``shared`` one in Redis or Memcached; ``warm`` and ``cold`` tiers
are durable.
"""

DURABLE: frozenset[Role] = frozenset({"warm", "cold"})
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_PIN = re.compile(re.escape(PINS) + r"([0-9a-f]{64})(?:-[0-9a-f]{16})?\Z")
HOME_NAME = "home"
"""The name of home as a durable tier; no other tier may have it."""


class TierSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier as all nodes agree on it; a node's own file may override what is local to it.

    Attributes:
        name: A short name, unique in the store.
        role: What the tier is for: ``hot``, ``shared``, ``warm`` or ``cold``.
        url: Where it is; never holds a credential.
        size: The quota in bytes; ``None`` for no limit.
        high: The percent of the quota above which the tier is emptied ...
        low: ... down to this percent.
        timeout_ms: How long one request may take before it counts as failed, in milliseconds.
        state: Whether it is in use; a ``draining`` tier is read, but nothing is written to it.
        options: What the kind of backend knows: ``endpoint``, ``region``, ``path_style``,
            ``storage_class``, ``ttl_s``, ``policy`` ...; the opener refuses unknown ones.
        prices: Decimals as text by what is paid for: ``gb_month``, ``put_1000``, ``get_1000``,
            ``retrieve_gb``, ``egress_gb``, ``min_days``.

    Examples:
        >>> import os
        >>> warm = tierstore.TierSpec(
        ...     name="warm", role="warm", url=os.path.abspath("warm"), size=20 << 40
        ... )
        >>> store = tierstore.init("store", tiers=[warm])
        >>> store.admin.tiers.list()[0].high
        95
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
    """One revision of the list of a store's tiers, in the order in which they are read."""

    seq: int
    write_id: Hex32
    tiers: list[TierSpec]
    time_us: int
    who: str
    message: str = ""

    def check(self) -> None:
        """Raise ``Broken`` unless its tiers can be used and have names of their own."""
        if not 0 <= self.time_us < 1 << 57:
            raise Broken("its time is out of range")
        names = [check_spec(spec).name for spec in self.tiers]
        if len(set(names)) != len(names):
            raise Broken("two tiers have the same name")


class Pin(Body, frozen=True, kw_only=True):
    """A version that is kept in fast tiers.

    Attributes:
        version: The hex digest of its manifest.
        ref: The reference that the user gave.
        roles: The roles of the tiers that keep it: ``hot`` or ``warm``.
        until_us: The end in microseconds since the epoch; ``None`` for no end.
        who: ``user@host``.
    """

    version: Hex64
    ref: str
    roles: list[Role]
    until_us: int | None
    who: str


class MoverLease(Body, frozen=True, kw_only=True):
    """The right of one process to move packs between tiers; it is renewed by writing it again.

    Attributes:
        seq: The sequence number of the lease, which is in its key as well.
        id: Random, so that a process knows its own lease.
        who: ``user@host``.
        host: The name of the machine.
        pid: The id of the process.
        ttl_s: Seconds after which it has ended, by home's clock, unless it is renewed.
        done: Whether its holder has given it up.
    """

    seq: int
    id: Hex32
    who: str
    host: str
    pid: int
    ttl_s: int
    done: bool = False


def has_secret(url: str) -> bool:
    """Return whether a URL has a password, or what looks like a key, in its authority or query."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    query = re.split(r"[&;]", rest.partition("?")[2])
    return ":" in authority.rpartition("@")[0] or any(
        SECRET_NAME.match(field.partition("=")[0]) for field in query
    )


def is_tier_name(name: str) -> bool:
    """Return whether a tier may have this name."""
    return _NAME.match(name) is not None and name != HOME_NAME


def check_spec(spec: TierSpec) -> TierSpec:
    """Return ``spec``; raise ``Broken`` when one of its values is out of range."""
    if not is_tier_name(spec.name):
        raise Broken(f"a tier cannot be named {spec.name[:40]!r}")
    if not spec.url or not 0 < spec.low <= spec.high <= 100 or spec.timeout_ms < 1:
        raise Broken(f"the URL, watermarks or timeout of tier {spec.name} are out of range")
    if has_secret(spec.url) or any(map(SECRET_NAME.match, spec.options)):
        raise Broken(f"the URL or options of tier {spec.name} hold a password or key")
    if spec.size is not None and spec.size < 0:
        raise Broken(f"the size of tier {spec.name} is negative")
    return spec


def tiers_key(seq: int) -> str:
    """Return the key of one revision of the list of tiers."""
    return f"{TIERS}{seq:09d}"


def tiers_seq(key: str) -> int | None:
    """Return the number of the revision at a key; ``None`` if it is none."""
    name = key.removeprefix(TIERS)
    is_one = len(name) == 9 and name.isascii() and name.isdigit() and name.strip("0")
    return int(name) if is_one else None


def pin_key(version: str) -> str:
    """Return the key of the pin of a version (hex digest of its manifest)."""
    return PINS + version


def pinned_version(key: str) -> str | None:
    """Return the hex digest of the version that a pin is of; ``None`` if it is no pin's key."""
    match = _PIN.match(key)
    return match[1] if match else None


def seal_tiers(tiers: TierList) -> bytes:
    """Return the stored form of one revision of the list of tiers."""
    return seal_body(Kind.TIERS, tiers)


def parse_tiers(data: Buffer, seq: int, name: str) -> TierList:
    """Unseal and check revision ``seq`` of the list of tiers."""
    body = unseal_body(Kind.TIERS, data, TierList, name)
    if body.seq != seq:
        damaged(name, f"its number is {body.seq}")
    return body
