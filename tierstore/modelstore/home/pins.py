"""Pins: versions that are kept in fast tiers (format/SPEC.md section 13)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from blake3 import blake3

from tierstore.arguments import as_texts, wrong
from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    Damaged,
    InvalidName,
    NotFound,
    TierstoreError,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import PINS, Pin, Role, pin_key
from tierstore.ids import Buffer, Digest
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.shown import time_text

_log = logging.getLogger("tierstore.pins")


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version that is kept in fast tiers.

    Attributes:
        version: Digest of the version's manifest.
        ref: The reference that was given when it was pinned, or the holder's name.
        roles: Roles of the tiers that keep it: ``hot``, ``warm``.
        until: When the pin ends; ``None`` when only ``unpin`` ends it.
        who: Who pinned it, as ``user@host``.
    """

    version: Digest
    ref: str
    roles: tuple[Role, ...]
    until: datetime | None
    who: str


def holder_mark(holder: str) -> str:
    """Return what the keys of a holder's pins end with."""
    return blake3(holder.encode()).hexdigest()[:16]


class Pins:
    """The pins of a store: small objects in home, one for each version and holder.

    Args:
        home_blobs: The store's home, where the pins lie.
        changed: Called after a pin was added or removed.
        look: Called with the reference and the version of a user's pin; raises ``NotFound`` unless
            that version is in force, and stays.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        changed: Callable[[], None] = lambda: None,
        look: Callable[[str, Digest], None] = lambda ref, version: None,
    ) -> None:
        self._home_blobs, self._changed = home_blobs, changed
        self._look = look

    def __repr__(self) -> str:
        return f"<Pins of {self._home_blobs.url}>"

    def add(
        self, version: Digest, ref: str, roles: Sequence[Role], until: datetime | None = None
    ) -> PinnedVersion:
        """Pin a version for a user, or replace the user's pin of it.

        Args:
            version: Digest of the version's manifest.
            ref: The reference that the user gave.
            roles: ``hot``, ``warm`` or both.
            until: When the pin ends, an aware time in the future; ``None`` for no end.

        Raises:
            UsageError: No role or an unknown role was given, or a time in the past.
            NotFound: The version is removed, or packs of it are gone.
        """
        if not isinstance(version, Digest):
            raise wrong("version", "a digest, such as store.resolve('ranker').digest", version)
        as_texts("roles", roles, "['hot', 'warm']")
        chosen = sorted(set(roles))
        if not chosen or not set(chosen) <= {"hot", "warm"}:
            raise UsageError(f"a version is pinned in hot, warm or both, not in {list(roles)}")
        if until is not None and not isinstance(until, datetime):
            raise wrong("until", "a datetime with its time zone, or None for no end", until)
        if until is not None and until.timestamp() <= time.time():
            raise UsageError(f"{time_text(until)} is in the past; give a later end, or none")
        pin = Pin(
            version=version.hex,
            ref=ref,
            roles=chosen,
            who=whoami(),
            until_us=None if until is None else int(until.timestamp() * 1e6),
        )
        key = pin_key(version.hex)
        self._look(ref, version)
        before, sealed = self._home_blobs.get_many([key]).get(key), seal_body(Kind.PIN, pin)
        self._home_blobs.put(key, sealed)
        try:  # who removes the version looks for pins after saying so
            self._look(ref, version)
        except BaseException as error:  # Ctrl-C, too: a look may copy packs for minutes
            self._put_back(key, sealed, before, error)
            raise
        self._changed()
        return _shown(pin)

    def _put_back(self, key: str, own: Buffer, before: Buffer | None, why: BaseException) -> None:
        """Let a pin be what it was before: it may have held the version then.

        What somebody else has made of it meanwhile stays.
        """

        def put_back() -> None:
            if self._home_blobs.get_many([key]).get(key) != own:
                return
            if before is None:
                self._home_blobs.delete([key])
            else:
                self._home_blobs.put(key, before)

        try:
            with_reserve(self._home_blobs, put_back)
        except TierstoreError as error:
            left = f"The pin could not be taken back: {error}; 'tierstore unpin' does that"
            if isinstance(why, TierstoreError):
                raise type(why)(f"{why}. {left}") from why
            why.add_note(left)

    def remove(self, version: Digest) -> None:
        """Remove the user's pin of a version; ``NotFound`` when there is none."""
        key = pin_key(version.hex)
        try:
            self._home_blobs.info(key)
        except NotFound:
            raise NotFound(
                f"version {version} is not pinned by a user; 'tierstore pins' lists what is"
            ) from None
        self._home_blobs.delete([key])
        self._changed()

    def hold(self, holder: str, versions: Iterable[Digest]) -> None:
        """Let ``holder`` pin exactly these versions, in hot and warm tiers, until its next call.

        Each holder has pins of its own, beside a user's and other holders', so that none ends
        another's.

        Args:
            holder: What needs the versions, such as ``rollout of ranker@prod``.
            versions: Digests of the versions' manifests; an empty list ends all pins of this
                holder.
        """
        mark = "-" + holder_mark(holder)
        wanted = {pin_key(version.hex) + mark: version for version in versions}
        held = [info.key for info in self._home_blobs.list(PINS) if info.key.endswith(mark)]
        for key, version in wanted.items():
            pin = Pin(
                version=version.hex, ref=holder, roles=["hot", "warm"], until_us=None, who=whoami()
            )
            if key not in held:
                self._home_blobs.put(key, seal_body(Kind.PIN, pin))
        if over := [key for key in held if key not in wanted]:
            self._home_blobs.delete(over)
        self._changed()

    def active(self, now_s: Callable[[], float] | None = None) -> list[PinnedVersion]:
        """Return the pins that have not ended, sorted by version digest.

        Args:
            now_s: Returns the time in seconds since the epoch; asked only where a pin has an end.
                Who may delete something for it asks home; ``None`` for this machine's clock.

        A pin that cannot be read is logged and counts as one that holds its version in all fast
        tiers without end: ignoring it would drop what somebody wanted to keep.
        """
        clock = now_s or time.time
        every = (self._read(info.key) for info in self._home_blobs.list(PINS))
        return [
            _shown(pin)
            for pin in every
            if pin is not None and (pin.until_us is None or pin.until_us > clock() * 1e6)
        ]

    def _read(self, key: str) -> Pin | None:
        try:
            return unseal_body(Kind.PIN, self._home_blobs.get(key), Pin, key)
        except NotFound:  # unpinned since it was listed
            return None
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s; its version stays pinned everywhere until the pin is deleted", error)
        with suppress(InvalidName):
            digest = Digest.from_hex(key.removeprefix(PINS).partition("-")[0])
            return Pin(
                version=digest.hex,
                ref=str(digest),
                roles=["hot", "warm"],
                until_us=None,
                who="unknown",
            )
        return None


def _shown(pin: Pin) -> PinnedVersion:
    until = None if pin.until_us is None else datetime.fromtimestamp(pin.until_us / 1e6, UTC)
    return PinnedVersion(Digest.from_hex(pin.version), pin.ref, tuple(pin.roles), until, pin.who)
