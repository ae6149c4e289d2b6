"""The store against the dumbest model of it: dicts. Whatever happens, both say the same."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.numpy import save_file

from tests.between import close_stores, give_back
from tests.integration.kit import MIB, created, equal, opened
from tierstore import Dense, Elements, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound, OutOfSpace, Unreachable
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

# mostly one of them, so that things happen to it
MODELS = st.sampled_from(["m", "m", "m", "org/n"])
ALIASES = st.sampled_from(["prod", "prod", "prod", "canary"])
Content = dict[str, np.ndarray]


@st.composite
def contents(draw: st.DrawFn) -> Content:
    """Few different tensors, so that versions share chunks; one of them has two chunks."""
    return {
        name: np.full(size, draw(st.integers(1, 4)), dtype)
        for name, size, dtype in draw(
            st.lists(
                st.sampled_from(
                    [("w", 7, "f4"), ("v", 300, "i2"), ("big", MIB + 9, "u1"), ("none", 0, "f8")]
                ),
                unique=True,
                min_size=1,
                max_size=3,
            )
        )
    }


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tierstore-machine-"))
        self.blobs = MemoryStore("machine")
        self.store = created(self.blobs, self.root / "cache")
        self.versions: dict[str, list[Content]] = {}
        self.pointed: dict[tuple[str, str], list[int | None]] = {}
        """For each alias what it has pointed to, as rollback sees it."""
        self.loaded: list[tuple[object, Content]] = []
        for value in (1, 2, 3):
            self.save_arrays("m", {"w": np.full(7, value, "f4")}, "prod")

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.store.close()
            shutil.rmtree(self.root)
            close_stores()
            vars(self).clear()  # Hypothesis keeps the last machine, and all it has
            give_back()

    def _saved(self, model: str, content: Content, alias: str | None) -> None:
        own = self.versions.setdefault(model, [])
        own.append(content)
        if alias is not None:
            self._point(model, alias, len(own))

    def _point(self, model: str, alias: str, number: int) -> None:
        self.pointed.setdefault((model, alias), []).append(number)

    @rule(model=MODELS, content=contents(), alias=st.none() | ALIASES)
    def save_arrays(self, model: str, content: Content, alias: str | None) -> None:
        version = self.store.save(model, content, alias=alias)
        self._saved(model, content, alias)
        assert version.number == len(self.versions[model])

    @rule(model=MODELS, content=contents())
    def save_a_file(self, model: str, content: Content) -> None:
        path = self.root / "file.safetensors"
        save_file(content, path)
        self.store.save(model, path)
        self._saved(model, content, None)
        exported = self.root / "out"
        self.store.load(model).export(exported)
        assert (exported / "file.safetensors").read_bytes() == path.read_bytes()

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def save_the_same_again(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.versions)))
        content = data.draw(st.sampled_from(self.versions[model]))
        self.store.save(model, content)
        self._saved(model, content, None)

    @rule(
        model=MODELS, content=contents(), after=st.integers(0, 9), alias=st.none() | ALIASES,
        fault=st.sampled_from(["crash", "full", "lost"]),
    )  # fmt: skip
    def save_and_fail(
        self, model: str, content: Content, after: int, alias: str | None, fault: str
    ) -> None:
        """Afterwards the store says itself whether it was published; the rest must fit to that."""

        def plan(op: str, key: str, n: int) -> Fault:
            if op not in ("put", "put_if_absent") or faulty.mutations < after:
                return None
            return OutOfSpace("full") if fault == "full" else "lose-response"

        if fault == "crash":
            faulty = FaultyStore(self.blobs, crash_after=after)
        else:
            faulty = FaultyStore(self.blobs, plan)
        with contextlib.suppress(Crashed, OutOfSpace, Unreachable):
            opened(faulty, self.root / "cache").save(model, content, alias=alias)
        before = len(self.versions.get(model, []))
        log = self.store._parts.home.log(model).last()
        if (log.seq if log else 0) > before:
            self._saved(model, content, None)
            if alias is not None:
                last = self.store._parts.home.log(model, f"alias/{alias}").last()
                if last is not None and last.version == before + 1:
                    self._point(model, alias, before + 1)

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), alias=st.none() | ALIASES, after=st.none() | st.integers(0, 9))
    def patch(self, data: st.DataObject, alias: str | None, after: int | None) -> None:
        """Patch any version; with ``after`` the process dies after so many changes of the store."""
        model = data.draw(st.sampled_from(sorted(self.versions)))
        own = self.versions[model]
        number = data.draw(st.integers(1, len(own)))
        base = own[number - 1]
        if not base:
            return
        name = data.draw(st.sampled_from(sorted(base)))
        array = base[name].copy()
        count = len(array)
        some = data.draw(st.lists(st.integers(0, count - 1), max_size=4)) if count else []
        values = np.arange(5, 5 + len(some)).astype(array.dtype)
        for index, value in zip(some, values, strict=True):
            array[index] = value
        kind = data.draw(st.sampled_from([Rows, Elements, Dense]))
        change = Dense(array) if kind is Dense else kind(some, values)
        ref, changes = f"{model}@{number}", {name: change}
        content = {**base, name: array}
        if after is None:
            assert self.store.patch(ref, changes, alias=alias).number == len(own) + 1
            self._saved(model, content, alias)
            return
        with contextlib.suppress(Crashed, Conflict):  # or the chain is full
            dying = opened(FaultyStore(self.blobs, crash_after=after), self.root / "cache")
            dying.patch(ref, changes, fold=False)
        last = self.store._parts.home.log(model).last()
        if last is not None and last.seq > len(own):
            self._saved(model, content, None)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def fold(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.versions)))
        number = data.draw(st.integers(1, len(self.versions[model])))
        before = self.store.resolve(f"{model}@{number}")
        self.store.fold(str(before))
        assert not self.store.load(str(before))._opened.patches
        assert self.store.resolve(str(before)) == before

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), alias=ALIASES)
    def alias(self, data: st.DataObject, alias: str) -> None:
        model = data.draw(st.sampled_from(sorted(self.versions)))
        number = data.draw(st.integers(1, len(self.versions[model])))
        assert self.store.alias(model, alias, f"{model}@{number}").version.number == number
        self._point(model, alias, number)

    @rule(model=MODELS, alias=ALIASES)
    def rollback(self, model: str, alias: str) -> None:
        steps = self.pointed.get((model, alias), [])
        now = steps[-1] if steps else None
        rest = list(steps)
        while rest and (rest[-1] is None or rest[-1] == now):
            rest.pop()
        if not rest:
            with pytest.raises(NotFound):
                self.store.rollback(model, alias)
            return
        assert self.store.rollback(model, alias).version.number == rest[-1]
        self.pointed[model, alias] = rest

    @rule(model=MODELS, alias=ALIASES)
    def remove_alias(self, model: str, alias: str) -> None:
        steps = self.pointed.get((model, alias), [])
        if not steps or steps[-1] is None:
            with pytest.raises(NotFound):
                self.store.remove_alias(model, alias)
            return
        self.store.remove_alias(model, alias)
        steps.append(None)

    @rule(model=MODELS, alias=ALIASES)
    def load_by_alias(self, model: str, alias: str) -> None:
        steps = self.pointed.get((model, alias), [])
        if not steps or steps[-1] is None:
            with pytest.raises(NotFound):
                self.store.load(f"{model}@{alias}")
            return
        content = self.versions[model][steps[-1] - 1]
        equal(self.store.load(f"{model}@{alias}").load(), content)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def load_by_number_and_digest(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.versions)))
        number = data.draw(st.integers(1, len(self.versions[model])))
        content = self.versions[model][number - 1]
        one = self.store.load(f"{model}@{number}")
        equal(one.load(), content)
        equal(self.store.load(f"{model}@b3:{one.version.digest.hex[:16]}").load(), content)
        self.loaded.append((one, content))
        with pytest.raises(NotFound):
            self.store.load(f"{model}@{len(self.versions[model]) + 1}")

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def rows(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.versions)))
        content = self.versions[model][-1]
        for name, array in content.items():
            if len(array):
                index = data.draw(st.lists(st.integers(-len(array), len(array) - 1), max_size=5))
                got = self.store.load(model).tensor(name)[index]
                assert got.tobytes() == array[index].tobytes()

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def read_what_was_opened_before(self, data: st.DataObject) -> None:
        model, content = data.draw(st.sampled_from(self.loaded))
        equal(model.load(), content)  # type: ignore[attr-defined]

    @rule(close=st.booleans())
    def reopen(self, close: bool) -> None:
        if close:
            self.store.close()
        self.store = opened(self.blobs, self.root / "cache")

    @rule()
    def delete_the_index_cache(self) -> None:
        shutil.rmtree(self.root / "cache", ignore_errors=True)

    @rule()
    def drop_the_layouts(self) -> None:
        self.blobs.delete([info.key for info in self.blobs.list("layouts/")])

    @rule()
    def drop_the_hints_and_segments(self) -> None:
        keys = [info.key for info in self.blobs.list()]
        self.blobs.delete([k for k in keys if k.endswith("/HEAD") or k.startswith("index/")])

    @rule(read_data=st.booleans())
    def check(self, read_data: bool) -> None:
        report = self.store.check(read_data=read_data)
        damage = [f for f in report.findings if f.severity == "damage"]
        # a layout that was dropped is damage that loading heals
        assert all("'tierstore layout rebuild --all'" in finding.what for finding in damage), damage

    @invariant()
    def both_list_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        known = {model for model, versions in self.versions.items() if versions}
        assert {m for m in self.store.models() if self.store._parts.home.log(m).last()} == known
        for model in known:
            numbers = [version.number for version in self.store.versions(model)]
            assert numbers == list(range(len(self.versions[model]), 0, -1))


StoreMachine.TestCase.settings = settings(
    max_examples=settings().max_examples * 5 // 3, stateful_step_count=40, deadline=None
)
TestStore = StoreMachine.TestCase
