"""Patches: what a publish costs, what a read touches, what is refused, and what else must work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import MIB, created, equal, opened, tree
from tierstore import Dense, Elements, Patch, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    Conflict,
    Damaged,
    InvalidSafetensors,
    NotFound,
    Unreachable,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format import checks
from tierstore.format.keys import fold_key, layout_key, pack_key, version_key
from tierstore.ids import Digest
from tierstore.modelstore.patches import patching
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.variants.derive import derive
from tierstore.variants.lineage import lineage

State = dict[str, np.ndarray]
WIDTH = 300
ROWS = 4000


def model(seed: int = 0) -> State:
    """A table of five chunks and small tensors."""
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((ROWS, WIDTH), np.float32),
        "layer.bias": rng.standard_normal(64, np.float32),
        "layer.w": rng.standard_normal((64, 64), np.float32),
        "untouched": rng.standard_normal((200, 300), np.float32),
    }


def rows(seed: int, count: int = 20, low: int = 0, high: int = ROWS) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(rng.integers(low, high, count), rng.standard_normal((count, WIDTH), np.float32))


def applied(state: State, changes: dict[str, Any]) -> State:
    """The state after the changes, one after the other."""
    after = {name: array.copy() for name, array in state.items()}
    for name, change in changes.items():
        if isinstance(change, Dense):
            after[name] = np.array(change.values)
            continue
        flat = after[name] if isinstance(change, Rows) else after[name].reshape(-1)
        for index, value in zip(np.asarray(change.indices), np.asarray(change.values), strict=True):
            flat[index] = value
    return after


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("patches")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        store.save("m", model(), alias="prod")
        yield store


def keys(blobs: MemoryStore) -> dict[str, bytes]:
    return {
        info.key: bytes(blobs.get(info.key))
        for info in blobs.list()
        if not info.key.startswith("leases/")
    }


def patched(store: Store, count: int, **settings: Any) -> State:
    """Publish so many patches of rows on ``m``; what the newest holds then."""
    state = model()
    for number in range(count):
        changes = {"emb": rows(number)}
        state = applied(state, changes)
        store.patch("m", changes, **settings)
    return state


# What a publish costs


def test_a_tiny_publish_is_five_new_objects(blobs: MemoryStore, cache: Path) -> None:
    with created(blobs, cache) as store:
        store.save("m", model(), alias="prod")
    watched = FaultyStore(blobs)
    before = keys(blobs)
    with opened(watched, cache / "another node") as store:
        version = store.patch("m@prod", {"emb": rows(1, 3)}, alias="prod")
        assert version.stats is not None
        assert version.stats.objects == 3
    after = keys(blobs)
    new = sorted(key.rpartition("/")[0] for key in after.keys() - before.keys())
    assert [name[:5] for name in new] == ["layou", "packs", "refs/", "refs/", "versi"]
    changed = sorted(key for key in before if before[key] != after[key])
    assert changed == ["refs/m/alias/prod/HEAD", "refs/m/versions/HEAD"]
    added = sum(len(after[key]) for key in after.keys() - before.keys())
    plain = 3 * (WIDTH * 4 + 8)
    assert added < plain + 4096
    # nothing of the model is read: no pack, no layout, not even the index of duplicates
    read = {key for op, key in watched.calls if op in ("get", "get_ranges", "info", "list")}
    assert not {key for key in read if key.startswith(("packs/", "layouts/", "index/"))}, read
    assert not list(blobs.list("leases/"))
    writes = [key for op, key in watched.calls if op in ("put", "put_if_absent", "delete")]
    assert len(writes) == 9  # these, the hints, and a lease that comes and goes


def test_bytes_are_those_of_what_changed(store: Store) -> None:
    changes = {"emb": rows(1, 400), "layer.bias": Dense(np.ones(64, np.float32))}
    version = store.patch("m", changes)
    assert version.stats is not None
    changed = 400 * WIDTH * 4 + 64 * 4
    assert version.stats.stored_bytes < 1.05 * changed + 4096
    assert version.stats.logical_bytes < 1.05 * changed + 4096


# What a read touches


def read_keys(
    blobs: MemoryStore, cache: Path, read: Callable[[Store], Any]
) -> tuple[Any, set[str]]:
    """What ``read`` gives, and the keys that it read once the model was open."""
    watched = FaultyStore(blobs)
    with opened(watched, cache / "reader") as store:
        watched.calls.clear()
        found = read(store)
    return found, {key for op, key in watched.calls if op in ("get", "get_ranges")}


def pack_of(store: Store, digest: Digest) -> str:
    manifest = store._parts.home.manifest(digest)
    (pack,) = store._parts.home.layout(digest, manifest).pack_ids
    return pack_key(pack)


def test_some_rows_read_only_the_patches_that_touch_them(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    state = model()
    packs = []
    for number, (low, high) in enumerate([(0, 1000), (1000, 2000), (900, 1100)]):
        changes = {"emb": rows(number, 20, low, high)}
        state = applied(state, changes)
        packs.append(pack_of(store, store.patch("m", changes).digest))
    packs.append(pack_of(store, store.patch("m", {"layer.w": rows_of_w()}).digest))
    state = applied(state, {"layer.w": rows_of_w()})

    def some(first: int, last: int) -> set[int]:
        found, read = read_keys(
            blobs, cache, lambda store: store.load("m").tensor("emb")[first:last]
        )
        assert found.tobytes() == state["emb"][first:last].tobytes()
        picked, also = read_keys(
            blobs, cache, lambda store: store.load("m").tensor("emb")[[first, last - 1]]
        )
        assert picked.tobytes() == state["emb"][[first, last - 1]].tobytes()
        assert also <= read | also
        return {number for number, key in enumerate(packs) if key in read}

    assert some(100, 800) == {0}
    assert some(1200, 1900) == {1}
    assert some(950, 1050) == {0, 1, 2}
    assert some(3000, 3500) == set()
    bias, read = read_keys(blobs, cache, lambda store: store.load("m")["layer.bias"])
    assert bias.tobytes() == state["layer.bias"].tobytes()
    assert read.isdisjoint(packs)


def rows_of_w() -> Rows:
    return Rows([3, 60], np.arange(128, dtype=np.float32).reshape(2, 64))


def test_a_row_that_was_replaced_is_not_read_below(store: Store) -> None:
    """Only the newest patch of a row is read, neither older ones nor the chunk below."""
    one = [2345]
    for number in range(3):
        store.patch("m", {"emb": Rows(one, np.full((1, WIDTH), number, np.float32))})
    model = store.load("m")
    got = model.tensor("emb")[one]
    assert got.tobytes() == np.full((1, WIDTH), 2, np.float32).tobytes()
    assert model.stats.bytes_decoded == WIDTH * 4 + 8


def test_a_whole_replacement_hides_what_is_below(store: Store) -> None:
    store.patch("m", {"emb": rows(1, 300)}, fold=False)
    whole = np.random.default_rng(5).standard_normal((ROWS, WIDTH), np.float32)
    store.patch("m", {"emb": Dense(whole)}, fold=False)
    model = store.load("m")
    assert model["emb"].tobytes() == whole.tobytes()
    assert model.stats.bytes_decoded == whole.nbytes


# What is refused, with nothing done

F32 = np.float32
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, UsageError, "at least one tensor"),
    "no such tensor": ({"embb": rows(1)}, NotFound, "m@1 has no tensor 'embb'"),
    "a bare array": ({"emb": np.zeros((ROWS, WIDTH), F32)}, UsageError, "give tierstore.Rows"),
    "a row too far": ({"emb": Rows([1, ROWS], np.zeros((2, WIDTH), F32))}, UsageError,
                      f"row {ROWS} is out of range for tensor 'emb' with {ROWS} rows"),
    "a row below 0": ({"emb": Rows([-1], np.zeros((1, WIDTH), F32))}, UsageError, "row -1 is out"),
    "a huge index": ({"emb": Rows(np.array([2**64 - 1], np.uint64), np.zeros((1, WIDTH), F32))},
                     UsageError, "out of range"),
    "an element too far": ({"layer.w": Elements([4096], np.zeros(1, F32))}, UsageError,
                           "element 4096 is out of range"),
    "a mask": ({"emb": Rows(np.ones(ROWS, bool), np.zeros((ROWS, WIDTH), F32))}, UsageError,
               "give integers in one"),
    "float indices": ({"emb": Rows([1.0], np.zeros((1, WIDTH), F32))}, UsageError, "integers"),
    "indices in two dimensions": ({"emb": Rows([[1]], np.zeros((1, WIDTH), F32))}, UsageError,
                                  "2 dimensions"),
    "another dtype": ({"emb": Rows([1], np.zeros((1, WIDTH)))}, UsageError, "F64"),
    "another width": ({"emb": Rows([1], np.zeros((1, WIDTH - 1), F32))}, UsageError, "ask for"),
    "too few values": ({"emb": Rows([1, 2], np.zeros((1, WIDTH), F32))}, UsageError, "ask for"),
    "another shape": ({"layer.w": Dense(np.zeros((64, 65), F32))}, UsageError, "ask for"),
    "a flat shape": ({"layer.w": Dense(np.zeros(64 * 64, F32))}, UsageError, "ask for"),
    "a list": ({"layer.bias": Dense([1.0] * 64)}, UsageError, "numpy array or a torch tensor"),
    "one good, one bad": ({"layer.bias": Dense(np.zeros(64, F32)),
                           "emb": Rows([ROWS], np.zeros((1, WIDTH), F32))}, UsageError, "range"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_changes_change_nothing(case: str, store: Store, blobs: MemoryStore) -> None:
    changes, error, text = BAD[case]
    before = keys(blobs)
    with pytest.raises(error, match=text.replace("(", r"\(")):
        store.patch("m@prod", changes, alias="prod")
    assert keys(blobs) == before


def test_a_scalar_has_no_rows(store: Store) -> None:
    store.save("s", {"x": np.array(1.5)})
    with pytest.raises(UsageError, match=r"'x' has the shape \[\] and so no rows"):
        store.patch("s", {"x": Rows([0], np.array([2.5]))})
    store.patch("s", {"x": Elements([0], np.array([2.5]))})
    assert store.load("s")["x"] == 2.5


def test_duplicates_last_wins_and_nothing_is_fine_too(store: Store) -> None:
    values = np.arange(4 * WIDTH, dtype=np.float32).reshape(4, WIDTH)
    store.patch("m", {"emb": Rows([7, 3, 7, 3], values)})
    got = store.load("m").tensor("emb")[[3, 7]]
    assert got.tobytes() == values[[3, 2]].tobytes()
    store.patch("m", {"emb": Rows([], np.empty((0, WIDTH), np.float32))})
    assert store.load("m").tensor("emb")[[3, 7]].tobytes() == got.tobytes()
    assert len(store.load("m")._opened.patches) == 2


def test_a_patch_of_another_version_is_refused(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    shapes = {"emb": (ROWS, WIDTH)}
    patch = Patch.of(store.resolve("m@1").digest, {"emb": rows(1)}, shapes)
    patch.save(tmp_path / "p.safetensors")
    second = store.patch("m", tmp_path / "p.safetensors")
    assert second.number == 2
    before = keys(blobs)
    for again in (patch, tmp_path / "p.safetensors", str(tmp_path / "p.safetensors")):
        with pytest.raises(Conflict, match=r"is for version b3:\w+, but m@2 is b3:\w+"):
            store.patch("m", again, alias="prod")
    wrong = Patch.of(second.digest, {"emb": Dense(np.zeros((2, 2), F32))}, {"emb": (2, 2)})
    with pytest.raises(UsageError, match=r"'emb' of m@2 is F32 \[4000, 300\]"):
        store.patch("m", wrong)
    gone = Patch.of(second.digest, {"x": Dense(np.zeros(2, F32))}, {"x": (2,)})
    with pytest.raises(NotFound, match="m@2 has no tensor 'x'"):
        store.patch("m", gone)
    assert keys(blobs) == before


def test_what_is_no_patch_file(store: Store, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(NotFound, match="does not exist"):
        store.patch("m", tmp_path / "none.safetensors")
    digest = store.resolve("m").digest.hex
    good = {"format": "tierstore-patch/1", "base": digest, "shapes": '{"layer.bias":[64]}'}
    bias = np.zeros(64, F32)
    bad: list[tuple[dict[str, Any], dict[str, str] | None, str]] = [
        ({"w": bias}, None, "no format"),
        ({"dense.values/layer.bias": bias}, {**good, "format": "tierstore-patch/2"}, "no format"),
        ({"dense.values/layer.bias": bias}, {**good, "base": "prod"}, "names no base"),
        ({"dense.values/layer.bias": bias}, {**good, "shapes": "[]"}, "shapes"),
        ({"dense.values/layer.bias": bias}, {**good, "shapes": '{"layer.bias":[-64]}'}, "shapes"),
        ({"x": bias}, good, "no values for tensor 'layer.bias'"),
        ({"dense.values/layer.bias": bias, "x": bias}, good, "'x', which belongs to no"),
        ({"rows.values/layer.bias": bias[:1]}, good, "no 'rows.indices/layer.bias'"),
        (
            {"rows.values/layer.bias": bias[:1], "rows.indices/layer.bias": bias[:1]},
            good, "not integers",
        ),
        (
            {"rows.values/layer.bias": bias[:2], "rows.indices/layer.bias": np.array([1])},
            good, r"shape \[2\] instead of \[1\]",
        ),
        (
            {"dense.values/layer.bias": bias, "elements.values/layer.bias": bias},
            good, "several kinds",
        ),
    ]  # fmt: skip
    for number, (tensors, metadata, text) in enumerate(bad):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata)
        with pytest.raises(InvalidSafetensors, match=text):
            store.patch("m", path)
    save_file({"rows.values/layer.bias": bias[:1], "rows.indices/layer.bias": np.array([64])},
              path, good)  # fmt: skip
    with pytest.raises(UsageError, match="row 64 is out of range"):
        store.patch("m", path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidSafetensors, match="cut short"):
        store.patch("m", tmp_path / "cut.safetensors")
    assert store.resolve("m").number == 1


def test_variants_are_not_patched(store: Store) -> None:
    derive(store, "m", {"cast": "bf16"})
    with pytest.raises(UsageError, match="lossy variant"):
        store.patch("m@1+bf16", {"layer.bias": Dense(np.zeros(64, F32))})


# Others at the same time


def test_of_two_trainers_on_one_alias_one_is_told(store: Store, cache: Path) -> None:
    start = threading.Barrier(2)

    def publish(seed: int) -> str:
        with opened(store._parts.home.blobs, cache / str(seed)) as own:
            own.load("m@prod")
            start.wait(60)
            try:
                return str(own.patch("m@prod", {"emb": rows(seed)}, alias="prod"))
            except Conflict as error:
                return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(publish, (1, 2)))
    # both may have come one after the other; if not, one was told, and nothing was lost
    told = [text for text in results if "somebody else moved it" in text]
    state = applied(model(), {"emb": rows(1)}), applied(model(), {"emb": rows(2)})
    got = store.load("m@prod")["emb"].tobytes()
    if told:
        assert got in {one["emb"].tobytes() for one in state}
    else:
        both = [applied(state[0], {"emb": rows(2)}), applied(state[1], {"emb": rows(1)})]
        assert got in {one["emb"].tobytes() for one in both}


def test_an_alias_that_moved_meanwhile_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = patching.publish_patch

    def slow(*args: Any) -> Any:
        result = original(*args)
        store.save("m", model(9), alias="prod")
        return result

    monkeypatch.setattr("tierstore.modelstore.patches.service.publish_patch", slow)
    with pytest.raises(Conflict, match=r"m@2 is published, but m@prod .* somebody else moved"):
        store.patch("m@prod", {"emb": rows(1)}, alias="prod")
    assert store.resolve("m@prod").number == 3


def test_the_newest_is_patched_or_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = patching.encode_for

    def slow(*args: Any) -> Any:
        store.save("m", model(9))
        return original(*args)

    monkeypatch.setattr("tierstore.modelstore.patches.service.encode_for", slow)
    with pytest.raises(Conflict, match="the newest version of m is not 1 any more"):
        store.patch("m", {"emb": rows(1)}, alias="prod")
    assert store.resolve("m").number == 2
    assert store.resolve("m@prod").number == 1
    monkeypatch.undo()
    assert store.patch("m@1", {"emb": rows(1)}).number == 3  # named by number: that very version


def test_an_alias_in_a_rollout_is_not_moved(store: Store, blobs: MemoryStore) -> None:
    second = store.patch("m", {"emb": rows(1)})
    rollouts = store.rollouts
    rollouts.start("m", "prod", second)
    before = keys(blobs)
    with pytest.raises(Conflict, match="in a rollout to m@2"):
        store.patch("m@prod", {"emb": rows(2)}, alias="prod")
    assert keys(blobs) == before
    while rollouts.step("m", "prod"):
        pass
    assert store.resolve("m@prod") == store.resolve("m@2")
    state = applied(model(), {"emb": rows(1)})
    equal(store.load("m@prod").load(), state)
    assert store.rollback("m", "prod").version.number == 1
    equal(store.load("m@prod").load(), model())


# Chains and folds


def test_sixteen_patches_are_a_chain(store: Store, blobs: MemoryStore) -> None:
    state = patched(store, 15)
    assert len(store.load("m")._opened.patches) == 15
    assert not list(blobs.list("folds/"))
    changes = {"emb": rows(15)}
    store.patch("m", changes)  # the sixteenth is folded at once
    state = applied(state, changes)
    model = store.load("m")
    assert not model._opened.patches
    equal(model.load(), state)
    store.patch("m", {"emb": rows(16)})
    state = applied(state, {"emb": rows(16)})
    assert len(store.load("m")._opened.patches) == 1
    equal(store.load("m").load(), state)
    assert store.check(read_data=True).findings == []


def test_a_quarter_of_the_model_is_a_chain(store: Store) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        some = np.arange(number, ROWS, 11)
        values = rng.standard_normal((len(some), WIDTH), np.float32)
        store.patch("m", {"emb": Rows(some, values)})
        assert len(store.load("m")._opened.patches) == [1, 2, 0][number]


def test_folding_can_be_left_to_others(store: Store, blobs: MemoryStore) -> None:
    state = patched(store, 16, fold=False)
    before = keys(blobs)
    with pytest.raises(Conflict, match=r"m@17 has 16 patches .* 'tierstore fold m@17'"):
        store.patch("m", {"emb": rows(99)}, fold=False)
    assert keys(blobs) == before
    equal(store.load("m").load(), state)
    done = store.fold("m")
    assert (done.patches, done.version.number) == (16, 17)
    store.patch("m", {"emb": rows(99)}, fold=False)
    assert len(store.load("m")._opened.patches) == 1
    equal(store.load("m").load(), applied(state, {"emb": rows(99)}))
    # who left it to others is helped by who does not
    for number in range(15):
        store.patch("m", {"emb": rows(200 + number)}, fold=False)
    assert len(store.load("m")._opened.patches) == 16
    store.patch("m", {"emb": rows(300)})
    assert len(store.load("m")._opened.patches) == 1


def test_a_fold_is_a_note_and_changes_no_identity(store: Store, blobs: MemoryStore) -> None:
    state = patched(store, 3)
    version = store.resolve("m")
    before = keys(blobs)
    done = store.fold("m")
    assert (done.patches, done.version) == (3, version)
    assert done.stats is not None
    # rows of the table alone are new, as deltas against what lies below
    assert done.stats.new_bytes <= state["emb"].nbytes
    assert done.stats.delta_bytes > 0.9 * done.stats.new_bytes
    after = keys(blobs)
    assert {key: after[key] for key in before} == before
    assert fold_key(version.digest) in after
    model = store.load("m")
    assert model.version.digest == version.digest
    assert [entry.relation for entry in model._opened.manifest.lineage] == ["patch-of"]
    equal(model.load(), state)
    again = keys(blobs)
    assert store.fold("m").patches == 0
    assert store.fold("m@1").patches == 0
    assert keys(blobs) == again
    assert store.patch("m", {"emb": rows(7)}).number == 5
    assert store.fold("m", at_least=2).patches == 0
    assert store.check(read_data=True).findings == []


def test_what_is_not_touched_is_not_read_by_a_fold(
    store: Store, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    from safetensors.numpy import save_file

    state = model()
    save_file({"emb": state["emb"]}, folder / "model-1.safetensors")
    save_file({"layer.w": state["layer.w"]}, folder / "model-2.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "big.txt").write_bytes(bytes(range(256)) * 8000)
    store.save("sharded", folder)
    change = rows_of_w()
    store.patch("sharded", {"layer.w": change})
    before = tree(folder)
    opened_model = store.load("sharded")
    assert [info.sha256 != "" for info in opened_model.files] == [True, True, True, False]
    assert opened_model.read_file("config.json") == b"{}"
    with pytest.raises(UsageError, match="tierstore fold"):
        opened_model._file_pieces(opened_model._file_entry("model-2.safetensors"))
    files = opened_model.export(tmp_path / "out")
    assert all(info.sha256 for info in files)
    after = tree(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"model-2.safetensors"}
    done = store.load("sharded")
    assert done["layer.w"].tobytes() == applied(state, {"layer.w": change})["layer.w"].tobytes()
    assert store._parts.opener.open(store.resolve("sharded")).patched == frozenset()
    fold = store._parts.home.blobs.get(fold_key(store.resolve("sharded").digest))
    assert len(fold) < 400


def test_the_subset_of_a_patched_version_is_exported(store: Store, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    changes = {"emb": rows(1), "layer.w": rows_of_w()}
    store.patch("m", changes)
    state = applied(model(), changes)
    info = store.load("m").export_tensors(["layer.w", "emb", "untouched"], tmp_path / "some")
    got = load_file(tmp_path / "some")
    equal(got, {name: state[name] for name in ("layer.w", "emb", "untouched")})
    assert tree(tmp_path)["some"] == info.sha256
    assert store.load("m")._opened.patches  # it was not folded for this


def test_into_the_callers_memory_and_torch(store: Store) -> None:
    import torch

    changes = {
        "emb": Rows(torch.tensor([5, 1]), torch.full((2, WIDTH), 7.0)),
        "layer.bias": Dense(torch.arange(64, dtype=torch.float32)),
    }
    store.patch("m", changes)
    state = applied(model(), {
        "emb": Rows([5, 1], np.full((2, WIDTH), 7, np.float32)),
        "layer.bias": Dense(np.arange(64, dtype=np.float32)),
    })  # fmt: skip
    opened_model = store.load("m")
    into = {name: np.empty_like(array) for name, array in state.items()}
    opened_model.load_into(into)
    equal(into, state)
    for name, tensor in opened_model.to_torch().items():
        assert tensor.numpy().tobytes() == state[name].tobytes()
    assert opened_model.tensor("emb").torch().numpy().tobytes() == state["emb"].tobytes()
    held = {name: torch.from_numpy(array.copy()) for name, array in model().items()}
    (patch,) = store.patches(since="m@1")
    patch.apply_to(held)
    assert all(held[name].numpy().tobytes() == state[name].tobytes() for name in state)


# Streams


def test_patches_are_streamed_in_order(store: Store) -> None:
    state = patched(store, 20)
    state["layer.bias"] = np.zeros(64, F32)
    store.patch("m", {"layer.bias": Dense(state["layer.bias"])}, message="bias")
    got = list(store.patches(since="m@1"))
    assert [patch.version and patch.version.number for patch in got] == list(range(2, 23))
    held = model()
    for patch in got:
        patch.apply_to(held)
    equal(held, state)
    assert [len(list(store.patches("m@4", until))) for until in ("m@4", "m@9", "m")] == [0, 5, 18]
    last = got[-1]
    assert last.version is not None
    assert (last.version.message, last.nbytes) == ("bias", 256)
    assert last.stored_bytes is not None
    assert last.stored_bytes < 600
    assert store.resolve("m@21").digest == last.base
    change = last.changes()["layer.bias"]
    assert isinstance(change, Dense)
    assert not change.values.any()


def test_a_stream_needs_patches_all_the_way(store: Store) -> None:
    patched(store, 2)
    store.save("m", model(5))
    store.patch("m", {"emb": rows(1)})
    for since, until in (("m@1", None), ("m@3", "m@5"), ("m@2", "m@1"), ("m@3", "m@2")):
        with pytest.raises(Conflict, match=r"is not m@. with patches on it; load all of it"):
            store.patches(since, until)
    assert len(list(store.patches("m@4"))) == 1
    with pytest.raises(NotFound):
        store.patches("m@77")


def test_applying_is_all_or_nothing(store: Store, blobs: MemoryStore) -> None:
    store.patch("m", {"emb": rows(1), "layer.bias": Dense(np.zeros(64, F32))})
    (patch,) = store.patches("m@1")
    frozen = model()
    frozen["layer.bias"].flags.writeable = False
    cases: list[tuple[State, type[Exception], str]] = [
        ({"emb": model()["emb"]}, NotFound, "no tensor 'layer.bias' to patch"),
        (model() | {"layer.bias": np.zeros(64)}, UsageError, "is F64"),
        (model() | {"emb": model()["emb"][:-1].copy()}, UsageError, r"\[3999, 300\]"),
        (model() | {"emb": np.asfortranarray(model()["emb"])}, UsageError, "contiguous"),
        (frozen, UsageError, "writable"),
    ]
    for state, error, text in cases:
        before = {name: array.tobytes() for name, array in state.items()}
        with pytest.raises(error, match=text):
            patch.apply_to(state)
        assert {name: array.tobytes() for name, array in state.items()} == before
    key = pack_of(store, store.resolve("m").digest)
    blobs.delete([key])
    state = model()
    with pytest.raises(NotFound):
        patch.apply_to(state)
    equal(state, model())
    some = {"layer.bias": np.ones(64, F32)}
    with pytest.raises(NotFound, match="does not change tensor 'untouched'"):
        patch.apply_to(model(), ["untouched"])
    store.patch("m@1", {"emb": rows(1), "layer.bias": Dense(np.zeros(64, F32))})
    (patch,) = store.patches("m@1", "m@3")
    patch.apply_to(some, ["layer.bias"])
    assert not some["layer.bias"].any()


# What else must work with patched versions


def test_diff_du_stat_and_lineage(store: Store) -> None:
    patched(store, 3)
    found = store.diff("m@2", "m@4")
    assert {item.name: item.change for item in found.tensors if item.change != "same"} == {
        "emb": "changed"
    }
    plain = 2 * 20 * (WIDTH * 4 + 8)
    assert 0.9 * plain < found.new_bytes <= plain
    assert found.stored_bytes < found.new_bytes + 2000
    assert store.diff("m@4", "m@2").new_bytes == 0
    before = store.usage()
    assert before.versions == 4
    assert before.logical > 4 * model()["emb"].nbytes
    assert before.stored < before.logical / 3
    store.fold("m")
    assert store.diff("m@2", "m@4").new_bytes == found.new_bytes
    after = store.usage()
    assert after.logical == before.logical
    assert after.stored > before.stored
    (root,) = lineage(store, "m@2")
    names = []
    while True:
        names.append((root.names, root.relation))
        if not root.children:
            break
        (root,) = root.children
    assert names == [
        (["m@1"], ""), (["m@2"], "patch-of"), (["m@3"], "patch-of"), (["m@4"], "patch-of"),
    ]  # fmt: skip


def test_a_variant_of_a_patched_version(store: Store) -> None:
    state = patched(store, 2)
    made = derive(store, "m", {"cast": "f16"})
    got = store.load(str(made))
    assert got["emb"].tobytes() == state["emb"].astype(np.float16).tobytes()
    assert [entry.digest for entry in got._opened.manifest.lineage] == [
        store.resolve("m").digest.raw
    ]


@pytest.mark.parametrize("folded", [False, True])
def test_saving_after_patches_finds_its_base(store: Store, folded: bool) -> None:
    state = patched(store, 4)
    if folded:
        store.fold("m")
    tuned = {name: array * (1 + 1e-6 * np.float32(1)) for name, array in state.items()}
    version = store.save("m", tuned)
    assert version.stats is not None
    assert version.stats.base == "m@5"
    assert version.stats.delta_bytes > 0.9 * version.stats.new_bytes
    other = store.save("other", {name: array * F32(1.00001) for name, array in state.items()})
    assert other.stats is not None
    assert other.stats.base is not None
    equal(store.load("m").load(), tuned)
    assert store.check(read_data=True).findings == []


def test_rebase_of_a_patched_version(store: Store) -> None:
    state = patched(store, 3)
    store.fold("m")
    store.patch("m", {"emb": rows(50)})
    state = applied(state, {"emb": rows(50)})
    done = store.rebase("m", above=1)
    assert done.chunks == done.deltas > 0
    equal(store.load("m").load(), state)
    equal(store.load("m@4").load(), applied_rows(3))
    assert not store.check(read_data=True).damaged


def applied_rows(count: int) -> State:
    state = model()
    for number in range(count):
        state = applied(state, {"emb": rows(number)})
    return state


def test_older_readers_refuse_a_patch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(store, 1)
    monkeypatch.setattr(checks, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormat, match="feature 'patch'"):
        store.load("m")
    equal(store.load("m@1").load(), model())


# Damage, crashes, lost answers


def test_check_names_what_a_patched_version_lacks(store: Store, blobs: MemoryStore) -> None:
    patched(store, 3)
    first, second = store.resolve("m@1").digest, store.resolve("m@2").digest
    kept = keys(blobs)
    for key, users in {
        version_key(first): {"m@1", "m@2", "m@3", "m@4"},
        version_key(second): {"m@2", "m@3", "m@4"},
        pack_of(store, second): {"m@2", "m@3", "m@4"},
        layout_key(second): {"m@2", "m@3", "m@4"},
    }.items():
        blobs.delete([key])
        report = store.check(read_data=True)
        assert report.damaged
        found = {user for one in report.findings if one.key == key for user in one.needed_by}
        assert found == users, key
        blobs.put(key, kept[key])
    assert store.check(read_data=True).findings == []


def test_a_missing_layout_of_a_patch_is_rebuilt(store: Store, blobs: MemoryStore) -> None:
    state = patched(store, 2)
    blobs.delete([layout_key(store.resolve("m").digest)])
    equal(store.load("m").load(), state)


def test_a_damaged_fold_costs_nothing(store: Store, blobs: MemoryStore) -> None:
    state = patched(store, 3)
    store.fold("m")
    key = fold_key(store.resolve("m").digest)
    good = bytes(blobs.get(key))
    blobs.put(key, good[:-1])
    assert len(store.load("m")._opened.patches) == 3
    equal(store.load("m").load(), state)
    report = store.check()
    assert not report.damaged
    assert key in report.garbage_keys
    assert store.fold("m").patches == 3
    assert blobs.get(key) == good
    assert store.check(read_data=True).findings == []
    # one whose base was folded is read through the older patches as well
    store.patch("m", {"emb": rows(9)})
    blobs.delete([key])
    assert len(store.load("m")._opened.patches) == 4
    equal(store.load("m").load(), applied(state, {"emb": rows(9)}))


def test_indices_that_lie_are_not_followed(
    store: Store, monkeypatch: pytest.MonkeyPatch, blobs: MemoryStore
) -> None:
    """A writer that stores indices out of order, under valid digests, makes no reader write
    elsewhere.
    """
    changes = "tierstore.modelstore.patches.changes"
    monkeypatch.setattr(f"{changes}._checked", lambda name, kind, given, limit: given)
    lies = {"emb": Rows([5, 7, ROWS], np.zeros((3, WIDTH), np.float32))}
    with pytest.raises(UsageError, match="cannot be stored: what it touches does not fit"):
        store.patch("m", lies)
    with monkeypatch.context() as hostile:
        hostile.setattr("tierstore.format.manifest._check_manifest", lambda manifest: None)
        store.patch("m", lies)
    with pytest.raises(Damaged, match="what it touches does not fit"):
        store.load("m")
    with pytest.raises(Damaged):
        store.patches("m@1")
    assert store.check().damaged
    monkeypatch.setattr(f"{changes}._last_of_each", lambda indices: None)
    store.patch("m@1", {"emb": Rows([5, 3, 2, 7], np.zeros((4, WIDTH), np.float32))})
    got = store.load("m")
    for read in (
        lambda: got["emb"], lambda: got.tensor("emb")[[5]], lambda: got.tensor("emb")[5:6],
        got.load,
    ):  # fmt: skip
        with pytest.raises(Damaged, match="out of order"):
            read()
    (patch,) = store.patches("m@1")
    with pytest.raises(Damaged, match="out of order"):
        patch.apply_to(model())


def test_a_stored_patch_of_other_tensors_than_its_bases_is_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that does not look at its base makes no reader write beyond a tensor."""
    monkeypatch.setattr(patching, "check_targets", lambda spec, targets, title: None)
    other = {"layer.bias": Dense(np.zeros(65, np.float32))}
    store.patch("m", Patch.of(store.resolve("m").digest, other, {"layer.bias": (65,)}))
    with pytest.raises(Damaged, match=r"it does not fit tensor 'layer\.bias' of its base"):
        store.load("m").load()


