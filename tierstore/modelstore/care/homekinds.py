"""The kinds of objects that a store is run with: a check and a repair ask one table.

Logs, manifests, layouts, folds, condemned lists and lists of tiers are not among them, as what is
damaged of these depends on others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tierstore.format import keys
from tierstore.format.collected import Collected
from tierstore.format.heat import parse_heat
from tierstore.format.layout import parse_mark, parse_move
from tierstore.format.purge import Acknowledgement, NodeNote, PurgedContent, PurgeOrder, PurgePart
from tierstore.format.reflog import Lease, Report
from tierstore.format.retention import Retention
from tierstore.format.sealed import Body, Kind, unseal_body
from tierstore.format.segments import parse_any_segment
from tierstore.format.tiers import HEAT, PINS, Pin, pinned_version
from tierstore.ids import Buffer
from tierstore.modelstore.home.leases import is_lease

Parse: TypeAlias = Callable[[str, Buffer], object]
"""Checks an object, by its key and bytes; what others have put there is not looked at."""


@dataclass(frozen=True, slots=True)
class HomeKind:
    """A kind of objects.

    Attributes:
        kind: The number that the objects have.
        prefix: Where they lie: a prefix of keys, or the key of the only one.
        parse: Raises ``Damaged`` or ``UnsupportedFormat`` for one that cannot be read.
        damaged: What a check says of a damaged one: what becomes of what depends on it, or of a
            hint what it is.
        deleted: What a repair says that has deleted it, as it only saves work; empty for what
            something depends on.
    """

    kind: Kind
    prefix: str
    parse: Parse
    damaged: str
    deleted: str = ""

    @property
    def is_hint(self) -> bool:
        """Whether it only saves work."""
        return bool(self.deleted)


def _move(key: str, data: Buffer) -> object:
    pack = keys.moved_pack(key)
    return None if pack is None else parse_move(data, pack, key)


def _mark(key: str, data: Buffer) -> object:
    pack = keys.pack_of(key)
    return None if pack is None else parse_mark(data, pack, key)


def _pin(key: str, data: Buffer) -> object:
    return None if pinned_version(key) is None else unseal_body(Kind.PIN, data, Pin, key)


def _lease(key: str, data: Buffer) -> object:
    return unseal_body(Kind.LEASE, data, Lease, key) if is_lease(key) else None


def _part(key: str, data: Buffer) -> object:
    if keys.purge_part_of(key) is None:
        return None
    return unseal_body(Kind.PURGE_PART, data, PurgePart, key)


def _sealed(kind: Kind, body: type[Body], form: str) -> Parse:
    return _of_form(form, lambda key, data: unseal_body(kind, data, body, key))


def _of_form(form: str, parse: Parse) -> Parse:
    """Return what looks at keys of this form alone: a regular expression."""
    ours = re.compile(form)
    return lambda key, data: parse(key, data) if ours.fullmatch(key) else None


_ID = "[0-9a-f]{32}"


_NEEDED = (
    HomeKind(Kind.MOVE, keys.MOVES, _move, "no reader finds what was moved by it"),
    HomeKind(Kind.QUARANTINE, keys.QUARANTINE, _mark, "its pack counts as damaged"),
    HomeKind(
        Kind.RETENTION,
        keys.RETENTION,
        _sealed(Kind.RETENTION, Retention, f"{keys.RETENTION}(store|models/[^/]+)"),
        "nothing of it is removed or collected until 'tierstore retention set' sets it again",
    ),
    HomeKind(
        Kind.PURGE,
        keys.PURGES,
        _sealed(Kind.PURGE, PurgeOrder, keys.PURGES + _ID),
        "'tierstore purge run' begins that purge anew, and what it said of what went is lost",
    ),
    HomeKind(
        Kind.PURGED,
        keys.PURGED,
        _sealed(Kind.PURGED, PurgedContent, keys.PURGED + _ID),
        "nodes do not know what to drop until 'tierstore purge run' found it again",
    ),
    HomeKind(
        Kind.PURGE_PART,
        keys.PURGE_PARTS,
        _part,
        "what one run found or did for that purge may be missing where another one wrote over it",
    ),
    HomeKind(Kind.PIN, PINS, _pin, "it pins without end"),
    HomeKind(
        Kind.LEASE, keys.LEASES, _lease, "no garbage is collected until it ends, in some hours"
    ),
)
"""Objects that something depends on."""

_HINTS = (
    HomeKind(
        Kind.SEGMENT,
        keys.INDEX,
        _of_form(keys.INDEX + _ID, lambda key, data: parse_any_segment(data, key)),
        "a damaged index segment: duplicates may be missed",
        "saves store chunks anew that they do not find; 'tierstore index rebuild' finds them again",
    ),
    HomeKind(
        Kind.HEAT,
        HEAT,
        lambda key, data: parse_heat(data, key),
        "damaged heat: what a node has read is forgotten",
        "the node writes what it reads anew, and what it read before is forgotten",
    ),
    HomeKind(
        Kind.REPORT,
        keys.REPORTS,
        _sealed(Kind.REPORT, Report, f"{keys.REPORTS}[^/]+/[0-9a-f]{{64}}/[^/]+"),
        "a damaged report of a node: it reports again",
        "the node reports again",
    ),
    HomeKind(
        Kind.COLLECTED,
        keys.COLLECTED,
        _sealed(Kind.COLLECTED, Collected, keys.COLLECTED),
        "a damaged note of the last collection: times that garbage has waited begin anew",
        "times that garbage has waited begin anew",
    ),
    HomeKind(
        Kind.ACKNOWLEDGEMENT,
        keys.ACKS,
        _sealed(Kind.ACKNOWLEDGEMENT, Acknowledgement, f"{keys.ACKS}{_ID}/{_ID}"),
        "a damaged acknowledgement of a purge: the node drops what was purged once more",
        "the node drops what was purged once more, and says so",
    ),
    HomeKind(
        Kind.NODE,
        keys.NODES,
        _sealed(Kind.NODE, NodeNote, f"{keys.NODES}[^/]+/({_ID}|gone)"),
        "a damaged note of a node: its agent writes it anew within an hour",
        "the node's agent writes it anew within an hour",
    ),
)
"""Objects that only save work: they are written again by themselves."""

HOME_KINDS = {one.kind: one for one in (*_NEEDED, *_HINTS)}
