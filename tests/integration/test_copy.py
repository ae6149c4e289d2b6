"""Copies between stores: exact bytes, frames as they are, only what is new, and from any crash."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened
from tierstore import Rows
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.copying.copying import copy_version
from tierstore.copying.report import CopiedVersion
from tierstore.errors import Conflict, Damaged, NotFound, UsageError
from tierstore.format.checks import xxh3
from tierstore.format.keys import fold_key, version_key
from tierstore.format.layout import Fold
from tierstore.format.reflog import RefEntry
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.saving import framing
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.variants.derive import derive

State = dict[str, np.ndarray]


def model(seed: int = 0) -> State:
    """A table of three chunks, and small tensors."""
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((2500, 300), np.float32),
        "bias": rng.standard_normal(64, np.float32),
        "w": rng.standard_normal((64, 64), np.float32),
    }


def tuned(state: State, seed: int = 1) -> State:
    """A state that is stored as deltas on another."""
    rng = np.random.default_rng(seed)
    change = rng.standard_normal(state["emb"].shape, np.float32) * 1e-4
    return state | {"emb": (state["emb"] * (1 + change)).astype(np.float32)}


ROWS = Rows(np.array([3, 2000]), np.full((2, 300), 0.5, np.float32))


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("source")


@pytest.fixture
def other() -> MemoryStore:
    return MemoryStore("target")


@pytest.fixture
def source(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        yield store


@pytest.fixture
def target(other: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(other, cache / "target") as store:
        yield store


def copied(source: Store, ref: str, target: Store, into: str | None = None) -> list[CopiedVersion]:
    return copy_version(source, ref, target, model=into, history=False, progress=None)


def same(source: Store, target: Store, *refs: str) -> None:
    """See that versions have the same content and digest in both stores, and all is whole."""
    for ref in refs:
        assert target.resolve(ref).digest == source.resolve(ref).digest
        equal(target.load(ref).load(), source.load(ref).load())
    assert not target.check(read_data=True).damaged


def size_of(blobs: BlobStore, prefix: str = "") -> int:
    return sum(info.size for info in blobs.list(prefix))


@pytest.fixture
def many(source: Store) -> Store:
    """A version, deltas on it, a patch, and a patch on that which is folded."""
    first = model()
    source.save("m", first, message="first")
    source.save("m", tuned(first), message="second")
    source.patch("m", {"emb": ROWS}, message="third")
    source.patch("m", {"emb": Rows(np.array([7]), np.ones((1, 300), np.float32))})
    source.fold("m@4")
    return source


def test_every_kind_of_version_is_copied_byte_for_byte(many: Store, target: Store) -> None:
    for number in (1, 2, 3, 4):
        [one] = copied(many, f"m@{number}", target)
        assert one.outcome == "copied"
        assert one.version is not None
        assert one.version.number == number
        assert one.version.message == many.resolve(f"m@{number}").message
    same(many, target, "m@1", "m@2", "m@3", "m@4")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_version_brings_all_that_it_needs(many: Store, target: Store, number: int) -> None:
    copied(many, f"m@{number}", target)
    equal(target.load("m@1").load(), many.load(f"m@{number}").load())
    assert not target.check(read_data=True).damaged


@pytest.mark.parametrize("is_there", [True, False], ids=["its manifest", "no manifest"])
def test_a_patch_on_a_fold_is_collected_where_it_was_copied(
    many: Store, target: Store, other: MemoryStore, is_there: bool
) -> None:
    """Copies of before lack the manifest that the fold stands for: they are sound, too."""
    many.patch("m@4", {"emb": ROWS})
    copied(many, "m@5", target)
    key = version_key(many.resolve("m@4").digest)
    assert other.present([key])
    if not is_there:
        other.delete([key])
    enable(target._parts.home, wait_s=0)
    other.delete([info.key for info in other.list("leases/")])
    Collector(target._parts.home).run(grace_s=0)
    assert bool(other.present([key])) == is_there
    equal(target.load("m@1").load(), many.load("m@5").load())


def test_a_patch_on_what_was_purged_there_is_refused(
    many: Store, target: Store, other: MemoryStore
) -> None:
    many.patch("m@4", {"emb": ROWS})
    enable(target._parts.home, wait_s=0)
    purged, now_us = [many.resolve("m@4").digest.raw], time.time_ns() // 1000
    target._parts.home.condemned.condemn([], purged, run=uuid.uuid4().hex, now_us=now_us)
    with pytest.raises(Conflict, match="on which this patch lies, was purged"):
        copied(many, "m@5", target)
    assert target.models() == []


def test_frames_are_copied_as_they_are(
    many: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("encoded anew")

    monkeypatch.setattr(framing, "encode", refuse)
    for number in (1, 2, 3, 4):
        copied(many, f"m@{number}", target)
    same(many, target, "m@1", "m@2", "m@3", "m@4")


def test_only_what_is_new_is_sent(
    many: Store, target: Store, blobs: MemoryStore, other: MemoryStore
) -> None:
    sent = []
    for number in (1, 2, 3, 4):
        sent += [one.sent_bytes for one in copied(many, f"m@{number}", target)]
    assert size_of(other, "packs/") <= size_of(blobs, "packs/")
    assert sum(sent) <= 1.05 * sum(size_of(blobs, p) for p in ("packs/", "versions/", "layouts/"))
    before = sorted(info.key for info in other.list())
    assert [one.outcome for one in copied(many, "m@4", target)] == ["there"]
    assert sorted(info.key for info in other.list()) == before


def test_the_fold_comes_along(many: Store, target: Store, other: MemoryStore) -> None:
    copied(many, "m@4", target)
    other.info(fold_key(many.resolve("m@4").digest))


def test_a_fold_that_is_lost_is_left_out(many: Store, target: Store, blobs: MemoryStore) -> None:
    full = fold_of(many._parts.home, many.resolve("m@4").digest)
    assert full is not None
    blobs.delete([version_key(full)])
    copied(many, "m@4", target)
    equal(target.load("m").load(), many.load("m@4").load())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_fold_that_says_something_else_is_not_copied(
    source: Store, target: Store, blobs: MemoryStore, cache: Path, is_there: bool
) -> None:
    """The digest of a patch version does not name its fold: a copy must not rely on that."""
    first = model()
    source.save("m", first)
    patch = source.patch("m", {"emb": ROWS})
    right = source.load("m@2").load()
    if is_there:
        copied(source, "m@1", target)
        copied(source, "m@2", target)
    other = source.save("other", first | {"emb": first["emb"] * 2})
    fold = Fold(patch=patch.digest.hex, full=other.digest.hex)
    blobs.put(fold_key(patch.digest), seal_body(Kind.FOLD, fold))
    with opened(blobs, cache / "again") as again:
        copied(again, "m@2", target)
    with opened(target._parts.home.blobs, cache / "fresh") as fresh:
        equal(fresh.load("m").load(), right)


def test_a_base_that_is_a_delta_there_is_copied_standalone(source: Store, target: Store) -> None:
    """The target has the content of the base as a delta on something else, which is no base."""
    zero = model()
    first, second = tuned(zero, 1), tuned(tuned(zero, 1), 2)
    source.save("m", first, base=None)
    source.save("m", second)
    target.save("m", zero)
    target.save("m", first)
    [one] = copied(source, "m@2", target)
    assert str(one.version) == "m@3"
    equal(target.load("m@3").load(), second)
    equal(target.load("m@2").load(), first)
    assert not target.check(read_data=True).damaged


def _checksum(data: bytearray) -> bytes:
    return xxh3(bytes(data)).to_bytes(8, "little")


def flip(blobs: BlobStore, key: str, at: int) -> None:
    data = bytearray(blobs.get(key))
    data[at] ^= 1
    blobs.put(key, bytes(data))


def test_a_damaged_frame_is_refused_and_named(
    source: Store, target: Store, blobs: MemoryStore, other: MemoryStore
) -> None:
    source.save("m", model())
    [pack] = blobs.list("packs/")
    flip(blobs, pack.key, pack.size // 2)
    with pytest.raises(Damaged, match="chunk b3:"):
        copied(source, "m", target)
    assert target.models() == []
    assert not [*other.list("versions/")]


def test_a_damaged_delta_is_refused(
    source: Store, target: Store, blobs: MemoryStore, other: MemoryStore
) -> None:
    """The checksums of its head fit: only its chunk's digest tells."""
    first = model()
    source.save("m", first)
    known = {info.key for info in blobs.list("packs/")}
    source.save("m", tuned(first))
    copied(source, "m@1", target)
    [pack] = [info for info in blobs.list("packs/") if info.key not in known]
    _, places = read_footer(blobs, pack.key, pack.size)
    place = next(place for place in places if place.bases)
    data = bytearray(blobs.get(pack.key))
    begin, end = place.offset + place.head_bytes, place.offset + place.frame_bytes
    data[end - 1] ^= 1
    data[place.offset + 16 : place.offset + 24] = _checksum(data[begin:end])
    data[begin - 8 : begin] = _checksum(data[place.offset : begin - 8])
    blobs.put(pack.key, bytes(data))
    with pytest.raises(Damaged, match="chunk b3:"):
        copied(source, "m@2", target)
    assert len(target.versions("m")) == 1


