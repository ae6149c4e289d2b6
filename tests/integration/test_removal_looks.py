"""rm and what names versions: each looks behind its own entry, whatever the other does meanwhile.

In each race one party runs as a whole before some request of the other, for every request there is.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened
from tests.integration.test_collector import packs_of
from tests.integration.test_collector_schedules import copied
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    Conflict,
    Damaged,
    NotDurable,
    NotFound,
    OutOfSpace,
    TierstoreError,
    Unreachable,
    UsageError,
)
from tierstore.format.keys import (
    CONDEMNED,
    HEAD,
    LEASES,
    PACKS,
    REFS,
    REMOVED_LOG,
    RESERVE,
    pack_key,
)
from tierstore.format.reflog import Action, Lease
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import PINS
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import in_force, new_lease
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.names.named import Named
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore
from tierstore.variants.derive import derive

Act: TypeAlias = Callable[[Store], object]
ROWS = {"w": Rows([1], np.full((1, 8), 7, np.float32))}


def content(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((40, 8), value, np.float32)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with a@1, a@2, b@1, b@2, and m@1 to m@3, of which m@1 and m@2 are equal.

    all@1 and all@2 are releases of a@1, and of a@2.
    """
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world")) as store:
        enable(store._parts.home, wait_s=0)
        for model in "ab":
            for value in (1, 2):
                store.save(model, content(value), base=None)
        for value in (3, 3, 4):
            store.save("m", content(value), base=None)
        store.releases.create("all", ["a@1"])
        store.releases.create("all", ["a@2"])
    return blobs


@pytest.fixture
def blobs(world: MemoryStore) -> MemoryStore:
    return copied(world)


@pytest.fixture
def store(blobs: MemoryStore, tmp_path: Path) -> Iterator[Store]:
    with opened(blobs, tmp_path) as store:
        yield store


def numbers(store: Store, model: str) -> list[int]:
    try:
        return [version.number for version in store.versions(model)]
    except NotFound:
        return []


def said_of(act: Act, store: Store) -> str:
    try:
        act(store)
    except TierstoreError as error:
        return str(error)
    return "done"


@dataclass(eq=False)
class Meanwhile:
    """Acts before a request of somebody else's main thread; a plan for a ``FaultyStore``.

    Attributes:
        at: The number of the request.
        act: What is done then.
        store: Where that is done.
        said: What became of it; ``None`` as long as it was not done.
    """

    at: int
    act: Act
    store: Store
    said: str | None = None
    left: int | None = None

    def __call__(self, op: str, key: str, n: int) -> None:
        if self.left is None or threading.current_thread() is not threading.main_thread():
            return
        self.left -= 1
        if self.left == 0:
            self.said = said_of(self.act, self.store)

    def begin(self) -> None:
        """Count from now on."""
        self.left = self.at


def races(
    world: MemoryStore, tmp_path: Path, first: Act, second: Act
) -> Iterator[tuple[Store, str, str]]:
    """Yield a store for each request of ``first`` before which ``second`` ran, and what they said.

    The last one has ``second`` behind ``first``.
    """
    for at in itertools.count(1):
        blobs = copied(world)
        with opened(blobs, tmp_path / uuid.uuid4().hex) as other:
            pause = Meanwhile(at, second, other)
            with opened(FaultyStore(blobs, pause), tmp_path / uuid.uuid4().hex) as store:
                pause.begin()
                said = said_of(first, store)
                pause.left = None
            yield other, said, pause.said or said_of(second, other)
        if pause.said is None:
            return


def say(store: Store, action: Action, model: str, number: int) -> None:
    """Append an entry to the log of removals, and do not look: whoever did it died."""
    store._parts.home.log(model, REMOVED_LOG).append(action, lambda last: NOWHERE, None, [number])


def actions(store: Store, model: str) -> list[str]:
    log = store._parts.home.log(model, REMOVED_LOG)
    return [str(entry.action) for entry in log.entries()][::-1]


