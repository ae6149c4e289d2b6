"""Ref log entries, hints and leases (SPEC.md sections 9 and 10)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from tierstore.format.checks import damaged
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, unseal_body
from tierstore.ids import Buffer

Action = Literal["publish", "set", "remove", "rollback"]
Seq = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
"""A place in a ref log; its key has nine digits for it."""

Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 57)]
"""Since the epoch; the limit lies in the year 6536, so that every time is a date."""


class RefEntry(Body, frozen=True, kw_only=True):
    """One entry of a ref log: from now on the ref means this.

    Attributes:
        seq: its place in the log, from 1.
        write_id: random; tells a writer whose answer was lost that the entry is its own.
        action: what was done.
        version: number of the version that the ref points to; ``None`` once removed.
        manifest: its digest in hex; ``None`` once removed.
        previous: the entry that a rollback goes back to.
        time_us: microseconds since the epoch by the writer's clock.
        who: user and host.
        message: why.
        tool: what wrote it.
    """

    seq: Seq
    write_id: Hex32
    action: Action
    version: Seq | None
    manifest: Hex64 | None
    previous: Seq | None = None
    time_us: Microseconds
    who: str
    message: str = ""
    tool: str


class Hint(Body, frozen=True, kw_only=True):
    """A sequence number that was the highest once."""

    seq: Seq


class Lease(Body, frozen=True, kw_only=True):
    """Who is writing, or reading which versions, until ``ttl_s`` after the blob's time."""

    id: Hex32
    role: Literal["writer", "reader"]
    who: str
    host: str
    pid: int
    ttl_s: Annotated[int, msgspec.Meta(ge=1)]
    versions: list[Hex64] = msgspec.field(default_factory=list)


def parse_entry(data: Buffer, seq: int, name: str) -> RefEntry:
    """Unseal and check the entry with sequence number ``seq``."""
    entry = unseal_body(Kind.REF, data, RefEntry, name)
    if entry.seq != seq:
        damaged(name, f"it says it is entry {entry.seq}")
    if (entry.version is None) != (entry.manifest is None) or (
        (entry.action == "remove") != (entry.version is None)
    ):
        damaged(name, "its target is incomplete")
    if entry.previous is not None and entry.previous >= seq:
        damaged(name, f"it goes back to entry {entry.previous}")
    return entry