def copy_of(blobs: MemoryStore) -> MemoryStore:
    copy = MemoryStore("copy")
    for info in blobs.list():
        copy.put(info.key, blobs.get(info.key))
    return copy


@pytest.mark.parametrize("what", ["patch", "fold"])
def test_a_crash_leaves_the_old_or_the_new(
    what: str, store: Store, blobs: MemoryStore, cache: Path
) -> None:
    state = patched(store, 2)
    changes = {"emb": rows(33)}

    def act(own: Store) -> None:
        if what == "patch":
            own.patch("m@3", changes, alias="prod")
        else:
            own.fold("m")

    whole = FaultyStore(copy_of(blobs))
    with opened(whole, cache / "counting") as own:
        act(own)
    assert whole.mutations > 4
    for after in range(whole.mutations):
        inner = copy_of(blobs)
        with pytest.raises(Crashed):
            act(opened(FaultyStore(inner, crash_after=after), cache / "crash"))
        with opened(inner, cache / "after") as own:
            newest = own.resolve("m")
            expected = state if newest.number == 3 else applied(state, changes)
            equal(own.load("m").load(), expected)
            equal(own.load("m@3").load(), state)
            assert own.resolve("m@prod").number in {1, newest.number}
            assert not own.check(read_data=True).damaged
            act(own)  # and it can be done again
            equal(own.load("m@3").load(), state)