def pinned_variant(store: Store) -> None:
    variant = derive(store, "a@1", {"cast": "bf16"})
    store.pins.add(variant.digest, "a@1+bf16", ["hot"])


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_variant_that_is_made_and_pinned_meanwhile_keeps_its_version(
    world: MemoryStore, tmp_path: Path, removed_first: bool
) -> None:
    with opened(copied(world), tmp_path / "alone") as store:
        store.remove("all@1")
        world = copied(store._blobs)  # type: ignore[arg-type]
    parties: list[Act] = [pinned_variant, lambda store: store.remove("a@1")]
    if removed_first:
        parties.reverse()
    outcomes = set()
    for store, *said in races(world, tmp_path, *parties):
        removed, pinned = 1 not in numbers(store, "a"), bool(store.pins.active())
        assert not (removed and pinned), said
        outcomes.add((removed, pinned))
    assert outcomes == {(True, False), (False, True)}


def test_two_removals_of_equal_content_do_not_excuse_each_other(
    world: MemoryStore, tmp_path: Path
) -> None:
    """A pin means either of them; each could go as long as the other one stays."""
    with opened(copied(world), tmp_path / "pinned") as store:
        store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"])
        world = copied(store._blobs)  # type: ignore[arg-type]
    outcomes = set()
    for store, *said in races(
        world, tmp_path, lambda store: store.remove("m@1"), lambda store: store.remove("m@2")
    ):
        left = numbers(store, "m")
        assert len(left) >= 2, said
        outcomes.add(tuple(left))
    assert outcomes >= {(3, 2), (3, 1)}


def test_an_announced_removal_of_equal_content_is_stopped(store: Store) -> None:
    """Who announced them was killed: neither could be removed as long as the other one was."""
    store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"])
    say(store, "announce", "m", 1)
    say(store, "announce", "m", 2)
    store.remove("m@1")
    assert numbers(store, "m") == [3, 2]
    assert actions(store, "m") == ["announce", "announce", "undelete", "announce", "forget"]
    with pytest.raises(Conflict, match="m@2 is needed by pin of"):
        store.remove("m@2")


def test_an_announced_removal_is_stopped_for_a_patch_on_equal_content(store: Store) -> None:
    store.patch("m@1", ROWS)
    say(store, "announce", "m", 1)
    store.remove("m@2")
    assert numbers(store, "m") == [4, 3, 1]
    assert actions(store, "m") == ["announce", "undelete", "announce", "forget"]


def test_who_is_refused_ends_what_was_announced(world: MemoryStore, tmp_path: Path) -> None:
    """Of the other models, too: whoever names one of them ends the removal of that alone."""
    parties: list[Act] = [
        lambda store: store.remove("b@1", "m@1"),
        lambda store: store.alias("m", "prod", "m@1"),
    ]
    outcomes = set()
    for store, said, _ in races(world, tmp_path, *parties):
        removals = Removals(store._parts.home)
        assert not removals.announced("b"), said
        assert not removals.announced("m"), said
        outcomes.add((said == "done", bool(actions(store, "b"))))
    assert outcomes == {(True, True), (False, True), (False, False)}


def test_what_others_announced_or_removed_since_is_not_undone(store: Store) -> None:
    protocol = store._names.named.protocol
    [first] = protocol.announce("m", [1, 2], "")
    [second] = protocol.announce("m", [2], "")
    assert protocol.undo(first, "") == [1]
    forgotten = protocol.forget(second, "")
    protocol.bring_back("m", [2], "")
    [third] = protocol.announce("m", [2], "")
    protocol.forget(third, "")
    assert protocol.undo(forgotten, "") == []
    assert numbers(store, "m") == [3, 1]


def test_a_removal_that_is_interrupted_ends_what_was_announced(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> None:
        if op == "list" and key == PINS and actions(store, "m")[-1:] == ["announce"]:
            raise KeyboardInterrupt

    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(KeyboardInterrupt),
    ):
        other.remove("b@1", "m@1")
    for model in "bm":
        assert actions(store, model) == ["announce", "undelete"]


