"""What a collection keeps for the next one, in home: machines may take turns (SPEC.md 10.1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tierstore.blobs.base import BlobStore
from tierstore.errors import TierstoreError
from tierstore.format.collected import Collected, Held, LastCollection
from tierstore.format.keys import COLLECTED
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import split_digests
from tierstore.modelstore.home.clock import boot, running_s
from tierstore.modelstore.home.collected import read_collected
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.retention import NONE_OVER, Over
from tierstore.modelstore.reclaim.report import GARBAGE, Amount, Report

_SLACK_S = 5.0
"""Seconds by which home's clock may seem to leap because it is asked over a network."""

_WAITS = "garbage waits as if no collection had been"
_log = logging.getLogger("tierstore.gc")


@dataclass(slots=True)
class Kept:
    """What is kept from one run to the next.

    Attributes:
        seen: Since when packs were seen not live, in seconds since the epoch by home's clock, by
            id.
        writers: The ids of the leases that segments of condemned packs wait for, by the segments'
            keys.
        last: What the last run that ended did; ``None`` before the first.
        no_waste: The fingerprint of what a run found nothing to repack in; empty if none did.
        over: Which removals could not be undone for certain when a run marked.
        logs: How many entries each ref log had when a run marked, by ``<model>/<name>``.
    """

    seen: Mapping[bytes, float] = field(default_factory=dict)
    writers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    last: LastCollection | None = None
    no_waste: bytes = b""
    over: Over = NONE_OVER
    logs: Mapping[str, int] = field(default_factory=dict)


def read_kept(home_blobs: BlobStore, now_s: float) -> Kept:
    """Return what the last run kept; nothing where that is lost, which only makes packs wait.

    Args:
        home_blobs: The store's home.
        now_s: Seconds since the epoch by home's clock.
    """
    found = read_collected(home_blobs, _WAITS)
    if found is None:
        return Kept()
    leap_s = 0.0
    if found.boot and found.boot == boot():
        by_home_s = now_s - found.time_us / 1e6
        leap_s = by_home_s - (running_s() - found.running_us / 1e6)
    later_s = leap_s if leap_s > _SLACK_S else 0.0
    since = zip(split_digests(found.packs), found.since_s, strict=True)
    return Kept(
        {pack: min(since_s + later_s, now_s) for pack, since_s in since},
        {key: frozenset(ids) for key, ids in found.writers.items()},
        found.last,
        found.no_waste,
        Over(found.over_us, found.over, found.over_times_us),
        found.logs,
    )


@dataclass(frozen=True, slots=True)
class LastRun:
    """What the last collection of a store found and did, whoever ran it.

    Attributes:
        time: When it ended, in UTC.
        who: Who ran it: ``user@host``.
        stopped: The limit that ended it; ``None`` if none did.
        down: Why tiers could not be asked, by name.
        freed: The bytes that it deleted, by the tier's name.
        needed: What stays because something needs it, by the tier's name.
        garbage: What nothing needed and was left, by the tier's name: it waited.
        removed: What only removed versions needed that could be undeleted, by the tier's name.
    """

    time: datetime
    who: str
    stopped: str | None
    down: Mapping[str, str]
    freed: Mapping[str, int]
    needed: Mapping[str, Amount]
    garbage: Mapping[str, Amount]
    removed: Mapping[str, Amount]


_WINDOW = {"window"}


def read_last(home_blobs: BlobStore) -> LastRun | None:
    """Return what the last collection of a store did; ``None`` if there was none, or it is lost."""
    found = read_collected(home_blobs, _WAITS)
    if found is None or found.last is None:
        return None
    last = found.last
    return LastRun(
        datetime.fromtimestamp(last.time_us / 1e6, UTC),
        last.who,
        last.stopped,
        last.down,
        last.freed,
        {
            tier: _sum(states, states.keys() - GARBAGE - {"window"})
            for tier, states in last.tiers.items()
        },
        {tier: _sum(states, GARBAGE) for tier, states in last.tiers.items()},
        {tier: _sum(states, {"window"}) for tier, states in last.tiers.items()},
    )


def _sum(states: Mapping[str, Held], wanted: Set[str]) -> Amount:
    held = [one for state, one in states.items() if state in wanted]
    return Amount(sum(one.packs for one in held), sum(one.bytes for one in held))


def write_kept(home_blobs: BlobStore, kept: Kept, now_s: float) -> None:
    """Keep this for the next run; where it cannot be written, packs only wait longer."""
    packs = sorted(kept.seen)
    body = Collected(
        time_us=int(now_s * 1e6),
        boot=boot(),
        running_us=int(running_s() * 1e6),
        packs=b"".join(packs),
        since_s=[math.ceil(kept.seen[pack]) for pack in packs],
        writers={key: sorted(ids) for key, ids in kept.writers.items()},
        last=kept.last,
        no_waste=kept.no_waste,
        over_us=kept.over.until_us,
        over=dict(sorted(kept.over.entries.items())),
        over_times_us=dict(sorted(kept.over.times_us.items())),
        logs=dict(kept.logs),
    )
    try:
        home_blobs.put(COLLECTED, seal_body(Kind.COLLECTED, body))
    except TierstoreError as error:  # a full disk, above all
        _log.warning("what this run found is not kept for the next: %s", error)


def last_of(report: Report, now_s: float) -> LastCollection:
    """Return what is kept of a report; ``now_s`` is the time by home's clock."""
    return LastCollection(
        time_us=int(now_s * 1e6),
        who=whoami(),
        condemned=report.condemned,
        healed=report.healed,
        stopped=report.stopped,
        down=report.down,
        freed=report.freed,
        tiers={
            tier: {state: Held(packs=one.packs, bytes=one.bytes) for state, one in states.items()}
            for tier, states in report.left().items()
        },
    )
