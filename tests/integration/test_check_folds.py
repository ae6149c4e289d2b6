"""``check`` compares a fold with the base and the patches that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import condemn, created, opened
from tierstore import Dense, Elements, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import TierstoreError
from tierstore.format.keys import fold_key, layout_key, move_key, pack_key, version_key
from tierstore.format.layout import Fold, Move
from tierstore.format.pack import PackBuilder
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import ByteRange, Digest
from tierstore.modelstore.care.check_findings import Finding
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store

State = dict[str, np.ndarray]
BASE: State = {
    "emb": np.random.default_rng(1).standard_normal((2000, 300), np.float32),  # three chunks
    "head": np.arange(64, dtype=np.float32),
    "kept": np.random.default_rng(2).standard_normal((400, 300), np.float32),
    "few": np.arange(100, dtype=np.int64),
}
FOLDED: State = {
    **BASE,
    "emb": np.concatenate([np.ones((3, 300), np.float32), BASE["emb"][3:]]),
    "head": -BASE["head"],
    "few": np.concatenate([BASE["few"][:50], [7], BASE["few"][51:]]),
}


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("folds")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    made = created(blobs, cache)
    made.save("m", BASE)
    made.patch("m", {"emb": Rows([0, 1, 2], np.ones((3, 300), np.float32))})
    made.patch("m", {"head": Dense(FOLDED["head"]), "few": Elements([50], np.array([7]))})
    return made


def fold_to(store: Store, blobs: MemoryStore, state: State) -> str:
    """Have the fold of ``m`` name a full version of this content; return the fold's key."""
    version, full = store.resolve("m"), store.save("other", state)
    key = fold_key(version.digest)
    data = seal_body(Kind.FOLD, Fold(patch=version.digest.hex, full=full.digest.hex))
    blobs.put(key, data)
    return key


def of_fold(findings: list[Finding], key: str) -> list[Finding]:
    return [finding for finding in findings if finding.key == key]


def test_a_fold_that_holds_what_the_patches_give_is_right(store: Store, blobs: MemoryStore) -> None:
    seen: list[tuple[int, int]] = []
    key = fold_to(store, blobs, FOLDED)
    report = store.check(read_data=True, progress=lambda done, total: seen.append((done, total)))
    assert of_fold(report.findings, key) == []
    assert seen[-1][0] == seen[-1][1]
    assert not report.damaged
    assert np.array_equal(store.load("m")["emb"], FOLDED["emb"])


def other_row(state: State) -> None:
    state["emb"] = state["emb"].copy()
    state["emb"][1999, 299] += 1


def lost_row(state: State) -> None:
    state["emb"] = BASE["emb"]


def lost_element(state: State) -> None:
    state["few"] = BASE["few"]


@pytest.mark.parametrize("change", [other_row, lost_row, lost_element])
def test_what_patches_change_is_computed_where_data_is_read(
    store: Store, blobs: MemoryStore, change: Callable[[State], None]
) -> None:
    state = dict(FOLDED)
    change(state)
    key = fold_to(store, blobs, state)
    assert not store.check().damaged, "metadata cannot tell"
    [finding] = of_fold(store.check(read_data=True).findings, key)
    tensor = "few" if change is lost_element else "emb"
    assert finding.severity == "damage"
    assert f"tensor '{tensor}' differs; delete this object" in finding.what
    assert finding.needed_by == ("m@3",)


def other_kept(state: State) -> None:
    state["kept"] = state["kept"] + 1


def other_dense(state: State) -> None:
    state["head"] = BASE["head"]


def other_shape(state: State) -> None:
    state["kept"] = state["kept"][:-1]


