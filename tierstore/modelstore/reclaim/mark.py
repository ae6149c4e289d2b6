"""The mark: from what must stay to the packs that this needs (SPEC.md section 10)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import version_key
from tierstore.ids import Digest
from tierstore.modelstore.home.condemned import Condemned
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.retention import NONE_OVER, Over
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.layouts import Layouts
from tierstore.modelstore.reclaim.needs import Need, Needs
from tierstore.modelstore.reclaim.roots import Found, Root, Roots
from tierstore.modelstore.reclaim.unloadable import Unloadable, refuse
from tierstore.modelstore.reclaim.ways import Ways

LiveKind = Literal["live", "chain", "base", "window", "leased"]
_ORDER = {"live": 0, "window": 1, "leased": 2}
_log = logging.getLogger("tierstore.gc")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pack stays.

    Attributes:
        kind: ``live``: a version that stays has chunks in it; ``chain``: one below a patch does;
            ``base``: it holds bases of deltas alone; ``window``: a removal can be undone;
            ``leased``: a reader holds it.
        why: The same in words.
    """

    kind: LiveKind
    why: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a manifest that stays lacks.

    Attributes:
        root: Why it stays.
        needs: What is to be healed, down to what it lies on.
        instead: Folds of which one that is healed would do as well, the nearest first.
        last: Folds that do only where nothing else can be healed: their manifests are condemned.
    """

    root: Root
    needs: list[Need]
    instead: list[Need]
    last: list[Need]


@dataclass(slots=True)
class Mark:
    """What was found by one mark.

    Attributes:
        condemned: All that was condemned right before.
        holdings: Which packs are in which tier.
        needs: The state of every pack then.
        live: Why packs stay, by id.
        lacking: What is not whole of what stays; see ``to_heal``.
        dead: Packs that layouts of removed versions name, and that do not stay.
        in_force: Manifests that somebody can load, of which nothing may be lost; see
            ``Root.is_firm``.
        kept: Why manifests stay whose layouts are needed, patches below and folds among them.
        held: Packs that readers hold as they are.
        over: Removals that cannot be undone for certain.
        below: Why manifests stay that readers may have opened, and that are not in ``kept``.
        firm: Those in ``kept`` that stay for more than a window, a reader or the past of an alias.
        manifests: All manifests that something needs, those that have no layout among them.
        orphans: Roots of which a manifest was purged and is gone: nobody was promised them.
        named: All manifests that a root or an entry of a version names, removed or not.
        logs: How many entries each log has; see ``Found.logs``.
        holders: Entries in force that only have a number taken, for a copy.
        now_s: The time of the mark, as in ``Marker.mark``; so are the next two.
        window_s: As there.
        ended: As ``over`` there.
    """

    condemned: Condemned
    holdings: Holdings
    needs: Needs
    live: dict[bytes, Reason] = field(default_factory=dict)
    lacking: list[Demand] = field(default_factory=list)
    dead: set[bytes] = field(default_factory=set)
    in_force: set[Digest] = field(default_factory=set)
    kept: dict[Digest, Reason] = field(default_factory=dict)
    held: set[bytes] = field(default_factory=set)
    over: Over = NONE_OVER
    below: dict[Digest, Reason] = field(default_factory=dict)
    firm: set[Digest] = field(default_factory=set)
    manifests: set[Digest] = field(default_factory=set)
    orphans: list[Root] = field(default_factory=list)
    named: set[Digest] = field(default_factory=set)
    logs: Mapping[str, int] = field(default_factory=dict)
    holders: list[Root] = field(default_factory=list)
    now_s: float = 0.0
    window_s: float | None = None
    ended: Over = NONE_OVER

    def to_heal(self, left: Set[Digest], spared: Set[Digest] = frozenset()) -> list[Demand]:
        """Return what must be healed before anything is deleted: all that stays and is not whole.

        But for what was found to be lost of versions that nobody can load: nothing helps these.

        Args:
            left: Manifests of which that was found; one that is in force by now does not count.
            spared: Manifests that are read by folds, as nothing else is left of them.
        """
        lost = (left - self.in_force) | spared
        return [demand for demand in self.lacking if demand.root.digest not in lost]


class _Orphan(Exception):
    """A manifest that a root needs was purged, and is gone."""


def _each_once(roots: Iterable[Root]) -> list[Root]:
    """Return one root for each version: that of its own, else the first of who names it."""
    found: dict[tuple[str, Digest], Root] = {}
    for root in sorted(roots, key=lambda root: bool(root.ref)):  # its own say no more than it
        found.setdefault((root.ref or root.why, root.digest), root)
    return list(found.values())


def _lost(found: Found, condemned: Condemned) -> dict[Digest, Damaged | NotFound]:
    """Return the releases that are lost; one that is purged, and gone, has no members."""
    return {
        digest: error
        for digest, error in found.lost.items()
        if digest.raw not in condemned.manifests or not isinstance(error, NotFound)
    }


class Marker:
    """Marks a store again and again; what never changes is read once by each of these.

    Args:
        home: The store's home.
        cache: What was read of it before.
    """

    def __init__(self, home: Home, cache: ReadCache) -> None:
        self._home = home
        self._roots = Roots(home, cache)
        self.layouts = Layouts(home, cache)
        self.ways = Ways(home)

    def mark(
        self,
        now_s: float,
        window_s: float | None,
        given_up: Set[bytes] = frozenset(),
        before: Mapping[str, int] = MappingProxyType({}),
        over: Over = NONE_OVER,
    ) -> Mark:
        """Find all packs that stay; see ``Roots.find`` for the arguments.

        A removed version whose manifest is lost keeps nothing, as no other object says what it was:
        its packs wait as those of unfinished saves do.

        Args:
            now_s: As there.
            window_s: As there.
            given_up: Packs that stay for no reader's sake who finds all by moves.
            before: As there.
            over: As there.

        Raises:
            Damaged, NotFound, UnsupportedFormat: Something that may need a pack cannot be read.
            BackendError: Home cannot be asked.
        """
        condemned = self._home.condemned.every()  # first: see ``roots``
        found = self._roots.find(now_s, window_s, before, over)
        mark = self._begin(condemned, now_s)
        mark.over, mark.logs, mark.holders = found.over, found.logs, found.holders
        mark.now_s, mark.window_s, mark.ended = now_s, window_s, over
        mark.in_force = {root.digest for root in found.roots if root.is_firm}
        mark.named = {root.digest for root in found.roots} | found.dead
        done, lost = set[Digest](), _lost(found, condemned)
        for root in sorted(found.roots, key=lambda root: _ORDER[root.kind]):
            if root.digest not in done:
                done.add(root.digest)
                try:
                    self._mark(root, mark)
                except Unloadable as error:
                    lost[root.digest] = error
                    _log.info("%s cannot be brought back any more: %s", root, error)
                except Damaged as error:
                    raise Damaged(
                        f"{root} needs it: {error}. Nothing was deleted: 'tierstore repair' makes "
                        "layouts anew"
                    ) from error
                except _Orphan:
                    mark.orphans.append(root)
                    continue
            if root.kind == "leased":
                self._hold(root, mark, given_up)
        firm = _each_once(root for root in found.roots if root.digest in lost and root.is_firm)
        refuse({str(root): lost[root.digest] for root in firm}, "cannot be loaded")
        for digest in found.dead - done:
            mark.dead |= self._named(digest)
        self.layouts.keep()
        mark.dead -= mark.live.keys()
        return mark

    def named_since(self, mark: Mark) -> set[Digest]:
        """Return all that roots, entries of versions and folds name now, behind a mark."""
        found = self._look_again(mark)
        named = mark.named | {root.digest for root in found.roots} | found.dead
        return named | self._folds(named)

    def needed_since(self, mark: Mark) -> set[Digest]:
        """Return what roots and folds need now that were not there at a mark, and lie on."""
        before, needed = self._folds(mark.manifests), set[Digest]()
        for root in self._look_again(mark).roots:
            digest: Digest | None = root.digest
            while digest is not None and digest not in needed and digest not in mark.manifests:
                needed.add(digest)
                try:
                    digest = self.layouts.base_of(digest)
                except (Damaged, NotFound):
                    break
        return needed | (self._folds(mark.manifests | needed) - before)

    def _look_again(self, mark: Mark) -> Found:
        found = self._roots.find(mark.now_s, mark.window_s, mark.logs, mark.ended)
        self.layouts.look(mark.now_s)
        return found

    def _folds(self, digests: Iterable[Digest]) -> set[Digest]:
        return {full for one in digests if (full := self.layouts.fold_of(one)) is not None}

    def look_at(self, root: Root, condemned: Condemned) -> Mark:
        """Find what one root needs and lacks, by what was condemned right before; see ``mark``."""
        mark = self._begin(condemned, 0)
        mark.in_force.add(root.digest)
        try:
            self._mark(root, mark)
        except _Orphan as error:
            raise NotFound(f"a manifest of {root} was purged, and is gone") from error
        return mark

    def _begin(self, condemned: Condemned, now_s: float) -> Mark:
        holdings = read_holdings(self._home.packs)
        self.layouts.look(now_s)
        self.ways.look(holdings)
        quarantined = self._home.quarantine.packs()
        needs = Needs(self.layouts, self.ways, holdings, condemned.packs, quarantined)
        return Mark(condemned, holdings, needs)

    def _mark(self, root: Root, mark: Mark) -> None:
        """Mark what a manifest needs: its layout, and for a patch all down to the nearest fold.

        The packs of a patch itself stay when it has a fold, for those who go on from the version
        below. Nobody is lost without them, so these are not healed.
        """
        needs, instead, last = list[Need](), list[Need](), list[Need]()
        digest = root.digest
        while True:
            self._name(digest, mark)
            folded = self._folded(digest, mark)
            if folded is not None and folded.digest.raw in mark.condemned.manifests:
                last.append(folded)
                folded = None
            if folded is not None and folded.is_whole and digest != root.digest:
                needs.append(folded)  # readers find it before they ask what it stands for
                break
            base = self.layouts.base_of(digest)
            if folded is not None and folded.is_whole:
                needs.append(folded)
                self._keep_own(root, mark)
                break
            if folded is not None:
                instead.append(folded)
            needs.append(mark.needs.of(digest))
            if base is None:
                break
            digest = base
        for at, need in enumerate(needs):
            _note(mark, need, root, is_below=at > 0)
        if not all(need.is_whole for need in needs):
            for need in last:
                _note(mark, need, root, is_below=False)
            mark.lacking.append(Demand(root, needs, instead, last))

    def _name(self, digest: Digest, mark: Mark) -> None:
        """Take note that a manifest is needed; raise ``_Orphan`` for one that was purged."""
        if digest.raw in mark.condemned.manifests and not self._is_there(digest):
            raise _Orphan
        mark.manifests.add(digest)

    def _is_there(self, digest: Digest) -> bool:
        try:
            self._home.blobs.info(version_key(digest))
        except NotFound:
            return False
        return True

    def _folded(self, digest: Digest, mark: Mark) -> Need | None:
        full = self.layouts.fold_of(digest)
        if full is None or (full.raw in mark.condemned.manifests and not self._is_there(full)):
            return None
        try:
            return mark.needs.of(full)
        except (Damaged, NotFound) as error:
            _log.warning("%s; the patches below are kept instead of this fold", error)
            return None

    def _keep_own(self, root: Root, mark: Mark) -> None:
        try:
            need = mark.needs.of(root.digest)
        except (Damaged, NotFound) as error:
            _log.warning("%s; the fold of %s is read instead", error, root.why)
            return
        _note(mark, need, root, is_below=False)
        if not need.is_whole:  # what is condemned of it serves as long as it is there
            for pack in need.named - mark.live.keys():
                if mark.holdings.is_there(pack):
                    mark.live[pack] = Reason(root.kind, root.why)

    def _hold(self, root: Root, mark: Mark, given_up: Set[bytes]) -> None:
        """Keep what a reader may have opened: all patches below, and every fold, as they are."""
        for need in self._below(root.digest, mark):
            if need.digest not in mark.kept:
                mark.below.setdefault(need.digest, Reason("leased", root.why))
            packs = need.own | need.bases | need.named
            mark.held |= packs
            spared = given_up if need.is_whole else frozenset[bytes]()
            for pack in packs - mark.live.keys() - spared:
                if mark.holdings.is_there(pack):
                    mark.live[pack] = Reason("leased", root.why)

    def _below(self, top: Digest, mark: Mark) -> Iterator[Need]:
        digest: Digest | None = top
        while digest is not None:
            for one in (digest, self.layouts.fold_of(digest)):
                if one is not None:
                    mark.manifests.add(one)
                    try:
                        yield self._opened(one, mark)
                    except (Damaged, NotFound) as error:  # what the version needs is marked already
                        _log.warning("%s; it is not kept for readers of %s", error, top)
            try:
                digest = self.layouts.base_of(digest)
            except (Damaged, NotFound):
                return

    def _opened(self, digest: Digest, mark: Mark) -> Need:
        """Return what who has opened a version reads of it, though its manifest is lost by now."""
        try:
            return mark.needs.of(digest)
        except Unloadable:
            table = self.layouts.table(digest)
            return Need(digest, named=frozenset(() if table is None else table.pack_ids))

    def _named(self, digest: Digest) -> set[bytes]:
        """Return the packs that the layouts of a removed version, and of its fold, name."""
        found = set[bytes]()
        try:
            for one in (digest, self.layouts.fold_of(digest)):
                named = None if one is None else self.layouts.named(one)
                found |= set() if named is None else named.own | named.bases
        except (Damaged, NotFound) as error:  # its packs wait as those of unfinished saves do
            _log.warning("%s", error)
        return found


def _note(mark: Mark, need: Need, root: Root, *, is_below: bool) -> None:
    kind: LiveKind = root.kind
    named = f"{root.ref} ({root.why})" if root.ref else root.why
    named = f"below the patch {named}" if is_below else named
    mark.kept.setdefault(need.digest, Reason(root.kind, named))
    mark.manifests.add(need.digest)
    if root.digest in mark.in_force:
        mark.firm.add(need.digest)
    if kind == "live" and is_below:
        kind = "chain"
    for pack in need.own:
        if kind == "live" or pack not in mark.live:
            why = f"below the patch {root.why}" if is_below else root.why
            known = mark.live.get(pack)
            if known is None or known.kind in ("base", "chain"):
                mark.live[pack] = Reason(kind, why)
    for pack in need.bases:
        mark.live.setdefault(pack, Reason("base" if kind in ("live", "chain") else kind, root.why))
