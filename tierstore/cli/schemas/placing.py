"""What ``rebalance``, ``mv``, ``explain``, ``restore`` and ``agent`` print with ``--json``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema


class MoveJson(Schema):
    """One move of a pack from one tier to another.

    ``kind`` is ``promote`` (copied up), ``demote`` (copied down, then dropped above), ``drop`` (the
    other tier has it already) or ``drain``. ``copied_bytes`` are those that had, or have, to be
    moved. ``saving_month`` and ``cost_once`` are decimals as text, in the currency of the tiers'
    prices: what it saves a month if reads go on as of late (negative: it costs), and what doing it
    costs. ``heat`` is how often it was read whole of late, held against ``bar``. ``status`` is
    ``planned``, or what became of it; ``problem`` says why it was not done.
    """

    kind: Literal["promote", "demote", "drop", "drain"]
    pack: str
    source: str
    target: str
    bytes: int
    copied_bytes: int
    why: str
    heat: float
    bar: float
    saving_month: str
    cost_once: str
    status: Literal["planned", "done", "skipped", "failed"]
    problem: str


class Moves(Schema):
    """A plan, and what became of it; ``notes`` are what could not be planned.

    ``complete`` is false when something was not done that is still wanted.
    """

    dry_run: bool
    complete: bool
    moves: list[MoveJson]
    notes: list[str]
    copied_bytes: int
    saving_month: str
    cost_once: str


class OutlookJson(Schema):
    """What one pack is held against in one tier.

    ``bar`` is the heat that the tier asks for. Above ``promote_above`` the pack is copied there;
    below ``demote_below`` it leaves, in ``leaves_in_s`` seconds if nobody reads it.
    """

    tier: str
    resident: bool
    bar: float | None
    promote_above: float | None
    demote_below: float | None
    leaves_in_s: float | None
    why: str


class PackExplained(Schema):
    """Where a pack is, and why.

    ``heat`` is how often it was read whole of late; ``counted_heat`` is that, or the heat of the
    hottest pack that needs it, or of one read when it was new. ``bases`` are packs that its deltas
    need, ``needed_by`` packs whose deltas need it. ``now`` is what ``rebalance`` would do now.
    """

    pack: str
    bytes: int
    tiers: list[str]
    heat: float
    counted_heat: float
    pinned: bool
    bases: list[str]
    needed_by: list[str]
    outlooks: list[OutlookJson]
    now: list[str]


class Explained(Schema):
    """The packs of a version, or one pack; ``missing`` are in no tier that could be asked."""

    ref: str
    packs: list[PackExplained]
    missing: list[str]


class Restored(Schema):
    """The packs of a version by whether they can be read.

    ``readable`` need no archive, ``restored`` can be read for some days, ``restoring`` are on their
    way, ``archived`` were not asked for, ``missing`` are nowhere.
    """

    ref: str
    packs: int
    readable: int
    restored: int
    restoring: int
    archived: int
    missing: int


class AgentEnded(Schema):
    """What an agent did until it was told to end."""

    rounds: int
    moves: int
    failed: int
    moved_bytes: int
    rollout_steps: int
