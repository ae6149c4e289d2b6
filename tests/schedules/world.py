"""The store that a schedule plays on, and how it begins."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.schedules.promises import CONTENTS, Content, Promises, patched
from tests.schedules.scheduler import START_S, Gate, Process, Scheduler, installed
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import LEASES, REMOVED_LOG, layout_key
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import Home, create_config
from tierstore.modelstore.home.leases import TTL_S
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

MIB = 1 << 20
DAY_S = 24 * 3600.0


@dataclass(eq=False)
class World:
    """One store, and what its users were promised.

    Attributes:
        scheduler: Runs the parties.
        stores: The storages by the name of their tier; ``home`` is among them.
        cache: A folder for caches of processes.
        promises: What users were promised.
        lapsed: The keys of leases that ended before they were renewed.
        collecting: The collectors that run.
        removals: How many entries the logs of removals had at the start, by model.
    """

    scheduler: Scheduler
    stores: dict[str, MemoryStore]
    cache: Path
    promises: Promises = field(default_factory=Promises)
    lapsed: set[str] = field(default_factory=set)
    collecting: set[Process] = field(default_factory=set)
    removals: Counter[str] = field(default_factory=Counter)
    caches: int = 0

    # How processes see it

    def tiers(self, process: Process) -> tuple[BlobStore, DurableTiers | None]:
        """Return home and the tiers as a process sees them."""
        gates = {
            name: Gate(store, process, self.scheduler, name) for name, store in self.stores.items()
        }
        home = gates["home"]
        if "warm" not in gates:
            return home, None
        spec = TierSpec(name="warm", role="warm", url="memory://warm")
        return home, DurableTiers([DurableTier(spec, gates["warm"]), home_tier(home)])

    def open(self, process: Process) -> Store:
        """Open the store in a process."""
        self.caches += 1
        settings = Settings(self.cache / str(self.caches), threads=1, memory_limit_bytes=64 * MIB)
        home, packs = self.tiers(process)
        return Store(home, settings, packs=packs)

    def home(self, process: Process) -> Home:
        """Open the store's home alone in a process."""
        home, packs = self.tiers(process)
        return Home(home, packs)

    @contextmanager
    def collects(self, process: Process) -> Iterator[None]:
        """Note that a collector runs; one that dies deletes nothing any more."""
        self.collecting.add(process)
        try:
            yield
        finally:
            self.collecting.discard(process)

    def note_lapsed(self) -> None:
        """Note which leases have ended: called when the time has gone on."""
        for info in self.stores["home"].list(LEASES):
            if self.scheduler.now_s - info.mtime > TTL_S:
                self.lapsed.add(info.key)

    def settle(self, process: Process) -> None:
        """Let all leases end, and look that all is as it was promised; see ``Promises.settle``."""
        self.scheduler.down.clear()

        def end_leases() -> None:
            self.scheduler.now_s += 3 * TTL_S

        self.promises.settle(lambda: self.open(process), end_leases)


@dataclass(frozen=True)
class _Start:
    stores: dict[str, dict[str, tuple[bytes, float]]]
    versions: dict[tuple[str, int], Content]
    aliases: frozenset[tuple[str, str, int]] = frozenset()


STARTS = ("plain", "listed", "collected", "tiers", "chain", "broken")
BEGIN_S = START_S + DAY_S


@contextmanager
def world(start: str, scheduler: Scheduler) -> Iterator[World]:
    """A store as it is at the start of a schedule; the scheduler is installed meanwhile."""
    made = _made(start)
    stores = {}
    for name, blobs in made.stores.items():
        stores[name] = MemoryStore(name)
        stores[name]._blobs = dict(blobs)
    scheduler.now_s = BEGIN_S
    folder = Path(tempfile.mkdtemp(prefix="schedule", dir=_shm()))
    try:
        with installed(scheduler):
            one = World(scheduler, stores, folder)
            one.promises.versions |= made.versions
            one.promises.aliases |= made.aliases
            scheduler.on_jump = one.note_lapsed
            for model in ("m", "n"):
                entries = stores["home"].list(f"refs/{model}/{REMOVED_LOG}/")
                one.removals[model] = sum(1 for _ in entries)
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shm() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def _made(start: str) -> _Start:
    scheduler = Scheduler(0)
    stores = {"home": MemoryStore("home")}
    if start == "tiers":
        stores["warm"] = MemoryStore("warm")
    folder = Path(tempfile.mkdtemp(prefix="schedule", dir=_shm()))
    try:
        with installed(scheduler):
            one = World(scheduler, stores, folder)
            scheduler.start(Process("start"), lambda: _make(one, start))
            scheduler.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _Start(
        {name: dict(store._blobs) for name, store in stores.items()},
        one.promises.versions,
        frozenset(one.promises.aliases),
    )


def _make(one: World, start: str) -> None:
    """m@1, n@1 and n@2 are removed; n@2 is a delta on n@1, n@4 a patch on n@3."""
    process = one.scheduler.process
    assert process is not None
    create_config(one.stores["home"], MIB)
    with one.open(process) as store:
        enable(store._parts.home, wait_s=0)

        def save(model: str, name: str, base: str | None) -> None:
            version = store.save(model, CONTENTS[name], base=base)
            one.promises.versions[model, version.number] = CONTENTS[name]

        save("m", "first", None)
        save("m", "third", None)
        save("n", "first", None)
        save("n", "tuned", "n@1")
        save("n", "other", None)
        changes, content = patched(CONTENTS["other"], 1)
        one.promises.versions["n", store.patch("n", changes).number] = content
        if start == "chain":
            changes, content = patched(content, 2)
            one.promises.versions["n", store.patch("n", changes).number] = content
            store.fold("n@4")
            store.alias("m", "prod", "m@2")
            one.promises.aliases.add(("m", "prod", 2))
        store.remove("m@1", "n@1", "n@2")
        if start == "broken":  # as what one collector saw, and two others have done since
            home = store._parts.home
            digest = store.resolve("m@2").digest
            packs = home.layout(digest, home.manifest(digest)).pack_ids
            home.condemned.condemn(packs, run=uuid.uuid4().hex, now_us=int(BEGIN_S * 1e6))
            one.stores["home"].delete([layout_key(store.resolve("n@3").digest)])
        if start in ("listed", "collected"):
            most = 0 if start == "listed" else None
            for _ in range(2):
                Collector(store._parts.home).run(grace_s=0, window_s=0, max_bytes=most)