def test_what_a_patch_lies_on_is_not_removed_if_it_came_later(source: Store, target: Store) -> None:
    source.save("m", model())
    source.patch("m@1", {"emb": ROWS})
    enable(target._parts.home, wait_s=0)
    copied(source, "m@2", target)
    copied(source, "m@1", target)
    target.save("m", model(9), base=None)
    with pytest.raises(Conflict, match="m@2 is needed by patch m@1, which lies on it"):
        target.remove("m@2")


def test_variants_go_with_their_version(source: Store, target: Store) -> None:
    source.save("m", model(1))
    source.save("m", model())
    derive(source, "m@2", {"int8": "row"})
    got = copied(source, "m@2", target)
    assert [str(one.version) for one in got] == ["m@1", "m@1+int8-row"]
    equal(target.load("m@1+int8-row").load(), source.load("m@2+int8-row").load())
    assert [one.outcome for one in copied(source, "m@2", target)] == ["there", "there"]
    with pytest.raises(UsageError, match="variant"):
        copied(source, "m@2+int8-row", target)


def test_a_release_brings_its_members(source: Store, target: Store) -> None:
    source.save("a", model(1))
    source.save("a", model(2))
    source.save("b", model(3))
    source.releases.create("both", ["a@2", "b@1"], message="go")
    got = copied(source, "both", target)
    assert [str(one.version) for one in got] == ["a@1", "b@1", "both@1"]
    made = target.releases.get("both")
    assert {name: str(one) for name, one in made.members.items()} == {"a": "a@1", "b": "b@1"}
    assert made.version.message == "go"
    equal(target.load("a@release:both@1").load(), source.load("a@2").load())
    assert {one.outcome for one in copied(source, "both", target)} == {"there"}
    assert len(target.versions("both")) == 1