@pytest.mark.parametrize("removed_first", [True, False])
def test_what_a_patch_lies_on_is_removed_meanwhile(
    world: MemoryStore, tmp_path: Path, removed_first: bool
) -> None:
    """Whichever entry is the first one holds; a patch can be loaded in any case."""
    was_there: list[bool] = []

    def remove(store: Store) -> None:
        was_there.append(3 in numbers(store, "b"))
        store.remove("b@1")

    parties: list[Act] = [lambda store: store.patch("b@1", ROWS), remove]
    if removed_first:
        parties.reverse()
    expected = content(1)
    expected["w"][1] = 7
    outcomes = set()
    for store, *said in races(world, tmp_path, *parties):
        left = numbers(store, "b")
        removed, patched = 1 not in left, 3 in left
        if patched:
            equal(store.load("b@3").load(), expected)
        if removed_first or was_there[-1]:
            assert not (removed and patched), said
        outcomes.add((removed, patched))
    assert (False, True) in outcomes
    assert ((True, False) if removed_first else (True, True)) in outcomes


def test_a_patch_stops_a_removal_that_is_announced(store: Store) -> None:
    say(store, "announce", "b", 1)
    store.patch("b@1", ROWS)
    assert actions(store, "b") == ["announce", "undelete"]


TOGETHER: dict[str, tuple[Act, list[tuple[str, int]], Act]] = {
    "models": (
        lambda store: store.remove("b@1", "m@1"),
        [("b", 1), ("m", 1)],
        lambda store: store.alias("m", "prod", "m@1"),
    ),
    "whole models": (
        lambda store: store.remove_model("b", "m"),
        [("b", 1), ("b", 2), ("m", 1), ("m", 2), ("m", 3)],
        lambda store: store.alias("m", "prod", "m@3"),
    ),
    "a release and its member": (
        lambda store: store.remove("a@1", "all@1"),
        [("all", 1), ("a", 1)],
        lambda store: store.alias("a", "prod", "a@1"),
    ),
    "a member and its release": (
        lambda store: store.remove("all@1", "a@1"),
        [("all", 1), ("a", 1)],
        lambda store: store.alias("all", "prod", "all@1"),
    ),
}


@pytest.mark.parametrize("what", TOGETHER)
def test_all_or_none_of_what_is_removed_together(
    world: MemoryStore, tmp_path: Path, what: str
) -> None:
    """One of them gets a name meanwhile."""
    remove, versions, name = TOGETHER[what]
    outcomes = set()
    for store, said, named in races(world, tmp_path, remove, name):
        there = {number in numbers(store, model) for model, number in versions}
        assert there == {said != "done"}, (said, named)
        if said == "done":
            assert named != "done"
            assert not any(store.aliases(model) for model, _ in versions)
        else:
            assert "nothing was removed" in said
            for model, number in versions:
                if model != "all":
                    store.load(f"{model}@{number}").load()
        outcomes.add(said == "done")
    assert outcomes == {True, False}


