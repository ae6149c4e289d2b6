"""Output of ``rebalance``, ``mv``, ``explain``, ``restore`` and ``agent`` with ``--json``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema


class MoveJson(Schema):
    """One move of a pack from one tier to another.

    ``kind`` is ``promote`` (copied to a faster tier), ``demote`` (copied to a slower tier, then
    dropped from the faster one), ``drop`` (the other tier has it already) or ``drain``.
    ``copied_bytes`` were, or would be, copied. ``saving_month`` and ``cost_once`` are decimals as
    text, in the currency of the tiers' prices: the saving per month if reads go on as they did
    recently (negative: it costs more), and the cost of the move itself. ``heat`` is the number of
    recent reads of the whole pack, compared with the threshold ``bar``. ``status`` is ``planned``,
    or the outcome; ``problem`` says why a move was not done.
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
    """A plan and its outcome; ``notes`` say what could not be planned.

    ``complete`` is false when a move that is still wanted was not done.
    """

    dry_run: bool
    complete: bool
    moves: list[MoveJson]
    notes: list[str]
    copied_bytes: int
    saving_month: str
    cost_once: str


class OutlookJson(Schema):
    """The heat that would bring one pack into a tier, or out of it.

    ``bar`` is the threshold of the tier. Above ``promote_above`` the pack is copied there; below
    ``demote_below`` it leaves, which takes ``leaves_in_s`` seconds if nobody reads it.
    """

    tier: str
    resident: bool
    bar: float | None
    promote_above: float | None
    demote_below: float | None
    leaves_in_s: float | None
    why: str


class PackExplained(Schema):
    """The place of a pack, and the reasons.

    ``heat`` is the number of recent reads of the whole pack. ``counted_heat`` is the heat that it
    is treated as having: at least that of the hottest pack that needs it, or one read while it is
    new. ``bases`` are the packs that its deltas need, ``needed_by`` the packs whose deltas need it.
    ``now`` is what ``rebalance`` would do now, in words, and ``moves`` the same with what it costs.
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
    moves: list[MoveJson]


class Explained(Schema):
    """The packs of a version, or one pack; no tier that could be asked has those ``missing``."""

    ref: str
    packs: list[PackExplained]
    missing: list[str]


class Restored(Schema):
    """The number of packs of a version by whether they can be read.

    ``readable`` are in no archive, ``restored`` can be read for some days, ``restoring`` have been
    asked for, ``archived`` have not, and ``missing`` are in no tier.
    """

    ref: str
    packs: int
    readable: int
    restored: int
    restoring: int
    archived: int
    missing: int


class AgentEnded(Schema):
    """The work that an agent did until it was stopped.

    ``freed_bytes`` are those of the ``deleted_packs`` in all tiers, ``rewritten_bytes`` what it has
    stored to rebase and fold. ``damaged_copies`` were found by verifying ``verified_bytes``.
    """

    rounds: int
    failed_rounds: int
    moves: int
    failed: int
    moved_bytes: int
    rollout_steps: int
    rebased: int
    folded: int
    rewritten_bytes: int
    removed_versions: int
    deleted_packs: int
    freed_bytes: int
    verified_bytes: int
    damaged_copies: int