def test_another_name_and_another_chunk_size(source: Store, cache: Path) -> None:
    source.save("m", model())
    with created(MemoryStore("big"), cache / "big", 4 << 20) as target:
        [one] = copied(source, "m", target, into="org/backup")
        assert str(one.version) == "org/backup@1"
        equal(target.load("org/backup").load(), source.load("m").load())
        target.patch("org/backup", {"emb": ROWS})
        assert not target.check(read_data=True).damaged


def test_what_was_purged_there_does_not_come_back(
    source: Store, target: Store, other: MemoryStore
) -> None:
    """It is found out before anything is written, and not by the look behind the entry alone."""
    version = source.save("m", model())
    enable(target._parts.home, wait_s=0)
    copied(source, "m", target)
    target.save("m", model(5))
    purged, now_us = [version.digest.raw], time.time_ns() // 1000
    target._parts.home.condemned.condemn([], purged, run=uuid.uuid4().hex, now_us=now_us)
    with pytest.raises(Conflict, match="purged"):
        copied(source, "m", target, into="again")
    assert target.models() == ["m"]
    assert not [*other.list("refs/again/")]


def test_what_is_condemned_while_it_is_published_is_stored_anew(
    many: Store, target: Store, other: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what a patch lies on, which came with it."""
    enable(target._parts.home, wait_s=0)
    publish, packs = target._names.publish, list[str]()

    def slowly(*args: Any, **more: Any) -> RefEntry:
        entry = publish(*args, **more)
        packs.extend(info.key for info in other.list("packs/"))
        condemn(other, *packs)
        return entry

    monkeypatch.setattr(target._names, "publish", slowly)
    copied(many, "m@3", target)
    assert len(packs) > 1
    other.delete(packs)
    with opened(other, cache / "later") as later:
        equal(later.load("m").load(), many.load("m@3").load())
        assert not later.check(read_data=True).damaged


def test_a_copy_from_any_crash(source: Store, blobs: MemoryStore, cache: Path) -> None:
    """Wherever a copy ends, what is there is whole, and copying again gives all of it once."""
    first = model()
    source.save("m", first)
    source.patch("m", {"emb": ROWS})
    wanted = source.load("m").load()
    after = 0
    while True:
        inner = MemoryStore(f"target{after}")
        created(inner, cache / f"t{after}").close()
        crashing = FaultyStore(inner, crash_after=after)
        try:
            with opened(crashing, cache / f"t{after}") as target:
                copied(source, "m", target)
            break
        except Crashed:
            pass
        with opened(inner, cache / f"again{after}") as target:
            assert not target.check(read_data=True).damaged
            [one] = copied(source, "m", target)
            assert one.version is not None
            equal(target.load("m").load(), wanted)
            assert not target.check(read_data=True).damaged
            assert len(target.versions("m")) == 1
        after += 1
    assert after > 8


def test_a_missing_pack_is_named(source: Store, target: Store, blobs: MemoryStore) -> None:
    source.save("m", model())
    [pack] = blobs.list("packs/")
    blobs.delete([pack.key])
    with pytest.raises(NotFound, match=pack.key.rpartition("/")[2]):
        copied(source, "m", target)
    assert target.models() == []


@pytest.mark.parametrize("lost", ["packs/", "layouts/", "versions/"])
def test_what_was_lost_there_is_put_back(
    many: Store, target: Store, other: MemoryStore, cache: Path, lost: str
) -> None:
    """Also of the version below a patch; the numbers stay."""
    for number in (1, 2, 3):
        copied(many, f"m@{number}", target)
    other.delete([info.key for info in other.list(lost)])
    with opened(other, cache / "again") as again:
        for number in (3, 2, 1):
            [one] = copied(many, f"m@{number}", again)
            assert one.outcome in ("healed", "there")
        same(many, again, "m@1", "m@2", "m@3")
        assert len(again.versions("m")) == 3


def test_what_is_damaged_there_is_put_back_once_that_is_known(
    source: Store, target: Store, other: MemoryStore, cache: Path
) -> None:
    source.save("m", model())
    copied(source, "m", target)
    [pack] = other.list("packs/")
    flip(other, pack.key, pack.size // 2)
    assert target.check(read_data=True).damaged
    with opened(other, cache / "again") as again:
        [one] = copied(source, "m", again)
        assert one.outcome == "healed"
        equal(again.load("m").load(), source.load("m").load())
