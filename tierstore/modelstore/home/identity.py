"""Tells a home from a copy of it before anything is deleted in a tier that both share (SPEC.md 13).

A copied home, as a backup that was restored beside the first one, has the same store id and the
same list of tiers. What is saved in either from then on is garbage to the other. So the marker of
each tier names the home that deletes there: by signs of one of its objects that only the storage
gives, and that a copy of the object has not.

Names of tiers, mounts and hosts are no sign: nodes name a home in different ways.

Where the storage gives no more than a time, which may be one of seconds, the object has random
bytes as well, and what is written down is both together: homes that are made the one that deletes
in one second are told apart, wherever they are. Signs of a time alone, as they were written before,
count where they stand, and are written no more.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import blake3

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, NotFound, OtherHome, UsageError
from tierstore.format.keys import IDENTITY
from tierstore.modelstore.home.refs import whoami
from tierstore.shown import time_text
from tierstore.tiers.durable.marker import Keeper, keep
from tierstore.tiers.durable.tier import DurableTier

_CONTENT = "tierstore: when and where the storage made this object tells this home from a copy\n"
_EARLY = re.compile(r"written -?[0-9]+\Z")
"""A sign of a time alone: two homes may have it."""

_WAYS = (
    "If no other home uses the tiers of this store, 'tierstore gc --moved' makes this one the home "
    "that deletes there; else copy the tiers for it, and name the copies by 'tierstore tier set "
    "NAME --url URL' first"
)
_log = logging.getLogger("tierstore.gc")


class Identity:
    """What tells a home from its copies. Thread-safe.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._blobs = home_blobs

    def signs(self) -> frozenset[str]:
        """Return the signs of this home; none where it has none yet, or has lost them."""
        try:
            return self._read()[1]
        except NotFound:
            return frozenset()

    def _read(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the signs that are written down, and all by which this home is known."""
        said = self._blobs.signs(IDENTITY)
        early = frozenset(filter(_EARLY.match, said))
        if not early:
            return said, said
        own = blake3.blake3(self._blobs.get(IDENTITY)).hexdigest()[:32]
        given = frozenset(f"{sign} of {own}" for sign in said - early or early)
        return given, given | early

    def made(self) -> Keeper:
        """Return this home as tiers name it; its object is made if it is missing."""
        self._blobs.put_if_absent(IDENTITY, _content())
        return self._keeper()

    def take_over(self, tiers: Iterable[DurableTier]) -> list[str]:
        """Make this the home that deletes in tiers; return their names.

        Its object is made anew: so another home with the same signs, a snapshot of this one or the
        one that this is a snapshot of, loses the tiers as well.

        Raises:
            UsageError: There is no tier beside home.
            BackendError: A tier cannot be asked or written to; all others name this home.
        """
        shared = [tier for tier in tiers if tier.store_id is not None]
        if not shared:
            raise UsageError(
                f"{self._blobs.url} has no warm or cold tier beside itself, so no copy of it "
                "deletes anything of its: there is nothing to do"
            )
        self._blobs.put(IDENTITY, _content())
        failed = _kept_by(self._keeper(), shared)
        if failed:
            raise failed[0]
        return [tier.name for tier in shared]

    def confirm(
        self, seen: Sequence[tuple[DurableTier, Keeper | None]], *, dry_run: bool = False
    ) -> None:
        """Make sure that this is the home that deletes in tiers; where none is, it is from now on.

        Args:
            seen: Tiers, each with the home that its marker names.
            dry_run: Whether nothing is written.

        Raises:
            OtherHome: Another home deletes in one of them, or this one has lost what tells it from
                a copy.
        """
        shared = [one for one in seen if one[0].store_id is not None]
        if not shared:
            return
        signs = self.signs()
        known = [(tier, keeper) for tier, keeper in shared if keeper is not None]
        for tier, keeper in known:
            self._refuse_other(tier, keeper, signs)
        new = [tier for tier, keeper in shared if keeper is None]
        if new and signs and not known:
            names = ", ".join(tier.name for tier in new)
            raise OtherHome(
                f"{self._blobs.url} was the home that deletes in its tiers, or is a copy of that "
                f"one, but nothing in {names} says so any more: nothing is deleted there. {_WAYS}"
            )
        if new and not dry_run:
            failed = _kept_by(self.made(), new)
            if not signs and len(failed) == len(new):
                self._blobs.delete([IDENTITY])  # alone it would look as if the tiers had lost it

    def check(self, tier: DurableTier, keeper: Keeper | None) -> None:
        """Make sure that this home deletes in a tier, before something is deleted there.

        Args:
            tier: The tier.
            keeper: The home that its marker names.

        Raises:
            OtherHome: Another home does, or none.
        """
        if tier.store_id is None:
            return
        if keeper is None:
            raise OtherHome(
                f"nothing says which home deletes in tier {tier.name}: nothing is deleted there "
                "now; the next 'tierstore gc' writes it down, or says what to do"
            )
        self._refuse_other(tier, keeper, self.signs())

    def _refuse_other(self, tier: DurableTier, keeper: Keeper, signs: frozenset[str]) -> None:
        if keeper.signs & signs:
            return
        what = (
            "is not that home: it is a copy of it, or was moved or restored since"
            if signs
            else f"has lost its object {IDENTITY!r}, which tells it from a copy of that home"
        )
        when = time_text(datetime.fromtimestamp(keeper.time_us / 1e6, UTC))
        raise OtherHome(
            f"the home that deletes in tier {tier.name} is the one that {keeper.who} had at "
            f"{keeper.url} on {when}, and {self._blobs.url} {what}. Nothing is deleted there: what "
            f"this home does not know the other one may need. {_WAYS}"
        )

    def _keeper(self) -> Keeper:
        now_us = time.time_ns() // 1000
        return Keeper(self._read()[0], self._blobs.url, whoami(), now_us)


def _content() -> bytes:
    return f"{_CONTENT}{os.urandom(16).hex()}\n".encode()


def asked(tiers: Iterable[DurableTier]) -> list[tuple[DurableTier, Keeper | None]]:
    """Return tiers with the homes that their markers name, but for those that cannot be asked."""
    found = []
    for tier in tiers:
        try:
            found.append((tier, tier.verify()))
        except BackendError as error:
            _log.info("tier %s cannot be asked which home deletes there: %s", tier.name, error)
    return found


def _kept_by(keeper: Keeper, tiers: Iterable[DurableTier]) -> list[BackendError]:
    """Write into tiers that a home deletes there; return what failed."""
    failed = []
    for tier in tiers:
        assert tier.store_id is not None
        try:
            keep(tier.blobs, tier.name, tier.store_id, keeper)
        except BackendError as error:
            _log.warning("tier %s does not say yet which home deletes there: %s", tier.name, error)
            failed.append(error)
    return failed
