"""A save that did not end: the next one uses what it has stored, and nothing that is not there."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, condemn, created, equal, opened, python
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Unreachable
from tierstore.format import pack
from tierstore.format.keys import INDEX, PACKS, pack_key
from tierstore.format.layout import parse_segment
from tierstore.ids import Buffer
from tierstore.modelstore.home.leases import writers
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import SaveStats
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

CHUNKS = 24
LOST = 4
"""Packs that a killed process stores again at most: two whose segment is being written, one that is
put meanwhile, and the one that is being filled."""

Model = dict[str, np.ndarray]


def model(chunks: int = CHUNKS, seed: int = 1) -> Model:
    """Random bits, a MiB in each tensor, which is a chunk, and nearly a pack of its own."""
    rng = np.random.default_rng(seed)
    return {f"w{n:02}": rng.integers(0, 1 << 32, MIB // 4, np.uint32) for n in range(chunks)}


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", MIB)


@pytest.fixture
def blobs(cache: Path) -> MemoryStore:
    blobs = MemoryStore("interrupted")
    created(blobs, cache / "first").close()
    return blobs


def keys(blobs: MemoryStore, prefix: str) -> set[str]:
    return {info.key for info in blobs.list(prefix)}


def named_packs(blobs: MemoryStore) -> set[str]:
    """Keys of the packs that index segments name."""
    return {
        pack_key(one)
        for key in keys(blobs, INDEX)
        for one in parse_segment(blobs.get(key), key).pack_ids
    }


def count(stats: SaveStats | None) -> int:
    assert stats is not None
    return stats.new_chunks


def new_chunks(store: Store, content: Model, name: str = "m") -> int:
    version = store.save(name, content)
    equal(store.load(version).load(), content)
    report = store.check(read_data=True)
    assert not report.damaged, report.findings
    return count(version.stats)


def stopped_at(share: float, error: BaseException) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise error

    return progress


SAVING = """
import sys, time
import tierstore
from tests.integration.test_interrupted import model
from tierstore.format import pack

pack.TARGET_BYTES = 1 << 20

def progress(done, total):
    if done >= float(sys.argv[2]) * total:
        print("there", flush=True)
        time.sleep(600)

with tierstore.open(sys.argv[1]) as store:
    store.save("m", model(), progress=progress)
