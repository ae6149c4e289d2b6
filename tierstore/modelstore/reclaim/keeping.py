"""What gets a name, comes back or is patched is whole, and stays so (SPEC.md 9.1 and 11).

Whoever lets something rely on a version that was there before looks at what is condemned once that
is visible. What is condemned and still there is copied, as a collector does; what is gone is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import Chain
from tierstore.modelstore.home.confirm import gone_packs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.settling import Purged
from tierstore.modelstore.reclaim.heal import Healer
from tierstore.modelstore.reclaim.layouts import Layouts
from tierstore.modelstore.reclaim.mark import Marker
from tierstore.modelstore.reclaim.roots import Root

_ROUNDS = 10
_log = logging.getLogger("tierstore.gc")


class Keeping:
    """Sees to it that packs stay which something new relies on.

    The packs that a layout names are kept in memory: whatever layout of a manifest was ever written
    leads to the same chunks.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._layouts = Layouts(home, ReadCache(None))
        self._packs: dict[Digest, dict[bytes, int]] = {}

    def keep(self, what: str, find: Callable[[], Iterable[Chain]], were_removed: bool) -> None:
        """Return once all that some versions need is whole by packs that are not condemned.

        Costs one LIST as long as nothing was ever condemned.

        Args:
            what: What the versions are called in messages.
            find: Returns how the versions are read; called only where their packs are looked at.
            were_removed: Whether they were ever removed: then packs may have been deleted so long
                ago that no list names them any more.

        Raises:
            NotFound: A pack that is needed is gone.
            Damaged: It is unknown what is condemned.
            BackendError: Home or a tier cannot be asked.
        """
        chains: list[Chain] = []
        is_laid_out = True

        def needed() -> dict[bytes, int]:
            nonlocal is_laid_out
            if not chains:
                chains.extend(find())
            try:
                return self._named(chains)
            except (NotFound, Damaged) as error:
                _log.info("%s is looked at as a whole: %s", what, error)
                is_laid_out = False
                return {}

        def every() -> set[bytes]:
            return {*needed(), *(one.full.raw for one in chains), *_ids(chains)}

        condemned = self._home.condemned.among_those(every)
        _refuse_purged(what, condemned & _ids(chains))
        lacks = bool(condemned) or (were_removed and bool(gone_packs(self._home, needed())))
        if lacks or not is_laid_out:
            for top in dict.fromkeys(map(_top, chains)):
                self._heal(Root(top, "live", what))
            for digest in _manifests(chains):  # a collector may have written its layout anew
                self._packs.pop(digest, None)

    def _named(self, chains: Iterable[Chain]) -> dict[bytes, int]:
        """Return the sizes of the packs that the layouts of chains name, by id."""
        found: dict[bytes, int] = {}
        for digest in _manifests(chains):
            if digest not in self._packs:
                table = self._layouts.table(digest)
                if table is None:
                    raise NotFound(f"the layout of b3:{digest.hex} is missing")
                self._packs[digest] = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
            found |= self._packs[digest]
        return found

    def _heal(self, root: Root) -> None:
        """Heal what one version lacks, until a look at the newest list finds nothing."""
        marker, failed = Marker(self._home, ReadCache(None)), False
        for _ in range(_ROUNDS):
            condemned = self._home.condemned.every()
            try:
                mark = marker.look_at(root, condemned)
                if not mark.lacking:
                    return
                Healer(self._home, marker, mark).heal()
                failed = False
            except (Damaged, NotFound, UnsupportedFormat) as error:
                if failed:
                    raise NotFound(
                        f"{root.why} is lost, in part at least: {error.__cause__ or error}; "
                        "restore it from a copy, or save the model again"
                    ) from error
                failed = True  # a collector may have healed it since, and deleted the rest
        raise BackendError(
            f"packs that {root.why} relies on keep disappearing from {self._home.packs.url}; see "
            "that no other program deletes objects there, then try again"
        )


def _manifests(chains: Iterable[Chain]) -> list[Digest]:
    """Return what chains consist of, each once."""
    return list(dict.fromkeys(one for chain in chains for one in (chain.full, *chain.patches)))


def _ids(chains: Iterable[Chain]) -> set[bytes]:
    """Return the digests of the manifests that chains need, but for those of folds.

    What lies below stands for these.
    """
    return {one.raw for chain in chains for one in chain.needed | {_top(chain)}}


def _refuse_purged(what: str, condemned: Set[bytes]) -> None:
    if condemned:
        digest = Digest(min(condemned))
        raise NotFound(
            f"{what} is lost: exactly the content of its manifest b3:{digest.hex} was purged; save "
            "it again, under another digest, or use another version"
        ) from Purged(digest)


def _top(chain: Chain) -> Digest:
    """Return the digest of the version that a chain is read for."""
    return chain.patches[-1] if chain.patches else chain.start