def test_of_what_is_brought_back_each_is_looked_at_by_itself(
    store: Store, blobs: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version is named as the others are removed already; one of those cannot be looked at."""
    [own] = packs_of(store, "b@2")
    [other_own] = packs_of(store, "b@1")

    def plan(op: str, key: str, n: int) -> Fault:
        is_removed = op == "put_if_absent" and actions(store, "b")[-1:] == ["forget"]
        if is_removed and not store.aliases("m"):
            store.alias("m", "prod", "m@1")
        return Unreachable("gone") if key == pack_key(own) else None

    faulty = FaultyStore(blobs, plan)
    with (
        opened(faulty, tmp_path / "other") as other,
        pytest.raises(Conflict, match="m@1 was named"),
    ):
        other.remove("b@1", "b@2", "m@1", force=True)
    assert numbers(store, "b") == [1]
    looked = [key for op, key in faulty.calls if op == "info" and key.startswith(PACKS)]
    assert looked == [pack_key(own), pack_key(other_own)]
    said = [one.message for one in caplog.records if one.name == "tierstore.removal"]
    assert said == ["b@2 stays removed: gone"]


def test_a_removal_that_is_cut_off_leaves_no_release_of_what_is_removed(
    world: MemoryStore, tmp_path: Path
) -> None:
    outcomes = set()
    for changes in itertools.count():
        blobs = copied(world)
        faulty = FaultyStore(blobs, crash_after=changes)
        try:
            with opened(faulty, tmp_path / uuid.uuid4().hex) as store:
                store.remove("a@1", "all@1")
        except Crashed:
            pass
        with opened(blobs, tmp_path / uuid.uuid4().hex) as store:
            outcomes.add((1 in numbers(store, "all"), 1 in numbers(store, "a")))
        if faulty.mutations < changes:
            break
    assert outcomes == {(True, True), (False, True), (False, False)}


def test_a_release_of_others_keeps_a_member(store: Store) -> None:
    store.releases.create("both", ["a@1", "b@1"])
    with pytest.raises(Conflict, match=r"^a@1 is needed by release both@1; nothing was removed"):
        store.remove("all@1", "a@1")
    assert numbers(store, "all") == [2, 1]
    with pytest.raises(UsageError, match="no version was named"):
        store.remove_model()


def test_rules_remove_nothing_that_an_alias_left_meanwhile(
    world: MemoryStore, tmp_path: Path
) -> None:
    def move(store: Store) -> None:
        store.alias("m", "prod", "m@1")
        store.alias("m", "prod", "m@3")

    outcomes = set()
    for store, said, moved in races(
        world, tmp_path, lambda store: store.forget("m", keep_last=1, most_percent=100), move
    ):
        is_removed = 1 not in numbers(store, "m")
        assert is_removed == (moved != "done"), (said, moved)
        if "stays by now" in said:
            assert numbers(store, "m") == [3, 2, 1], said
        outcomes.add("stays by now" if "stays by now" in said else said == "done")
    assert outcomes >= {"stays by now", True}


# A name is taken back, whatever fails in its look


def no_room(op: str, key: str) -> OutOfSpace | None:
    return OutOfSpace("no room") if op == "put_if_absent" and "/removed/" in key else None


@pytest.mark.parametrize("has_reserve", [True, False])
def test_a_name_on_a_full_home_stops_a_removal_or_is_taken_back(
    store: Store, blobs: MemoryStore, tmp_path: Path, has_reserve: bool
) -> None:
    say(store, "announce", "b", 1)
    if not has_reserve:
        blobs.delete([RESERVE])

    def plan(op: str, key: str, n: int) -> Fault:
        return no_room(op, key) if not has_reserve or RESERVE in blobs.get_many([RESERVE]) else None

    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        if has_reserve:
            other.alias("b", "prod", "b@1")
        else:
            with pytest.raises(OutOfSpace, match=r"no room. There is no reserve .* b@prod is gone"):
                other.alias("b", "prod", "b@1")
    assert bool(store.aliases("b")) == has_reserve
    assert actions(store, "b") == (["announce", "undelete"] if has_reserve else ["announce"])


ALIAS, REMOVED = "/alias/", "/removed/"
SAYING: dict[str, tuple[str, int, Act]] = {
    "alias": (ALIAS, 1, lambda store: store.alias("b", "new", "b@1")),
    "unalias": (ALIAS, 1, lambda store: store.remove_alias("b", "prod")),
    "rollback": (ALIAS, 1, lambda store: store.rollback("b", "prod")),
    "rollout": (ALIAS, 1, lambda store: store.rollouts.start("b", "prod", "b@1")),
    "announce": (REMOVED, 1, lambda store: store.remove("a@1", "m@1")),
    "forget": (REMOVED, 3, lambda store: store.remove("a@1", "m@1")),
    "undelete": (REMOVED, 1, lambda store: store.undelete("m@2")),
}
"""Entries of names and removals: a part of their keys, which one it is, and who appends it."""


@pytest.fixture(scope="module")
def named(world: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """The same, with an alias b@prod that meant b@1 and means b@2; m@2 is removed."""
    blobs = copied(world)
    with opened(blobs, tmp_path_factory.mktemp("named")) as store:
        store.alias("b", "prod", "b@1")
        store.alias("b", "prod", "b@2")
        store.remove("all@1")
        store.remove("m@2")
    return blobs


def logs(blobs: MemoryStore) -> Mapping[str, int]:
    """How many entries the logs of names and removals have."""
    keys = [info.key for info in blobs.list(REFS) if "/versions/" not in info.key]
    return Counter(key[:-17] for key in keys if not key.endswith(HEAD))


@pytest.mark.parametrize("what", SAYING)
def test_an_entry_whose_answer_was_lost_is_ones_own(
    named: MemoryStore, tmp_path: Path, what: str
) -> None:
    """The put arrived, and neither its answer nor the first one to a question."""
    part, nth, act = SAYING[what]
    blobs, whole, put = copied(named), copied(named), list[str]()

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and part in key and len(put) < nth:
            put.append(key)
            return "lose-response" if len(put) == nth else None
        if op == "get" and len(put) == nth and put[-1] == key:
            put.append("unread")
            return Unreachable("gone")
        return None

    with opened(whole, tmp_path / "whole") as store:
        act(store)
    with opened(FaultyStore(blobs, plan), tmp_path / "lost") as store:
        act(store)
    assert put[-1] == "unread"
    assert logs(blobs) == logs(whole)


def undurable(
    blobs: MemoryStore, what: str, monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]
) -> Act:
    """Let an entry be there and said not to be durable; return who appends it."""
    (part, nth, act), put = SAYING[what], list[str]()

    def put_if_absent(key: str, data: bytes) -> bool:
        is_own = MemoryStore.put_if_absent(blobs, key, data)
        if part in key and len(put) < nth:
            put.append(key)
            if len(put) == nth:
                do()
                raise NotDurable("the disk did not answer")
        return is_own

    monkeypatch.setattr(blobs, "put_if_absent", put_if_absent)
    return act


@pytest.mark.parametrize("what", SAYING)
def test_an_entry_that_a_power_loss_may_take_back_is_looked_after(
    named: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Who appended it is told so; a removal of several is taken back as a whole."""
    blobs, whole = copied(named), copied(named)
    with opened(whole, tmp_path / "whole") as store:
        SAYING[what][2](store)
    act = undurable(blobs, what, monkeypatch, lambda: None)
    with opened(blobs, tmp_path / "lost") as store, pytest.raises(NotDurable):
        act(store)
    if what in ("announce", "forget"):
        with opened(blobs, tmp_path / "after") as store:
            assert (numbers(store, "a"), numbers(store, "m")) == ([2, 1], [3, 1])
            assert not store._names.removals.announced("a")
    else:
        assert logs(blobs) == logs(whole)


@pytest.mark.parametrize("what", ["alias", "rollback", "rollout"])
def test_a_name_that_a_power_loss_may_take_back_is_none_of_what_is_removed(
    named: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    blobs = copied(named)
    with opened(blobs, tmp_path / "other") as other, opened(blobs, tmp_path / "lost") as store:
        act = undurable(blobs, what, monkeypatch, lambda: say(other, "forget", "b", 1))
        with pytest.raises(NotFound, match="b@1 was removed on"):
            act(store)
        assert {str(one.version) for one in store.aliases("b")} == {"b@2"}
        assert not store.rollouts.running()


def test_a_name_whose_look_at_removals_fails_is_taken_back(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        if not failed and store.aliases("b") and op == "get" and "b/removed/" in key:
            failed.append(key)
            return Unreachable("gone")
        return None

    failed: list[str] = []

    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(Unreachable, match=r"^gone. b@prod is gone$"),
    ):
        other.alias("b", "prod", "b@1")
    assert not store.aliases("b")


def test_a_name_that_cannot_be_taken_back_says_so(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return Unreachable("gone") if store.aliases("b") else None

    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(Unreachable, match=r"^gone. Taking that back ended with: gone$"),
    ):
        other.alias("b", "prod", "b@1")
    assert store.aliases("b")


@pytest.mark.parametrize("error", [Unreachable("gone"), OutOfSpace("no room")])
def test_an_alias_that_is_put_back_stays_there_whatever_its_look_says(
    store: Store, blobs: MemoryStore, tmp_path: Path, error: TierstoreError
) -> None:
    store.alias("b", "prod", "b@1")

    def plan(op: str, key: str, n: int) -> Fault:
        return error if begun and op == "get" and "b/removed/" in key else None

    begun: list[bool] = []
    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        version = other.resolve("b@2")
        entry = other._parts.home.log("b").entry(2)
        begun.append(True)
        with pytest.raises(type(error), match=rf"^{error}. b@prod points to b@1 as before; look"):
            other._names.point("b", "prod", entry, None)
    assert version.number == 2
    assert store.resolve("b@prod").number == 1
    assert [one.action for one in store.history("b", "prod")] == ["rollback", "set", "set"]
    assert RESERVE in blobs.get_many([RESERVE]), "nothing was to be written"


def test_an_alias_both_of_whose_ends_fail_their_look_ends_where_it_was(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Nobody can say what is condemned: a segment is missing."""
    store.alias("b", "prod", "b@1")
    condemn(blobs, *(info.key for info in blobs.list(PACKS)))
    blobs.delete([info.key for info in blobs.list(CONDEMNED)])
    with (
        opened(blobs, tmp_path / "other") as other,
        pytest.raises(Damaged, match=r"b@prod points to b@1 as before; looking at that ended with"),
    ):
        other.alias("b", "prod", "b@2")
    assert [one.action for one in store.history("b", "prod")] == ["rollback", "set", "set"]


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_rollout_whose_last_look_fails_goes_back_unless_that_is_removed(
    store: Store, blobs: MemoryStore, tmp_path: Path, is_removed: bool
) -> None:
    store.alias("b", "prod", "b@1")
    store.rollouts.start("b", "prod", "b@2", stages=[10_000])

    def plan(op: str, key: str, n: int) -> Fault:
        is_over = store.history("b", "prod", 1)[0].action == "finish"
        if not failed and is_over and op == "get" and "b/removed/" in key:
            failed.append(key)
            if is_removed:
                store.remove("b@1")
            return Unreachable("gone")
        return None

    failed: list[str] = []
    where = "is gone" if is_removed else "points to b@1 as before"
    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(Unreachable, match=rf"^gone. The rollout of b@prod is over: b@prod {where}$"),
    ):
        other.rollouts.step("b", "prod", force=True)
    assert [one.version.number for one in store.aliases("b")] == ([] if is_removed else [1])
    assert not store.pins.active()


NAMES: dict[str, Act] = {
    "alias": lambda store: store.alias("b", "prod", "b@1"),
    "rollback": lambda store: store.rollback("b", "prod"),
    "rollout": lambda store: store.rollouts.start("b", "prod", "b@1"),
    "release": lambda store: store.releases.create("rest", ["b@1"]),
    "pin": lambda store: store.pins.add(store.resolve("b@1").digest, "b@1", ["hot"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_whose_look_is_interrupted_is_taken_back(
    store: Store, blobs: MemoryStore, tmp_path: Path, name: str
) -> None:
    """As by Ctrl-C: a look may copy packs for minutes."""
    store.alias("b", "prod", "b@1")
    store.alias("b", "prod", "b@2")
    before = list(map(numbers, [store] * 2, ["b", "rest"]))

    def is_named() -> bool:
        means = store.history("b", "prod", 1)[0]
        named = 1 in (means.version, means.rollout and means.rollout.version)
        return named or bool(store.pins.active()) or numbers(store, "rest") != []

    def plan(op: str, key: str, n: int) -> None:
        if begun and not ended and op == "get" and "b/removed/" in key and is_named():
            ended.append(key)
            raise KeyboardInterrupt

    begun, ended = list[bool](), list[str]()
    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        begun.append(True)
        with pytest.raises(KeyboardInterrupt) as raised:
            NAMES[name](other)
    said = getattr(raised.value, "__notes__", [])
    assert (name == "pin") != bool(said), "what became of the name"
    assert ended
    assert not is_named()
    assert store.resolve("b@prod").number == 2
    assert list(map(numbers, [store] * 2, ["b", "rest"])) == before


# Releases and their members


def test_a_release_of_what_is_removed_gets_no_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it died before the look, and its member was removed meanwhile."""
    with monkeypatch.context() as dies:
        dies.setattr(Named, "look", lambda *args: None)
        say(store, "announce", "b", 1)
        store.releases.create("rest", ["b@1"])
    say(store, "forget", "b", 1)
    with pytest.raises(NotFound, match=r"^b@1 was removed on .* rest@prod is gone$"):
        store.alias("rest", "prod", "rest@1")
    assert not store.aliases("rest")
    store.undelete("b@1")
    say(store, "announce", "b", 1)
    store.alias("rest", "prod", "rest@1")
    assert actions(store, "b")[-1] == "undelete", "the removal was stopped"


def test_a_release_that_has_a_name_is_not_taken_back(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Its writer cannot look at the member; whoever named it could."""

    def plan(op: str, key: str, n: int) -> Fault:
        is_look = op == "get" and "b/removed/" in key and "rest" in store.releases.names()
        if is_look and not store.aliases("rest"):
            store.alias("rest", "prod", "rest@1")
            return Unreachable("gone")
        return None

    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(
            Unreachable, match=r"^gone. rest@1 was published, and stays, as something needs it"
        ),
    ):
        other.releases.create("rest", ["b@1"])
    assert store.resolve("rest@prod").number == 1
    assert numbers(store, "rest") == [1]


# What its own writer removes


def test_a_version_that_cannot_be_promised_goes_though_it_is_read(
    store: Store, blobs: MemoryStore
) -> None:
    """Who follows the newest version has loaded it at once; the lease keeps what is left of it."""
    patch = store.patch("b@1", ROWS)
    lease = msgspec.structs.replace(new_lease("reader"), versions=[patch.digest.hex])
    blobs.put(f"{LEASES}{lease.id}", seal_body(Kind.LEASE, lease))
    with pytest.raises(Conflict, match="b@3 is needed by lease of"):
        store.remove("b@3", force=True)
    assert store._names.named.remove_own(patch, "lost")
    assert numbers(store, "b") == [2, 1]


def test_a_version_that_cannot_be_promised_stays_below_a_patch(store: Store) -> None:
    below = store.patch("b@1", ROWS)
    above = store.patch(below, ROWS | {"w": Rows([2], np.full((1, 8), 8, np.float32))})
    named = store._names.named
    assert not named.remove_own(below, "lost")
    assert numbers(store, "b") == [4, 3, 2, 1]
    assert actions(store, "b") == ["announce", "undelete"]
    assert named.remove_own(above, "lost")
    assert named.remove_own(below, "lost")
    assert named.remove_own(below, "lost"), "it is removed already"


def test_a_version_that_comes_back_in_vain_goes_though_its_content_is_pinned(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """The pin means another version of that content, which stays."""
    store.remove("m@2")
    store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"])
    [own] = packs_of(store, "m@1")

    def plan(op: str, key: str, n: int) -> Fault:
        is_back = actions(store, "m")[-1] == "undelete"
        return Unreachable("gone") if key == pack_key(own) and is_back else None

    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(Unreachable, match=r"^gone$"),
    ):
        other.undelete("m@2")
    assert numbers(store, "m") == [3, 1]


# Pins


def test_a_process_that_was_opened_before_removal_was_allowed_sees_it_as_it_pins(
    tmp_path: Path,
) -> None:
    blobs = MemoryStore("early")
    with created(blobs, tmp_path / "a") as store, opened(blobs, tmp_path / "b") as early:
        for value in (1, 2):
            store.save("m", content(value), base=None)
        old = early.resolve("m@1")
        enable(store._parts.home, wait_s=0)
        store.remove("m@1")
        with pytest.raises(NotFound, match="m@1 was removed on"):
            early.pins.add(old.digest, "m@1", ["hot"])
        assert not store.pins.active()
        none = timedelta(0)
        store.reclaim.run(grace=none, window=none)
        store.reclaim.run(grace=none)


@pytest.mark.parametrize("has_older", [True, False])
def test_a_pin_whose_look_fails_is_what_it_was(
    store: Store, blobs: MemoryStore, tmp_path: Path, has_older: bool
) -> None:
    digest = store.resolve("b@1").digest
    if has_older:
        store.pins.add(digest, "b@1", ["hot"])
    before = store.pins.active()

    def plan(op: str, key: str, n: int) -> Fault:
        is_put = any(op == "put" and key.startswith(PINS) for op, key in faulty.calls)
        return Unreachable("gone") if is_put and "removed/" in key else None

    faulty = FaultyStore(blobs, plan)
    with opened(faulty, tmp_path / "other") as other, pytest.raises(Unreachable, match=r"^gone$"):
        other.pins.add(digest, "b@1", ["hot", "warm"])
    assert store.pins.active() == before
    if has_older:
        with pytest.raises(Conflict, match="b@1 is needed by pin of"):
            store.remove("b@1")


@pytest.mark.parametrize("is_unpinned", [False, True])
def test_a_pin_that_another_one_put_there_meanwhile_stays_as_it_is(
    store: Store, blobs: MemoryStore, tmp_path: Path, is_unpinned: bool
) -> None:
    """Two pin the same version; the look of the first one fails behind the other's pin."""
    digest = store.resolve("b@1").digest
    if is_unpinned:
        store.pins.add(digest, "b@1", ["hot"])

    def plan(op: str, key: str, n: int) -> Fault:
        is_put = any(op == "put" and key.startswith(PINS) for op, key in faulty.calls)
        if not is_put or "removed/" not in key:
            return None
        if is_unpinned:
            store.pins.remove(digest)
        else:
            store.pins.add(digest, "b@1", ["warm"])
        return Unreachable("gone")

    faulty = FaultyStore(blobs, plan)
    with opened(faulty, tmp_path / "other") as other, pytest.raises(Unreachable, match=r"^gone$"):
        other.pins.add(digest, "b@1", ["hot", "warm"])
    assert [one.roles for one in store.pins.active()] == ([] if is_unpinned else [("warm",)])


# Leases


def test_a_container_with_the_same_host_and_pid_is_another_reader(
    store: Store, blobs: MemoryStore
) -> None:
    model = store.load("b@1")
    wait_until(lambda: bool(in_force(blobs, "reader")), "this process has a lease")
    [info] = blobs.list(LEASES)
    own = unseal_body(Kind.LEASE, blobs.get(info.key), Lease, info.key)
    theirs = msgspec.structs.replace(own, id=new_lease("reader").id)
    blobs.put(f"{LEASES}{theirs.id}", seal_body(Kind.LEASE, theirs))
    with pytest.raises(Conflict, match="b@1 is needed by lease of"):
        store.remove("b@1")
    blobs.delete([f"{LEASES}{theirs.id}"])
    store.remove("b@1")
    equal(model.load(), content(1))


# What it costs


def test_what_is_removed_is_listed_by_a_few_requests(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    for value in range(20, 30):
        store.save("m", content(value), base=None)
    store.retention.set("m", window=timedelta(days=3))
    store.remove(*(f"m@{number}" for number in range(1, 11)))
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:
        found = other.deleted("m")
    assert {one.until - one.removed for one in found} == {timedelta(days=3)}
    asked = [(op, key) for op, key in watched.calls if "retention" in key]
    assert asked == [("list", "retention/"), ("get", "retention/models/m")]


def listings(watched: FaultyStore, act: Callable[[], object]) -> Sequence[str]:
    """Return the listings of all packs that something takes."""
    begin = len(watched.calls)
    act()
    return [key for op, key in watched.calls[begin:] if op == "list" and key == "packs/"]


def test_a_name_of_what_was_written_anew_is_as_cheap_as_in_a_new_process(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """A collector led its layout to other packs since this process saw it."""
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:

        def name() -> None:
            other.alias("b", "prod", "b@1")

        [own] = packs_of(store, "b@1")
        condemn(blobs, pack_key(b"\1" * 32))
        name()
        condemn(blobs, pack_key(own))
        store.alias("b", "next", "b@1")
        store.reclaim.run(grace=timedelta(0))
        assert own not in packs_of(store, "b@1")
        assert listings(watched, name), "by the layout that it knew"
        assert not listings(watched, name)
    assert Home(blobs).condemned.every().packs >= {own}
