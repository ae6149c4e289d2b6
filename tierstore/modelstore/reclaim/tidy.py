"""Tidies up what is over: condemned lists and segments, leases, probes, pins (SPEC.md 10, 13)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import PROBES
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.tiers import PINS, Pin
from tierstore.modelstore.home.condemned import LISTED_S, Condemned
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import standing
from tierstore.modelstore.names.purgerecords import unordered
from tierstore.modelstore.reclaim.holdings import Holdings

DAY_S = 24 * 3600
_log = logging.getLogger("tierstore.gc")


MOST_SEGMENTS = 16
"""Segments of a condemned list from which on small ones are merged."""

SMALL_PACKS = 1 << 14
"""Packs of a segment that is not small."""

_MERGED_S = LISTED_S / 8
"""Seconds: segments of the same are merged, so that packs stay listed as much longer at most."""


def tidy(
    home: Home, condemned: Condemned, holdings: Holdings, *, run: str, now_s: float
) -> dict[str, Sequence[str]]:
    """Delete what is over; what cannot be deleted now is left to the next run.

    Args:
        home: The store's home.
        condemned: What was condemned when the tiers were listed.
        holdings: What the tiers had then.
        run: The run of the collector: 32 hex digits, random.
        now_s: Seconds since the epoch by home's clock, or earlier.

    Returns:
        The segments that were merged, by the one that stands for them.
    """
    now_us = int(now_s * 1e6)
    merged: dict[str, Sequence[str]] = {}
    with _left_over("condemned segments"):
        merged = _retire(home, condemned, holdings, run, now_us)
    with _left_over("notices of what is condemned"):
        home.condemned.end_notices(run=run, now_us=now_us)
    with _left_over("condemned lists"):
        home.condemned.tidy(now_us)
    with _left_over("records of purges"):
        _tell_unordered(home, now_s)
    tidy_unneeded(home, now_s)
    return merged


def _tell_unordered(home: Home, now_s: float) -> None:
    """Log which purges are recorded in part, and nobody is about to write their orders."""
    for name, written_s in unordered(home).items():
        if now_s - written_s > DAY_S:
            _log.warning(
                "a purge is recorded in part by purged/%s, without its order: 'tierstore purge "
                "run' makes that anew, or deletes the rest of what was never carried out",
                name,
            )


def tidy_unneeded(home: Home, now_s: float) -> int:
    """Delete what is over and can be deleted without writing anything; return how many objects.

    Args:
        home: The store's home.
        now_s: Seconds since the epoch by home's clock, or earlier.
    """
    gone = 0
    for what, find in (("leases", _leases), ("probes", _probes), ("pins", _pins)):
        with _left_over(what):
            old = find(home.blobs, now_s)
            home.blobs.delete(old)
            gone += len(old)
    return gone


@contextmanager
def _left_over(what: str) -> Iterator[None]:
    try:
        yield
    except TierstoreError as error:
        _log.warning("%s that are over were not removed: %s", what, error)


def _retire(
    home: Home, condemned: Condemned, holdings: Holdings, run: str, now_us: int
) -> dict[str, Sequence[str]]:
    """Leave segments out of the next list that are old, and of which no tier has a pack.

    Others are merged where they are many, and so are those of manifests, which never leave.
    """
    old = set[str]()
    if not holdings.down:
        there = holdings.every()
        old = {
            key
            for key, (time_us, packs) in condemned.segments.items()
            if now_us - time_us > LISTED_S * 1_000_000 and packs.isdisjoint(there)
        }
    if old:
        home.condemned.retire(old, run=run, now_us=now_us)
    if len(condemned.of_manifests) > MOST_SEGMENTS:
        every, merged = condemned.manifests, set(condemned.of_manifests)
        home.condemned.replace(merged, (), every, run=run, now_us=now_us)
    groups = mergeable({k: v for k, v in condemned.segments.items() if k not in old}, now_us)
    return home.condemned.merge(groups, run=run, now_us=now_us) if groups else {}


def mergeable(
    segments: Mapping[str, tuple[int, frozenset[bytes]]], now_us: int
) -> list[Sequence[str]]:
    """Return which segments are to be merged: small ones of the same days, where there are many."""
    if len(segments) <= MOST_SEGMENTS:
        return []
    days: dict[int, list[str]] = {}
    for key, (time_us, packs) in segments.items():
        if len(packs) < SMALL_PACKS:
            # what is older than it must be stays for other reasons, which do not end by its age
            age_us = min(now_us - time_us, LISTED_S * 1_000_000)
            days.setdefault(int((now_us - age_us) / 1e6 // _MERGED_S), []).append(key)
    return [keys for keys in days.values() if len(keys) > 1]


def _leases(home_blobs: BlobStore, now_s: float) -> list[str]:
    return standing(home_blobs, now_s).ended


def _probes(home_blobs: BlobStore, now_s: float) -> list[str]:
    return [info.key for info in home_blobs.list(PROBES) if now_s - info.mtime > DAY_S]


def _pins(home_blobs: BlobStore, now_s: float) -> list[str]:
    old = []
    for info in home_blobs.list(PINS):
        try:
            pin = unseal_body(Kind.PIN, home_blobs.get(info.key), Pin, info.key)
        except (Damaged, NotFound, UnsupportedFormat):  # nobody knows whether it is over
            continue
        if pin.until_us is not None and now_s - pin.until_us / 1e6 > DAY_S:
            old.append(info.key)
    return old