@pytest.mark.parametrize("op", ["put", "put_if_absent"])
def test_a_lost_answer_is_found_out(op: str, store: Store, cache: Path) -> None:
    state = patched(store, 1)
    lost: list[str] = []

    def plan(called: str, key: str, number: int) -> Any:
        if called == op and key.startswith(("folds/", "refs/m/versions/0")) and key not in lost:
            lost.append(key)
            return "lose-response"
        return None

    faulty = FaultyStore(store._parts.home.blobs, plan)
    with opened(faulty, cache / "lossy") as own:
        own.patch("m", {"emb": rows(5)})
        own.fold("m")
    assert len(lost) == (2 if op == "put_if_absent" else 0)
    equal(store.load("m").load(), applied(state, {"emb": rows(5)}))
    assert not store.load("m")._opened.patches


def test_a_fold_that_cannot_be_named_says_so(store: Store, cache: Path) -> None:
    patched(store, 1)

    def plan(called: str, key: str, number: int) -> Any:
        return Unreachable("gone") if key.startswith("folds/") and called != "get" else None

    own = opened(FaultyStore(store._parts.home.blobs, plan), cache / "lossy")
    with own, pytest.raises(Unreachable):
        own.fold("m")
    assert len(store.load("m")._opened.patches) == 1


def test_folding_at_once_by_many(store: Store, blobs: MemoryStore, cache: Path) -> None:
    state = patched(store, 4)
    start = threading.Barrier(3)

    def fold(number: int) -> Digest:
        with opened(blobs, cache / str(number)) as own:
            start.wait(60)
            return own.fold("m").full

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(fold, range(3)))) == 1
    equal(store.load("m").load(), state)
    assert not store.check(read_data=True).damaged


def test_a_chunk_of_indices_is_found_by_its_range(store: Store, cache: Path) -> None:
    """More indices than one chunk holds (131,072 of 8 bytes)."""
    count = 400_000
    store.save("big", {"t": np.arange(count, dtype=np.int32)})
    some = np.arange(0, count, 2)
    store.patch("big", {"t": Elements(some, (-some).astype(np.int32))}, fold=False)
    opened_model = store.load("big")
    assert opened_model.tensor("t")[[10, 11, count - 2]].tolist() == [-10, 11, 2 - count]
    decoded = opened_model.stats.bytes_decoded
    assert decoded < 3 * MIB
    whole = np.arange(count, dtype=np.int32)
    whole[some] *= -1
    assert store.load("big")["t"].tobytes() == whole.tobytes()
    assert (
        store.load("big").tensor("t")[100_000:300_001].tolist() == whole[100_000:300_001].tolist()
    )
