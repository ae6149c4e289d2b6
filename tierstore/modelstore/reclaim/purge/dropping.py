"""What a node keeps of purged content, and drops: hot tiers, shared tiers, files (SPEC.md 10.3)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

import blake3
import msgspec

from tierstore.errors import BackendError, Damaged, TierstoreError, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.purge import DELTA_BYTES, Acknowledgement, NodeNote, PurgeOrder
from tierstore.ids import DIGEST_BYTES, Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.reclaim.purge.content import FoundContent
from tierstore.modelstore.reclaim.purge.orders import Orders, together
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
        if self.said.failed or self.said.sweep != sweep:
            return True
        age_s = now_s - self.since_s
        return age_s < _AGAIN_S or (age_s < _LATE_S and now_s - self.last_s >= _DAY_S)


@dataclass(frozen=True, slots=True)
class _Due:
    """What is dropped for an order now.

    Attributes:
        order: The order.
        content: What it names.
        is_first: Whether this place drops so much of it for the first time.
    """

    order: PurgeOrder
    content: FoundContent
    is_first: bool

    @property
    def keys(self) -> list[str]:
        """The keys of its chunks and deltas in shared tiers."""
        content = self.content
        return [*(one.hex() for one in sorted(content.gone)), *map(_delta_key, content.deltas)]


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

    def note_of(self, node: str, message: str = "") -> NodeNote:
        """Return what somebody with these caches says of a node now."""
        return NodeNote(
            node=node,
            place=self.place,
            who=whoami(),
            tool=f"tierstore {package_version('tierstore')}",
            time_us=time.time_ns() // 1000,
            message=message,
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
        due = [
            order
            for name, order in every.items()
            if (known := self._done.get(name)) is None or known.is_due(order.sweep, now_s)
        ]
        said_now = list[Acknowledgement]()
        unused = self._tiers_unused() if due else {}
        for orders in together(due):
            said_now += self._drop(orders, unused)
        return said_now

    def _drop(
        self, orders: Sequence[PurgeOrder], unused: Mapping[str, str]
    ) -> Iterator[Acknowledgement]:
        """Drop what some orders name; each cache is asked once what it has of all of them."""
        gone = {bytes.fromhex(pack.pack) for one in orders for pack in one.packs if pack.gone}
        self._index.forget(gone)
        dues = [one for one in map(self._due, orders) if one is not None]
        places = self._places(dues)
        for due in dues:
            dropped, failed = dict[str, int](), dict(unused)
            for place, drop in places.items():
                try:
                    dropped[place] = drop(due)
                except (OSError, TierstoreError) as error:
                    _log.warning("%s keeps what was purged, which is tried again: %s", place, error)
                    failed[place] = str(error)
            said = self._acknowledged(due, dropped, failed)
            if said is not None:
                yield said

    def _due(self, order: PurgeOrder) -> _Due | None:
        """Return what an order names, by what is as new as the order, or newer."""
        try:
            content = FoundContent.read(self.orders.content(order.id))
        except (Damaged, UnsupportedFormat) as error:  # who goes on with it writes it anew
            _log.warning("%s", error)
            return None
        known = self._done.get(order.id)
        is_first = known is None or known.said.sweep != content.sweep or bool(known.said.failed)
        return _Due(order, content, is_first)

    def _acknowledged(
        self, due: _Due, dropped: Mapping[str, int], failed: dict[str, str]
    ) -> Acknowledgement | None:
        """Say what was dropped for an order, if that is new."""
        order, content, is_first = due.order, due.content, due.is_first
        known = self._done.get(order.id)
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

    def _places(self, dues: Sequence[_Due]) -> dict[str, Callable[[_Due], int]]:
        """Return what drops from each place, by its name."""
        places: dict[str, Callable[[_Due], int]] = {
            "files": lambda due: self._drop_files(due.content.manifests)
        }
        local = self._hot.local
        if local is not None:
            places[local.name] = _Local(local, self._empty_queues).drop
        for tier in self._hot.shared:
            places[tier.name] = _Shared(tier, [due for due in dues if due.is_first]).drop
        return places

    def _empty_queues(self) -> None:
        self._hot.flush(_FLUSH_S)  # what waits to be written comes first
        self._sync_pins()

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


class _Local:
    """A node's tier; what waits for it is written before anything is dropped.

    Args:
        tier: The tier.
        prepare: Writes what waits, once for all orders.
    """

    def __init__(self, tier: LocalHot, prepare: Callable[[], None]) -> None:
        self._tier, self._prepare = tier, prepare
        self._is_prepared = False

    def drop(self, due: _Due) -> int:
        """Drop the chunks of an order; return how many there were."""
        if not self._is_prepared:
            self._prepare()
            self._is_prepared = True
        return self._tier.drop(sorted(due.content.gone))


class _Shared:
    """A shared tier. One that can be listed is listed once for all orders.

    It may have deltas whose packs were gone before, and that nothing else names.

    Args:
        tier: The tier.
        new: The orders for which that was not done yet.
    """

    def __init__(self, tier: SharedHot, new: Sequence[_Due]) -> None:
        self._tier, self._new = tier, new
        self._deltas: dict[str, list[str]] | BackendError | None = None

    def drop(self, due: _Due) -> int:
        """Drop the frames of an order; return how many there were."""
        keys = set(due.keys)
        if due.is_first and self._tier.blobs.capabilities.listable:
            deltas = self._listed()
            for one in due.content.gone:
                keys.update(deltas.get(one.hex(), ()), deltas.get(_bases_key(one), ()))
        return self._tier.drop(sorted(keys))

    def _listed(self) -> dict[str, list[str]]:
        """Return the deltas of new orders, by the chunk and by its bases, as keys have them."""
        if self._deltas is None:
            try:
                self._deltas = self._list()
            except BackendError as error:  # and is not asked for the next order, either
                self._deltas = error
        if isinstance(self._deltas, BackendError):
            raise self._deltas
        return self._deltas

    def _list(self) -> dict[str, list[str]]:
        gone = set[bytes]().union(*(due.content.gone for due in self._new))
        wanted = {name for one in gone for name in (one.hex(), _bases_key(one))}
        found: dict[str, list[str]] = {}
        for info in self._tier.blobs.list():
            chunk, _, bases = info.key.partition("-")
            for name in {chunk, bases} & wanted if bases else ():
                found.setdefault(name, []).append(info.key)
        return found


def _bases_key(digest: bytes) -> str:
    """Return what the keys of deltas on one chunk alone end in."""
    return blake3.blake3(digest).hexdigest()[:32]
