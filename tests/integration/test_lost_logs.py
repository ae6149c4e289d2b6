"""Logs of versions that are lost: nothing of them is collected, and there is a way to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.integration.kit import created, equal, opened, tensors
from tests.integration.test_collector import collect, packs, packs_of
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Damaged, NotFound, TierstoreError, UsageError
from tierstore.format.keys import ALIASES, COLLECTED, HEAD, REFS, VARIANTS, entry_key, ref_prefix
from tierstore.format.reflog import LOST_MANIFEST
from tierstore.format.tiers import PINS
from tierstore.modelstore.home.refs import RefTarget
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.givingup import GivingUp
from tierstore.modelstore.store import Store

LOG = ref_prefix("m", "versions")
VERSIONS = range(1, 6)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("lost logs")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """m@1 to m@5, each with a pack of its own, and another model."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in VERSIONS:
            store.save("m", tensors(number), base=None)
        store.save("other", tensors(9), base=None)
        yield store


def entry(number: int) -> str:
    return entry_key(LOG, number)


def lose(blobs: MemoryStore, *numbers: int, hint: bool = True) -> None:
    """Lose the entries of versions, and with ``hint`` that of their log as well."""
    blobs.delete([*map(entry, numbers), *([LOG + HEAD] if hint else [])])


def derive(store: Store) -> None:
    manifest = store.resolve("m@4").digest.hex
    log = store._parts.home.log("m", f"{VARIANTS}int8")
    log.append("derive", lambda last: RefTarget(5, manifest))


def roll_out(store: Store) -> None:
    store.alias("m", "prod", "m@1")
    store.rollouts.start("m", "prod", "m@5")
    store._blobs.delete([info.key for info in store._blobs.list(PINS)])


def remove(store: Store) -> None:
    """Removed and brought back."""
    store.remove("m@5", force=True)
    store.undelete("m@5")


WITNESSES: dict[str, Callable[[Store], object]] = {
    "alias": lambda store: store.alias("m", "prod", "m@5"),
    "past of an alias": lambda store: [store.alias("m", "prod", f"m@{n}") for n in (5, 1)],
    "variant": derive,
    "removal": remove,
    "rollout": roll_out,
    "release": lambda store: store.releases.create("all", ["m@5"]),
    "pin": lambda store: store.pins.add(store.resolve("m@5").digest, "m@5", ["hot"]),
    "collection": collect,
}


@pytest.mark.parametrize("witness", WITNESSES)
@pytest.mark.parametrize("lost", [VERSIONS, [5]], ids=["all", "newest"])
def test_what_is_known_to_be_lost_stops_a_collection(
    store: Store, blobs: MemoryStore, lost: list[int], witness: str, cache: Path
) -> None:
    WITNESSES[witness](store)
    lose(blobs, *lost)
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"m@[15].*(is|are) lost: .*[Nn]othing was deleted: .*repair"):
        collect(store)
    with pytest.raises(Damaged, match=r"m@[15].*(is|are) lost: "):
        collect(store, dry_run=True)
    assert packs(blobs) == before
    with opened(blobs, cache / "other") as other:
        assert {one.key for one in other.check().findings if one.severity == "damage"} >= {
            *map(entry, lost)
        }
        assert {one.key for one in other.repair(dry_run=True).objects} >= {*map(entry, lost)}


@pytest.mark.parametrize("lost", [VERSIONS, [5], [3]], ids=["all", "newest", "in the middle"])
def test_a_hint_says_what_is_lost(store: Store, blobs: MemoryStore, lost: list[int]) -> None:
    lose(blobs, *lost, hint=False)
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"lost: the hint of this log says that there were 5"):
        collect(store)
    assert packs(blobs) == before
    assert {one.key for one in store.check().findings} == {*map(entry, lost)}


@pytest.mark.parametrize("ref", ["m@5", "m", "@Fridays"])
def test_a_pin_of_what_no_log_has(store: Store, blobs: MemoryStore, ref: str) -> None:
    store.pins.add(store.resolve("m@5").digest, ref, ["hot"])
    lose(blobs, *VERSIONS)
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"which the pin of \S+ \(.*\) names, is in no log"):
        collect(store)
    assert packs(blobs) == before
    assert any(one.key.startswith(PINS) for one in store.check().findings)


@pytest.mark.parametrize("log", ["alias/prod", "removed", "variant/int8"])
def test_the_newest_entry_of_any_log(store: Store, blobs: MemoryStore, log: str) -> None:
    """That of a log of removals may have brought a version back."""
    store.alias("m", "prod", "m@4")
    remove(store)
    derive(store)
    prefix = ref_prefix("m", log)
    blobs.delete([max(info.key for info in blobs.list(prefix) if not info.key.endswith(HEAD))])
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"entry \d of the .* of m, \S+, is lost: "):
        collect(store)
    assert packs(blobs) == before


