"""What was lost of the index and of layouts is made anew, and nothing relies on what will go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened, tensors
from tests.integration.test_collector import (
    CHANGES,
    PATCHED,
    collect,
    is_sound,
    keys,
    packs,
    packs_of,
)
from tests.integration.test_collector_schedules import TUNED, weights
from tests.integration.test_tiers import Tiered
from tests.unit.format_by_hand import msgpack, sealed
from tierstore import Dense
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    NotFound,
    PermissionDenied,
    Unreachable,
    UnsupportedFormat,
)
from tierstore.format.keys import FOLDS, INDEX, LAYOUTS, LEASES, PACKS, layout_key, pack_key
from tierstore.format.layout import parse_layout, parse_segment
from tierstore.format.storeconfig import Features
from tierstore.modelstore.home import relayout
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.reclaim import rebuild
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.rebuild import (
    RebuiltIndex,
    RebuiltLayouts,
    rebuild_index,
    rebuild_layouts,
)
from tierstore.modelstore.reclaim.roots import Root, Roots
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.variants.derive import derive


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("rebuilt")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store with full versions, deltas, patches, a fold, a variant and a release."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        store.save("n", weights(1), base=None)
        store.save("n", TUNED, base="n@1")
        store.patch("m@3", CHANGES)
        store.patch("m@4", {"bias": Dense(np.full(77, 3, np.int8))})
        store.fold("m@4")
        derive(store, "m@2", {"cast": "bf16"})
        store.releases.create("r", ["m@2", "n@1"])
    with opened(blobs, cache) as store:  # nothing is leased
        yield store


CONTENT = {
    "m@1": tensors(1), "m@2": tensors(2), "m@3": tensors(3), "m@4": PATCHED,
    "m@5": PATCHED | {"bias": np.full(77, 3, np.int8)}, "n@1": weights(1), "n@2": TUNED,
}  # fmt: skip


def lose(blobs: MemoryStore, prefix: str) -> dict[str, memoryview]:
    """Delete what lies below a prefix; what that was."""
    lost = {key: blobs.get(key) for key in keys(blobs, prefix)}
    blobs.delete(list(lost))
    return lost


def layouts(store: Store, *refs: str) -> RebuiltLayouts:
    """Rebuild the layouts of some versions, or of all that anything needs."""
    home = store._parts.home
    roots = [Root(store.resolve(ref).digest, "live", ref) for ref in refs]
    return rebuild_layouts(home, roots or Roots(home, ReadCache(None)).find(0, 0).roots)


def loads(blobs: MemoryStore, cache: Path) -> None:
    with opened(blobs, cache) as store:
        for ref, content in CONTENT.items():
            equal(store.load(ref).load(), content)
        assert store.load("m@2+bf16")["bias"].tobytes() == tensors(2)["bias"].tobytes()


def new_bytes(blobs: MemoryStore, cache: Path, ref: str) -> int:
    """How much a node that has seen nothing would store of a version again."""
    with opened(blobs, cache / ref) as store:
        version = store.save("again", CONTENT[ref], base=None)
        assert version.stats is not None
        store.remove(f"again@{version.number}", force=True)
        return version.stats.new_bytes


def known(blobs: MemoryStore) -> dict[bytes, bytes]:
    """The packs of chunks in the index."""
    tables = [parse_segment(blobs.get(key), key) for key in keys(blobs, INDEX)]
    return {place.digest: place.pack for table in tables for place in table}


# The index


@pytest.mark.parametrize("source", ["layouts", "packs"])
def test_a_lost_index_is_made_anew(
    store: Store, blobs: MemoryStore, tmp_path: Path, source: rebuild.Source
) -> None:
    before = known(blobs)
    lose(blobs, INDEX)
    assert new_bytes(blobs, tmp_path / "none", "m@1") > 0
    lose(blobs, INDEX)
    done = rebuild_index(store._parts.home, source)
    (key,) = keys(blobs, INDEX)
    assert known(blobs).keys() >= before.keys()
    assert done == RebuiltIndex(len(known(blobs)), 1, 0, blobs.info(key).size, [])
    for ref in ("m@1", "m@3", "n@1"):
        assert new_bytes(blobs, tmp_path / source, ref) == 0, ref
    is_sound(store)


def test_packs_tell_of_no_proofs(store: Store, blobs: MemoryStore) -> None:
    rebuild_index(store._parts.home, "layouts")
    from_layouts = known(blobs)
    lose(blobs, INDEX)
    rebuild_index(store._parts.home, "packs")
    assert known(blobs).keys() == from_layouts.keys()
    infos = blobs.list(PACKS)
    listed = {one.digest for i in infos for one in read_footer(blobs, i.key, i.size)[1]}
    assert listed > known(blobs).keys(), "there are proofs"


def test_an_index_that_is_there_becomes_one_segment(store: Store, blobs: MemoryStore) -> None:
    before, old = known(blobs), keys(blobs, INDEX)
    lost = lose(blobs, LAYOUTS)
    done = rebuild_index(store._parts.home)
    assert (done.replaced, done.segments) == (len(old), 1)
    assert known(blobs) == before, "what the old ones hold is kept, whatever layouts are missing"
    for key, data in lost.items():
        blobs.put(key, data)


def test_the_index_leads_to_no_pack_that_goes(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    [gone] = packs_of(store, "n@1")
    condemn(blobs, pack_key(own))
    blobs.delete([pack_key(gone)])
    before = known(blobs)
    rebuild_index(store._parts.home)
    assert {own, gone}.isdisjoint(known(blobs).values())
    left = {chunk for chunk, pack in before.items() if pack not in (own, gone)}
    assert left <= known(blobs).keys()


def test_the_index_leads_to_what_was_healed(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    condemn(blobs, pack_key(own))
    layout = layout_key(store.resolve("m@2").digest)
    before = blobs.get(layout)
    assert collect(store).healed
    assert own not in packs(blobs)
    blobs.put(layout, before)  # as of a collector that rewrites no layouts: moves alone lead there
    lose(blobs, INDEX)
    rebuild_index(store._parts.home)
    assert new_bytes(blobs, tmp_path, "m@2") == 0


def test_segments_that_cannot_be_read(store: Store, blobs: MemoryStore) -> None:
    lose(blobs, INDEX)
    blobs.put(INDEX + "0" * 32, b"damaged")
    newer = sealed(3, msgpack({"requires": ["x"]}))
    blobs.put(INDEX + "1" * 32, newer)
    blobs.put(LAYOUTS + "2" * 64, b"damaged")
    done = rebuild_index(store._parts.home)
    assert done.replaced == 1
    assert INDEX + "0" * 32 not in keys(blobs, INDEX)
    assert bytes(blobs.get(INDEX + "1" * 32)) == newer
    assert done.unread == [LAYOUTS + "2" * 64]


def test_a_rebuilt_index_loses_nothing_anywhere(store: Store, blobs: MemoryStore) -> None:
    before, kept = known(blobs), dict(blobs._blobs)
    watched = FaultyStore(blobs)
    rebuild_index(Home(watched))
    for at in range(watched.mutations):
        blobs._blobs = dict(kept)
        with pytest.raises(Crashed):
            rebuild_index(Home(FaultyStore(blobs, crash_after=at)))
        assert known(blobs).keys() >= before.keys(), at


def test_what_a_save_adds_meanwhile_stays(store: Store, blobs: MemoryStore) -> None:
    def plan(op: str, key: str, number: int) -> None:
        if (op, key) == ("list", LAYOUTS):
            store.save("late", {"w": np.full(99, 99)}, base=None)

    rebuild_index(Home(FaultyStore(blobs, plan)))
    [late] = packs_of(store, "late@1")
    assert late in known(blobs).values()


def test_saves_find_what_was_healed(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    """A collector tells them where its copies lie, and that comes before what is condemned."""
    for number, (_, data) in enumerate(lose(blobs, INDEX).items()):
        blobs.put(f"{INDEX}{'f' * 30}{number:02}", data)  # they are read last
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    condemn(blobs, pack_key(own))
    assert collect(store).healed
    assert own not in packs(blobs)
    assert new_bytes(blobs, tmp_path, "m@2") == 0


# Layouts


def test_all_layouts_are_made_anew(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    lost = lose(blobs, LAYOUTS)
    done = layouts(store)
    assert (done.whole, done.written, done.lost, done.unread) == (0, len(lost), [], [])
    assert keys(blobs, LAYOUTS) == sorted(lost)
    loads(blobs, tmp_path / "other")
    is_sound(store)
    again = layouts(store)
    assert (again.whole, again.written) == (len(lost), 0)


def test_a_layout_that_is_there_is_kept(store: Store, blobs: MemoryStore) -> None:
    before = {key: bytes(blobs.get(key)) for key in keys(blobs, LAYOUTS)}
    blobs.delete([layout_key(store.resolve("m@2").digest)])
    assert layouts(store).written == 1
    now = {key: bytes(blobs.get(key)) for key in keys(blobs, LAYOUTS)}
    assert {key for key in before if now[key] == before[key]} >= before.keys() - {
        layout_key(store.resolve("m@2").digest)
    }


def test_one_that_is_written_meanwhile_is_kept(store: Store, blobs: MemoryStore) -> None:
    key = layout_key(store.resolve("m@2").digest)
    theirs = bytes(blobs.get(key))
    blobs.delete([key])

    def plan(op: str, at: str, number: int) -> None:
        if (op, at) == ("put_if_absent", key):
            blobs.put(key, theirs)

    home = Home(FaultyStore(blobs, plan))
    digest = store.resolve("m@2").digest
    with relayout.PackScan(home) as scan:
        scan.read()
        made = scan.layout(digest, home.manifest(digest))
    other = relayout.NewLayout(digest, b"another layout", made.sizes)
    assert relayout.write_layouts(home, [other]) == []
    assert bytes(blobs.get(key)) == theirs


@pytest.mark.parametrize("bad", [b"damaged", None], ids=["damaged", "of another version"])
def test_a_damaged_layout_is_written_over(
    store: Store, blobs: MemoryStore, tmp_path: Path, bad: bytes | None
) -> None:
    other = blobs.get(layout_key(store.resolve("m@1").digest))
    blobs.put(layout_key(store.resolve("m@2").digest), bad or other)
    done = layouts(store)
    assert (done.written, done.lost) == (1, [])
    loads(blobs, tmp_path / "other")


def test_a_version_alone_is_rebuilt_with_all_it_lies_on(store: Store, blobs: MemoryStore) -> None:
    lost = lose(blobs, LAYOUTS)
    done = layouts(store, "m@5")
    assert done.written == 4, "m@5, m@4, its fold, m@3"
    equal(store.load("m@5").load(), CONTENT["m@5"])
    assert len(keys(blobs, LAYOUTS)) == 4 < len(lost)


def test_what_lacks_a_pack_is_named_and_all_else_is_written(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    lost = lose(blobs, LAYOUTS)
    blobs.delete([pack_key(own)])
    done = layouts(store)
    assert [one.needed_by for one in done.lost] == ["m@2", "m@2+bf16"], "which has a chunk of it"
    assert all("is in no pack" in one.why for one in done.lost)
    assert done.written == len(lost) - 2
    with pytest.raises(NotFound):
        store.load("m@2")
    equal(store.load("m@3").load(), CONTENT["m@3"])


def test_packs_that_cannot_be_read_are_told(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    lose(blobs, LAYOUTS)
    key = pack_key(own)
    blobs.put(key, bytes(blobs.get(key))[:-1])
    done = layouts(store)
    assert done.unread == [key]
    assert any(key in one.why for one in done.lost)


def test_a_fold_makes_up_for_what_lies_below(store: Store, blobs: MemoryStore) -> None:
    """And what lies below makes up for a fold."""
    [base] = packs_of(store, "m@3") - packs_of(store, "m@1")
    lose(blobs, LAYOUTS)
    blobs.delete([pack_key(base)])
    lost = {one.needed_by for one in layouts(store).lost}
    assert "m@3" in lost
    assert not lost & {"m@4", "m@5"}
    equal(store.load("m@5").load(), CONTENT["m@5"])


def test_what_lies_below_makes_up_for_a_fold(store: Store, blobs: MemoryStore) -> None:
    lose(blobs, LAYOUTS)
    (key,) = keys(blobs, FOLDS)
    store._parts.home.blobs.put(key, b"damaged")
    assert layouts(store).lost == []
    equal(store.load("m@5").load(), CONTENT["m@5"])


def test_a_condemned_pack_stands_back(store: Store, blobs: MemoryStore) -> None:
    """Of two packs with the same chunks the one that is not condemned is named."""
    old = packs_of(store, "m@1")
    lose(blobs, INDEX)
    store._parts.index.forget(old)
    store.save("copy", tensors(1), base=None)
    before = packs(blobs)
    lose(blobs, LAYOUTS)
    condemn(blobs, *map(pack_key, old))
    done = layouts(store, "m@1")
    assert done.lost == []
    assert packs_of(store, "m@1").isdisjoint(old)
    assert packs(blobs) == before


def test_what_is_condemned_alone_is_left_to_the_collector(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    lost = lose(blobs, LAYOUTS)
    condemn(blobs, pack_key(own))
    done = layouts(store)
    key = layout_key(store.resolve("m@2").digest)
    assert key not in keys(blobs, LAYOUTS)
    assert [one.needed_by for one in done.lost] == ["m@2", "m@2+bf16"]
    assert all("'tierstore gc' stores it anew" in one.why for one in done.lost)
    assert done.written == len(lost) - 2
    collect(store)
    assert own not in packs(blobs)
    loads(blobs, tmp_path / "other")
    assert layouts(store).lost == []


def test_layouts_are_written_under_a_lease(store: Store, blobs: MemoryStore) -> None:
    held: list[int] = []

    def plan(op: str, key: str, number: int) -> None:
        if op == "put_if_absent" and key.startswith(LAYOUTS):
            held.append(len(keys(blobs, LEASES)))

    lose(blobs, LEASES)
    lose(blobs, LAYOUTS)
    home = Home(FaultyStore(blobs, plan))
    done = rebuild_layouts(home, Roots(home, ReadCache(None)).find(0, 0).roots)
    assert held == [1] * done.written
    assert keys(blobs, LEASES) == []


def test_packs_that_were_condemned_before_a_layout_was_written_over(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Whoever writes over a damaged layout may have been paused for as long as that took."""
    key = layout_key(store.resolve("m@2").digest)
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    blobs.put(key, b"damaged")

    def plan(op: str, at: str, number: int) -> None:
        if (op, at) == ("put", key):
            condemn(blobs, pack_key(own))

    home = Home(FaultyStore(blobs, plan))
    with pytest.raises(BackendError, match="'tierstore gc' heals"):
        rebuild_layouts(home, [Root(store.resolve("m@2").digest, "live", "m@2")])
    collect(store)
    loads(blobs, tmp_path / "other")


