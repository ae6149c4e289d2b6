"""The whole tier machine against a plain dict: whatever happens to it, every version stays whole.

A store spans this node's disk, a warm tier with a quota, a cold one and home. Versions are saved
and read, get hot and cold, are pinned, moved and evicted; tiers go down and come back, are drained,
lose bits; savers and movers are killed at any call. At every step:

* every pack of every version has a good copy in some tier;
* the warm tier never held more than its quota and one pack;
* what is pinned has left neither the warm tier nor this node's disk;
* whoever reads gets the right bytes, or is told that a tier cannot be asked, or, where all copies
  that can be asked are damaged, so much.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.between import close_stores, give_back
from tests.integration.kit import MIB, equal
from tests.integration.kit import settings as store_settings
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Conflict, Damaged, Unreachable
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.tiers import MoverLease, TierSpec
from tierstore.ids import Buffer
from tierstore.modelstore.home.home import chunks_of, create_config
from tierstore.modelstore.placing.placing import MoveReport, Placement
from tierstore.modelstore.store import Store
from tierstore.placement import policies
from tierstore.testing.faulty import Crashed, Fault, FaultyStore
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

KILLED = st.none() | st.integers(0, 90)
"""At which call to any tier the process is killed."""

QUOTA = 60_000
HOT_QUOTA = 60_000
MOVABLE = ("warm", "cold")
Content = dict[str, np.ndarray]


class Counting(MemoryStore):
    """Knows how full it ever was."""

    peak = 0
    largest = 0

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        super().put(key, data)
        sizes = [info.size for info in self.list("packs/")]
        self.peak = max(self.peak, sum(sizes))
        self.largest = max([self.largest, *sizes])


def content(seed: int, change: int) -> Content:
    """Of one seed all share a tensor, and differ a little in another: deltas and dedup."""
    rng = np.random.default_rng(seed)
    near = rng.standard_normal(2000).astype(np.float32)
    near[:change] += np.float32(0.001)
    return {
        "near": near,
        "same": rng.standard_normal(1500).astype(np.float32),
        "own": np.random.default_rng(100 * seed + change).standard_normal(1500).astype(np.float32),
    }


class TierMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tierstore-tiers-"))
        self.inner = {name: Counting(name) for name in ("home", *MOVABLE)}
        create_config(self.inner["home"], MIB)
        self.down: set[str] = set()
        self.draining: str | None = None
        self.killed = False
        self.versions: list[Content] = []
        self.truth: dict[str, bytes] = {}
        self.heat: dict[bytes, float] = {}
        self.pinned: dict[int, tuple[set[bytes], set[bytes]]] = {}
        """By version: its packs that were in the warm tier, and its chunks on this node's disk,
        when it was pinned or later."""
        self.hot = LocalHot(
            self.root / "hot", "machine", HOT_QUOTA, partial(policies.make, policies.DEFAULT_POLICY)
        )
        self.store = self.open()
        for seed in (1, 2):
            self.save(seed, 0)

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        self.down.clear()
        self.store = self.open()
        for number, expected in enumerate(self.versions, 1):
            equal(self.store.load(f"m@{number}").load(), expected)
        bad = [one for one in self.store.check(read_data=True).findings
               if one.severity == "damage" and one.needed_by]  # fmt: skip
        assert not bad, bad
        self.store.close()
        shutil.rmtree(self.root)
        close_stores()
        vars(self).clear()  # Hypothesis keeps the last machine, and all it has
        give_back()

    # The machine

    def open(self, die_after: int | None = None) -> Store:
        """A process of its own; with ``die_after`` it is killed at that call to any tier."""
        calls, down = 0, self.down  # a lease's thread asks when the machine has ended, too

        def plan(name: str, op: str, key: str, n: int) -> Fault:
            nonlocal calls
            calls += 1
            if die_after is not None and calls > die_after:
                raise Crashed(op)
            return Unreachable(f"{name} is down") if name in down else None

        stores = {n: FaultyStore(inner, partial(plan, n)) for n, inner in self.inner.items()}

        def tier(name: str) -> DurableTier:
            spec = TierSpec(
                name=name, role=name, url=f"memory://{name}",  # type: ignore[arg-type]
                size=QUOTA if name == "warm" else None,
                state="draining" if name == self.draining else "active",
            )  # fmt: skip
            return DurableTier(spec, stores[name])

        tiers = [*map(tier, MOVABLE), home_tier(stores["home"])]
        return Store(
            stores["home"], store_settings(self.root / "cache"), packs=DurableTiers(tiers),
            hot=HotTiers(local=self.hot),
        )  # fmt: skip

    def placement(self, store: Store) -> Placement:
        return Placement(store._parts.home, store.pins, lambda: self.heat)

    def packs(self, name: str) -> set[bytes]:
        listed = self.inner[name].list("packs/")
        return {bytes.fromhex(info.key.rpartition("/")[2]) for info in listed}

    def packs_of(self, number: int) -> set[bytes]:
        digest = self.store.resolve(f"m@{number}").digest
        return set(self.store.placement.packs_of(digest))

    def pass_time(self, seconds: float, prefix: str) -> None:
        for inner in self.inner.values():
            for key, (data, mtime) in list(inner._blobs.items()):
                if key.startswith(prefix):
                    inner._blobs[key] = (data, mtime - seconds)

    def drawn(self, data: st.DataObject) -> int:
        return data.draw(st.integers(1, len(self.versions)))

    # Using it

    @rule(seed=st.integers(1, 3), change=st.integers(0, 50))
    def save(self, seed: int, change: int) -> None:
        try:
            self.store.save("m", content(seed, change))
        except BackendError:  # a duplicate's pack may be where nobody can ask
            assert self.down
        else:
            self.versions.append(content(seed, change))

    @rule(seed=st.integers(1, 3), change=st.integers(0, 50), after=st.integers(0, 40))
    def save_and_be_killed(self, seed: int, change: int, after: int) -> None:
        with contextlib.suppress(Crashed, BackendError):
            self.open(after).save("m", content(seed, change))
        last = self.store._parts.home.log("m").last()
        if last is not None and last.seq > len(self.versions):
            self.versions.append(content(seed, change))

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        number = self.drawn(data)
        asked = {"home", *MOVABLE} - self.down
        there = set().union(*(self.packs(name) for name in asked))
        try:
            equal(self.store.load(f"m@{number}").load(), self.versions[number - 1])
        except Unreachable:
            assert self.down, "every tier could be asked"
            lost = self.packs_of(number) - there
            assert lost or self.spoiled, "a tier that answers has all of it"
        except Damaged:
            assert self.down, "every tier could be asked, and each pack has a good copy"
            keys = [f"packs/{pack.hex()[:2]}/{pack.hex()}" for pack in self.packs_of(number)]
            good = [any(self._good(name, key) for name in asked) for key in keys]
            assert not all(good), "a tier that answers has a good copy"
        self.store._parts.hot.flush(10)
        self._hold()

    # Moving

    @rule(data=st.data(), mood=st.sampled_from(["hot", "cold", "same"]), killed=KILLED)
    def rebalance(self, data: st.DataObject, mood: str, killed: int | None) -> None:
        """After a version was read a lot, or none was for long."""
        if mood == "hot":
            for pack in self.packs_of(self.drawn(data)):
                self.heat[pack] = 400_000.0
        elif mood == "cold":
            self.heat.clear()
            self.pass_time(10 * 86_400, "packs/")
        self.moved(killed, lambda placement: placement.rebalance())

    @rule(data=st.data(), tier=st.sampled_from([*MOVABLE, "home"]), killed=KILLED)
    def move(self, data: st.DataObject, tier: str, killed: int | None) -> None:
        wanted = sorted(self.packs_of(self.drawn(data)))
        self.moved(killed, lambda placement: placement.move(wanted, tier))

    @rule(tier=st.sampled_from(MOVABLE), killed=KILLED)
    def drain(self, tier: str, killed: int | None) -> None:
        self.draining = tier
        self.moved(killed, lambda placement: placement.drain(tier))
        self.draining = None
        self.store = self.open()

    def lease_holds(self) -> bool:
        """Whether a mover that was killed still keeps others from moving anything."""
        home = self.inner["home"]
        newest = max(home.list("movers/"), key=lambda info: info.key, default=None)
        if newest is None or newest.mtime < time.time() - 50:
            return False
        return not unseal_body(Kind.MOVER, home.get(newest.key), MoverLease, newest.key).done

    def moved(self, killed: int | None, act: Callable[[Placement], MoveReport]) -> None:
        """A mover of its own does something, unless another one was killed just now."""
        if self.killed:
            with pytest.raises(Conflict):
                act(self.placement(self.open()))
            self.pass_time(100, "movers/")
        try:
            report = act(self.placement(self.open(killed)))
        except Crashed:
            self.killed = self.lease_holds()
        else:
            self.killed = False
            for one in report.moved:
                assert one.status != "failed" or self.down or self.spoiled, one.why
        self._hold()

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        number = self.drawn(data)
        version = self.store.resolve(f"m@{number}")
        self.store.pins.add(version.digest, str(version), ["hot", "warm"])
        self.hot.pin(self._chunks(number))
        self.pinned.setdefault(number, (set(), set()))
        self._hold()

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.pinned)))
        digest = self.store.resolve(f"m@{number}").digest
        same = [n for n in self.pinned if self.store.resolve(f"m@{n}").digest == digest]
        self.store.pins.remove(digest)
        for each in same:
            del self.pinned[each]
        rest = {chunk for n in self.pinned for chunk in self._chunks(n)}
        self.hot.unpin([chunk for chunk in self._chunks(number) if chunk not in rest])

    @rule()
    def evict(self) -> None:
        self.hot.evict()

    # Failing

    @rule(name=st.sampled_from(MOVABLE))
    def tier_down(self, name: str) -> None:
        self.down.add(name)

    @precondition(lambda self: self.down)
    @rule()
    def tiers_up(self) -> None:
        self.down.clear()

    @rule()
    def crash(self) -> None:
        """The process ends without a word, and a new one begins."""
        self.store = self.open()

    @rule(data=st.data())
    def lose_a_bit(self, data: st.DataObject) -> None:
        """Of a copy of a pack that has another good one.

        Names and sizes of packs differ from run to run (an identifier is random): what is drawn
        depends on neither, else a failure could not be played again.
        """
        copies = [
            (name, key) for key in self.truth for name, inner in self.inner.items()
            if key in inner._blobs and any(self._good(n, key) for n in self.inner if n != name)
        ]  # fmt: skip
        if not copies:
            return
        name, key = data.draw(st.sampled_from(copies))
        content, mtime = self.inner[name]._blobs[key]
        spoiled = bytearray(content)
        spoiled[data.draw(st.integers(0, 1 << 20)) % len(content)] ^= 1
        self.inner[name]._blobs[key] = (bytes(spoiled), mtime)

    # What always holds

    def _good(self, name: str, key: str) -> bool:
        found = self.inner[name]._blobs.get(key)
        if found is None:
            return False
        return found[0] == self.truth.setdefault(key, found[0])

    @property
    def spoiled(self) -> bool:
        return any(
            not self._good(name, info.key)
            for name, inner in self.inner.items()
            for info in inner.list("packs/")
        )

    def _chunks(self, number: int) -> list[bytes]:
        digest = self.store.resolve(f"m@{number}").digest
        return list(dict.fromkeys(chunks_of(self.store._parts.home.manifest(digest))))

    def _hold(self) -> None:
        """What is pinned and has arrived where it is kept must stay there."""
        warm = self.packs("warm")
        for number, (packs, chunks) in self.pinned.items():
            packs |= self.packs_of(number) & warm
            every = self._chunks(number)
            chunks |= {
                one for one, there in zip(every, self.hot.resident(every), strict=True) if there
            }

    @invariant()
    def every_version_is_whole(self) -> None:
        if not hasattr(self, "store"):
            return
        for inner in self.inner.values():
            for info in inner.list("packs/"):
                self.truth.setdefault(info.key, bytes(inner.get(info.key)))
        for number in range(1, len(self.versions) + 1):
            for pack in self.packs_of(number):
                key = f"packs/{pack.hex()[:2]}/{pack.hex()}"
                good = [name for name in self.inner if self._good(name, key)]
                assert good, f"m@{number} has lost pack {pack.hex()[:12]}"

    @invariant()
    def the_quota_holds(self) -> None:
        if hasattr(self, "inner"):
            warm = self.inner["warm"]
            assert warm.peak <= QUOTA + warm.largest, "more than one pack above the quota"

    @invariant()
    def what_is_pinned_stays(self) -> None:
        if not hasattr(self, "pinned"):
            return
        warm = self.packs("warm")
        for number, (packs, chunks) in self.pinned.items():
            assert packs <= warm, f"m@{number} is pinned, and left the warm tier"
            known = sorted(chunks)
            assert all(self.hot.resident(known)), f"m@{number} is pinned, and was evicted"


TierMachine.TestCase.settings = settings(
    max_examples=settings().max_examples * 5 // 12, stateful_step_count=40, deadline=None
)
test_tier_machine = TierMachine.TestCase
