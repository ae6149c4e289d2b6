"""Reading into memory of the caller's, who may write there whenever he likes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import MIB, created, equal
from tests.waiting import wait_until
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, UsageError
from tierstore.format.checks import Verified, digest_of
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.placement.policies import DEFAULT_POLICY, make
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers.hot.flight import Flight, Flights
from tierstore.tiers.hot.shared import SharedHot
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

RNG = np.random.default_rng(4)
SAME = RNG.standard_normal((200, 1000), np.float32)
MODEL: dict[str, np.ndarray] = {
    "emb": RNG.standard_normal((700, 1000), np.float32),  # three chunks
    "twin": SAME,
    "other twin": SAME,
    "bias": np.arange(77, dtype=np.int8),
}


@dataclass
class Meddled:
    """Buffers that their owner writes to at the worst moments: right after a check."""

    buffers: Mapping[str, np.ndarray]
    writes: int = 0

    def write(self) -> None:
        self.writes += 1
        for buffer in self.buffers.values():
            buffer.reshape(-1).view(np.uint8)[:] = 0xEE


class MeddledTiers(HotTiers):
    meddled: Meddled

    def offer_plain(
        self, digest: bytes, plain: Verified, *, keep: bool = False, wait: bool = False
    ) -> None:
        self.meddled.write()
        super().offer_plain(digest, plain, keep=keep, wait=wait)


@dataclass
class MeddledFlights(Flights):
    meddled: Meddled

    def __post_init__(self) -> None:
        Flights.__init__(self)

    def land(self, flight: Flight, take: Callable[[], Verified | None]) -> None:
        self.meddled.write()
        super().land(flight, take)


@dataclass
class Node:
    folder: Path
    home: MemoryStore
    opened: list[Store] = field(default_factory=list)

    def open(self, hot: HotTiers, home: MemoryStore | FaultyStore | None = None) -> Store:
        limits = Settings(self.folder, threads=2, memory_limit_bytes=64 * MIB)
        self.opened.append(Store(home or self.home, limits, hot=hot))
        return self.opened[-1]

    def local(self) -> LocalHot:
        return LocalHot(self.folder / "hot", "s", 64 * MIB, lambda size: make(DEFAULT_POLICY, size))

    def hot_chunks(self) -> dict[str, bytes]:
        """What lies in the hot tier, by the digest that is its name."""
        found = (self.folder / "hot").rglob("?" * 64)
        return {path.name: path.read_bytes() for path in found if "~" not in str(path)}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = MemoryStore("home")
    with created(home, tmp_path) as store:
        store.save("m", MODEL)
    made = Node(tmp_path, home)
    yield made
    for store in made.opened:
        store.close()


def empty() -> dict[str, np.ndarray]:
    return {name: np.zeros_like(array) for name, array in MODEL.items()}


def into(store: Store, buffers: Mapping[str, np.ndarray]) -> None:
    store.load("m").load_into(buffers)


def by_ranges(store: Store, buffers: Mapping[str, np.ndarray]) -> None:
    for name, buffer in buffers.items():
        out = buffer.reshape(-1).view(np.uint8).data
        store.load("m").tensor(name).read_span(0, len(out), out)


def from_file(store: Store, buffers: Mapping[str, np.ndarray]) -> None:
    view = store.load("m").open_file("model.safetensors")
    out = np.zeros(view.size, np.uint8)
    view.read_into(0, out.data)
    for name, tensor in store.load("m")._opened.tensors.items():
        start = len(view.header) + tensor._entry.begin
        plain = out[start : start + tensor.nbytes]
        buffers[name].reshape(-1).view(np.uint8)[:] = plain


@pytest.mark.parametrize("read", [into, by_ranges, from_file])
@pytest.mark.parametrize("tier", ["local", "shared and local"])
def test_what_the_hot_tier_gets_was_verified_where_nobody_else_writes(
    node: Node, tier: str, read: Callable[[Store, Mapping[str, np.ndarray]], None]
) -> None:
    frames = MemoryStore("frames")
    spec = TierSpec(name="shared", role="shared", url="memory://")
    if tier != "local":
        with node.open(HotTiers(shared=[SharedHot(spec, frames)])) as other:
            other.load("m").load()  # the frames are there
    hot = MeddledTiers(node.local(), [SharedHot(spec, frames)] if tier != "local" else [])
    buffers = empty()
    hot.meddled = Meddled(buffers)
    read(node.open(hot), buffers)
    assert hot.flush(60)
    chunks = node.hot_chunks()
    assert len(chunks) == 5
    assert {digest_of(data).hex for data in chunks.values()} == set(chunks)
    assert hot.meddled.writes >= 5


@pytest.mark.parametrize("meddle", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_readers_that_wait_get_what_was_verified(node: Node, local: bool, meddle: bool) -> None:
    """The leader reads into its caller's memory; others wait for the chunks that it fetches."""
    gate = threading.Event()

    def hold(op: str, key: str, n: int) -> None:
        if op == "get_ranges":
            assert gate.wait(60)

    hot, buffers = HotTiers(node.local() if local else None), empty()
    hot.flights = flights = MeddledFlights(Meddled(buffers if meddle else {}))
    store = node.open(hot, FaultyStore(node.home, hold))
    models = [store.load("m") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        leading = pool.submit(models[0].load_into, buffers)
        wait_until(lambda: len(flights._flights) == 5, "the leader fetches every chunk")
        others = [pool.submit(model.load) for model in models[1:3]]
        mine = empty()
        also = pool.submit(models[3].load_into, mine)
        wait_until(
            lambda: sum(len(one.seats) for one in list(flights._flights.values())) == 15,
            "the others wait for them",
        )
        gate.set()
        for waiting in others:
            equal(waiting.result(60), MODEL)
        also.result(60)
        equal(mine, MODEL)
        # bytes that were written over before they were compared are its caller's alone
        assert isinstance(leading.exception(60), Damaged | None)
    if not meddle:
        leading.result()
        equal(buffers, MODEL)
        assert models[1].stats.bytes_fetched == 0, "what the leader read was enough"
    assert flights.meddled.writes >= 5


def test_a_chunk_of_several_buffers_comes_from_where_it_was_verified(node: Node) -> None:
    """Two tensors have the same content: the second is no copy of the first one's buffer."""
    hot, buffers = MeddledTiers(node.local()), empty()
    hot.meddled = Meddled({"twin": buffers["twin"]})
    into(node.open(hot), buffers)
    assert hot.meddled.writes >= 5
    del buffers["twin"]
    equal(buffers, {name: array for name, array in MODEL.items() if name != "twin"})


@pytest.mark.parametrize("read", [into, by_ranges, from_file])
def test_callers_memory_is_filled(
    node: Node, read: Callable[[Store, Mapping[str, np.ndarray]], None]
) -> None:
    store = node.open(HotTiers(node.local()))
    for _ in range(2):  # from home, then from the hot tier
        buffers = empty()
        read(store, buffers)
        equal(buffers, MODEL)
        assert store._parts.hot.flush(60)


def test_a_buffer_of_other_elements_is_refused_before_anything_is_read(node: Node) -> None:
    """Of as many bytes, and so filled with values that nobody saved."""
    model = node.open(HotTiers()).load("m")
    buffers = empty() | {"twin": np.zeros((200, 1000), np.int32)}
    wanted = r"'twin' is I32 \[200, 1000\], the tensor is F32 \[200, 1000\]"
    with pytest.raises(UsageError, match=wanted):
        model.load_into(buffers)
    assert not any(buffer.any() for buffer in buffers.values())
    assert model.stats.bytes_fetched == 0
    raw: dict[str, Any] = {"twin": bytearray(SAME.nbytes), "bias": np.zeros(77, np.uint8)}
    model.load_into(raw)
    assert raw["twin"] == SAME.tobytes()
    assert raw["bias"].tobytes() == MODEL["bias"].tobytes()