def test_a_model_of_which_nothing_is_left(store: Store, blobs: MemoryStore, cache: Path) -> None:
    store.alias("m", "prod", "m@4")
    collect(store)
    blobs.delete([info.key for info in blobs.list(f"{REFS}m/")])
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"5 versions from m@1 to @5.*: there were 5"):
        collect(store)
    assert packs(blobs) == before
    assert entry(1) in {one.key for one in store.check().findings}
    store.repair()
    with opened(blobs, cache / "other") as other:
        with pytest.raises(NotFound):
            other.load("m@prod")
        with pytest.raises(Damaged, match=r"5 versions from m@1 to @5"):
            collect(other)
        other.remove_model("m")
        assert collect(other).freed
        assert packs(blobs) == packs_of(other, "other@1")
        assert str(other.save("m", tensors(1))) == "m@6"


def test_what_another_object_says_is_made_anew(store: Store, blobs: MemoryStore) -> None:
    store.alias("m", "prod", "m@5")
    before = {number: blobs.get(entry(number)) for number in VERSIONS}
    lose(blobs, *VERSIONS)
    found = {one.key: one.outcome for one in store.repair().objects}
    assert found[entry(5)] == "repaired"
    assert {found[entry(number)] for number in range(1, 5)} == {"lost"}
    equal(store.load("m@prod").load(), tensors(5))
    with pytest.raises(Conflict, match=r"lost the entries of m@1, m@2, m@4, too"):
        store.remove("m@3")
    for number in range(1, 4):
        blobs.put(entry(number), before[number])
    with pytest.raises(Damaged, match=r"the entry of m@4, \S+, is lost"):
        collect(store)
    store.remove("m@4")
    [own] = packs_of(store, "m@3") - packs_of(store, "m@5")
    assert collect(store).freed
    assert own in packs(blobs)
    for number in (1, 2, 3, 5):
        equal(store.load(f"m@{number}").load(), tensors(number))


