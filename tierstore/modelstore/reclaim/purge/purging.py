"""Purges versions, goes on with purges that are not over, and tells what became of them."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from tierstore.arguments import as_message
from tierstore.errors import (
    Conflict,
    Damaged,
    NotFound,
    TierstoreError,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format.purge import PurgeOrder
from tierstore.ids import Digest, ModelRef
from tierstore.modelstore.care.rebase import Rebasing
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.purgerecords import find_lost_records
from tierstore.modelstore.names.removalprotocol import purge_lost
from tierstore.modelstore.names.removed import PURGE
from tierstore.modelstore.names.rollout import Rollouts
from tierstore.modelstore.reclaim.feature import check_enabled
from tierstore.modelstore.reclaim.purge.carrying import Carrying, noted
from tierstore.modelstore.reclaim.purge.content import FoundContent
from tierstore.modelstore.reclaim.purge.dropping import Dropping
from tierstore.modelstore.reclaim.purge.frames import Frames
from tierstore.modelstore.reclaim.purge.orders import Nodes, Orders, together
from tierstore.modelstore.reclaim.purge.planning import PurgePlan, plan_of
from tierstore.modelstore.reclaim.purge.receipt import PurgeReceipt, receipt_of
from tierstore.modelstore.reclaim.reclaim import Reclaim
from tierstore.modelstore.reclaim.removal import Removing, as_text
from tierstore.modelstore.reclaim.removedlist import removed_version
from tierstore.modelstore.version import Version

_PASSES = 5
_SHOWN = 5
_DAY_S = 24 * 3600.0
_DROPPED_S = _DAY_S
"""Seconds after which an order of a version that was never purged is dropped."""

_AGAIN_S = (600.0, 3600.0, _DAY_S)
"""Seconds after which an agent goes on with a purge that is not over, by how often it tried."""

_LATE_S = 30 * _DAY_S
"""Seconds in which an agent looks daily at a purge that is done, and afterwards once in as long."""

_log = logging.getLogger("tierstore.purge")


class Purges:
    """The purges of a store; obtained as ``Store.purges``. ``Store.purge`` begins one.

    Examples:
        >>> store = tierstore.init("store")
        >>> store.reclaim.enable(wait_s=0)
        >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
        >>> [receipt] = store.purge("ranker@1", force=True)
        >>> store.purges.receipt(receipt.id).version
        'ranker@1'
    """

    def __init__(
        self,
        names: Names,
        removing: Removing,
        reclaim: Reclaim,
        rebasing: Rebasing,
        open_alone: Callable[[Digest], Opened],
        dropping: Dropping,
    ) -> None:
        """Purge versions of the store with these names."""
        self._names, self._home = names, names.home
        self._removing, self._reclaim = removing, reclaim
        self._rebasing, self._open_alone = rebasing, open_alone
        self._orders: Orders = dropping.orders
        self._dropping = dropping
        self._restored_s = -_DAY_S

    def __repr__(self) -> str:
        return f"<Purges of {self._home.blobs.url}>"

    def __dir__(self) -> Sequence[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def begin(
        self, refs: Iterable[str | Version], *, force: bool, message: str | None
    ) -> list[PurgeReceipt]:
        """Purge versions; see ``Store.purge``.

        Each has an order of its own, which is written before anything else. An order of another
        process that has not purged its version yet is not relied on: that may still give it up.
        """
        note = as_message(message)
        check_enabled(self._home)
        versions = self.versions(*refs)
        known = {(one.model, one.version): one.id for one in reversed(self._orders.all())}
        new = [one for one in versions if not self._is_purged(one.model, one.number)]
        given = self._give([one for one in versions if one in new or _key(one) not in known], note)
        known |= {(one.model, one.version): one.id for one in given.values()}
        names = [known[key] for key in map(_key, versions)]
        Rollouts(self._names).settle_all()  # a killed one pins what it came from
        self._remove(new, given, force=force, note=note)
        waits = self._go_on(names)
        self._drop([self._orders.get(name) for name in names])
        return self._receipts(names, waits)

    def plan(self, *refs: str | Version, force: bool = False) -> PurgePlan:
        """Return what ``Store.purge`` would do with these versions; nothing is changed.

        All manifests of the store are read for that.

        Args:
            refs: References to the versions.
            force: Whether the newest version of a model may go, too.

        Raises:
            UsageError: No version was named, or a variant alone.
            NotFound: There is no such version.
            Damaged, UnsupportedFormat: Something cannot be read that may need chunks of them.
            BackendError: The store's home cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)}, base=None)
            >>> plan = store.purges.plan("ranker@1")
            >>> plan.chunks, plan.shared_chunks, plan.refused
            (1, 0, None)
        """
        versions = self.versions(*refs)
        refused = None
        try:
            self._removing.look_at_purge(versions, force=force)
        except Conflict as error:
            refused = str(error)
        orders = [_order(version, "") for version in versions]
        nodes = receipt_of(orders[0], {}, self._orders.nodes()).outstanding
        return plan_of(self._home, orders, refused, nodes)

    def _remove(
        self,
        versions: Sequence[Version],
        given: Mapping[str, PurgeOrder],
        *,
        force: bool,
        note: str,
    ) -> None:
        try:
            if versions:
                self._removing.purge(versions, force=force, note=note)
        except TierstoreError:
            # of two that purge the same at once one may have been faster
            if not all(self._is_purged(one.model, one.number) for one in versions):
                self._drop_unpurged(given, 0.0)
                raise
        there = set(self._orders.names()) if given else set[str]()
        # we slept for so long that others dropped these
        for order, content in noted(self._home, [given[one] for one in given.keys() - there]):
            self._create(given[order.id], content)

    def versions(self, *refs: str | Version) -> list[Version]:
        """Return the versions that would be purged: what references name, removed or not.

        Args:
            refs: The references.

        Raises:
            UsageError: No version was named, or a variant alone.
            NotFound: There is no such version.
            BackendError: The store's home cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
            >>> [str(version) for version in store.purges.versions("ranker@prod")]
            ['ranker@1']
        """
        found = list({str(one): one for one in map(self._any_version, refs)}.values())
        if not found:
            raise UsageError("no version was named; give references, such as 'ranker@3'")
        return found

    def _any_version(self, ref: str | Version) -> Version:
        try:
            version = self._names.resolve(as_text(ref))
        except NotFound:
            return removed_version(self._names, ModelRef.parse(as_text(ref)))
        if version.variant is not None:
            raise UsageError(
                f"{version} is a variant: it is purged with its version, "
                f"{version.model}@{version.number}, and not without it"
            )
        return version

    def _is_purged(self, model: str, number: int) -> bool:
        entry = self._names.removals.of(model).get(number)
        return entry is not None and entry.action == PURGE

    def _give(self, versions: Sequence[Version], note: str) -> dict[str, PurgeOrder]:
        """Write an order for each version; return them by their ids."""
        orders = [_order(version, note) for version in versions]
        given: dict[str, PurgeOrder] = {}
        for order, content in noted(self._home, orders) if orders else ():
            self._create(order, content)
            given[order.id] = order
        return given

    def _create(self, order: PurgeOrder, content: FoundContent) -> None:
        """Write an order, on a full home by the reserve: nobody could free anything otherwise."""
        stored = content.stored(order.id)
        with_reserve(self._home.blobs, lambda: self._orders.create(order, stored))

    def _drop_unpurged(self, names: Iterable[str], older_s: float) -> list[PurgeOrder]:
        """Delete orders of versions that were not purged; return the others."""
        left: list[PurgeOrder] = []
        for name in names:
            order = self._orders.get(name)
            if self._is_purged(order.model, order.version):
                left.append(order)
            elif time.time() - order.time_us / 1e6 >= older_s and not self._orders.is_begun(order):
                self._orders.drop(name)
        return left

    def _go_on(self, names: Sequence[str], stop: threading.Event | None = None) -> str | None:
        """Carry orders out, as far as that is possible now; return what is in the way."""
        try:
            for todo in together(self._drop_unpurged(names, _DROPPED_S)):
                self._carry_out([one.id for one in todo], stop)
        except TierstoreError as error:  # what was purged stays so, and is gone on with
            return str(error)
        return None

    def _carry_out(self, names: Sequence[str], stop: threading.Event | None) -> None:
        """Carry orders out together, in as many passes as there is progress."""
        frames, before = Frames(self._home), None
        for again in range(_PASSES):
            if stop is not None and stop.is_set():
                return
            self._pass(names, frames, stop, is_first=not again)
            orders = [self._orders.get(name) for name in names]
            left = [_left(order) for order in orders]
            if left == before or all(order.done for order in orders):
                return
            before = left

    def _pass(
        self, names: Sequence[str], frames: Frames, stop: threading.Event | None, *, is_first: bool
    ) -> None:
        carrying = Carrying(
            self._home, self._orders, names, frames, is_first, self._rebasing, self._open_alone
        )
        self._reclaim.carry_out(carrying, stop)

    def run(self) -> list[PurgeReceipt]:
        """Go on with all purges, and drop what they name from the caches of this process.

        Those that are done are looked at as well: what stayed of one may go by now. Where the order
        of a version that was purged is lost, or the entry that purged it, that is written anew.

        Returns:
            The receipts of those that were not complete, or are not now, the newest first.

        Raises:
            UsageError: The store does not allow removal.
            BackendError: The store's home cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> store.purges.run()
            []
        """
        check_enabled(self._home)
        self._restore_records()
        before = {one.id for one in self.all() if not one.is_complete}
        waits = self._go_on([one.id for one in self._orders.all()])
        every = self._orders.all()
        self._drop(every)
        found = self._receipts([one.id for one in every], waits)
        return [one for one in found if one.id in before or not one.is_complete]

    def _restore_records(self) -> None:
        """Write anew what was lost of the records of purges: an order, or what says it is one.

        The content of an order that was never written goes, a day after.
        """
        lost = find_lost_records(self._home, self._names.removals)
        for order in lost.entries:
            _log.warning("%s@%d is purged again, as its log lost it", order.model, order.version)
            purge_lost(self._home, order.model, order.version, order.message)
        for order in lost.orders:
            ref = f"{order.model}@{order.version}"
            _log.warning("the receipt of the purge of %s is lost: it begins anew", ref)
            self._restore(order)
        for name, written_s in lost.unordered.items():
            if time.time() - written_s >= _DROPPED_S:
                _log.info("purged/%s is deleted: whoever wrote it ended before its order", name)
                self._orders.drop_content(name)

    def _restore(self, order: PurgeOrder) -> None:
        with_reserve(self._home.blobs, lambda: self._orders.restore(order))

    def _drop(self, orders: Sequence[PurgeOrder]) -> None:
        """Drop what orders name from these caches; where that fails, nobody has answered for it."""
        try:
            self._dropping.drop_all(orders)
        except (OSError, TierstoreError) as error:
            _log.warning("the caches here keep what was purged, which is tried again: %s", error)

    def keep_up(self, stop: threading.Event | None = None) -> None:
        """Do what an agent does each round: go on, drop, and say that this node is there.

        An error is logged, and tried again later. Once ``stop`` is set, nothing more is deleted
        from durable tiers.
        """
        try:
            if not self._dropping.is_due() or not self._reclaim.is_enabled:
                return
            self._dropping.note()
            if time.monotonic() - self._restored_s >= _DAY_S:
                self._restore_records()
                self._restored_s = time.monotonic()
            every = self._orders.all()
            due = [one.id for one in every if _is_due(one, time.time())]
            if due and (why := self._go_on(due, stop)):
                _log.info("%d purges wait: %s", len(due), why)
            for said in self._dropping.drop_all(self._orders.all() if due else every):
                _log.info("dropped for the purge %s: %s", said.id, dict(said.dropped))
        except (OSError, TierstoreError) as error:
            _log.warning("purges are not gone on with now: %s", error)

    def receipt(self, name: str) -> PurgeReceipt:
        """Return the receipt of a purge as it is now, with the nodes that have answered since.

        Args:
            name: Its id, how that begins, or a version that was purged, such as ``ranker@3``.

        Raises:
            NotFound: There is no such purge.
            UsageError: There are several.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> _ = store.purge("ranker@1", force=True, message="request 7")
            >>> store.purges.receipt("ranker@1").message
            'request 7'
        """
        [found] = self._receipts([self._orders.find(name).id], None, with_chunks=True)
        return found

    def all(self) -> list[PurgeReceipt]:
        """Return the receipts of all purges, the newest first.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.purges.all()
            []
        """
        return self._receipts([one.id for one in self._orders.all()], None)

    def say_gone(self, *nodes: str, reason: str) -> None:
        """Say that nodes will never come back, so that no purge waits for them.

        One that comes back all the same counts again once it is seen, and drops what was purged
        then.

        Args:
            nodes: The names of the nodes, as receipts have them.
            reason: How it is known, in words; receipts tell it, with who said so and when.

        Raises:
            NotFound: There is no such node; none was said to be gone.
            UsageError: There is no reason.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.purges.say_gone("node7", reason="its disk was shredded")
            Traceback (most recent call last):
                ...
            tierstore.errors.NotFound: the store knows no node 'node7'...
        """
        note = as_message(reason)
        if not note.strip():
            raise UsageError(
                "give a reason: a receipt that waits for no answer of a node must say how it is "
                "known that nothing is left there"
            )
        known = self._orders.nodes().seen
        if missing := [node for node in nodes if node not in known]:
            some = f", but {', '.join(sorted(known)[:_SHOWN])}" if known else ""
            raise NotFound(f"the store knows no node {missing[0]!r}{some}")
        for node in nodes:
            self._orders.say_gone(self._dropping.note_of(node, note))

    def _receipts(
        self, names: Sequence[str], waits: str | None, *, with_chunks: bool = False
    ) -> list[PurgeReceipt]:
        nodes = self._orders.nodes() if names else Nodes()
        parts = self._orders.part_names() if names else {}
        found = []
        for name in names:
            order, said = self._orders.get(name), self._orders.acknowledgements(name)
            why = waits
            if waits is not None:  # what was done may have come back with a tier meanwhile
                order = msgspec.structs.replace(order, done=False)
            if parts.get(name, set()) - set(order.parts or ()):
                order = msgspec.structs.replace(order, done=False)
                why = (
                    "a process that slept wrote over what another one had found, which is kept "
                    "apart: 'tierstore purge run' puts it together again"
                )
            if not self._is_purged(order.model, order.version):
                why = (
                    f"{order.model}@{order.version} is not purged: whoever asked for it ended "
                    "before that, or is about to do it. Ask again; else this receipt goes in a day"
                )
            shared = self._shared_digests(name) if with_chunks else None
            found.append(receipt_of(order, said, nodes, why, shared))
        return found

    def _shared_digests(self, name: str) -> list[str] | None:
        """Return the digests of the chunks of an order that stay, in hex."""
        try:
            content = FoundContent.read(self._orders.content(name))
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s", error)
            return None
        return [digest.hex() for digest in sorted(content.kept)]


def _order(version: Version, note: str) -> PurgeOrder:
    return PurgeOrder(
        id=uuid.uuid4().hex,
        time_us=time.time_ns() // 1000,
        who=whoami(),
        message=note,
        model=version.model,
        version=version.number,
        manifest=version.digest.hex,
    )


def _key(version: Version) -> tuple[str, int]:
    return version.model, version.number


def _left(order: PurgeOrder) -> object:
    """Return what is left of an order: new packs with the same content are no progress."""
    packs = sorted((one.tier, one.bytes) for one in order.packs if not one.gone)
    return packs, dict(order.manifests_left), list(order.waits), order.unread


def _is_due(order: PurgeOrder, now_s: float) -> bool:
    """Return whether an agent goes on with an order now, as others may have done lately."""
    since_s = now_s - max(order.updated_us, order.time_us) / 1e6
    if since_s < 0:  # a clock was wrong
        return True
    if not order.done:
        return since_s >= _AGAIN_S[min(order.tries, len(_AGAIN_S)) - 1 if order.tries else 0]
    return since_s >= (_DAY_S if now_s - order.time_us / 1e6 < _LATE_S else _LATE_S)
