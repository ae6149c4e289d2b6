"""What a node keeps of purged content, and drops: hot tiers, shared tiers, files (SPEC.md 10.3)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

import blake3
import msgspec

from tierstore.errors import Damaged, TierstoreError, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.purge import DELTA_BYTES, Acknowledgement, NodeNote, PurgeOrder
from tierstore.ids import DIGEST_BYTES, Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.reclaim.purge.content import Content
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.tiers.hot.shared import SharedHot
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

FILES = "files"
"""The folder below a store's cache where serving programs keep files of versions, by manifest."""

_SECRET = "place"
_LOOK_EVERY_S = 600.0
_NOTE_EVERY_S = 3600.0
_AGAIN_S = 3600.0
"""Seconds after a drop in which each look drops again: others may write what they read before."""

_DAY_S = 24 * 3600.0
_LATE_S = 30 * _DAY_S
"""Seconds after a drop in which it is repeated daily."""

_FLUSH_S = 30.0
_log = logging.getLogger("tierstore.purge")


@dataclass(slots=True)
class _Dropped:
    """What was dropped for an order by this place.

    Attributes:
        said: The acknowledgement.
        since_s: When this ``sweep`` of it was dropped first, in seconds since the epoch.
        last_s: When it was dropped last.
    """

    said: Acknowledgement
    since_s: float
    last_s: float

    def is_due(self, sweep: int, now_s: float) -> bool:
        """Return whether it is to be dropped, or dropped again."""
        if self.said.failed or self.said.sweep < sweep:
            return True
        age_s = now_s - self.since_s
        return age_s < _AGAIN_S or (age_s < _LATE_S and now_s - self.last_s >= _DAY_S)


