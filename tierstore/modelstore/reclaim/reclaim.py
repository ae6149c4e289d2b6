"""Garbage collection from Python: ``Store.reclaim``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tierstore.arguments import as_number, as_whole, wrong
from tierstore.forks import begin
from tierstore.modelstore.home.condemned import GRACE_S
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import TTL_S
from tierstore.progress import Progress, reported

if TYPE_CHECKING:
    from tierstore.modelstore.reclaim.collector import Collector
    from tierstore.modelstore.reclaim.errand import Errand
    from tierstore.modelstore.reclaim.explain import Explanation
    from tierstore.modelstore.reclaim.feature import SeenWriter
    from tierstore.modelstore.reclaim.kept import LastRun
    from tierstore.modelstore.reclaim.rebuild import RebuiltIndex, RebuiltLayouts
    from tierstore.modelstore.reclaim.report import Report
    from tierstore.modelstore.version import Version

GRACE = timedelta(seconds=GRACE_S)
"""How long a pack is seen to be garbage before it is condemned, unless something else is said."""


class Reclaim:
    """Gives back the space of what nothing needs any more; obtained as ``Store.reclaim``.

    Thread-safe: one collection at a time.

    Examples:
        >>> store = tierstore.init("store")
        >>> store.reclaim
        <Reclaim of file:///.../store>
    """

    def __init__(self, home: Home, cache_path: Path) -> None:
        """Reclaim the space of the store with this home; what is read of it is cached in a file."""
        self._home, self._cache_path = home, cache_path
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._collector: Collector | None = None

    def __repr__(self) -> str:
        return f"<Reclaim of {self._home.blobs.url}>"

    def __dir__(self) -> Sequence[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    @property
    def is_enabled(self) -> bool:
        """Whether versions of the store may be removed, and garbage be collected; asks home."""
        from tierstore.modelstore.reclaim.feature import is_enabled

        return is_enabled(self._home)

    def writers(self) -> list[SeenWriter]:
        """Return who wrote to the store lately and with what, the last one first.

        These are the running saves and the writers of the newest hundred entries of the logs.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> [writer.tool for writer in store.reclaim.writers()]
            ['tierstore ...']
        """
        from tierstore.modelstore.reclaim.feature import writers_seen

        return writers_seen(self._home)

    def enable(
        self, *, wait_s: float = TTL_S, waiting: Callable[[float], None] = lambda left_s: None
    ) -> None:
        """Allow, once for all, that versions of the store are removed and garbage is collected.

        Versions of tierstore that know no removal can still read the store, and cannot write to it.
        Returns once no save can be running that began before: after 4 hours, unless it was enabled
        that long ago. Interrupted, it goes on when it is called again.

        Args:
            wait_s: Seconds to wait for such saves; 0 when there are none for certain.
            waiting: Called now and then with the seconds that are left.

        Raises:
            Conflict: Others change the features of the store all the time.
            OtherHome: This home seems to be a copy of the one that deletes in the tiers; nothing
                was changed (``take_over``).

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> store.reclaim.is_enabled
            True
        """
        from tierstore.modelstore.reclaim.feature import enable

        wait_s = as_number("wait_s", wait_s, "seconds, 0 or more", 0)
        enable(self._home, wait_s, waiting=waiting)

    def take_over(self) -> list[str]:
        """Make this home the one that deletes in its warm and cold tiers; return their names.

        For a home that was moved, or restored from a backup, or whose tiers were copied for it.
        Any other home that uses these tiers deletes nothing there from then on. What it saved that
        this one does not know becomes garbage here: see that nobody uses it any more.

        Raises:
            UsageError: The store has no warm or cold tier.
            BackendError: A tier cannot be asked or written to: call it again; the others are done.

        Examples:
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url="warm")
            >>> store = tierstore.init("store", tiers=[warm])
            >>> store.reclaim.take_over()
            ['warm']
        """
        self._home.packs.refresh()
        return self._home.identity.take_over(self._home.packs.tiers)

    def run(
        self,
        *,
        dry_run: bool = False,
        repack: bool = True,
        grace: timedelta = GRACE,
        window: timedelta | None = None,
        max_bytes: int | None = None,
        max_time: timedelta | None = None,
        stop: threading.Event | None = None,
        progress: Progress | bool | None = None,
    ) -> Report:
        """Collect garbage once: delete the packs that nothing needs, in every tier.

        What stays is healed first where it lacks something. Of packs that are in use, but of which
        more than a fifth is waste, what is needed is written into new packs. It may be stopped at
        any moment, and called again to go on. Packs that lose their last version are condemned by
        one run and deleted once the saves have ended that ran then, by the same run if there are
        none.

        Args:
            dry_run: Whether nothing is changed: the report says what would be.
            repack: Whether what is needed of packs of which more than a fifth is waste goes into
                new packs, where more than a twentieth of the bytes of all is waste. Packs that
                readers hold, and those in archives, stay as they are.
            grace: How long a pack of an unfinished save is seen to be garbage before it is
                condemned: it may be there for a save that goes on. 0 is allowed.
            window: How long a removed version can be brought back; ``None`` for what is set in the
                store (``Store.retention``).
            max_bytes: Delete at most this much, counted in all tiers together; new packs and what
                they replace take no more than this either, until that is deleted.
            max_time: Begin no further deletions, and no further new packs, after this time.
            stop: Begin no further deletions once this is set.
            progress: ``True`` for a bar, or a function that is called with the bytes that were
                deleted and those to delete; as in ``Store.save``.

        Returns:
            Every pack of every tier with one reason, and what was done.

        Raises:
            UsageError: The store does not allow it yet (``enable``), or an argument is wrong.
            Conflict: Another process collects garbage now.
            OtherHome: This home seems to be a copy of the one that deletes in the tiers; nothing
                was deleted (``take_over``).
            Damaged, NotFound, UnsupportedFormat: Something cannot be read that may need a pack, or
                cannot be healed. Nothing was deleted; the message names it.
            BackendError: The store's home cannot be asked. A tier that cannot be asked is told in
                the report, and what it holds goes with a later run.

        Examples:
            >>> from datetime import timedelta
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)}, base=None)
            >>> _ = store.remove("ranker@1")
            >>> report = store.reclaim.run(window=timedelta(0))
            >>> len(report.of("deleted")), len(report.of("live"))
            (1, 1)
        """
        limit = None if max_bytes is None else as_whole("max_bytes", max_bytes, "bytes", 0)
        with self._lock, reported(progress, "collecting garbage") as told:
            return self._kept().run(
                dry_run=dry_run,
                repack=repack,
                grace_s=_seconds("grace", grace) or 0.0,
                window_s=_seconds("window", window),
                max_bytes=limit,
                max_time_s=_seconds("max_time", max_time),
                is_stopped=_never if stop is None else stop.is_set,
                progress=told,
            )

    def carry_out(self, errand: Errand, stop: threading.Event | None = None) -> Report:
        """Collect once, and delete at once what an errand says; for the store's own use.

        ``last`` says nothing of it. Once ``stop`` is set no further deletions begin.

        Raises:
            Conflict: Another process collects garbage now.
            Damaged, NotFound, UnsupportedFormat, BackendError: As ``run``.
        """
        with self._lock:
            is_stopped = _never if stop is None else stop.is_set
            return self._kept().run(errand=errand, is_stopped=is_stopped)

    def last(self) -> LastRun | None:
        """Return what the last collection found and did, whoever ran it; costs one read of home.

        ``None`` before the first, and where that note is lost.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> _ = store.reclaim.run()
            >>> store.reclaim.last().garbage
            {}
        """
        from tierstore.modelstore.reclaim.kept import read_last

        return read_last(self._home.blobs)

    def explain(self, *, grace: timedelta = GRACE, window: timedelta | None = None) -> Explanation:
        """Say why every byte of every durable tier is there; nothing is changed.

        Costs more than a run that finds nothing to do: every tier is listed with all it holds.

        Args:
            grace: As in ``run``.
            window: As in ``run``.

        Raises:
            Damaged, NotFound, UnsupportedFormat: Something cannot be read that may need a pack.
            BackendError: The store's home cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> version = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> for share in store.reclaim.explain().of("home"):
            ...     print(share.kind, share.why, share.objects)
            live ranker@1 1
            metadata index of chunks 1
            metadata layouts 1
            metadata logs of versions, names and removals 2
            metadata manifests 1
            metadata settings of the store 1
        """
        from tierstore.modelstore.reclaim.explain import explain

        with self._lock:
            return explain(
                self._kept(),
                self._home.packs.tiers,
                _seconds("grace", grace) or 0.0,
                _seconds("window", window),
            )

    def rebuild_index(
        self,
        *,
        source: Literal["layouts", "packs"] = "layouts",
        progress: Progress | bool | None = None,
    ) -> RebuiltIndex:
        """Make the dedup index anew, in segments of at most 10^6 chunks.

        What the index that is there holds is kept as far as it can be read and leads to packs that
        stay. Saves may run meanwhile. Takes about 700 bytes of memory for each chunk.

        Args:
            source: ``layouts`` takes what the versions have, in few requests; ``packs`` reads the
                footers of all packs, as where layouts are missing too.
            progress: ``True`` for a bar, or a function that is called with the bytes of the objects
                that were looked into, and of all; as in ``Store.save``.

        Raises:
            UsageError: There is no such source.
            UnsupportedFormat: The store needs a newer version to be written to.
            BackendError: The store's home or a tier cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32), "b": np.zeros(2)})
            >>> store.reclaim.rebuild_index().chunks
            2
        """
        from tierstore.modelstore.reclaim.rebuild import rebuild_index

        if source not in ("layouts", "packs"):
            raise wrong("source", "'layouts' or 'packs'", source)
        with reported(progress, "rebuilding the index") as told:
            return rebuild_index(self._home, source, told)

    def rebuild_layouts(
        self, *versions: Version, progress: Progress | bool | None = None
    ) -> RebuiltLayouts:
        """Make the layouts anew that are missing or damaged, from the footers of all packs.

        Layouts say where the chunks of a version are. One that is whole is kept. Memory is bounded,
        however large the store is; what is read is kept in a temporary file.

        Args:
            versions: The versions; without any, all that anything needs.
            progress: ``True`` for a bar, or a function that is called with the bytes of the packs
                that were looked into, and of all; as in ``Store.save``.

        Returns:
            What was written, and which versions have lost chunks.

        Raises:
            UnsupportedFormat: The store needs a newer version to be written to.
            Damaged: The logs of versions cannot be read.
            BackendError: The store's home or a tier cannot be asked.

        Examples:
            >>> store = tierstore.init("store")
            >>> version = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> done = store.reclaim.rebuild_layouts(version)
            >>> done.whole, done.written, done.lost
            (1, 0, [])
        """
        from tierstore.modelstore.home.readcache import ReadCache
        from tierstore.modelstore.reclaim.rebuild import rebuild_layouts
        from tierstore.modelstore.reclaim.roots import Root, Roots

        roots = [Root(version.digest, "live", str(version)) for version in versions]
        with reported(progress, "rebuilding layouts") as told:
            if not versions:
                found = Roots(self._home, ReadCache(self._cache_path)).find(time.time(), None)
                roots = found.roots
            return rebuild_layouts(self._home, roots, told)

    def _kept(self) -> Collector:
        """Return the collector of this process, which reads again only what is new."""
        from tierstore.modelstore.reclaim.collector import Collector

        if self._collector is None:
            self._collector = Collector(self._home, self._cache_path)
        return self._collector


def _never() -> bool:
    return False


def _seconds(argument: str, given: timedelta | None) -> float | None:
    if given is None:
        return None
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise wrong(argument, "a timedelta, such as timedelta(hours=12)", given)
    return given.total_seconds()
