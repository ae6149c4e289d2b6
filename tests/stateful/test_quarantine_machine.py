"""A store whose packs rot while savers and checkers work on it and die.

Nothing wrong is ever returned; what was saved since a check is readable, and so is every older
version whose content was.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.integration.kit import created, equal, opened
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Damaged, NotFound, OutOfSpace, Unreachable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

Content = dict[str, np.ndarray]
MODELS = st.sampled_from(["m", "n"])


def tensor(kind: int) -> np.ndarray:
    """Kinds 0 to 2 are near to each other, so that one is stored as a delta of another."""
    rng = np.random.default_rng(kind // 3)
    base = rng.standard_normal((70, 200), np.float32)
    return base + np.float32(1e-5) * (kind % 3)


TENSORS = [tensor(kind) for kind in range(6)]
CONTENTS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.integers(0, len(TENSORS) - 1), min_size=1
).map(lambda kinds: {name: TENSORS[kind] for name, kind in kinds.items()})


class QuarantineMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tierstore-quarantine-"))
        self.blobs = MemoryStore("quarantine")
        self.stores = [
            created(self.blobs, self.root / "0"),
            opened(self.blobs, self.root / "1"),
        ]
        self.versions: dict[str, list[Content]] = {"m": [], "n": []}

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for store in self.stores:
                store.close()
            shutil.rmtree(self.root)

    @property
    def every(self) -> list[tuple[str, Content]]:
        return [
            (f"{model}@{number}", content)
            for model, own in self.versions.items()
            for number, content in enumerate(own, 1)
        ]

    def _published(self, model: str, content: Content) -> bool:
        """Note what a save that failed has published, if it has."""
        last = self.stores[0]._parts.home.log(model).last()
        if (last.seq if last else 0) == len(self.versions[model]):
            return False
        self.versions[model].append(content)
        return True

    @rule(model=MODELS, content=CONTENTS, which=st.integers(0, 1), deltas=st.booleans())
    def save(self, model: str, content: Content, which: int, deltas: bool) -> None:
        self.stores[which].save(model, content, base="auto" if deltas else None)
        assert self._published(model, content)

    @rule(
        model=MODELS, content=CONTENTS, which=st.integers(0, 1), after=st.integers(0, 12),
        fault=st.sampled_from(["crash", "full", "lost"]),
    )  # fmt: skip
    def save_and_fail(
        self, model: str, content: Content, which: int, after: int, fault: str
    ) -> None:
        def plan(op: str, key: str, n: int) -> Fault:
            if op not in ("put", "put_if_absent") or faulty.mutations != after:
                return None
            return OutOfSpace("full") if fault == "full" else "lose-response"

        if fault == "crash":
            faulty = FaultyStore(self.blobs, crash_after=after)
        else:
            faulty = FaultyStore(self.blobs, plan)
        with contextlib.suppress(Crashed, OutOfSpace, Unreachable):
            opened(faulty, self.root / str(which)).save(model, content)
        self._published(model, content)

    @precondition(lambda self: self.every)
    @rule(data=st.data(), which=st.integers(0, 1))
    def patch_and_fold(self, data: st.DataObject, which: int) -> None:
        ref, content = data.draw(st.sampled_from(self.every))
        name = sorted(content)[0]
        rows = data.draw(st.lists(st.integers(0, 69), unique=True, max_size=3))
        values = np.full((len(rows), 200), data.draw(st.integers(0, 2)), np.float32)
        patched = {**content, name: content[name].copy()}
        patched[name][rows] = values
        store, model = self.stores[which], ref[0]
        with contextlib.suppress(Conflict):  # the chain is full
            store.patch(ref, {name: Rows(rows, values)}, fold=False)
            assert self._published(model, patched)
            with contextlib.suppress(Damaged, NotFound):
                store.fold(f"{model}@{len(self.versions[model])}")

    @precondition(lambda self: self.every)
    @rule(number=st.integers(0, 99), at=st.integers(0, 999))
    def rot(self, number: int, at: int) -> None:
        # names and sizes of packs are random: what is drawn must not depend on them
        packs = sorted(self.blobs.list("packs/"), key=lambda info: info.mtime)
        key = packs[number % len(packs)].key
        content = bytearray(self.blobs.get(key))
        content[at * len(content) // 1000] ^= 1
        with self.blobs._lock:  # at its old time
            self.blobs._blobs[key] = bytes(content), self.blobs._blobs[key][1]

    @rule(which=st.integers(0, 1), after=st.none() | st.integers(0, 2), read=st.booleans())
    def check(self, which: int, after: int | None, read: bool) -> None:
        faulty = FaultyStore(self.blobs, crash_after=after)
        with contextlib.suppress(Crashed):
            opened(faulty, self.root / str(which)).check(read_data=read)

    @rule(which=st.integers(0, 1))
    def lose_the_index(self, which: int) -> None:
        self.stores[which].close()
        shutil.rmtree(self.root / str(which), ignore_errors=True)
        self.stores[which] = opened(self.blobs, self.root / str(which))

    @precondition(lambda self: self.every)
    @rule(data=st.data(), which=st.integers(0, 1))
    def load(self, data: st.DataObject, which: int) -> None:
        ref, content = data.draw(st.sampled_from(self.every))
        with contextlib.suppress(Damaged, NotFound):
            equal(self.stores[which].load(ref).load(), content)

    @precondition(lambda self: self.every)
    @rule(data=st.data(), which=st.integers(0, 1))
    def save_again_after_a_check(self, data: st.DataObject, which: int) -> None:
        """What is saved is readable, whatever was known of it before."""
        store = self.stores[which]
        store.check(read_data=True)
        ref, content = data.draw(st.sampled_from(self.every))
        store.save(ref[0], content)
        assert self._published(ref[0], content)
        self._reads(store, f"{ref[0]}@{len(self.versions[ref[0]])}", content)

    @precondition(lambda self: self.every)
    @rule(which=st.integers(0, 1))
    def save_everything_again_after_a_check(self, which: int) -> None:
        """Then every version is readable: full ones are healed, and those below patches."""
        store = self.stores[which]
        store.check(read_data=True)
        full = [pair for pair in self.every if not store.load(pair[0])._opened.patches]
        for ref, content in full:
            store.save(ref[0], content)
            assert self._published(ref[0], content)
        for ref, content in full:
            self._reads(self.stores[1 - which], ref, content)

    def _reads(self, store: Store, ref: str, content: Content) -> None:
        equal(store.load(ref).load(), content)
        for name, array in content.items():
            assert store.load(ref).tensor(name)[[5, 60]].tobytes() == array[[5, 60]].tobytes()


QuarantineMachine.TestCase.settings = settings(
    max_examples=settings().max_examples // 3, stateful_step_count=20, deadline=None
)
TestQuarantine = QuarantineMachine.TestCase