@pytest.mark.parametrize("change", [other_kept, other_dense, other_shape])
@pytest.mark.parametrize("read_data", [False, True])
def test_what_lies_in_chunks_as_it_is_costs_no_data(
    store: Store, blobs: MemoryStore, change: Callable[[State], None], read_data: bool
) -> None:
    state = dict(FOLDED)
    change(state)
    key = fold_to(store, blobs, state)
    [finding] = of_fold(store.check(read_data=read_data).findings, key)
    what: dict[Callable[[State], None], str] = {
        other_kept: "'kept'", other_dense: "'head'", other_shape: "'model.safetensors'",
    }  # fmt: skip
    assert f"{what[change]} differs" in finding.what


def test_a_file_that_no_patch_touches_is_compared(
    blobs: MemoryStore, cache: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    store = created(blobs, cache)
    store.save("arrays", BASE)
    store.load("arrays").export(source)
    (source / "code.py").write_text("right")
    store.save("m", source)
    store.patch("m", {"head": Dense(FOLDED["head"])})
    key = fold_key(store.fold("m").version.digest)
    assert store.check().findings == []
    (source / "code.py").write_text("wrong")
    store.load("m").export_tensors(list(BASE), source / "model.safetensors")
    full = store.save("other", source)
    fold = Fold(patch=store.resolve("m").digest.hex, full=full.digest.hex)
    blobs.put(key, seal_body(Kind.FOLD, fold))
    [finding] = of_fold(store.check().findings, key)
    assert "file 'code.py' differs" in finding.what


def test_a_fold_without_a_chain_below_needs_none(store: Store, blobs: MemoryStore) -> None:
    key = fold_key(store.fold("m").version.digest)
    base = store.resolve("m@1").digest
    blobs.delete([version_key(base), layout_key(base)])
    report = store.check(read_data=True)
    assert report.damaged, "of the base"
    assert of_fold(report.findings, key) == []
    assert np.array_equal(store.load("m")["emb"], FOLDED["emb"])


# A version that was folded, and another one on it: either the fold or what lies below is needed


@pytest.fixture
def folded(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as made:
        enable(made._parts.home, wait_s=0)
        made.save("m", BASE)
        made.patch("m", {"emb": Rows([0, 1, 2], np.ones((3, 300), np.float32))}, fold=False)
        made.fold("m@2")
        made.patch("m", {"head": Dense(FOLDED["head"])}, fold=False)
        yield made


def own_pack(store: Store, digest: Digest) -> str:
    """The pack that a patch version, or the fold of one, has for itself."""
    home = store._parts.home
    others = home.layout(store.resolve("m@1").digest, home.manifest(store.resolve("m@1").digest))
    [pack] = set(home.layout(digest, home.manifest(digest)).pack_ids) - set(others.pack_ids)
    return pack_key(pack)


def fold_pack(store: Store) -> str:
    full = fold_of(store._parts.home, store.resolve("m@2").digest)
    assert full is not None
    return own_pack(store, full)


def reads(store: Store, blobs: MemoryStore, cache: Path) -> None:
    with opened(blobs, cache / "other") as other:
        other.load("m@2").load()
        other.load("m@3").load()


@pytest.mark.parametrize("read_data", [False, True])
@pytest.mark.parametrize("which", ["below", "fold"])
def test_what_is_gone_below_a_whole_fold_or_of_a_fold_on_a_whole_chain_is_no_damage(
    folded: Store, blobs: MemoryStore, cache: Path, which: str, read_data: bool
) -> None:
    """As a collector says, which deletes it once nothing else needs it."""
    below = own_pack(folded, folded.resolve("m@2").digest)
    blobs.delete([below if which == "below" else fold_pack(folded)])
    reads(folded, blobs, cache)
    assert folded.check(read_data=read_data).findings == []
    report = folded.repair()
    assert (report.objects, report.hit) == ([], [])


@pytest.mark.parametrize("read_data", [False, True])
def test_what_is_gone_of_both_is_damage(folded: Store, blobs: MemoryStore, read_data: bool) -> None:
    both = [own_pack(folded, folded.resolve("m@2").digest), fold_pack(folded)]
    blobs.delete(both)
    findings = folded.check(read_data=read_data).findings
    assert {(one.key, one.needed_by) for one in findings} == {(key, ("m@2", "m@3")) for key in both}


def test_what_lies_below_a_fold_that_is_gone_may_be_gone_as_well(
    folded: Store, blobs: MemoryStore
) -> None:
    """Nothing else needs it, so that the check looks at it only now."""
    key, below = fold_pack(folded), own_pack(folded, folded.resolve("m@2").digest)
    folded.remove("m@2")
    folded.retention.set("m", window=timedelta(0))
    blobs.delete([key])
    assert folded.check().findings == []
    blobs.delete([below])
    both = [(one, ("m@3",)) for one in sorted((key, below))]
    assert [(one.key, one.needed_by) for one in folded.check().findings] == both
    assert [one.version for one in folded.repair().hit] == ["m@3"]


def expire(store: Store) -> None:
    """Have nothing but the fold of m@2 need what lies below it."""
    store.remove("m@2")
    store.retention.set("m", window=timedelta(0))


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("lost", ["pack", "frame"])
def test_what_lies_below_a_lost_fold_is_read(
    folded: Store, blobs: MemoryStore, lost: str, is_damaged: bool
) -> None:
    fold, below = fold_pack(folded), own_pack(folded, folded.resolve("m@2").digest)
    expire(folded)
    before = folded.check(read_data=True)
    assert before.findings == []
    if lost == "pack":
        blobs.delete([fold])
    else:
        spoiled(blobs, fold)
    if is_damaged:
        spoiled(blobs, below)
    report = folded.check(read_data=True)
    named = {(one.key, one.needed_by) for one in report.findings}
    users = ("m@3",) if is_damaged else ()
    wanted = {(fold, users)} if is_damaged or lost == "frame" else set()
    assert named == (wanted | {(below, users)} if is_damaged else wanted)
    assert report.data.copies == before.data.copies + (lost == "frame")
    if lost == "pack":
        assert folded.repair().is_whole != is_damaged


@pytest.mark.parametrize("key_of", [version_key, layout_key])
def test_what_leads_to_a_fold_is_spare_while_what_lies_below_is_whole(
    folded: Store, blobs: MemoryStore, cache: Path, key_of: Callable[[Digest], str]
) -> None:
    """One finding says so, however many versions lie on the fold."""
    full = fold_of(folded._parts.home, folded.resolve("m@2").digest)
    assert full is not None
    data = bytearray(blobs.get(key_of(full)))
    data[-1] ^= 1
    blobs.put(key_of(full), data)
    [finding] = folded.check().findings
    assert (finding.severity, finding.key, finding.needed_by) == ("damage", key_of(full), ())
    reads(folded, blobs, cache)


def test_a_lost_manifest_is_named_once(folded: Store, blobs: MemoryStore) -> None:
    key = version_key(folded.resolve("m@1").digest)
    folded.patch("m@1", {"head": Dense(FOLDED["head"])}, fold=False)
    blobs.delete([key])
    [finding] = folded.check().findings
    assert (finding.key, finding.needed_by) == (key, ("m@1", "m@4"))


def test_what_lies_below_a_fold_that_is_gone_may_have_moved(
    folded: Store, blobs: MemoryStore, cache: Path
) -> None:
    home, digest = folded._parts.home, folded.resolve("m@2").digest
    fold, below = fold_pack(folded), own_pack(folded, digest)
    builder = PackBuilder()
    base = folded.resolve("m@1").digest  # with a frame more the pack has another name
    places = [*home.layout(digest, home.manifest(digest)), *home.layout(base, home.manifest(base))]
    for place in {one.digest: one for one in places}.values():
        begin, end = place.offset - place.proof_bytes, place.offset + place.frame_bytes
        builder.copy(place, blobs.get(pack_key(place.pack), ByteRange(begin, end)))
    new, buffers, _ = builder.close()
    blobs.put(pack_key(new), b"".join(buffers))
    move = Move(pack=below[-64:], into=[new.hex()])
    blobs.put(move_key(bytes.fromhex(below[-64:])), seal_body(Kind.MOVE, move))
    folded.remove("m@2")
    folded.retention.set("m", window=timedelta(0))
    blobs.delete([fold, below])
    with opened(blobs, cache / "other") as other:
        other.load("m@3").load()
        assert other.check().findings == []
        assert other.repair().is_whole


@pytest.mark.parametrize("which", ["below", "fold"])
def test_damage_that_no_version_is_read_with_names_none(
    folded: Store, blobs: MemoryStore, cache: Path, which: str
) -> None:
    below = own_pack(folded, folded.resolve("m@2").digest)
    key = below if which == "below" else fold_pack(folded)
    data = bytearray(blobs.get(key))
    data[-1] ^= 1
    blobs.put(key, data)
    report = folded.check()
    assert [(one.key, one.needed_by) for one in report.findings] == [(key, ())]
    assert report.quarantined == [key]
    reads(folded, blobs, cache)


def spoiled(blobs: MemoryStore, key: str) -> None:
    data = bytearray(blobs.get(key))
    data[80] ^= 1
    data[90] ^= 1
    blobs.put(key, data)


@pytest.mark.parametrize("case", ["manifest of the fold", "layout of the fold", "frame below"])
def test_a_version_that_cannot_be_loaded_is_named(
    folded: Store, blobs: MemoryStore, cache: Path, case: str
) -> None:
    full = fold_of(folded._parts.home, folded.resolve("m@2").digest)
    assert full is not None
    fold, below = fold_pack(folded), own_pack(folded, folded.resolve("m@2").digest)
    if case == "frame below":
        spoiled(blobs, below)
        blobs.delete([fold])
        folded.remove("m@2")
        folded.retention.set("m", window=timedelta(0))
    elif case == "layout of the fold":
        blobs.delete([below, fold, layout_key(full)])
    else:
        blobs.delete([below, version_key(full)])
    with opened(blobs, cache / "other") as other:
        with pytest.raises(TierstoreError):
            other.load("m@3").load()
        named = {name for one in other.check(read_data=True).findings for name in one.needed_by}
        report = other.repair()
    assert "m@3" in named
    assert {one.version for one in report.hit} & {"m@2", "m@3"}
    assert not report.is_whole


def test_a_damaged_move_ends_no_check(folded: Store, blobs: MemoryStore) -> None:
    [gone, _] = sorted((own_pack(folded, folded.resolve("m@2").digest), fold_pack(folded)))
    folded.save("n", {"w": np.arange(70_000, dtype=np.float32)}, base=None)
    table = folded._parts.home
    [own] = table.layout(
        (found := folded.resolve("n")).digest, table.manifest(found.digest)
    ).pack_ids
    move = seal_body(Kind.MOVE, Move(pack=own.hex(), into=[gone[-64:]]))
    blobs.put(move_key(own), bytes(move)[:-3])
    blobs.delete([pack_key(own)])
    found_keys = {one.key for one in folded.check().findings}
    assert {pack_key(own), move_key(own)} <= found_keys


def test_what_lies_below_a_lost_fold_stays_for_the_window(blobs: MemoryStore, cache: Path) -> None:
    """It was condemned while the fold was whole."""
    with created(blobs, cache) as made:
        enable(made._parts.home, wait_s=0)
        made.save("m", BASE)
        made.patch("m", {"emb": Rows([0, 1, 2], np.ones((3, 300), np.float32))}, fold=False)
        made.fold("m@2")
        below, fold = own_pack(made, made.resolve("m@2").digest), fold_pack(made)
        made.remove("m@2", force=True)
        condemn(blobs, below)
        blobs.delete([fold])
    with opened(blobs, cache / "gc") as other:
        other.reclaim.run(grace=timedelta(0))
        other.undelete("m@2")
        assert other.load("m@2").load().keys() == BASE.keys()
