"""The store that a schedule plays on: how it begins, what was promised, and whether that holds."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.schedules.scheduler import START_S, Gate, Process, Scheduler, installed
from tierstore import Rows
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, TierstoreError
from tierstore.format.keys import ALIASES, LEASES, REMOVED_LOG
from tierstore.format.reflog import RefEntry
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import Home, create_config
from tierstore.modelstore.home.leases import TTL_S
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

MIB = 1 << 20
DAY_S = 24 * 3600.0
Content = dict[str, np.ndarray]


class Lost(AssertionError):
    """Something that was promised is not there, or something that nothing needs stays."""


def _weights(seed: int) -> Content:
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((25, 200), np.float32),
        "head": rng.standard_normal((10, 100), np.float32),
        "common": np.arange(3000, dtype=np.float32),
    }


def _tuned(content: Content, seed: int) -> Content:
    rng = np.random.default_rng(seed)
    return {
        name: array * (1 + np.float32(1e-4) * rng.standard_normal(array.shape, np.float32))
        for name, array in content.items()
    }


CONTENTS = {
    "first": _weights(1),
    "other": _weights(2),
    "third": _weights(4),
    "tuned": _tuned(_weights(1), 3),
    "fresh": _weights(9),
}
"""What is saved; few, so that equal content is saved again and again."""


def patched(content: Content, rows: int) -> tuple[dict[str, Rows], Content]:
    """Return changes of a content, which depend on a number, and what they make of it."""
    head = content["head"].copy()
    head[: rows % 3 + 2] += np.float32(1 + rows)
    return {"head": Rows(list(range(rows % 3 + 2)), head[: rows % 3 + 2])}, {
        **content,
        "head": head,
    }


def differs(got: dict[str, Any], expected: Content) -> bool:
    """Return whether a loaded model is another than what was saved."""
    return sorted(got) != sorted(expected) or any(
        got[name].tobytes() != array.tobytes() for name, array in expected.items()
    )


@dataclass(eq=False)
class World:
    """One store, and what its users were promised.

    Attributes:
        scheduler: Runs the parties.
        stores: The storages by the name of their tier; ``home`` is among them.
        cache: A folder for caches of processes.
        versions: The content of the versions whose save has returned, by model and number.
        undeleted: Notes of undeletes that have returned.
        aliases: The entries, by model, alias and number of the version, that were promised.
        pinned: The versions whose pin was promised, with their contents.
        released: The members of promised releases, by the release.
        lapsed: The keys of leases that ended before they were renewed.
        collecting: The collectors that run.
        removals: How many entries the logs of removals had at the start, by model.
        is_kept: Whether no collector ignores the window and the time does not end it.
    """

    scheduler: Scheduler
    stores: dict[str, MemoryStore]
    cache: Path
    versions: dict[tuple[str, int], Content] = field(default_factory=dict)
    undeleted: set[str] = field(default_factory=set)
    aliases: set[tuple[str, str, int]] = field(default_factory=set)
    pinned: list[tuple[str, int]] = field(default_factory=list)
    released: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    lapsed: set[str] = field(default_factory=set)
    collecting: set[Process] = field(default_factory=set)
    removals: Counter[str] = field(default_factory=Counter)
    is_kept: bool = True
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

    # Whether all that was promised is there

    def settle(self, process: Process) -> None:
        """Collect until nothing is left to do, then look that all is as it was promised.

        Raises:
            Lost: It is not.
        """
        self.scheduler.down.clear()
        self.scheduler.now_s += 3 * TTL_S
        if self.is_kept:
            self._bring_back(process)
        self._collect(process)
        with self.open(process) as store:
            removed = {
                model: store._names.removals.of(model).keys()
                for model in store._parts.home.models()
            }
            for (model, number), content in self.versions.items():
                if number not in removed.get(model, ()):
                    self._look(store, f"{model}@{number}", content)
            self._look_at_names(store)

    def _bring_back(self, process: Process) -> None:
        """Undelete everything: no window has ended."""
        with self.open(process) as store:
            for (model, number), content in self.versions.items():
                if number in store._names.removals.of(model):
                    ref = f"{model}@{number}"
                    try:
                        store.undelete(ref)
                    except TierstoreError as error:
                        raise Lost(
                            f"{ref} cannot be undeleted within its window: {error}"
                        ) from error
                    self._look(store, ref, content)

    def _look_at_names(self, store: Store) -> None:
        home = store._parts.home
        for model, alias, number in self.aliases:
            last = home.log(model, ALIASES + alias).last()
            if last is not None and last.version == number:
                content = self.versions.get((model, number))
                if content is not None:
                    self._look(store, f"{model}@{alias}", content)
        for members in self.released.values():
            for model, number in members:
                self._look(store, f"{model}@{number}", self.versions[model, number])
        active = {pin.version.hex for pin in store.pins.active()}
        for model, number in self.pinned:
            entry = home.log(model).entry(number)
            if entry.manifest in active:
                self._look(store, f"{model}@{number}", self.versions[model, number])

    def _look(self, store: Store, ref: str, content: Content) -> None:
        try:
            got = store.load(ref).load()
        except TierstoreError as error:
            raise Lost(f"{ref} is lost: {error}") from error
        if differs(got, content):
            raise Lost(f"{ref} has other bytes")

    def _collect(self, process: Process) -> None:
        """Collect everything; a version that was promised to nobody may have to be removed first.

        Such a one is left by a process that died, or had an error, between its entry and its look.
        """
        for _ in range(10):
            try:
                self._collect_once(process)
                break
            except Damaged as error:
                if not self._remove_unpromised(process):
                    raise Lost(f"nothing more is collected: {error}") from error
        else:
            raise Lost("nothing more is collected")
        self.scheduler.now_s += 3600
        done = self._collect_once(process)
        states = {one.state for one in done.packs}
        if not states <= {"live", "chain", "base"}:
            raise Lost(f"garbage stays: {done.reasons()}")
        left = [info.key for info in self.stores["home"].list(LEASES)]
        if left:
            raise Lost(f"leases stay: {left}")

    def _collect_once(self, process: Process) -> Report:
        return Collector(self.home(process)).run(grace_s=0, window_s=0)

    def _remove_unpromised(self, process: Process) -> bool:
        removed = 0
        with self.open(process) as store:
            home = store._parts.home
            for model in home.models():
                gone = store._names.removals.of(model)
                for entry in home.log(model).entries():
                    if entry.seq in gone or self._is_promised(model, entry.seq, store):
                        continue
                    try:
                        store.load(f"{model}@{entry.seq}").load()
                    except TierstoreError:
                        store.remove(f"{model}@{entry.seq}", force=True)
                        removed += 1
        return removed > 0

    def _is_promised(self, model: str, number: int, store: Store) -> bool:
        if (model, number) not in self.versions:
            return False
        last: RefEntry | None = next(
            (one for one in store._names.removals.entries(model) if number in one.versions), None
        )
        return last is None or (last.action == "undelete" and last.message in self.undeleted)


@dataclass(frozen=True)
class _Start:
    stores: dict[str, dict[str, tuple[bytes, float]]]
    versions: dict[tuple[str, int], Content]
    aliases: frozenset[tuple[str, str, int]] = frozenset()


STARTS = ("plain", "listed", "collected", "tiers", "chain")
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
            one = World(scheduler, stores, folder, dict(made.versions), aliases=set(made.aliases))
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
        one.versions,
        frozenset(one.aliases),
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
            one.versions[model, version.number] = CONTENTS[name]

        save("m", "first", None)
        save("m", "third", None)
        save("n", "first", None)
        save("n", "tuned", "n@1")
        save("n", "other", None)
        changes, content = patched(CONTENTS["other"], 1)
        one.versions["n", store.patch("n", changes).number] = content
        if start == "chain":
            changes, content = patched(content, 2)
            one.versions["n", store.patch("n", changes).number] = content
            store.fold("n@4")
            store.alias("m", "prod", "m@2")
            one.aliases.add(("m", "prod", 2))
        store.remove("m@1", "n@1", "n@2")
        if start in ("listed", "collected"):
            most = 0 if start == "listed" else None
            for _ in range(2):
                Collector(store._parts.home).run(grace_s=0, window_s=0, max_bytes=most)
