"""What is read in order to be stored again is verified, whatever tier it comes from.

One node's hot tier holds chunks in which a bit flipped after they were verified: what this node
then stores is right for all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, created, equal, opened
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.placement.base import Access
from tierstore.placement.policies import DEFAULT_POLICY, make
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

EMB = np.random.default_rng(1).standard_normal((2000, 300), np.float32)  # three chunks
CODE = bytes(range(256)) * 6000  # two
CHANGED = [3, 900, 1500]


def row(number: int) -> np.ndarray:
    return np.full((1, 300), float(number), np.float32)


def patched(*numbers: int) -> np.ndarray:
    wanted = EMB.copy()
    for number in numbers:
        wanted[number] = row(number)
    return wanted


def flip_hot(folder: Path) -> int:
    """Flip a bit in each chunk of a hot tier, and return how many there are."""
    paths = [path for path in folder.rglob("?" * 64) if "~" not in str(path)]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        path.unlink()
        path.write_bytes(data)
    return len(paths)


@dataclass
class Node:
    """A store in which a model is saved, and a node with a damaged copy of it in its hot tier."""

    folder: Path
    home: MemoryStore
    store: Store
    local: LocalHot

    def warm_and_flip(self, ref: str) -> int:
        """Bring a version into the hot tier, flip a bit in each chunk, and return how many."""
        self.store.warmup(ref)
        assert self.store._parts.hot.flush(60)
        return flip_hot(self.folder / "hot")

    def elsewhere(self, ref: str) -> dict[str, np.ndarray]:
        """Read a version on a node without a hot tier."""
        with opened(self.home, self.folder / "other") as store:
            assert not store.check(read_data=True).damaged
            return store.load(ref).load()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = MemoryStore("home")
    source = tmp_path / "source"
    source.mkdir()
    (source / "code.bin").write_bytes(CODE)
    with created(home, tmp_path / "cache") as store:
        store.save("arrays", {"emb": EMB, "bias": np.arange(9.0)})
        store.load("arrays").export(source, others="merge")
        store.save("m", source)
    local = LocalHot(tmp_path / "hot", "s", 64 * MIB, lambda size: make(DEFAULT_POLICY, size))
    limits = Settings(tmp_path / "cache", threads=2, memory_limit_bytes=64 * MIB)
    store = Store(home, limits, hot=HotTiers(local))
    yield Node(tmp_path, home, store, local)
    store.close()


def test_a_fold_holds_what_was_saved(node: Node) -> None:
    node.warm_and_flip("m")
    for number in CHANGED:
        node.store.patch("m", {"emb": Rows([number], row(number))})
    assert node.store.fold("m").patches == 3
    equal(node.elsewhere("m"), {"emb": patched(*CHANGED), "bias": np.arange(9.0)})
    assert node.local.stats.damaged >= 3, "what was wrong is dropped"


def test_a_fold_of_patches_that_are_hot_holds_them(node: Node) -> None:
    node.store.patch("m", {"emb": Rows([5], row(5))})
    flipped = node.warm_and_flip("m")
    assert flipped >= 6, "the chunks of the patch are among them"
    node.store.fold("m")
    equal(node.elsewhere("m"), {"emb": patched(5), "bias": np.arange(9.0)})


def test_an_export_writes_what_was_saved(node: Node, tmp_path: Path) -> None:
    node.warm_and_flip("m")
    files = node.store.load("m").export(tmp_path / "out")
    assert [file.path for file in files] == ["code.bin", "model.safetensors"]
    assert (tmp_path / "out/code.bin").read_bytes() == CODE
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "source/model.safetensors"
    ).read_bytes()


def test_an_export_of_a_patch_version_writes_what_was_saved(node: Node, tmp_path: Path) -> None:
    node.warm_and_flip("m")
    node.store.patch("m", {"emb": Rows([7], row(7))})
    node.store.load("m").export(tmp_path / "out")
    with tierstore.safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.get_tensor("emb").tobytes() == patched(7).tobytes()


@pytest.mark.parametrize("with_patch", [False, True])
def test_exported_tensors_are_what_was_saved(node: Node, tmp_path: Path, with_patch: bool) -> None:
    node.warm_and_flip("m")
    if with_patch:
        node.store.patch("m", {"emb": Rows([8], row(8))})
    node.store.load("m").export_tensors(["emb"], tmp_path / "one.safetensors")
    with tierstore.safe_open(tmp_path / "one.safetensors", "np") as file:
        wanted = patched(8) if with_patch else EMB
        assert file.get_tensor("emb").tobytes() == wanted.tobytes()


@pytest.mark.parametrize("parameters", [{"cast": "f16"}, {"int8": "row"}])
def test_a_variant_is_made_of_what_was_saved(
    node: Node, tmp_path: Path, parameters: dict[str, str]
) -> None:
    with opened(node.home, tmp_path / "other") as other:
        right = other.load(tierstore.derive(other, "m", parameters, name="right")).load()
        assert np.array_equal(right["bias"], np.arange(9.0).astype(right["bias"].dtype))
    node.warm_and_flip("m")
    made = tierstore.derive(node.store, "m", parameters, name="made")
    equal(node.elsewhere(str(made)), right)
    with opened(node.home, tmp_path / "other") as other:
        assert other.load(made).read_file("code.bin") == CODE


def test_a_patch_that_is_published_again_is_what_was_published(node: Node) -> None:
    """A patch of the store's own, given to another model of the same content."""
    node.store.save("twin", node.folder / "source")
    node.store.patch("m", {"emb": Rows([9], row(9))})
    node.warm_and_flip("m")
    [patch] = node.store.patches("m@1")
    version = node.store.patch("twin", patch)
    equal(node.elsewhere(str(version)), {"emb": patched(9), "bias": np.arange(9.0)})


