"""Removals by two processes, compared with a model: sets of numbers, and who names them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.integration.kit import created, equal, opened
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound, Unreachable, UsageError
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore

WHICH = st.integers(0, 1)
NUMBERS = st.sets(st.integers(1, 8), min_size=1, max_size=3)
ALIASES = st.sampled_from(["prod", "next"])


def content(number: int) -> dict[str, np.ndarray]:
    return {"w": np.full((4, 3), number % 4, np.float32)}


class RemovalMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tierstore-removal-"))
        self.blobs = MemoryStore("removal")
        self.stores = [created(self.blobs, self.root / "0"), opened(self.blobs, self.root / "1")]
        enable(self.stores[0]._parts.home, wait_s=0)
        self.last = 0
        self.removed: set[int] = set()
        self.aliases: dict[str, list[int]] = {}
        self.pins: set[int] = set()
        self.save(0)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for store in self.stores:
                store.close()
            shutil.rmtree(self.root)

    @property
    def present(self) -> set[int]:
        return set(range(1, self.last + 1)) - self.removed

    def named(self, going: set[int]) -> set[int]:
        """What of these may not go: an alias means a version, and a pin its content."""
        stay = self.present - going
        pinned = {
            number
            for number in going
            for pin in self.pins
            if pin % 4 == number % 4 and all(one % 4 != number % 4 for one in stay)
        }
        return going & {history[-1] for history in self.aliases.values()} | pinned

    @rule(which=WHICH)
    def save(self, which: int) -> None:
        self.last += 1
        assert self.stores[which].save("m", content(self.last)).number == self.last

    @rule(which=WHICH, numbers=NUMBERS, force=st.booleans())
    def remove(self, which: int, numbers: set[int], force: bool) -> None:
        refs = [f"m@{number}" for number in sorted(numbers)]
        allowed = (
            numbers <= self.present
            and not self.named(numbers)
            and (force or max(self.present) not in numbers)
        )
        try:
            self.stores[which].remove(*refs, force=force)
        except (Conflict, NotFound):
            assert not allowed
        else:
            assert allowed
            self.removed |= numbers

    @rule(which=WHICH, numbers=NUMBERS, after=st.integers(0, 60))
    def remove_and_fail(self, which: int, numbers: set[int], after: int) -> None:
        """Whatever answer is lost: all of them are removed, or none."""

        def plan(op: str, key: str, n: int) -> Fault:
            return "lose-response" if n > after else None

        before = self.present
        refs = [f"m@{number}" for number in sorted(numbers)]
        with contextlib.suppress(Conflict, NotFound, Unreachable, UsageError):
            faulty = opened(FaultyStore(self.blobs, plan), self.root / str(which))
            faulty.remove(*refs)
        gone = before - self._present_in(self.stores[which])
        assert gone in (set(), numbers)
        self.removed |= gone

    def _present_in(self, store: Store) -> set[int]:
        with contextlib.suppress(NotFound):
            return {version.number for version in store.versions("m")}
        return set()

    @rule(which=WHICH, number=st.integers(1, 8))
    def undelete(self, which: int, number: int) -> None:
        try:
            self.stores[which].undelete(f"m@{number}")
        except (NotFound, UsageError):
            assert number not in self.removed
        else:
            self.removed.remove(number)

    @rule(which=WHICH, alias=ALIASES, number=st.integers(1, 8))
    def point(self, which: int, alias: str, number: int) -> None:
        try:
            self.stores[which].alias("m", alias, f"m@{number}")
        except NotFound:
            assert number not in self.present
        else:
            assert number in self.present
            self.aliases.setdefault(alias, []).append(number)

    @rule(which=WHICH, alias=ALIASES)
    def unpoint(self, which: int, alias: str) -> None:
        with contextlib.suppress(NotFound):
            self.stores[which].remove_alias("m", alias)
            del self.aliases[alias]

    @rule(which=WHICH, number=st.integers(1, 8))
    def pin(self, which: int, number: int) -> None:
        store = self.stores[which]
        with contextlib.suppress(NotFound):
            store.pins.add(store.resolve(f"m@{number}").digest, f"m@{number}", ["hot"])
            self.pins.add(number)

    @rule(which=WHICH)
    def unpin_all(self, which: int) -> None:
        for pin in self.stores[which].pins.active():
            self.stores[which].pins.remove(pin.version)
        self.pins.clear()

    @rule(which=WHICH, keep=st.integers(1, 3))
    def forget(self, which: int, keep: int) -> None:
        try:
            found = self.stores[which].forget("m", keep_last=keep, most_percent=100)
        except NotFound:
            assert not self.present
            return
        before = self.present
        self.removed |= {version.number for version in found.removed}
        assert {one.version.number for one in found.kept} == self.present
        newest = set(sorted(before)[-keep:])
        assert newest | self.named(before) <= self.present

    @rule(which=WHICH)
    def load(self, which: int) -> None:
        for number in self.present:
            equal(self.stores[which].load(f"m@{number}").load(), content(number))

    @invariant()
    def both_agree_with_the_model(self) -> None:
        if not hasattr(self, "stores"):
            return
        for store in self.stores:
            assert self._present_in(store) == self.present
            assert {one.version.number for one in store.deleted("m")} == self.removed
            assert store.models() == (["m"] if self.present else [])
            if self.present:
                assert store.resolve("m").number == max(self.present)
            pointed = {alias.name: alias.version.number for alias in store.aliases("m")}
            assert pointed == {name: history[-1] for name, history in self.aliases.items()}
            assert set(pointed.values()) <= self.present


RemovalMachine.TestCase.settings = settings(
    max_examples=max(5, settings().max_examples // 4), stateful_step_count=20, deadline=None
)
TestRemoval = RemovalMachine.TestCase
