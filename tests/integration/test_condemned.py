"""Nothing new relies on a condemned pack, whatever is paused: lists, writers, readers, movers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened, tensors
from tests.integration.test_deltas import model, tuned_model
from tests.integration.test_save_load_dedup import at, packs
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Conflict, Damaged, NotFound, Unreachable
from tierstore.format.condemned import EarlyCondemned
from tierstore.format.keys import CONDEMNED, layout_key, list_key, pack_key
from tierstore.format.layout import parse_layout
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import Digest
from tierstore.modelstore.home.condemned import CondemnedPacks
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

FIRST = tensors(1)
MORE = {**FIRST, "more": np.ones(3)}
IDS = [bytes([n]) * 32 for n in range(9)]
RUN = "ab" * 16


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("condemned")


def reclaiming(blobs: MemoryStore, cache: Path) -> Store:
    store = created(blobs, cache)
    enable(store._parts.home, wait_s=0)
    return store


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    store = reclaiming(blobs, cache)
    store.save("m", FIRST)
    return store


def collect(blobs: MemoryStore, *keys: str) -> None:
    """Condemn packs and delete them, as a collector whose wait is over."""
    condemn(blobs, *keys)
    blobs.delete(keys)


def new_packs(blobs: MemoryStore) -> Callable[[], list[str]]:
    before = set(packs(blobs))
    return lambda: [key for key in packs(blobs) if key not in before]


def collected_at(blobs: MemoryStore, key_start: str, op: str) -> Callable[..., Fault]:
    """A plan: right before this call all packs that are new by then are collected."""
    new = new_packs(blobs)
    return at(key_start, lambda: collect(blobs, *new()), op)


# Lists


def test_the_highest_list_says_all_that_holds() -> None:
    blobs = MemoryStore("lists")
    writer, reader = CondemnedPacks(blobs), CondemnedPacks(blobs)
    assert reader.among(IDS) == set()
    for number, pack in enumerate(IDS[:3], 1):
        assert writer.condemn([pack], run=RUN, now_us=number).seq == number
        assert reader.among(IDS) == set(IDS[:number])
    blobs.delete([list_key(1), list_key(2)])
    assert CondemnedPacks(blobs).among(IDS) == set(IDS[:3])


def test_a_collector_that_comes_second_builds_on_the_first() -> None:
    blobs = MemoryStore("lists")
    plan = at(list_key(1), lambda: condemn(blobs, IDS[0].hex()), "put_if_absent")
    CondemnedPacks(FaultyStore(blobs, plan)).condemn([IDS[1]], run=RUN, now_us=1)
    assert CondemnedPacks(blobs).among(IDS) == set(IDS[:2])


def test_a_collector_whose_number_was_given_out_and_is_free_again_takes_a_higher_one() -> None:
    blobs = MemoryStore("lists")
    condemn(blobs, IDS[0].hex())

    def others() -> None:
        for pack in IDS[1:4]:
            condemn(blobs, pack.hex())
        blobs.delete([list_key(1), list_key(2), list_key(3)])  # as a day later

    plan = at(list_key(2), others, "put_if_absent")
    found = CondemnedPacks(FaultyStore(blobs, plan)).condemn([IDS[4]], run=RUN, now_us=1)
    assert found.seq == 5
    assert CondemnedPacks(blobs).among(IDS) == set(IDS[:5])


def test_a_number_that_is_given_a_second_time_means_another_list() -> None:
    blobs = MemoryStore("lists")
    reader = CondemnedPacks(blobs)
    condemn(blobs, IDS[0].hex())
    assert reader.among(IDS) == {IDS[0]}
    blobs.delete([info.key for info in blobs.list()])  # home is as it was before
    condemn(blobs, IDS[1].hex())
    assert [info.key for info in blobs.list("gc/")] == [list_key(1)]
    assert reader.among(IDS) == {IDS[1]}


def test_a_lost_answer_makes_no_second_list() -> None:
    blobs = MemoryStore("lists")
    faults: list[Fault] = ["lose-response"]

    def plan(op: str, key: str, n: int) -> Fault:
        return faults.pop() if faults and (op, key) == ("put_if_absent", list_key(1)) else None

    assert CondemnedPacks(FaultyStore(blobs, plan)).condemn(IDS, run=RUN, now_us=1).seq == 1
    assert [info.key for info in blobs.list("gc/")] == [list_key(1)]


def test_collectors_that_never_get_a_number_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = MemoryStore("lists")

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent":
            blobs.put(key, blobs.get(key) if key == list_key(1) else bytes(blobs.get(list_key(1))))
        return None

    condemn(blobs, IDS[0].hex())
    first = CondemnedPacks(FaultyStore(blobs, plan))
    monkeypatch.setattr(first, "_list", lambda number: CondemnedPacks(blobs)._list(1))
    with pytest.raises(Conflict, match="other collectors"):
        first.condemn([IDS[1]], run=RUN, now_us=1)


def test_segments_are_read_only_for_packs_that_the_filter_has() -> None:
    blobs = MemoryStore("lists")
    CondemnedPacks(blobs).condemn(IDS[:4], run=RUN, now_us=1)
    watched = FaultyStore(blobs)
    condemned = CondemnedPacks(watched)
    assert condemned.among([b"\xfd" * 32]) == set()
    assert watched.calls == [("list", "gc/"), ("get", list_key(1))]
    assert condemned.among(IDS) == set(IDS[:4])
    assert condemned.among(IDS) == set(IDS[:4])
    assert [key for op, key in watched.calls if key.startswith(CONDEMNED)] == [
        info.key for info in blobs.list(CONDEMNED)
    ]


def test_a_damaged_list_counts_for_all_that_was_ever_condemned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blobs = MemoryStore("lists")
    CondemnedPacks(blobs).condemn(IDS[:2], run=RUN, now_us=1)
    CondemnedPacks(blobs).condemn(IDS[2:3], run=RUN, now_us=2)
    blobs.put(list_key(2), bytes(blobs.get(list_key(2)))[:-1])
    assert CondemnedPacks(blobs).among(IDS) == set(IDS[:3])
    assert "all that was ever condemned" in caplog.text


def test_a_list_that_is_replaced_while_it_is_read_is_looked_for_again() -> None:
    blobs = MemoryStore("lists")
    condemn(blobs, IDS[0].hex())

    def newer() -> None:
        condemn(blobs, IDS[1].hex())
        blobs.delete([list_key(1)])

    reader = CondemnedPacks(FaultyStore(blobs, at(list_key(1), newer, "get")))
    assert reader.among(IDS) == set(IDS[:2])


def test_a_segment_that_is_missing_is_an_error() -> None:
    blobs = MemoryStore("lists")
    condemn(blobs, IDS[0].hex())
    blobs.delete([info.key for info in blobs.list(CONDEMNED)])
    with pytest.raises(Damaged, match="names a segment that is missing"):
        CondemnedPacks(blobs).among(IDS)


def test_early_lists_hold_and_other_objects_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    blobs = MemoryStore("lists")
    for run, pack in ("20200101T000000Z", IDS[0]), ("20210101T000000Z", IDS[1]):
        body = EarlyCondemned(run=run, packs=[pack.hex()])
        blobs.put("gc/" + run, seal_body(Kind.CONDEMNED, body))
    blobs.put("gc/notes.txt", b"ours")
    condemn(blobs, IDS[2].hex())
    assert CondemnedPacks(blobs).among(IDS) == set(IDS[:3])
    assert "gc/notes.txt" in caplog.text


# Writers


@pytest.mark.parametrize("what", ["segment", "list"])
def test_what_cannot_be_read_costs_duplicates_but_stops_no_save(
    store: Store, blobs: MemoryStore, cache: Path, what: str
) -> None:
    """A new process, as a list that was read once is known for good."""
    (old,) = packs(blobs)
    condemn(blobs, old)
    (key,) = [info.key for info in blobs.list(CONDEMNED if what == "segment" else "gc/")]
    blobs.put(key, bytes(blobs.get(key))[:-1])
    with opened(blobs, cache) as again:
        assert again.save("m", MORE).number == 2
    blobs.delete([old])
    equal(store.load("m@2").load(), MORE)


def test_a_save_whose_packs_were_collected_before_it_was_published(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """The lease had lapsed: a collector that saw no version of them took the packs for garbage."""
    plan = collected_at(blobs, "refs/", "put_if_absent")
    with opened(FaultyStore(blobs, plan), cache) as paused:
        paused.save("m", MORE)
    equal(store.load("m@2").load(), MORE)
    report = store.check(read_data=True)
    assert not report.damaged
    with opened(blobs, cache) as fresh:  # and its index segment names what is there
        saved = fresh.save("other", MORE).stats
        assert saved is not None
        assert saved.new_chunks == 0
    equal(store.load("other").load(), MORE)


def test_packs_that_are_collected_again_and_again(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """Each time when what leads to them was just written."""
    new = new_packs(blobs)
    written: list[str] = []
    times: list[str] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if (op, key) == ("list", "gc/") and written and len(times) < 2:
            times.append(written.pop())
            collect(blobs, *new())
        elif op == "put_if_absent" and key.startswith(("refs/", "moves/")):
            written[:] = [key.partition("/")[0]]
        return None

    with opened(FaultyStore(blobs, plan), cache) as paused:
        paused.save("m", MORE)
    assert times == ["refs", "moves"]
    equal(store.load("m@2").load(), MORE)
    assert not store.check(read_data=True).damaged


def test_a_save_that_cannot_keep_its_packs_says_what_is_published(
    blobs: MemoryStore, cache: Path
) -> None:
    """Of this store nothing can be removed."""
    store = created(blobs, cache)
    store.save("m", FIRST)
    new = new_packs(blobs)
    published: list[str] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if (op, key) == ("list", "gc/") and published and new():
            collect(blobs, *new())
        published.extend([key] if op == "put_if_absent" and key.startswith("refs/") else [])
        return None

    with (
        opened(FaultyStore(blobs, plan), cache) as paused,
        pytest.raises(
            BackendError, match=r"parts of it may be missing\..* m@2 is published all the same"
        ),
    ):
        paused.save("m", MORE)
    assert len(store.versions("m")) == 2


def test_a_kept_layout_whose_pack_is_condemned_when_the_version_is_there(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    (old,) = packs(blobs)
    plan = at("refs/", lambda: collect(blobs, old), "put_if_absent")
    with opened(FaultyStore(blobs, plan), cache) as paused:
        paused.save("m", FIRST)
    for ref in "m@1", "m@2":
        equal(store.load(ref).load(), FIRST)
    assert not store.check(read_data=True).damaged


def test_a_layout_that_was_deleted_before_the_version_was_there(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    new = new_packs(blobs)
    before = {info.key for info in blobs.list("layouts/")}

    def lose() -> None:
        collect(blobs, *new())
        blobs.delete([info.key for info in blobs.list("layouts/") if info.key not in before])

    with opened(FaultyStore(blobs, at("refs/", lose, "put_if_absent")), cache) as paused:
        paused.save("m", MORE)
    equal(store.load("m@2").load(), MORE)
    assert len([*blobs.list("layouts/")]) == 2


def test_deltas_whose_base_is_condemned_when_the_version_is_there(
    blobs: MemoryStore, cache: Path
) -> None:
    first = model()
    store = reclaiming(blobs, cache)
    store.save("d", first)
    (base,) = packs(blobs)
    deltas: list[bool] = []

    def lose() -> None:
        for key in [info.key for info in blobs.list("layouts/")]:
            digest = Digest.from_hex(key.rpartition("/")[2])
            deltas.append(bool(parse_layout(blobs.get(key), digest, key).bases))
        collect(blobs, base)

    with opened(FaultyStore(blobs, at("refs/", lose, "put_if_absent")), cache) as paused:
        paused.save("d", tuned_model(first))
    assert sorted(deltas) == [False, True]
    equal(store.load("d@2").load(), tuned_model(first))


def test_a_patch_and_a_fold_look_again(store: Store, blobs: MemoryStore, cache: Path) -> None:
    changes = {"emb": Rows([3], np.zeros((1, 1000), np.float32))}
    expected = {**FIRST, "emb": FIRST["emb"].copy()}
    expected["emb"][3] = 0
    with opened(FaultyStore(blobs, collected_at(blobs, "refs/", "put_if_absent")), cache) as paused:
        paused.patch("m", changes)
    equal(store.load("m@2").load(), expected)
    with opened(
        FaultyStore(blobs, collected_at(blobs, "folds/", "put_if_absent")), cache
    ) as paused:
        assert paused.fold("m").patches == 1
    equal(store.load("m@2").load(), expected)
    assert not store.check(read_data=True).damaged


def test_an_entry_whose_answer_was_lost_is_looked_after(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """The save fails, but its version may be there: it must be whole then."""
    new = new_packs(blobs)
    lost: list[str] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if key in lost:
            return Unreachable("no answer")
        if key.startswith("refs/") and op == "put_if_absent":
            collect(blobs, *new())
            lost.append(key)
            return "lose-response"
        return None

    with opened(FaultyStore(blobs, plan), cache) as paused, pytest.raises(BackendError):
        paused.save("m", MORE)
    equal(store.load("m@2").load(), MORE)


def test_writing_costs_one_list_more(store: Store, blobs: MemoryStore, cache: Path) -> None:
    condemn(blobs, *[pack.hex() for pack in IDS])
    watched = FaultyStore(blobs)
    with opened(watched, cache) as fresh:
        fresh.patch("m", {"bias": Rows([1], FIRST["bias"][:1])})
        calls = [(op, key) for op, key in watched.calls if key.startswith(("gc/", CONDEMNED))]
        assert calls == [("list", "gc/"), ("get", list_key(1))]
        fresh.patch("m", {"bias": Rows([1], FIRST["bias"][:1])})
        calls = [(op, key) for op, key in watched.calls if key.startswith(("gc/", CONDEMNED))]
    assert calls == [("list", "gc/"), ("get", list_key(1)), ("list", "gc/")]


# Rebase


def rebased(blobs: MemoryStore, cache: Path) -> Store:
    store = reclaiming(blobs, cache)
    first = model()
    store.save("d", first)
    store.save("d", tuned_model(first))
    return store


def test_the_new_packs_of_a_rebase_are_led_to_before_its_layout(
    blobs: MemoryStore, cache: Path
) -> None:
    store = rebased(blobs, cache)
    old = {key.rpartition("/")[2] for key in packs(blobs)}
    watched = FaultyStore(blobs)
    with opened(watched, cache) as again:
        assert again.rebase("d@2", above=1).chunks
    written = [key for op, key in watched.calls if op in ("put", "put_if_absent")]
    layout = written.index(layout_key(store.resolve("d@2").digest))
    moves = [at for at, key in enumerate(written) if key.startswith("moves/")]
    assert moves
    assert max(moves) < layout
    moved = {written[at].removeprefix("moves/")[:64] for at in moves}
    assert moved & old
    assert moved - old == {key.rpartition("/")[2] for key in packs(blobs)} - old


def test_a_rebase_whose_packs_are_collected_when_its_layout_is_there(
    blobs: MemoryStore, cache: Path
) -> None:
    store = rebased(blobs, cache)
    key = layout_key(store.resolve("d@2").digest)
    old = {bytes.fromhex(one.rpartition("/")[2]) for one in packs(blobs)}
    with opened(FaultyStore(blobs, collected_at(blobs, key, "put")), cache) as paused:
        paused.rebase("d@2", above=1)
    named = parse_layout(blobs.get(key), store.resolve("d@2").digest, key).pack_ids
    assert not old & {*named}, "nothing of the version needs the deltas and their bases"
    blobs.delete(map(pack_key, old))
    equal(store.load("d@2").load(), tuned_model(model()))


def test_a_rebase_that_slept_until_its_packs_were_collected_and_died(
    blobs: MemoryStore, cache: Path
) -> None:
    """The version was removed meanwhile and saved again, which kept the layout."""
    store = rebased(blobs, cache)
    digest = store.resolve("d@2").digest
    key = layout_key(digest)
    new = new_packs(blobs)
    slept: list[str] = []

    def plan(op: str, name: str, n: int) -> Fault:
        if slept:
            raise Crashed
        if (op, name) == ("put", key):
            slept.append(name)
            collect(blobs, *new())
            with opened(blobs, cache / "other") as other:
                other.save("d", tuned_model(model()))
        return None

    with opened(FaultyStore(blobs, plan), cache) as paused, pytest.raises(Crashed):
        paused.rebase("d@2", above=1)
    table = parse_layout(blobs.get(key), digest, key)
    assert not table.bases, "the layout has no place for the bases of what the moves lead back to"
    for ref in "d@2", "d@3":
        equal(store.load(ref).load(), tuned_model(model()))
    assert (store.load("d@2").tensor("emb")[3:5] == tuned_model(model())["emb"][3:5]).all()


# Readers


def test_a_reader_looks_at_the_layout_again_when_its_packs_are_gone(
    store: Store, blobs: MemoryStore, cache: Path, tmp_path: Path
) -> None:
    reader = store.load("m@1")
    # its index knows of no pack, so that nothing says where the old ones went
    with opened(blobs, tmp_path / "other") as other:
        blobs.delete([*packs(blobs), *(info.key for info in blobs.list("index/"))])
        blobs.delete([layout_key(store.resolve("m@1").digest)])
        other.save("m", FIRST)
    assert not list(blobs.list("moves/"))
    assert (reader.tensor("emb")[7:9] == FIRST["emb"][7:9]).all()
    equal(reader.load(), FIRST)


def test_a_reader_whose_version_is_lost_says_so(store: Store, blobs: MemoryStore) -> None:
    reader = store.load("m@1")
    blobs.delete(packs(blobs))
    with pytest.raises(NotFound, match=r"pack .* is missing.*tierstore repair"):
        reader.load()


# Movers


def test_condemned_packs_are_not_planned_for(store: Store, blobs: MemoryStore) -> None:
    condemn(blobs, *packs(blobs))
    snapshot = store.placement.snapshot()
    assert not snapshot.packs
    assert any("1 packs are condemned" in note for note in snapshot.notes)