class Dropping:
    """Drops purged content from the caches of this process and its node, and says so.

    Args:
        home: The store's home.
        hot: The hot tiers of this process.
        sync_pins: Brings the pins of this node's tier up to date.
        index: The dedup index of this node.
        cache: The store's folder in this node's cache.
        node: The name of this node.

    Attributes:
        orders: The orders of the store.
    """

    def __init__(
        self,
        home: Home,
        hot: HotTiers,
        sync_pins: Callable[[], None],
        index: ChunkIndex,
        cache: Path,
        node: str,
    ) -> None:
        self.orders = Orders(home.blobs)
        self._home, self._hot, self._sync_pins = home, hot, sync_pins
        self._index, self._cache, self._node = index, cache, node
        self._done: dict[str, _Dropped] = {}
        self._unused: dict[str, str] | None = None
        self._looked_s = -_LOOK_EVERY_S
        self._noted_s = -_NOTE_EVERY_S

    def is_due(self) -> bool:
        """Return whether it is time for the next look, which begins now then."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = time.monotonic()
        return True

    @property
    def place(self) -> str:
        """The name of these caches: 32 hex digits.

        It has to do with the node, the cache and the hot tier, so that whoever uses others, or was
        copied with its disk, does not speak for these.
        """
        local = self._hot.local
        return self._place("" if local is None else str(local.root))

    def _place(self, hot: str) -> str:
        parts = (_secret(self._cache / _SECRET), self._node, hot)
        return blake3.blake3("\n".join(parts).encode()).hexdigest()[:32]

    def note(self) -> None:
        """Say to the store once an hour that there is an agent here."""
        if time.monotonic() - self._noted_s < _NOTE_EVERY_S:
            return
        self.orders.note(self.note_of(self._node))
        self._noted_s = time.monotonic()

    def note_of(self, node: str) -> NodeNote:
        """Return what somebody with these caches says of a node now."""
        return NodeNote(
            node=node,
            place=self.place,
            who=whoami(),
            tool=f"tierstore {package_version('tierstore')}",
            time_us=time.time_ns() // 1000,
        )

    def drop_all(self, orders: Iterable[PurgeOrder]) -> list[Acknowledgement]:
        """Drop what orders name, as far as it is due; return what was dropped, or not."""
        # what nobody has carried out yet may still be given up
        every = {one.id: one for one in orders if one.updated_us or one.sweep}
        new = [name for name in every if name not in self._done]
        for name, said in self.orders.acknowledged(new, self.place).items() if new else ():
            when_s = said.time_us / 1e6
            self._done[name] = _Dropped(said, when_s, when_s)
        now_s = time.time()
        self._unused = None
        said_now = list[Acknowledgement]()
        for name, order in every.items():
            known = self._done.get(name)
            if known is None or known.is_due(order.sweep, now_s):
                now = self._drop(order, known)
                said_now += [] if now is None else [now]
        return said_now

    def _drop(self, order: PurgeOrder, known: _Dropped | None) -> Acknowledgement | None:
        try:  # as new as the order, or newer
            content = Content.read(self.orders.content(order.id))
        except (Damaged, UnsupportedFormat) as error:  # who goes on with it writes it anew
            _log.warning("%s", error)
            return None
        is_first = known is None or known.said.sweep < content.sweep or bool(known.said.failed)
        if self._unused is None:
            self._unused = self._tiers_unused()
        dropped, failed = dict[str, int](), dict(self._unused)
        self._index.forget({bytes.fromhex(one.pack) for one in order.packs if one.gone})
        for place, drop in self._places(content, is_first):
            try:
                dropped[place] = drop()
            except (OSError, TierstoreError) as error:
                _log.warning("%s keeps what was purged, which is tried again: %s", place, error)
                failed[place] = str(error)
        now_s = time.time()
        if known is not None and not is_first and not failed and not any(dropped.values()):
            known.last_s = now_s
            return None
        before = {} if known is None else known.said.dropped
        said = Acknowledgement(
            id=order.id,
            node=self._node,
            place=self.place,
            who=whoami(),
            sweep=content.sweep,
            time_us=int(now_s * 1e6),
            dropped={place: before.get(place, 0) + count for place, count in dropped.items()},
            failed=failed,
        )
        self.orders.acknowledge(said)
        bare = self._place("")
        # who uses a hot tier as well speaks for who used this cache before the tier was added
        if said.place != bare and self.orders.knows(order.id, self._node, bare):
            self.orders.acknowledge(msgspec.structs.replace(said, place=bare))
        since_s = now_s if known is None or is_first else known.since_s
        self._done[order.id] = _Dropped(said, since_s, now_s)
        return said

    def _tiers_unused(self) -> dict[str, str]:
        """Return the caches of the store's list of tiers that this process does not use, and why.

        Others of the node may fill them, so nobody can say here that nothing is in them.
        """
        current = TierLog(self._home.blobs).current()
        why = "this process does not use it: it was added since, or is switched off here; restart"
        names = {tier.name for tier in self._hot.shared}
        return {
            spec.name: why
            for spec in (current.tiers if current else ())
            if (spec.role == "shared" and spec.name not in names)
            or (spec.role == "hot" and self._hot.local is None)
        }

    def _places(self, content: Content, is_first: bool) -> Iterable[tuple[str, Callable[[], int]]]:
        digests = sorted(content.gone)
        keys = [one.hex() for one in digests] + [_delta_key(one) for one in content.deltas]
        yield "files", lambda: self._drop_files(content.manifests)
        local = self._hot.local
        if local is not None:
            yield local.name, lambda: self._drop_here(local, digests)
        for tier in self._hot.shared:
            yield tier.name, lambda tier=tier: _drop_shared(tier, keys, digests, is_first)  # type: ignore[misc]

    def _drop_here(self, local: LocalHot, digests: Sequence[bytes]) -> int:
        self._hot.flush(_FLUSH_S)  # what waits to be written comes first
        self._sync_pins()
        return local.drop(digests)

    def _drop_files(self, manifests: Iterable[bytes]) -> int:
        """Delete the files of manifests that are gone: somebody may serve those of others."""
        kept = {one: self._cache / FILES / one.hex() for one in manifests}
        kept = {one: folder for one, folder in kept.items() if folder.exists()}
        keys = {version_key(Digest(one)): folder for one, folder in kept.items()}
        gone = keys.keys() - set(self._home.blobs.present(list(keys))) if keys else set[str]()
        for key in gone:
            shutil.rmtree(keys[key])
        return len(gone)


def _secret(path: Path) -> str:
    """Return what is in a file that is made once, with 32 random hex digits."""
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        new.write_text(secrets.token_hex(16))
        try:
            os.link(new, path)
        except FileExistsError:  # another process of this node was faster
            pass
        finally:
            new.unlink()
        return path.read_text()


def _delta_key(delta: bytes) -> str:
    """Return the key in a shared tier of a delta."""
    assert len(delta) == DELTA_BYTES
    return f"{delta[:DIGEST_BYTES].hex()}-{delta[DIGEST_BYTES:].hex()}"


def _drop_shared(
    tier: SharedHot, keys: Sequence[str], digests: Iterable[bytes], is_first: bool
) -> int:
    """Drop frames from a shared tier; return how many there were.

    One that can be listed is asked for all that it has, once: it may have deltas whose packs were
    gone before.
    """
    found = set(keys)
    if is_first and tier.blobs.capabilities.listable:
        names = {one.hex() for one in digests}
        below = {blake3.blake3(one).hexdigest()[:32] for one in digests}
        for info in tier.blobs.list():
            chunk, _, bases = info.key.partition("-")
            if chunk in names or bases in below:
                found.add(info.key)
    return tier.drop(sorted(found))
