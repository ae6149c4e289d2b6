"""Deltas on save: a version costs what it changed, and nothing about it can be lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.kit import MIB, condemn, created, equal, opened, safetensors_bytes
from tierstore.blobs.memory import MemoryStore
from tierstore.codecs import DELTA
from tierstore.codecs.base import WORD_TYPES
from tierstore.errors import Damaged, NotFound, UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.format.keys import pack_key, version_key
from tierstore.format.manifest import Manifest, parse_manifest
from tierstore.ids import Buffer, Digest
from tierstore.modelstore.home.heads import Heads
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.saving import base_selection
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import SaveStats, Version
from tierstore.testing.faulty import Fault, FaultyStore

Model = dict[str, np.ndarray]


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("deltas")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    return created(blobs, cache)


def weights(rows: int, width: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)


def tuned(array: np.ndarray, seed: int = 1, step: float = 1e-4) -> np.ndarray:
    """As a few steps of training would leave it."""
    noise = np.random.default_rng(seed).standard_normal(array.shape, np.float32)
    return array * (1 + np.float32(step) * noise)


def model(seed: int = 0) -> Model:
    """An embedding of three chunks and a layer of one."""
    return {"emb": weights(1500, seed=seed), "layer": weights(200, seed=seed + 100)}


def tuned_model(base: Model, seed: int = 1) -> Model:
    return {name: tuned(array, seed) for name, array in base.items()}


def stats(version: Version) -> SaveStats:
    assert version.stats is not None
    return version.stats


def places(store: Store, ref: str) -> list:
    return list(store.load(ref)._opened.content.table)


def is_sound(store: Store) -> None:
    """Every stored byte is read and compared, and no delta's base is a delta."""
    assert not store.check(read_data=True).damaged
    for name in store.models():
        for version in store.versions(name):
            table = store.load(str(version))._opened.content.table
            for place in table:
                for base in place.bases:
                    below = table.find(base)
                    assert below is not None
                    assert not below.bases
                    assert base != place.digest


def test_a_tuned_version_is_stored_as_deltas(store: Store, kernels: str) -> None:
    first = model()
    second = tuned_model(first)
    store.save("m", first)
    version = store.save("m", second)
    saved = stats(version)
    assert saved.base == "m@1"
    assert saved.delta_bytes == saved.new_bytes == sum(a.nbytes for a in second.values())
    assert saved.full_bytes == 0
    assert saved.delta_stored_bytes < saved.stored_bytes < 0.5 * saved.new_bytes
    equal(store.load("m@2").load(), second)
    equal(store.load("m@1").load(), first)
    is_sound(store)


def test_what_a_version_is_does_not_depend_on_its_base(store: Store, tmp_path: Path) -> None:
    first = model()
    second = tuned_model(first)
    alone = created(MemoryStore("alone"), tmp_path / "other")
    store.save("m", first)
    assert store.save("m", second).digest == alone.save("m", second).digest
    assert stats(store.save("n", second)).new_bytes == 0
    alone.close()


def test_the_third_version_refers_to_the_first(store: Store) -> None:
    first = model()
    store.save("m", first)
    second = tuned_model(first)
    store.save("m", second)
    third = tuned_model(second, 2)
    saved = stats(store.save("m", third))
    assert (saved.base, saved.full_bytes) == ("m@2", 0)
    own = {place.digest for place in places(store, "m@1")}
    deltas = [place for place in places(store, "m@3") if place.bases]
    assert deltas
    assert {base for place in deltas for base in place.bases} <= own
    equal(store.load("m@3").load(), third)
    is_sound(store)


def test_a_version_that_shares_nothing_is_stored_standalone(store: Store) -> None:
    store.save("m", model())
    saved = stats(store.save("m", model(7)))
    assert (saved.delta_bytes, saved.base) == (0, None)
    is_sound(store)


