"""Ref log entries, hints and leases (SPEC.md sections 9 and 10)."""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from tierstore.format.checks import Broken, damaged
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, unseal_body
from tierstore.ids import Buffer

Action = Literal[
    "publish", "release", "derive", "set", "remove", "rollback",
    "start", "step", "pause", "resume", "finish", "abort",
    "announce", "forget", "undelete", "purge",
]  # fmt: skip
REMOVALS: frozenset[Action] = frozenset({"announce", "forget", "undelete", "purge"})
"""The actions in a log of removals (SPEC.md section 9.1)."""

LOST_MANIFEST = "0" * 64
"""The manifest of a version whose entry was lost and given up: no content has this digest."""

HOLDS_NUMBER = ", holds a number"
"""What the tool of an entry ends in that stands for no version (SPEC.md section 11)."""

MAX_REMOVED = 10_000
"""The most versions that one entry of a log of removals names."""

Seq = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
"""The number of an entry in a ref log; its key has nine digits for it."""

Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 57)]
"""Microseconds since the epoch, up to the year 6536, so that every time is a valid date."""


FULL_SHARE = 10_000
"""All nodes, in hundredths of a percent."""

Share = Annotated[int, msgspec.Meta(ge=1, le=FULL_SHARE)]
"""A share of the nodes in hundredths of a percent."""

_DECIMAL = r"\A-?[0-9]{1,30}(\.[0-9]{1,30})?\Z"
Decimal = Annotated[str, msgspec.Meta(pattern=_DECIMAL)]
"""A decimal number as text: exact, and the same in every language."""


def is_decimal(text: str) -> bool:
    """Return whether ``text`` is a decimal number."""
    return re.match(_DECIMAL, text) is not None


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bound on the mean of what the nodes report; the next stage waits until it holds."""

    metric: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    op: Literal["<=", ">="]
    limit: Decimal


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of an alias on its way from its entry's version to another one.

    Attributes:
        version: The number of the version that it goes to.
        manifest: The hex digest of that version's manifest.
        salt: Random, the same for the whole rollout; with a node's name it decides the node's
            place.
        stages: Shares of the nodes that get the new version, ascending; the last is all of them.
        stage: The number of the current stage, from 0.
        every_s: The least number of seconds between two steps; ``None`` for steps by hand only.
        gates: Bounds that must hold before each step.
        labels: Only nodes with all of these labels take part before the last stage.
        windows: ``HH:MM-HH:MM`` in UTC; every step must lie in one of them; empty for any time.
        paused: Whether steps are refused.
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

    def check(self) -> None:
        """Raise ``Broken`` unless its stages rise to all nodes, and it is in one of them."""
        if self.stages != sorted(set(self.stages)) or self.stages[-1] != FULL_SHARE:
            raise Broken("the stages of its rollout do not rise to all nodes")
        if self.stage >= len(self.stages):
            raise Broken("its rollout is in no stage, or comes from no version")


Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number of things or bytes."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How large a version is, for those who list versions; the manifest holds.

    Attributes:
        bytes: Bytes of all its files as they are loaded: of a patch version those of the whole.
        files: Number of its files.
        tensors: Number of their tensors.
    """

    bytes: Count
    files: Count
    tensors: Count


class RefEntry(Body, frozen=True, kw_only=True):
    """One entry of a ref log: the new value of the ref.

    Attributes:
        seq: The number of the entry in the log, from 1.
        write_id: Random; tells a writer whose answer was lost that the entry is its own.
        action: What was done.
        version: The number of the version that the ref points to; ``None`` once removed.
        manifest: The hex digest of that version's manifest; ``None`` once removed.
        previous: The entry that a rollback goes back to, or in a variant's log that is taken back.
        time_us: Microseconds since the epoch by the writer's clock.
        who: The user and the host.
        message: Why it was done.
        tool: The program that wrote it.
        rollout: The state of a running rollout; a client that does not know this field reads
            ``version``, which is the old version.
        versions: The numbers of the versions that are to be removed, were removed or brought back,
            rising; empty but in a log of removals.
        summary: How large the version is, in entries that publish one; early ones lack it.
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
    versions: Annotated[list[Seq], msgspec.Meta(max_length=MAX_REMOVED)] = msgspec.field(
        default_factory=list
    )
    summary: Summary | msgspec.UnsetType = msgspec.UNSET

    @property
    def holds_number(self) -> bool:
        """Whether it only has a number taken, for a copy of a version with a higher one."""
        return self.tool.endswith(HOLDS_NUMBER)

    def check(self) -> None:
        """Raise ``Broken`` unless its target is whole and its rollout can go on."""
        removal = self.action in REMOVALS
        if (self.version is None) != (self.manifest is None) or (
            (removal or self.action == "remove") != (self.version is None)
        ):
            raise Broken("its target is incomplete")
        if removal != bool(self.versions) or self.versions != sorted(set(self.versions)):
            raise Broken("the versions that it removes or brings back are not as they should be")
        if self.previous is not None and self.previous >= self.seq:
            raise Broken(f"it goes back to entry {self.previous}")
        if self.rollout is not None:
            self.rollout.check()
            if self.version is None:
                raise Broken("its rollout is in no stage, or comes from no version")


def that_count(entries: Iterable[RefEntry]) -> Iterator[RefEntry]:
    """Yield the entries of a variant's log that count (SPEC.md section 14.1).

    Those do not that were taken back, nor those that say so, nor those that name nothing.

    Args:
        entries: The entries, newest first.
    """
    taken_back = set[int]()
    for entry in entries:
        if entry.previous is not None:
            taken_back.add(entry.previous)
        elif entry.seq not in taken_back and entry.version is not None:
            yield entry


class Hint(Body, frozen=True, kw_only=True):
    """A sequence number that was once the highest of a ref log."""

    seq: Seq


MAX_LEASE_S = 7 * 24 * 3600
"""Seconds for which a lease lasts at most; so long one counts that cannot be read."""


class Lease(Body, frozen=True, kw_only=True):
    """A process that writes, or reads ``versions``, until ``ttl_s`` after its blob was written."""

    id: Hex32
    role: Literal["writer", "reader"]
    who: str
    host: str
    pid: int
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEASE_S)]
    versions: list[Hex64] = msgspec.field(default_factory=list)


def parse_entry(data: Buffer, seq: int, name: str) -> RefEntry:
    """Unseal and check the entry of a ref log with sequence number ``seq``."""
    entry = unseal_body(Kind.REF, data, RefEntry, name)
    if entry.seq != seq:
        damaged(name, f"it says that it is entry {entry.seq}")
    return entry


class Report(Body, frozen=True, kw_only=True):
    """The latest values, by metric, that one node measured while it served a version."""

    version: Hex64
    node: str
    values: dict[str, Decimal]
