"""The parts of an open store: each is made, and its room imported, when it is asked for first.

A process uses few of them: one that lists models neither saves nor loads. What every process needs
is given to ``Parts``; the store has the services that users ask for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.places import CACHE, HOME, StorePlace, StorePlaces
from tierstore.modelstore.reclaim.looks import Looks
from tierstore.modelstore.settings import Settings
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.upkeep import Upkeep, upkeep_tasks

if TYPE_CHECKING:
    from tierstore.modelstore.care.rebase import Rebasing
    from tierstore.modelstore.home.index import ChunkIndex
    from tierstore.modelstore.home.readerlease import ReaderLease
    from tierstore.modelstore.loading.opener import Opener
    from tierstore.modelstore.patches.service import Patching
    from tierstore.modelstore.placing.hotpins import HotPins
    from tierstore.modelstore.saving.transaction import Saving
    from tierstore.tiers.heat.recorder import HeatRecorder

_T = TypeVar("_T")
_CLOSE_S = 5.0


class Parts:
    """What a store is made of, for the floors above it: ``store._parts``. Thread-safe.

    Nothing of this is part of the public API: it may be another with every version.

    Args:
        home: Reads and writes the store's metadata, and knows the durable tiers.
        hot: The hot tiers of this process.
        settings: What the store may use of the machine.
        recorder: Counts what is read; ``None`` where nothing is counted.
        tier_places: Returns where this node has the store's tiers.
    """

    def __init__(
        self,
        home: Home,
        hot: HotTiers,
        settings: Settings,
        recorder: HeatRecorder | None,
        tier_places: Callable[[], Sequence[StorePlace]],
    ) -> None:
        self.home, self.hot, self.settings, self.recorder = home, hot, settings, recorder
        looks = Looks(home)
        self.names = Names(home, settings.node, settings.labels, looks.keep, looks.is_needed)
        """Finds versions by their names."""
        self.places = StorePlaces(
            lambda: [
                StorePlace(HOME, home.blobs.url),
                *tier_places(),
                StorePlace(CACHE, str(settings.cache_dir)),
            ]
        )
        """What must not overlap with sources of saves and targets of exports."""
        self.reopen: tuple[Callable[..., object], tuple[object, ...]] | None = None
        """Opens the store again where it is unpickled: a function and its arguments."""
        self._made: dict[str, Any] = {}
        sync_pins = None if hot.local is None else self.hot_pins.sync
        self.upkeep = Upkeep(upkeep_tasks(hot, recorder, sync_pins))
        """What this process does now and then, once it is started."""

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """Return the part or service of this name, made when it is asked for first."""
        # setdefault is atomic, where a lock that another thread holds in a fork would stay locked
        found: _T = self._made.get(name) or self._made.setdefault(name, make())
        return found

    @property
    def index(self) -> ChunkIndex:
        """Finds chunks that the store has already."""
        from tierstore.modelstore.home.index import ChunkIndex

        path = self.settings.cache_dir / self.home.config.store_id / "index.sqlite"
        return self.once("index", lambda: ChunkIndex(self.home.blobs, path))

    @property
    def lease(self) -> ReaderLease:
        """Keeps what this process reads from being collected."""
        from tierstore.modelstore.home.readerlease import ReaderLease

        return self.once("lease", lambda: ReaderLease(self.home.blobs))

    @property
    def hot_pins(self) -> HotPins:
        """Keeps the pins of this node's hot tier in line with the store's."""
        from tierstore.modelstore.placing.hotpins import HotPins

        return self.once("hot_pins", lambda: HotPins(self.home, self.hot.local))

    @property
    def opener(self) -> Opener:
        """Opens versions for reading."""
        from tierstore.modelstore.loading.opener import Opener

        return self.once("opener", lambda: Opener(self.home, self.settings, self.hot, self.places))

    @property
    def saving(self) -> Saving:
        """Runs saves; those of variants and uploads, too."""
        from tierstore.modelstore.saving.transaction import Saving

        names = self.names
        return self.once(
            "saving",
            lambda: Saving(
                self.home, self.index, self.opener, names.resolve, names.newest,
                self.settings.threads,
            ),
        )  # fmt: skip

    @property
    def rebasing(self) -> Rebasing:
        """Rebases versions; remembers which it has looked at."""
        from tierstore.modelstore.care.rebase import Rebasing

        return self.once("rebasing", lambda: Rebasing(self.home, self.index, self.opener.open_full))

    @property
    def patching(self) -> Patching:
        """Publishes and folds patches; within a limit, too."""
        from tierstore.modelstore.patches.service import Patching

        return self.once(
            "patching",
            lambda: Patching(self.home, self.names, self.opener, self.saving, self.lease),
        )

    def close(self) -> None:
        """End leases, and close files and connections, of what was made."""
        made = self._made
        if "lease" in made:
            self.lease.close()
        self.upkeep.close(_CLOSE_S)
        self.hot.close()
        if self.recorder is not None:
            self.recorder.flush()
        if "index" in made:
            self.index.close()
        self.home.close()