"""


@pytest.mark.parametrize("percent", [25, 50, 90])
def test_a_save_that_was_killed_goes_on(tmp_path: Path, cache: Path, percent: int) -> None:
    where = tmp_path / "store"
    tierstore.init(where, chunk_size=MIB).close()
    process = python(SAVING, where, percent / 100)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n", process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with tierstore.open(where) as store:
        assert store.models() == []
        before = len(list((where / "packs").rglob("*/*")))
        done = CHUNKS * percent // 100
        assert before >= done - LOST
        assert new_chunks(store, model()) <= CHUNKS - done + LOST
        assert len(list((where / "packs").rglob("*/*"))) <= CHUNKS + LOST
        assert not [each for each in store.check().garbage_keys if each.startswith(INDEX)]


@pytest.mark.parametrize("reclaims", [False, True])
def test_ctrl_c_says_what_is_kept(blobs: MemoryStore, cache: Path, reclaims: bool) -> None:
    """All packs that were put are, also those that no early segment names yet."""
    with opened(blobs, cache / "first") as store:
        if reclaims:
            enable(store._parts.home, wait_s=0)
        with pytest.raises(KeyboardInterrupt) as caught:
            store.save("m", model(), progress=stopped_at(0.6, KeyboardInterrupt()))
        assert not writers(blobs), "its lease is removed"
        put = keys(blobs, PACKS)
        (note,) = caught.value.__notes__
        kept = (
            f"{len(put)}.0 MiB of {CHUNKS}.0 MiB are stored, and saving it again goes on from there"
        )
        assert note == kept + (", for 24 hours at least" if reclaims else "")
    assert named_packs(blobs) == put
    with opened(blobs, cache / "second") as store:
        assert new_chunks(store, model()) == CHUNKS - len(put)


def test_what_was_kept_before_counts_too(blobs: MemoryStore, cache: Path) -> None:
    """However often it is interrupted, and also where this time nothing new was stored."""
    noted = []
    with opened(blobs, cache / "first") as store:
        for share in (0.3, 0.6, 0.2):
            with pytest.raises(KeyboardInterrupt) as caught:
                store.save("m", model(), progress=stopped_at(share, KeyboardInterrupt()))
            noted.append(float(caught.value.__notes__[0].partition(" ")[0]))
    put = len(keys(blobs, PACKS))
    assert 0.3 * CHUNKS <= noted[0] < noted[1] == put
    assert 0.2 * CHUNKS <= noted[2] < noted[0] + LOST


def test_what_was_not_put_is_not_said_to_be_kept(
    blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 64 * MIB)
    with opened(blobs, cache / "first") as store, pytest.raises(KeyboardInterrupt) as caught:
        store.save("m", model(), progress=stopped_at(0, KeyboardInterrupt()))
    assert not hasattr(caught.value, "__notes__")
    assert not keys(blobs, INDEX)


@pytest.mark.parametrize("which", ["packs alone", "everything"])
def test_a_network_that_goes_away(blobs: MemoryStore, cache: Path, which: str) -> None:
    """Where nothing can be written any more, early segments tell what was stored before."""
    gone = False

    def plan(op: str, key: str, number: int) -> Fault:
        nonlocal gone
        gone |= key.startswith(PACKS) and len(keys(blobs, PACKS)) == CHUNKS // 2
        down = gone and (which == "everything" or key.startswith(PACKS))
        return Unreachable("no answer") if down else None

    with (
        opened(FaultyStore(blobs, plan), cache / "first") as store,
        pytest.raises(Unreachable, match="no answer") as caught,
    ):
        store.save("m", model())
    assert f".0 MiB of {CHUNKS}.0 MiB are stored" in caught.value.__notes__[0]
    assert named_packs(blobs) <= keys(blobs, PACKS)
    with opened(blobs, cache / "second") as store:
        assert new_chunks(store, model()) <= CHUNKS // 2 + LOST - 2


def test_a_save_that_ends_leaves_one_segment(blobs: MemoryStore, cache: Path) -> None:
    watched = FaultyStore(blobs)
    with opened(watched, cache / "first") as store:
        assert new_chunks(store, model()) == CHUNKS
    written = [key for op, key in watched.calls if op == "put" and key.startswith(INDEX)]
    assert len(written) == CHUNKS // 2 + 1
    assert keys(blobs, INDEX) == {written[-1]}
    assert named_packs(blobs) == keys(blobs, PACKS)


def test_early_segments_that_cannot_be_written_do_not_stop_a_save(
    blobs: MemoryStore, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = 0

    def plan(op: str, key: str, number: int) -> Fault:
        nonlocal failed
        if op == "put" and key.startswith(INDEX) and failed < 3:
            failed += 1
            return Unreachable("no answer")
        return None

    with opened(FaultyStore(blobs, plan), cache / "first") as store:
        assert new_chunks(store, model()) == CHUNKS
    assert failed == 3
    assert len(keys(blobs, INDEX)) == 1
    assert "an index segment was not written, so duplicates may be missed: no answer" in caplog.text


class SlowHome(MemoryStore):
    """Takes its time for index segments; counts the packs that none names when one is put."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.ahead: list[int] = []

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        if key.startswith(PACKS):
            self.ahead.append(len(keys(self, PACKS) - named_packs(self)))
        if key.startswith(INDEX):
            time.sleep(0.2)
        super().put(key, data)


def test_uploads_do_not_run_ahead_of_segments(cache: Path) -> None:
    blobs = SlowHome()
    with created(blobs, cache / "first") as store:
        assert new_chunks(store, model()) == CHUNKS
    assert max(blobs.ahead) <= LOST - 2, "besides the one that is put, and the one that is filled"


