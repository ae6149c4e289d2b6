"""Export into directories that are not what they seem, or have no room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, created, small_disk, tree
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Damaged, OutOfSpace, UnsafeSource
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub/deep").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub/deep/b.txt").write_text("b")
    (root / "z.bin").write_bytes(np.random.default_rng(0).bytes(2 * MIB))
    return root


@pytest.fixture
def store(cache: Path, source: Path) -> Store:
    store = created(MemoryStore("export"), cache)
    store.save("m", source)
    return store


def test_a_link_inside_the_target_does_not_lead_out(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(UnsafeSource, match="would be written outside"):
        store.load("m").export(target)
    assert list(outside.iterdir()) == [], "not even a folder"


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(
    store: Store, source: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    target = tmp_path / "target"
    target.mkdir()
    (target / "a.txt").symlink_to(precious)
    store.load("m").export(target)
    assert precious.read_text() == "keep"
    assert not (target / "a.txt").is_symlink()
    assert tree(target) == tree(source)


def test_a_link_to_the_target_itself_is_fine(store: Store, source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/sub").mkdir()
    (tmp_path / "real/inner").mkdir()
    (tmp_path / "real/sub/deep").symlink_to("../inner")  # stays inside
    store.load("m").export(tmp_path / "link")
    assert (tmp_path / "real/inner/b.txt").read_text() == "b"
    assert tree(tmp_path / "real").keys() >= {"a.txt", "inner/b.txt", "z.bin"}


@pytest.mark.parametrize(
    "what", ["the target is a file", "a file is a folder", "a folder is a file"]
)
def test_something_in_the_way(store: Store, tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "the target is a file":
        target.write_text("mine")
    elif what == "a file is a folder":
        (target / "a.txt/mine").mkdir(parents=True)
    else:
        target.mkdir()
        (target / "sub").write_text("mine")
    with pytest.raises(BackendError, match="cannot be written"):
        store.load("m").export(target)
    assert not list(tmp_path.rglob("*.tmp")), "nothing half-written is left"
    if what == "a folder is a file":
        assert (target / "sub").read_text() == "mine"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A directory that takes no file of 2 MiB: a tmpfs, or else a limit on file sizes."""
    with small_disk(tmp_path / "full", "512k", 512 << 10) as path:
        yield path


def test_a_full_target(store: Store, full: Path) -> None:
    with pytest.raises(OutOfSpace, match=r"z\.bin cannot be written.*free some space"):
        store.load("m").export(full)
    assert sorted(tree(full)) == ["a.txt", "sub/deep/b.txt"], "what fitted is whole; no temporary"


def test_a_pack_that_fails_half_way_leaves_no_half_file(
    store: Store, cache: Path, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return "flip" if op == "get_ranges" else None

    faulty = Store(FaultyStore(store._parts.home.blobs, plan), store._parts.settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("what was there")
    with pytest.raises(Damaged):
        faulty.load("m").export(tmp_path / "out")
    assert (tmp_path / "out/a.txt").read_text() == "what was there"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    faulty.close()