def test_a_rebase_stores_what_was_saved(node: Node) -> None:
    rng = np.random.default_rng(2)
    tuned = EMB + rng.standard_normal(EMB.shape, np.float32) * 1e-6
    node.store.save("m", {"emb": tuned}, base="m@1")
    node.warm_and_flip("m@2")
    assert node.store.rebase("m@2", above=1).chunks == 3
    equal(node.elsewhere("m@2"), {"emb": tuned})


def test_a_delta_is_made_of_the_base_that_was_saved(node: Node) -> None:
    rng = np.random.default_rng(2)
    tuned = EMB + rng.standard_normal(EMB.shape, np.float32) * 1e-6
    node.warm_and_flip("m@1")
    version = node.store.save("m", {"emb": tuned}, base="m@1")
    assert version.stats is not None
    assert version.stats.delta_bytes == EMB.nbytes, "the durable copy is used instead"
    equal(node.elsewhere("m@2"), {"emb": tuned})


def test_rows_of_a_delta_whose_base_has_changed_on_this_node(node: Node) -> None:
    rng = np.random.default_rng(2)
    tuned = EMB + rng.standard_normal(EMB.shape, np.float32) * 1e-6
    with opened(node.home, node.folder / "other") as other:
        other.save("m", {"emb": tuned}, base="m@1")
    node.warm_and_flip("m@1")
    rows = [0, 700, 437, 1999]
    assert node.store.load("m@2").tensor("emb")[rows].tobytes() == tuned[rows].tobytes()


class Claiming(LocalHot):
    """Another process brings a chunk between the look for it and its claim, and its disk flips a
    bit.
    """

    bring: Callable[[bytes], None]

    def claim(self, digests: Sequence[bytes]) -> list[bool]:
        for digest in digests:
            self.bring(digest)
        return super().claim(digests)


def test_who_waits_for_a_chunk_that_is_found_on_this_node_looks_there(tmp_path: Path) -> None:
    """A reader that believes the hot tier hands nothing of it on to one that does not."""
    home, gate, brought = MemoryStore("home"), threading.Event(), threading.Event()
    with created(home, tmp_path) as store:
        store.save("m", {"w": EMB[:800]})
    local = Claiming(tmp_path / "hot", "s", 64 * MIB, lambda size: make(DEFAULT_POLICY, size))

    def bring(digest: bytes) -> None:
        assert gate.wait(60)
        if brought.is_set():
            return
        brought.set()
        plain = EMB[:800].reshape(-1).view(np.uint8).data
        assert local.offer([(Access(digest, len(plain), time.time()), plain)], force=True) == [True]
        flip_hot(tmp_path / "hot")

    local.bring = bring
    hot = HotTiers(local)
    limits = Settings(tmp_path, threads=2, memory_limit_bytes=64 * MIB)
    with Store(home, limits, hot=hot) as store, ThreadPoolExecutor(2) as pool:
        model, verified = store.load("m"), store.load("m")._opened.verified()
        leading = pool.submit(model.load)
        flights = hot.flights._flights
        wait_until(lambda: len(flights) == 1, "the first reader fetches the chunk")
        waiting = pool.submit(verified.tensors["w"].read_bytes)
        wait_until(
            lambda: [len(one.seats) for one in list(flights.values())] == [1],
            "the second one waits for it",
        )
        gate.set()
        assert waiting.result(60).tobytes() == EMB[:800].tobytes()
        leading.result(60)
        assert local.stats.damaged == 1