def test_packs_full_of_small_deltas_are_put_in_time(
    blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in a pack is encoded again: its plain bytes count as well as those stored."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 64 * MIB)
    monkeypatch.setattr("tierstore.modelstore.saving.packer._FULL_PLAIN_BYTES", 4 * MIB)
    first = model()
    with opened(blobs, cache / "first") as store:
        new_chunks(store, first)
        before = keys(blobs, PACKS)
        second = {name: array.copy() for name, array in first.items()}
        for array in second.values():
            array[::1000] += 1
        version = store.save("m", second)
        assert version.stats is not None
        assert version.stats.delta_bytes == CHUNKS * MIB
        equal(store.load("m").load(), second)
    assert len(keys(blobs, PACKS) - before) == CHUNKS // 4


def interrupted(blobs: MemoryStore, cache: Path) -> set[str]:
    """Save all but the manifest; return the keys of the packs."""

    def plan(op: str, key: str, number: int) -> Fault:
        return Unreachable("no answer") if key.startswith("versions/") else None

    with opened(FaultyStore(blobs, plan), cache) as store, pytest.raises(Unreachable):
        store.save("m", model())
    found = keys(blobs, PACKS)
    assert len(found) == CHUNKS
    return found


@pytest.mark.parametrize("before", ["leases/", "manifest", "layouts/", "refs/m/versions/0"])
@pytest.mark.parametrize("deleted", [False, True])
def test_packs_that_are_condemned_while_they_are_used_again(
    blobs: MemoryStore, cache: Path, before: str, deleted: bool
) -> None:
    """Whenever a collector takes them: the version is whole, by packs that are not condemned."""
    taken = sorted(interrupted(blobs, cache / "first"))[::3]
    with opened(blobs, cache / "first") as store:
        enable(store._parts.home, wait_s=0)
    before = before.replace("manifest", "versions/")
    done = False

    def plan(op: str, key: str, number: int) -> Fault:
        nonlocal done
        if not done and op in {"put", "put_if_absent"} and key.startswith(before):
            done = True
            condemn(blobs, *taken)
            if deleted:
                blobs.delete(taken)
        return None

    with opened(FaultyStore(blobs, plan), cache / "second") as store:
        assert new_chunks(store, model()) == len(taken)
    assert done
    blobs.delete(taken)
    with opened(blobs, cache / "third") as store:
        equal(store.load("m").load(), model())


@pytest.mark.parametrize("what", ["fold", "derive"])
def test_folds_and_variants_go_on_as_well(blobs: MemoryStore, cache: Path, what: str) -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((2048, 256), np.float32)
    with opened(blobs, cache / "first") as store:
        store.save("m", {"emb": table})
        table = rng.standard_normal((2048, 256), np.float32)
        store.patch("m", {"emb": Rows(list(range(2048)), table)}, fold=False)
    before = keys(blobs, PACKS)

    def run(store: Store) -> int:
        if what == "derive":
            return count(tierstore.derive(store, "m", {"cast": "bf16"}).stats)
        return count(store.fold("m").stats)

    def plan(op: str, key: str, number: int) -> Fault:
        return Unreachable("no answer") if op == "put" and key.startswith("versions/") else None

    with (
        opened(FaultyStore(blobs, plan), cache / "second") as store,
        pytest.raises(Unreachable),
    ):
        run(store)
    assert keys(blobs, PACKS) > before
    with opened(blobs, cache / "third") as store:
        assert run(store) == 0
        np.testing.assert_array_equal(store.load("m").load()["emb"], table)
        assert not store.check(read_data=True).damaged


def test_two_saves_at_once_use_each_others_packs(blobs: MemoryStore, cache: Path) -> None:
    """The second one uses what the first has stored; the first one dies, the second is whole."""
    found: list[int] = []

    def progress(done: int, total: int) -> None:
        if done < total:
            return
        wait_until(lambda: len(keys(blobs, INDEX)) >= CHUNKS // 2 - 1, "early segments")
        with opened(blobs, cache / "second") as store:
            found.append(new_chunks(store, model(), "other"))
        raise Crashed

    with pytest.raises(Crashed):
        opened(blobs, cache / "first").save("m", model(), progress=progress)
    assert found[0] <= LOST
    with opened(blobs, cache / "third") as store:
        equal(store.load("other").load(), model())
        assert new_chunks(store, model()) == 0
