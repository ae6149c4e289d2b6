"""What was read or saved is freed with its last reference, and not when Python next looks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, equal
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.store import Store
from tierstore.store import init_store, open_store

MODEL = {
    "big": np.random.default_rng(1).standard_normal((900, 1000), np.float32),
    "other": np.random.default_rng(2).standard_normal((600, 1000), np.float32),
}


def load(store: Store, folder: Path) -> None:
    equal(store.load("m").load(), MODEL)


def load_into(store: Store, folder: Path) -> None:
    buffers = {name: np.zeros_like(array) for name, array in MODEL.items()}
    store.load("m").load_into(buffers)
    equal(buffers, MODEL)


def slices(store: Store, folder: Path) -> None:
    assert (store.load("m").tensor("big")[1:] == MODEL["big"][1:]).all()


def rows(store: Store, folder: Path) -> None:
    assert (store.load("m").tensor("big")[[3, 899]] == MODEL["big"][[3, 899]]).all()


def rows_of_every_block(store: Store, folder: Path) -> None:
    numbers = list(range(0, 900, 30))
    assert (store.load("m").tensor("big")[numbers] == MODEL["big"][numbers]).all()


def file(store: Store, folder: Path) -> None:
    view = store.load("m").open_file("model.safetensors")
    view.read_into(0, memoryview(bytearray(view.size)))


def export(store: Store, folder: Path) -> None:
    store.load("m").export(folder / "out")


def save(store: Store, folder: Path) -> None:
    store.save("m", {**MODEL, "big": MODEL["big"] + np.float32(1)})
    store.save("m", MODEL)


def check(store: Store, folder: Path) -> None:
    assert not store.check(read_data=True).findings


def in_cycles() -> set[str]:
    """Collect what only Python's collector frees; return the classes of ours among it."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return {name for one in gc.garbage if "tierstore" in (name := str(type(one)))}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.fixture(params=["no hot tier", "hot tier"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    hot = TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB)
    tiers = [hot] if request.param == "hot tier" else []
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=tiers) as made:
        made.save("m", MODEL)
    return open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "use", [load, load_into, slices, rows, file, export, save, check], ids=lambda use: use.__name__
)
def test_nothing_waits_for_the_collector(
    store: Store, use: Callable[[Store, Path], None], tmp_path: Path
) -> None:
    with store:
        use(store, tmp_path)  # what is kept between calls is there now
        assert store._parts.hot.flush(30)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                use(store, tmp_path)
            assert store._parts.hot.flush(30)
            assert in_cycles() == set()
        finally:
            gc.enable()


@pytest.mark.parametrize(
    "use", [load, load_into, slices, rows_of_every_block], ids=lambda use: use.__name__
)
def test_nor_does_what_is_read_by_way_of_moves(
    use: Callable[[Store, Path], None], tmp_path: Path
) -> None:
    with init_store(tmp_path / "store", chunk_size=MIB) as store:
        store.save("m", MODEL)
        (pack,) = (tmp_path / "store").rglob("packs/*/*")
        data = bytearray(pack.read_bytes())
        for at in range(len(data) // 16, len(data), len(data) // 8):
            data[at] ^= 1
        pack.write_bytes(data)
        assert store.check(read_data=True).quarantined
        store.save("m", MODEL)
        for gone in (False, True):
            if gone:
                pack.unlink()
            use(store, tmp_path)
            gc.collect()
            gc.disable()
            try:
                use(store, tmp_path)
                assert in_cycles() == set()
            finally:
                gc.enable()
