"""A store with an object of every kind, packs in every tier, and what it must say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.flips.places import BlobPlace, FilePlace, HotPlace, Place
from tests.integration.kit import MIB, equal
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound
from tierstore.format.keys import move_key, pack_key, quarantine_key
from tierstore.format.layout import Move
from tierstore.format.pack import PackBuilder
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.store import Store
from tierstore.tiers.hot.shared import frame_key

ROWS, COLUMNS = 5000, 64  # 1.3 MB: two chunks, five blocks
CONFIG = b'{"architectures": ["ranker"]}\n' * 20


@dataclass(frozen=True)
class Servers:
    """Where the servers of tiers are; without one of them its tier is left out.

    Attributes:
        redis: URL of a Redis.
        memcached: URL of a memcached.
        s3: URL of an empty prefix of a bucket.
    """

    redis: str | None = None
    memcached: str | None = None
    s3: str | None = None


@dataclass(frozen=True)
class World:
    """The store, open, and the places in which its bytes lie."""

    root: Path
    store: Store
    places: list[Place]
    keep: ExitStack

    @property
    def url(self) -> str:
        return str(self.root / "store")

    @contextmanager
    def opened(self, node: str) -> Iterator[Store]:
        """Open the store as a node of its own, which has nothing in memory, would."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIERSTORE_CONFIG", str(self.root / f"{node}.toml"))
            with tierstore.open(self.url) as store:
                yield store
        for path in (self.root / "cache").glob("*/activity/*"):  # each would look at all of them
            path.unlink()


def tensors(version: int) -> dict[str, npt.NDArray[np.generic]]:
    """The content of version 1 or 2, which is near it."""
    emb = np.random.default_rng(7).standard_normal((ROWS, COLUMNS), np.float32)
    if version > 1:
        emb[::50] += np.float32(0.001)
    return {"emb": emb, "bias": np.arange(33, dtype=np.int8) * version}


def row(number: int) -> npt.NDArray[np.float32]:
    """The row that patch ``number`` writes."""
    return np.full((1, COLUMNS), number, np.float32)


def built(root: Path, servers: Servers = Servers()) -> World:
    """Make the store below ``root``; the caller closes ``keep``."""
    root.mkdir(exist_ok=True)
    hot = tierstore.TierSpec(name="hot", role="hot", url=str(root / "hot"), size=1 << 30)
    caches = {"redis": servers.redis, "memcached": servers.memcached}
    shared = [
        tierstore.TierSpec(name=name, role="shared", url=url)
        for name, url in caches.items()
        if url is not None
    ]
    cold = tierstore.TierSpec(name="cold", role="cold", url=servers.s3 or str(root / "cold"))
    warm = tierstore.TierSpec(name="warm", role="warm", url=str(root / "warm"))
    specs = [hot, *shared, warm, cold]
    _write_nodes(root, [spec.name for spec in shared])
    keep = ExitStack()
    patch = keep.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("TIERSTORE_CACHE_DIR", str(root / "cache"))
    patch.setenv("TIERSTORE_CONFIG", str(root / "plain.toml"))
    store = keep.enter_context(tierstore.init(root / "store", tiers=specs, chunk_size=MIB))
    _save(root, store)
    _name(store)
    every = {tier.name: tier.blobs for tier in store._parts.home.packs.tiers}
    _heal(store, every["warm"])
    _repack(every["warm"], store._parts.home.blobs)
    _spread(every)
    home = store._parts.home.blobs
    keep.enter_context(HeldLease(home))
    keep.enter_context(closing(store.load("m@1")))
    wait_until(lambda: any(home.list("leases/")), "its reader has a lease")
    store._parts.home.condemned.condemn([b"\xab" * 32], run="00" * 16, now_us=1)
    world = World(root, store, [], keep)
    world.places.append(FilePlace("home", root / "store", "plain"))
    world.places.append(FilePlace("warm", root / "warm", "plain"))
    if servers.s3:
        world.places.append(BlobPlace("cold", every["cold"], "plain"))
    else:
        world.places.append(FilePlace("cold", root / "cold", "plain"))
    _fill_caches(world, [spec.name for spec in shared])
    for version in (1, 2):
        equal(store.load(f"m@{version}").load(), tensors(version))
    return world


def _write_nodes(root: Path, shared: list[str]) -> None:
    """Node files: no cache; the hot tier, as ``verify`` says; one shared cache."""
    off = {name: f"[tiers.{name}]\nenabled = false\n" for name in shared}
    no_hot = "[hot]\nenabled = false\n"
    (root / "plain.toml").write_text('node = "n"\n' + no_hot + "".join(off.values()))
    for verify in ("boot", "first", "always"):
        text = f'node = "n"\n[tiers.hot.options]\nverify = "{verify}"\n' + "".join(off.values())
        (root / f"hot-{verify}.toml").write_text(text)
    for name in shared:
        others = "".join(text for other, text in off.items() if other != name)
        (root / f"{name}.toml").write_text('node = "n"\n' + no_hot + others)