def test_each_pack_is_read_once_and_by_its_ends(store: Store, blobs: MemoryStore) -> None:
    lose(blobs, LAYOUTS)
    watched = FaultyStore(blobs)
    home = Home(watched)
    rebuild_layouts(home, Roots(home, ReadCache(None)).find(0, 0).roots)
    read = [call for call in watched.calls if call[0].startswith("get") and "packs/" in call[1]]
    assert sorted(read) == sorted(("get_ranges", key) for key in keys(blobs, PACKS))


def test_a_tier_that_is_down_is_told(cache: Path) -> None:
    tiered = Tiered(cache)
    store = tiered.open()
    store.save("cold", {"w": np.arange(99)}, base=None)
    tiered.copy("warm", "cold", drop=True)
    store.save("warm", {"w": np.ones(99)}, base=None)
    home, inner = store._parts.home, tiered.stores["home"].inner
    assert isinstance(inner, MemoryStore)
    lose(inner, LAYOUTS)
    lose(inner, INDEX)
    tiered.down("warm")
    roots = [Root(store.resolve(name).digest, "live", name) for name in ("cold", "warm")]
    done = rebuild_layouts(home, roots)
    assert done.written == 1
    assert done.down.keys() == {"warm"}
    assert [one.needed_by for one in done.lost] == ["warm"]
    assert "it may exist: tier warm could not be asked" in done.lost[0].why
    with pytest.raises(Unreachable, match="it may exist"):
        store.load("warm")
    found = rebuild_index(home, "packs")
    assert (found.chunks, found.down.keys()) == (1, {"warm"})
    tiered.down("warm", "cold", "home")
    with pytest.raises(BackendError):
        rebuild_index(home, "packs")
    tiered.down()
    assert rebuild_layouts(home, roots).lost == []
    assert rebuild_index(home).chunks == 2
    assert store.load("warm")["w"].tolist() == [1] * 99