def test_a_base_can_be_named_or_refused(store: Store) -> None:
    first = model()
    other = tuned_model(first, 5)
    store.save("ranker", first, alias="prod")
    store.save("ranker", model(9))
    assert stats(store.save("a", other, base="ranker@prod")).base == "ranker@1"
    assert stats(store.save("b", tuned_model(first, 6), base=None)).base is None
    with pytest.raises(NotFound, match="ranker@7"):
        store.save("c", tuned_model(first, 7), base="ranker@7")
    assert store.models() == ["a", "b", "ranker"]
    is_sound(store)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_model_of_another_name_finds_its_base(store: Store, prefix: str) -> None:
    for number in range(4):
        store.save(f"other-{number}", model(20 + number))
    first = model()
    store.save("base", first)
    second = {prefix + name: array for name, array in tuned_model(first).items()}
    saved = stats(store.save("my-own", second))
    assert (saved.base, saved.full_bytes) == ("base@1", 0)
    equal(store.load("my-own").load(), second)


def test_one_manifest_of_another_name_is_held_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read at the same time, and one may take 100 MB once it is parsed."""
    for number in range(3):
        store.save(f"other-{number}", {"w": weights(16, seed=number)}, base=None)
    gate, at_once, parse = threading.Lock(), threading.Event(), parse_manifest

    def parsed(data: Buffer, digest: Digest, name: str) -> Manifest:
        is_alone = gate.acquire(blocking=False)
        if not is_alone:
            at_once.set()
        try:
            at_once.wait(0.05)
            return parse(data, digest, name)
        finally:
            if is_alone:
                gate.release()

    monkeypatch.setattr(base_selection, "parse_manifest", parsed)
    store.save("m", {"w": weights(16, seed=9)})
    assert not at_once.is_set()


def test_an_embedding_of_another_name_with_a_row_more_finds_its_base(store: Store) -> None:
    table = weights(3000)
    store.save("base", {"emb": table})
    saved = stats(store.save("mine", {"emb": np.concatenate([weights(1, seed=3), table])}))
    assert saved.base == "base@1"
    assert saved.stored_bytes < 30_000


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "64 appended": lambda a: np.concatenate([a, weights(64, seed=4)]),
    "one inserted": lambda a: np.insert(a, 700, weights(1, seed=4), 0),
    "one deleted": lambda a: np.delete(a, 700, 0),
    "one inserted, one deleted": lambda a: np.delete(
        np.insert(a, 700, weights(1, seed=4), 0), 2000, 0
    ),
    "inserted in five places": lambda a: np.insert(a, [1, 700, 1400, 2100, 2990],
                                                   weights(5, seed=4), 0),
    "the first third dropped": lambda a: a[1000:],
    "a chunk and more put before it": lambda a: np.concatenate([weights(700, seed=4), a]),
}  # fmt: skip


@pytest.mark.parametrize("step", [0, 1e-4])
@pytest.mark.parametrize("edit", EDITS)
def test_rows_that_moved_cost_nothing(store: Store, edit: str, step: float) -> None:
    table = weights(3000)
    store.save("m", {"emb": table})
    new = EDITS[edit](table)
    fresh = max(0, len(new) - len(table)) + 2
    if step:
        new = tuned(new, step=step)
    saved = stats(store.save("m", {"emb": new}))
    bound = fresh * 2048 * 1.05 + 24_000
    if step:  # what the same version costs when no row moved, on top
        still = stats(store.save("m", {"emb": tuned(table, 9, step)}, base="m@1"))
        bound += 1.1 * still.delta_stored_bytes
    assert saved.stored_bytes < bound
    equal(store.load("m@2").load(), {"emb": new})
    is_sound(store)


def test_rows_of_a_delta_are_read_without_the_rest(blobs: MemoryStore, cache: Path) -> None:
    table = weights(8000)
    store = created(blobs, cache, 4 * MIB)
    store.save("m", {"emb": table})
    new = np.insert(tuned(table), 1000, weights(1, seed=4), 0)
    store.save("m", {"emb": new})
    loaded = store.load("m@2")
    assert {place.codec for place in loaded._opened.content.table} >= {DELTA}
    for rows in ([5], [999, 1000, 1001], [2047, 2048, 7999], list(range(0, 8001, 500))):
        assert loaded.tensor("emb")[rows].tobytes() == new[rows].tobytes()
    part = store.load("m@2")
    assert part.tensor("emb")[3000:3001].tobytes() == new[3000:3001].tobytes()
    assert part.stats.bytes_fetched < MIB


def random_bytes(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


SPECIAL: dict[str, list[Any]] = {
    "F64": ["<u8", 0x7FF8000000000001, 0x7FF0000000000000, 1 << 63, 1],
    "F32": ["<u4", 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0x80000000, 1],
    "F16": ["<u2", 0x7E01, 0xFFFF, 0x7C00, 0x8000, 1],
    "BF16": ["<u2", 0x7FC1, 0xFFFF, 0x7F80, 0x8000, 1],
}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_comes_back_bit_for_bit(
    store: Store, tmp_path: Path, dtype: str, kernels: str
) -> None:
    """Any bytes against any other: NaN payloads, negative zero, denormals, infinities."""
    size = 48 * 23_000
    old = np.frombuffer(random_bytes(1, size), np.uint8).copy()
    if dtype in SPECIAL:
        kind, *values = SPECIAL[dtype]
        old.view(kind)[: 1000 * len(values)] = values * 1000
    new = old.copy()
    where = np.random.default_rng(2).integers(0, size, size // 50)
    new[where] ^= 1
    new[where[:50]] ^= 0xFF
    shape = [size * 8 // DTYPES[dtype].bits]
    contents = [safetensors_bytes([("w", dtype, shape, a.tobytes())]) for a in (old, new)]
    for content in contents:
        path = tmp_path / "w.safetensors"
        path.write_bytes(content)
        saved = stats(store.save("m", path))
    assert saved.delta_bytes == (size if dtype in WORD_TYPES else 0)
    for number, content in enumerate(contents, 1):
        store.load(f"m@{number}").export(tmp_path / f"out{number}")
        assert (tmp_path / f"out{number}" / "w.safetensors").read_bytes() == content
    is_sound(store)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.sampled_from("idct"), st.integers(0, 2200), st.integers(1, 300)), max_size=4
    ),
    width=st.sampled_from([1, 7, 130, 300]),
    bf16=st.booleans(),
)
def test_any_edit_of_rows_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[str, int, int]],
    width: int,
    bf16: bool,
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    with created(MemoryStore("rows"), cache) as store:
        rows = 600_000 // width
        array = weights(rows, width)
        if bf16:
            array = array.view(np.uint16)[:, 1::2].copy()
        store.save("m", {"emb": array, "bias": array[:3]})
        fresh = np.random.default_rng(5)
        for kind, at, count in edits:
            at = at % max(1, len(array))
            other = array[fresh.integers(0, len(array), count)] + array.dtype.type(1)
            if kind == "i":
                array = np.concatenate([array[:at], other, array[at:]])
            elif kind == "d":
                array = np.delete(array, slice(at, at + count), 0)
            elif kind == "c":
                array = array.copy()
                array[at : at + count] = other[: len(array[at : at + count])]
            else:
                array = array + (array.dtype.type(1) if bf16 else np.float32(1e-6))
            store.save("m", {"emb": array, "bias": array[:3]})
            equal(store.load("m").load(), {"emb": array, "bias": array[:3]})
        is_sound(store)


def test_an_equal_chunk_is_never_a_delta(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Also when the index knows nothing: against itself it could never be read."""
    first = model()
    store.save("m", first)
    store.save("m", tuned_model(first))
    store.close()
    blobs.delete([info.key for info in blobs.list("index/")])
    for path in cache.rglob("index.sqlite*"):
        path.unlink()
    with opened(blobs, cache) as again:
        for number, content in ((3, first), (4, tuned_model(first))):
            saved = stats(again.save("m", content, base=f"m@{number - 2}"))
            assert (saved.new_bytes, saved.delta_bytes) == (0, 0)
            equal(again.load(f"m@{number}").load(), content)
        is_sound(again)