def _save(root: Path, store: Store) -> None:
    source = root / "source"
    for version in (1, 2):
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        save_file(tensors(version), source / "model.safetensors")
        (source / "config.json").write_bytes(CONFIG)
        store.save("m", source, message=f"version {version}")
    store.patch("m", {"emb": Rows([3, 4000], np.concatenate([row(3), row(3)]))}, fold=False)
    store.patch("m", {"emb": Rows([4], row(4))}, fold=False)
    store.fold("m@4")
    store.derive("m@1", {"cast": "bf16"})


def _name(store: Store) -> None:
    store.alias("m", "prod", "m@2")
    store.alias("m", "canary", "m@1")
    two = store.resolve("m@2")
    store.rollouts.start("m", "canary", two, stages=(5000, 10_000))
    store.rollouts.report(two, "n", {"loss": "0.5"})
    store.releases.create("bundle", ["m@2"])
    store.pins.add(store.resolve("m@1").digest, "m@1", ["warm"])
    assert store._parts.recorder is not None
    store._parts.recorder.flush()


def _heal(store: Store, blobs: BlobStore) -> None:
    """Damage a pack, have it marked, and store its content anew in two steps: it gets two moves."""
    bias = store.load("m@2").tensor("bias")
    [piece] = bias._base.chunks()
    key = pack_key(piece.place.pack)
    data = bytearray(blobs.get(key))
    data[piece.place.offset + piece.place.head_bytes] ^= 1
    blobs.put(key, data)
    assert store.check(read_data=True).quarantined == [key]
    content = tensors(2)
    store.save("healed", {"bias": content["bias"]})
    store.save("healed", content)
    home = store._parts.home.blobs
    for found in (quarantine_key(piece.place.pack), move_key(piece.place.pack, 2)):
        assert home.get(found), f"{found} was not written"


def _packs(blobs: BlobStore) -> list[str]:
    return sorted(info.key for info in blobs.list("packs/"))


def _repack(blobs: BlobStore, home: BlobStore) -> None:
    """Write the frames of one pack into a new one, and leave a move in its place."""
    key = max(_packs(blobs), key=lambda one: len(blobs.get(one)))
    data = blobs.get(key)
    trailer, table = read_footer(blobs, key, len(data))
    builder = PackBuilder()
    for place in table:
        frame = data[place.offset : place.offset + place.frame_bytes]
        builder.add(
            place.digest, frame, place.head_bytes, place.plain_bytes, place.codec,
            tuple(place.bases),
        )  # fmt: skip
    pack, buffers, _ = builder.close()
    blobs.put(pack_key(pack), buffers)
    move = Move(pack=trailer.pack_id.hex(), into=[pack.hex()])
    home.put(move_key(trailer.pack_id), seal_body(Kind.MOVE, move))
    blobs.delete([key])


def _spread(every: dict[str, BlobStore]) -> None:
    """Some packs lie in warm alone, some in cold, in home, in warm and cold."""
    for number, key in enumerate(_packs(every["warm"])):
        data = every["warm"].get(key)
        to = [["warm"], ["cold"], ["home"], ["warm", "cold"]][number % 4]
        for name in to:
            if name != "warm":
                every[name].put(key, data)
        if "warm" not in to:
            every["warm"].delete([key])


def _fill_caches(world: World, shared: list[str]) -> None:
    refs = ("m@1", "m@2", "m@3", "m@4")
    with world.opened("hot-boot") as store:
        for ref in refs:
            store.warmup(ref)
    for verify in ("boot", "first", "always"):
        world.places.append(HotPlace(f"hot {verify}", world.root / "hot", f"hot-{verify}"))
    world.places.append(
        HotPlace("hot before a start", world.root / "hot", "hot-boot", before_a_start=True)
    )
    for name in shared:
        with world.opened(name) as store:
            keys: set[str] = set()
            for ref in refs:
                model = store.load(ref)
                model.load()
                keys |= {frame_key(place) for place in model._opened.content.table}
            assert store._parts.hot.flush(60)
            [tier] = store._parts.hot.shared
            blobs = tier.blobs
        kept = world.keep.enter_context(world.opened(name))
        [tier] = kept._parts.hot.shared
        found = {key for key in keys if _has(tier.blobs, key)}
        assert found, f"{blobs.url} holds nothing"
        world.places.append(BlobPlace(name, tier.blobs, name, sorted(found)))


def _has(blobs: BlobStore, key: str) -> bool:
    try:
        blobs.get(key)
    except NotFound:
        return False
    return True