def test_what_nobody_can_bring_back_is_given_up(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    [own] = packs_of(store, "m@3") - packs_of(store, "m@5")
    lose(blobs, 3, hint=False)
    with pytest.raises(NotFound, match=r"m@7"):
        store.remove("m@7")
    with pytest.raises(NotFound, match=r"entry 3 of m@versions, \S+, is lost: 'tierstore repair'"):
        store.remove("m@2")
    assert list(map(str, store.remove("m@3"))) == ["m@3"]
    assert collect(store).freed
    assert own not in packs(blobs)
    with opened(blobs, cache / "other") as other:
        assert not other.check(read_data=True).damaged
        assert other.repair().is_whole
        assert [str(one) for one in other.versions("m")] == ["m@5", "m@4", "m@2", "m@1"]
        with pytest.raises(NotFound, match=r"it is too late for m@3: .*given up"):
            other.undelete("m@3")
        other.remove("m@2")
        collect(other)
        assert not other.check(read_data=True).damaged


@pytest.mark.parametrize("at", [-1, 30], ids=["body", "envelope"])
def test_a_damaged_entry_is_given_up_unless_it_can_be_mended(
    store: Store, blobs: MemoryStore, at: int
) -> None:
    data = bytearray(blobs.get(entry(3)))
    data[at] ^= 1
    blobs.put(entry(3), data)
    with pytest.raises(Damaged, match=entry(3)):
        collect(store)
    if at < 0:
        store.remove("m@3")
    else:
        with pytest.raises(Conflict, match="'tierstore repair' can write it as it was"):
            store.remove("m@3")
        store.repair()
        equal(store.load("m@3").load(), tensors(3))
    collect(store)
    assert store.repair().is_whole


def test_the_number_of_what_is_given_up_is_never_given_again(
    store: Store, blobs: MemoryStore
) -> None:
    lose(blobs, 5, hint=False)
    with pytest.raises(Conflict, match=r"m@5 is the newest version .*--force"):
        store.remove("m@5")
    store.remove("m@5", force=True)
    assert store.save("m", tensors(7)).number == 6
    collect(store)
    assert store.repair().is_whole


@pytest.mark.parametrize("name", ["alias", "past of an alias", "release", "rollout"])
def test_what_can_be_made_anew_is_not_given_up(store: Store, blobs: MemoryStore, name: str) -> None:
    WITNESSES[name](store)
    lose(blobs, 5)
    with pytest.raises(Conflict, match=r"m@5 is lost, and another object says .*tierstore repair"):
        store.remove("m@5", force=True)
    assert entry(5) not in {info.key for info in blobs.list(REFS)}
    store.repair()
    equal(store.load("m@5").load(), tensors(5))
    collect(store)


@pytest.mark.parametrize("name", ["alias", "pin", "release"])
def test_what_something_names_is_not_given_up(store: Store, blobs: MemoryStore, name: str) -> None:
    WITNESSES[name](store)
    digest = store.resolve("m@5").digest.hex
    lose(blobs, 5)
    blobs.delete([f"versions/{digest}"])  # so that nothing can be made anew
    with pytest.raises(Conflict, match=r"m@5, of which the entry is lost, is named by "):
        store.remove("m@5", force=True)
    assert entry(5) not in {info.key for info in blobs.list(REFS)}


def test_a_model_with_two_damages_keeps_nobody_from_listing_the_others(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    lose(blobs, 1, hint=False)
    blobs.put(entry(5), blobs.get(entry(5))[:-1])
    with opened(blobs, tmp_path / "anew") as anew:  # a process that knows neither
        assert anew.models() == ["m", "other"]


@pytest.mark.parametrize("how", ["another that is not there", "one that is named", "all"])
def test_nothing_is_given_up_where_a_removal_is_refused(
    store: Store, blobs: MemoryStore, how: str
) -> None:
    store.alias("m", "prod", "m@4")
    lose(blobs, 3, hint=False)
    refs = ("m@3", "m@99" if how == "another that is not there" else "m@4")
    remove = partial(store.remove_model, "m") if how == "all" else partial(store.remove, *refs)
    with pytest.raises((NotFound, Conflict), match=r"m@99 does not exist|needed by alias prod"):
        remove()
    assert entry(3) not in {info.key for info in blobs.list(REFS)}


def test_a_lost_release_is_given_up(store: Store, blobs: MemoryStore) -> None:
    for number in (1, 2):
        store.releases.create("all", [f"m@{number}"])
    blobs.delete([entry_key(ref_prefix("all", "versions"), 2)])
    with pytest.raises(Damaged, match=r"the entry of all@2, \S+, is lost"):
        collect(store)
    store.remove("all@2", force=True)
    [blank] = store._parts.home.log("all").numbered([2])
    assert (blank.action, blank.manifest) == ("release", LOST_MANIFEST)
    with pytest.raises(Conflict, match="m@1 is needed by release all@1"):
        store.remove("m@1")
    collect(store)


@pytest.mark.parametrize("is_damaged", [False, True], ids=["missing", "damaged"])
@pytest.mark.parametrize("number", [2, 3], ids=["in the middle", "newest"])
def test_what_the_log_of_a_variant_lost_is_given_up(
    store: Store, blobs: MemoryStore, number: int, is_damaged: bool, cache: Path
) -> None:
    def publish(store: Store, version: int) -> None:
        to = RefTarget(version, store.resolve(f"m@{version + 2}").digest.hex)
        store._parts.home.log("m", f"{VARIANTS}bf16").append("derive", lambda _: to)

    for version in (1, 2, 3):
        publish(store, version)
    collect(store)
    with pytest.raises(UsageError, match="is a variant, which goes with its version"):
        store.remove("m@1+bf16")
    pin = store.pins.add(store.resolve(f"m@{number}+bf16").digest, f"m@{number}+bf16", ["hot"])
    key = entry_key(ref_prefix("m", "variant/bf16"), number)
    blobs.delete([key])
    if is_damaged:
        blobs.put(key, b"TSOB")
    with opened(blobs, cache / "other") as other:
        with pytest.raises(Damaged):
            collect(other)
        with pytest.raises(Conflict, match=r"is named by the pin of .*nothing was given up"):
            other.remove(f"m@{number}+bf16")
        assert (key in {info.key for info in blobs.list(REFS)}) == is_damaged
        other.pins.remove(pin.version)
        assert other.remove(f"m@{number}+bf16") == []
        [blank] = [one for one in other._parts.home.log("m", "variant/bf16").entries()
                   if one.seq == number]  # fmt: skip
        assert (blank.action, blank.version, blank.manifest) == ("remove", None, None)
        collect(other)
        assert {one.number for one in other.all_variants("m")} == {1, 2, 3} - {number}
        assert other.variants(f"m@{number}") == []
        assert (other.repair().is_whole, other.check().findings) == (True, [])
        publish(other, number)
        equal(other.load(f"m@{number}+bf16").load(), tensors(number + 2))


def test_an_entry_of_a_variant_that_can_be_mended_is_not_given_up(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    derive(store)
    key = entry_key(ref_prefix("m", "variant/int8"), 1)
    damaged = bytes(blobs.get(key)) + b"?"
    blobs.put(key, damaged)
    with opened(blobs, cache / "other") as other:
        with pytest.raises(Conflict, match=r"'tierstore repair' can write it as it was"):
            other.remove("m@5+int8")
        assert bytes(blobs.get(key)) == damaged
        other.repair()
        equal(other.load("m@5+int8").load(), tensors(4))


@pytest.mark.parametrize("is_damaged", [False, True], ids=["missing", "damaged"])
def test_what_came_back_meanwhile_is_not_given_up(
    store: Store, blobs: MemoryStore, is_damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = blobs.get(entry(3))
    lose(blobs, 3, hint=False)
    if is_damaged:
        blobs.put(entry(3), bytes(before[:-1]) + b"?")

    def restored(*_: object) -> bool:
        blobs.put(entry(3), before)
        return False

    monkeypatch.setattr(GivingUp, "_can_be_mended", restored)
    with pytest.raises(Conflict, match=r"m@3 was lost, and is there again: nothing was removed"):
        store.remove("m@3")
    equal(store.load("m@3").load(), tensors(3))


class Busy(MemoryStore):
    """A home in which somebody saves another version each time that a log was just listed.

    Attributes:
        save: Saves it.
        left: How many versions are saved still.
    """

    save: Callable[[], object]
    left = 0

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        found = [*super().list(prefix)]
        if prefix == LOG and self.left:
            self.left -= 1
            self.save()
        return iter(found)


@pytest.mark.parametrize("lost", [[], [1]], ids=["whole", "with a gap"])
def test_what_is_saved_while_a_model_is_removed_is_not_lost(cache: Path, lost: list[int]) -> None:
    blobs = Busy("busy")
    with created(blobs, cache) as store, opened(blobs, cache / "other") as other:
        enable(store._parts.home, wait_s=0)
        for number in (1, 2):
            store.save("m", tensors(number), base=None)
        lose(blobs, *lost, hint=False)
        blobs.save = lambda: other.save("m", tensors(3), base=None)
        blobs.left = 9
        assert {"m@1", "m@2"} <= {*map(str, store.remove_model("m"))}
        found = store._parts.home.log("m").entries(None)
        assert [one.seq for one in found if one.manifest == LOST_MANIFEST] == lost


class Late(MemoryStore):
    """A home in which a version is published after its log was listed, and then something names it.

    Attributes:
        hidden: Keys that are not listed yet.
        listings: For how many listings of all logs.
    """

    hidden: Sequence[str] = ()
    listings = 0

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        hidden = self.hidden if prefix == REFS and self.listings else ()
        if prefix == REFS:
            self.listings = max(0, self.listings - 1)
        return (info for info in super().list(prefix) if info.key not in hidden)


@pytest.mark.parametrize("name", ["pin", "release"])
def test_what_is_published_while_logs_are_listed_is_not_lost(cache: Path, name: str) -> None:
    blobs = Late("late")
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in VERSIONS:
            store.save("m", tensors(number), base=None)
        WITNESSES[name](store)
        collect(store)
        blobs._blobs.pop(COLLECTED)
        blobs.hidden, blobs.listings = (entry(5), LOG + HEAD), 2  # that of removals comes first
        collect(store)
        assert blobs.listings == 0
        equal(store.load("m@5").load(), tensors(5))


def test_foreign_objects_beside_entries(store: Store, blobs: MemoryStore) -> None:
    for key in ("000000/999999999", "000000/000000000", "000007/000000001", "notes.txt"):
        blobs.put(f"{LOG}{key}", b"notes")
    collect(store)
    for number in VERSIONS:
        equal(store.load(f"m@{number}").load(), tensors(number))


def test_a_log_of_thousands_is_not_listed_entry_by_entry(store: Store, blobs: MemoryStore) -> None:
    """A hint says that there were many more: that is told once."""
    log = store._parts.home.log("m")
    log.point_at(123_456)
    with pytest.raises(Damaged, match=r"entries of 123451 versions from m@6 to @123456"):
        collect(store)
    assert LOG in {one.key for one in store.check().findings}
    assert [one.key for one in store.repair().of("lost")] == [LOG]


def test_the_message_names_models_as_they_are_called(store: Store, blobs: MemoryStore) -> None:
    store.save("größe/x", tensors(1), alias="prod")
    blobs.delete([info.key for info in blobs.list(ref_prefix("größe/x", "versions"))])
    with pytest.raises(TierstoreError, match=re.escape("the entry of größe/x@1")):
        collect(store)
    assert "alias" in ALIASES