# Loading


def test_a_load_writes_the_layout_that_it_made(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lost = lose(blobs, LAYOUTS)
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:
        equal(other.load("m@5").load(), CONTENT["m@5"])
        scans = [call for call in watched.calls if call == ("list", PACKS)]
        assert len(scans) == 1, "one look into the packs for all layouts of a version"
        assert set(keys(blobs, LAYOUTS)) < lost.keys()
        assert "was made anew from the footers of" in caplog.text
        assert "not written" not in caplog.text
        watched.calls.clear()
        equal(other.load("m@5").load(), CONTENT["m@5"])
        assert ("list", PACKS) not in watched.calls
    is_sound_but_for(store, "layout")


def is_sound_but_for(store: Store, what: str) -> None:
    report = store.check(read_data=True)
    assert all(what in one.key for one in report.findings if one.severity == "damage")


def test_a_load_looks_into_few_packs_only(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lose(blobs, LAYOUTS)
    count = len(packs(blobs))
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:
        monkeypatch.setattr(relayout, "MOST_PACKS", count - 1)
        with pytest.raises(NotFound, match="'tierstore layout rebuild REF'"):
            other.load("m@1")
        assert not [call for call in watched.calls if call[0] != "list" and PACKS in call[1]]
        monkeypatch.setattr(relayout, "MOST_PACKS", count)
        equal(other.load("m@1").load(), CONTENT["m@1"])


def test_who_may_not_write_reads_all_the_same(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lose(blobs, LAYOUTS)

    def plan(op: str, key: str, number: int) -> Exception | None:
        return PermissionDenied(f"{key} is not for you") if op.startswith("put") else None

    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        equal(other.load("m@1").load(), CONTENT["m@1"])
    assert "not written: leases/" in caplog.text
    assert "'tierstore layout rebuild REF' writes it" in caplog.text
    assert keys(blobs, LAYOUTS) == []


def test_a_store_of_a_newer_version_is_not_written_to(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    import msgspec

    lose(blobs, LAYOUTS)
    home = store._parts.home
    home.config = msgspec.structs.replace(
        home.config, features=Features(write=["reclaim", "newer"], gc=["reclaim"])
    )
    equal(store.load("m@1").load(), CONTENT["m@1"])
    assert keys(blobs, LAYOUTS) == []
    assert "not written" in caplog.text
    for work in (lambda: rebuild_index(home), lambda: layouts(store, "m@1")):
        with pytest.raises(UnsupportedFormat):
            work()


def test_a_load_writes_no_layout_of_condemned_packs(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    lose(blobs, LAYOUTS)
    condemn(blobs, pack_key(own))
    equal(store.load("m@2").load(), CONTENT["m@2"])
    assert keys(blobs, LAYOUTS) == []
    assert "'tierstore gc' heals it" in caplog.text


def test_rebuilt_layouts_list_deltas_with_their_bases(store: Store, blobs: MemoryStore) -> None:
    digest = store.resolve("n@2").digest
    key = layout_key(digest)
    before = parse_layout(blobs.get(key), digest, key)
    assert before.bases
    lose(blobs, LAYOUTS)
    layouts(store, "n@2")
    assert set(parse_layout(blobs.get(key), digest, key)) == set(before)
