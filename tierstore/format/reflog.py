"""Ref log entries, hints and leases (SPEC.md sections 9 and 10)."""

import re
from typing import Annotated, Literal

import msgspec

from tierstore.format.checks import damaged
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, unseal_body
from tierstore.ids import Buffer

Action = Literal[
    "publish", "release", "derive", "set", "remove", "rollback",
    "start", "step", "pause", "resume", "finish", "abort",
]  # fmt: skip
Seq = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
"""A place in a ref log; its key has nine digits for it."""

Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 57)]
"""Since the epoch; the limit lies in the year 6536, so that every time is a date."""


FULL_SHARE = 10_000
"""All nodes, in hundredths of a percent."""

Share = Annotated[int, msgspec.Meta(ge=1, le=FULL_SHARE)]
"""A share of the nodes in hundredths of a percent."""

_DECIMAL = r"\A-?[0-9]{1,30}(\.[0-9]{1,30})?\Z"
Decimal = Annotated[str, msgspec.Meta(pattern=_DECIMAL)]
"""A decimal number as text: exact, and the same in every language."""


def is_decimal(text: str) -> bool:
    """Whether ``text`` is a decimal number."""
    return re.match(_DECIMAL, text) is not None


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bound on the mean of what the nodes report; the next stage waits for it."""

    metric: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    op: Literal["<=", ">="]
    limit: Decimal


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An alias on its way from its entry's version to another one.

    Attributes:
        version: number of the version that it goes to.
        manifest: its digest in hex.
        salt: random, the same for the whole rollout: with a node's name it decides the node's turn.
        stages: shares of the nodes that get the new version, ascending; the last is all of them.
        stage: which stage it is in, from 0.
        every_s: least seconds between two steps; ``None`` for steps by hand only.
        gates: what must hold before each step.
        labels: only nodes with all of these labels take part before the last stage.
        windows: ``HH:MM-HH:MM`` in UTC, in one of which every step must lie; empty for any time.
        paused: whether steps are refused.
    """

    version: Seq
    manifest: Hex64
    salt: Hex32
    stages: Annotated[list[Share], msgspec.Meta(min_length=1, max_length=100)]
    stage: Annotated[int, msgspec.Meta(ge=0)] = 0
    every_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gates: list[Gate] = []
    labels: dict[str, str] = {}
    windows: list[
        Annotated[
            str,
            msgspec.Meta(
                pattern=r"\A([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]\Z"
            ),
        ]
    ] = []
    paused: bool = False


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
        rollout: where an alias is on its way to; a client that does not know this reads
            ``version``, which is the one that it comes from.
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
    rollout: Rollout | None = None


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
    if entry.rollout is not None:
        stages = entry.rollout.stages
        if stages != sorted(set(stages)) or stages[-1] != FULL_SHARE:
            damaged(name, "the stages of its rollout do not rise to all nodes")
        if entry.rollout.stage >= len(stages) or entry.version is None:
            damaged(name, "its rollout is in no stage, or comes from no version")
    return entry


class Report(Body, frozen=True, kw_only=True):
    """What one node measured while it served a version: the last values, by metric."""

    version: Hex64
    node: str
    values: dict[str, Decimal]