def base_packs(store: Store, ref: str) -> list[str]:
    return sorted({pack_key(place.pack) for place in store.load(ref)._opened.content.table})


def once(key_start: str, hook: Callable[[], object]) -> Callable[..., Fault]:
    """A plan that calls ``hook`` just before the first write of such a key."""
    done: list[str] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if not done and op == "put" and key.startswith(key_start):
            done.append(key)
            hook()
        return None

    return plan


@pytest.mark.parametrize("how", ["deleted", "condemned"])
@pytest.mark.parametrize("moment", ["packs/", "versions/"])
def test_a_base_that_goes_while_saving_is_not_relied_on(
    store: Store, blobs: MemoryStore, cache: Path, how: str, moment: str
) -> None:
    first = model()
    store.save("m", first)
    (key,) = base_packs(store, "m@1")
    second = tuned_model(first)

    def lose() -> None:
        if how == "deleted":
            blobs.delete([key])
        else:
            condemn(blobs, key)

    with opened(FaultyStore(blobs, once(moment, lose)), cache) as saving:
        saved = stats(saving.save("m", second))
    assert saved.delta_bytes == 0
    equal(store.load("m@2").load(), second)
    assert not {key} & set(base_packs(store, "m@2"))


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_a_base_that_cannot_be_read_is_none(
    store: Store, blobs: MemoryStore, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = model()
    store.save("m", first)
    (key,) = base_packs(store, "m@1")
    data = bytearray(blobs.get(key))
    blobs.delete([key])
    if how == "damaged":
        for place in places(store, "m@1"):
            data[place.offset + place.head_bytes + 100] ^= 1
        blobs.put(key, data)
    second = tuned_model(first)
    saved = stats(store.save("m", second, base="m@1"))
    assert saved.delta_bytes == 0
    assert "stored standalone" in caplog.text
    equal(store.load("m@2").load(), second)


def test_a_damaged_base_is_found_by_who_reads_its_deltas(store: Store, blobs: MemoryStore) -> None:
    first = model()
    store.save("m", first)
    store.save("m", tuned_model(first))
    (place,) = [p for p in places(store, "m@1") if p.plain_bytes == 200 * 2048]
    key = pack_key(place.pack)
    data = bytearray(blobs.get(key))
    data[place.offset + place.head_bytes + 100] ^= 1
    blobs.delete([key])
    blobs.put(key, data)
    for ref in ("m@1", "m@2"):
        with pytest.raises(Damaged, match=place.digest.hex()):
            store.load(ref).load()
        with pytest.raises(Damaged, match=place.digest.hex()):
            store.load(ref).tensor("layer")[3]
    report = store.check(read_data=True)
    assert {user for finding in report.findings for user in finding.needed_by} == {"m@1", "m@2"}


def test_saves_at_once_against_one_base(store: Store, blobs: MemoryStore, cache: Path) -> None:
    first = model()
    store.save("m", first)
    contents = [tuned_model(first, seed) for seed in (1, 2, 1, 3)]
    start = threading.Barrier(len(contents))

    def save(content: Model) -> Version:
        with opened(blobs, cache) as own:
            start.wait(60)
            return own.save("m", content)

    with ThreadPoolExecutor(len(contents)) as pool:
        versions = list(pool.map(save, contents))
    for version, content in zip(versions, contents, strict=True):
        equal(store.load(str(version)).load(), content)
    is_sound(store)


def test_du_and_diff_say_what_deltas_saved(store: Store) -> None:
    first = model()
    store.save("m", first)
    second = tuned_model(first)
    saved = stats(store.save("m", second))
    change = store.diff("m@1", "m@2")
    assert change.new_bytes == saved.new_bytes
    assert change.stored_bytes == saved.delta_stored_bytes
    assert change.delta_saved == saved.delta_bytes - saved.delta_stored_bytes
    assert sum(item.stored_bytes for item in change.tensors) == change.stored_bytes
    store.save("n", tuned_model(first, 4))
    for usage in (store.usage(), store.usage("m"), store.usage("n")):
        parts = usage.dedup_saved + usage.codec_saved + usage.delta_saved
        headers = usage.logical - parts - (usage.stored - usage.overhead)
        assert 0 < headers < 2000
        assert usage.dedup_saved == 0
    assert store.usage().delta_saved > change.delta_saved
    assert store.usage("n").delta_saved < change.delta_saved  # it brings its base along


def test_rebase_stores_dear_deltas_standalone(store: Store, blobs: MemoryStore) -> None:
    first = model()
    store.save("m", first)
    second = {"emb": tuned(first["emb"], step=1e-6), "layer": tuned(first["layer"], step=0.02)}
    store.save("m", second)
    store.save("n", second)
    before = store.load("m@2")
    deltas = [place for place in before._opened.content.table if place.bases]
    done = store.rebase("m@2", above=1.5)
    assert 0 < done.chunks < done.deltas == len(deltas)
    assert done.cost_before > done.cost_after >= 1
    assert done.stored_bytes > 0
    everything = store.rebase("m@2", above=1)
    assert everything.chunks == everything.deltas == done.deltas - done.chunks
    assert everything.cost_after == 1
    assert not any(place.bases for place in places(store, "m@2"))
    assert store.rebase("m@2", above=1).chunks == 0
    equal(before.load(), second)
    equal(store.load("m@2").load(), second)
    assert stats(store.save("o", second)).new_bytes == 0
    with pytest.raises(UsageError):
        store.rebase("m@2", above=0.5)
    is_sound(store)


def test_a_sweep_rebases_what_is_dear_as_a_whole(store: Store, blobs: MemoryStore) -> None:
    """What an agent runs: each version is looked at once, and cheap ones stay deltas."""
    first = model()
    store.save("m", first)
    near = {name: tuned(array, step=1e-6) for name, array in first.items()}
    far = {name: tuned(array, step=0.02) for name, array in first.items()}
    store.save("m", near)
    store.save("m", far)
    rebasing = store._parts.rebasing
    done = rebasing.sweep(Heads(blobs))
    assert list(done) == ["m@3"], "reading m@2 costs little more than its bases do"
    assert done["m@3"].cost_before > 1.5 >= done["m@3"].cost_after
    assert any(place.bases for place in places(store, "m@2"))
    assert rebasing.sweep(Heads(blobs)) == {}
    equal(store.load("m@3").load(), far)
    for seed, base in ((5, "auto"), (7, "m@1")):
        other = {name: tuned(array, seed, step=0.02) for name, array in first.items()}
        store.save("m", other, base=base)
    blobs.put(version_key(store.resolve("m@4").digest), b"damaged")
    assert list(rebasing.sweep(Heads(blobs))) == ["m@5"], "a damaged version is left to check"
    assert store._parts.rebasing.sweep(Heads(blobs), lambda: True) == {}


def test_what_was_removed_since_logs_were_listed_is_not_rebased(
    store: Store, blobs: MemoryStore
) -> None:
    enable(store._parts.home, wait_s=0)
    first = model()
    store.save("m", first)
    store.save("m", {name: tuned(array, step=0.02) for name, array in first.items()})
    heads = Heads(blobs)
    store.remove("m@2", force=True)
    assert store._parts.rebasing.sweep(heads) == {}


def test_a_rebased_version_is_a_base_itself(store: Store) -> None:
    first = model()
    store.save("m", first)
    second = tuned_model(first)
    store.save("m", second)
    store.rebase("m@2", above=1)
    store.save("m", tuned_model(second, 2))
    own = {place.digest for place in places(store, "m@2")}
    bases = {base for place in places(store, "m@3") for base in place.bases}
    assert bases
    assert bases <= own
    is_sound(store)
