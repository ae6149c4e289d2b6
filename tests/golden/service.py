"""Writes the golden store ``service``: what tiers, nodes, rollouts, collections and purges leave.

Its warm tier lies beside its home. Where both were is in none of them: a node's file says where the
tier is, as on a node that has it elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import tierstore
from tests.golden import content
from tierstore.format.keys import RESERVE
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import read_config
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.growth import Growth
from tierstore.tiers.durable.marker import claim
from tierstore.wiring import open_blobs

NOTHING = timedelta(0)


@contextmanager
def opened(folder: Path, scratch: Path) -> Iterator[tierstore.Store]:
    """Open the store as a node that has it in a folder.

    Args:
        folder: It has home and the tier.
        scratch: For the node's file and its cache.
    """
    node, url = scratch / "tierstore.toml", (folder / "warm").as_uri()
    node.write_text(f'node = "golden"\n[tiers.warm]\nurl = "{url}"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_CONFIG", str(node))
        patch.setenv("TIERSTORE_CACHE_DIR", str(scratch / "cache"))
        with tierstore.open(folder / "home") as store:
            yield store


def make(folder: Path) -> None:
    """Write the store: home and its tier, below a folder."""
    _begin(folder)
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        with opened(folder, scratch) as store:
            store.reclaim.enable(wait_s=0)
            _save(store, scratch)
            _name(store)
            _note(store)
            _collect(store)
            _purge(store, scratch)
    with open_blobs(str(folder / "home")) as blobs:
        blobs.put(RESERVE, content.stream("reserve", 64))  # a small one: 4 MiB are a lot


def _begin(folder: Path) -> None:
    (folder / "warm").mkdir(parents=True)
    tierstore.init(folder / "home", chunk_size=content.CHUNK).close()
    spec = TierSpec(
        name="warm", role="warm", url="file:///golden/warm", size=1 << 30,
        options={"min_heat": "0.5"}, prices={"gb_month": "0.023"},
    )  # fmt: skip
    with open_blobs(str(folder / "home")) as home, open_blobs(str(folder / "warm")) as warm:
        keeper = replace(Identity(home).made(), url="file:///golden/home")
        claim(warm, spec.name, read_config(home).store_id, (), lambda: keeper)
        TierLog(home).change(lambda _: [spec], "packs go there")


def _save(store: tierstore.Store, scratch: Path) -> None:
    for model, versions in content.service_models().items():
        for number, tensors in enumerate(versions, 1):
            source = scratch / f"{model}-{number}"
            source.mkdir()
            (source / "model.safetensors").write_bytes(content.file_of(tensors, None))
            store.save(model, source, base=None)


def _name(store: tierstore.Store) -> None:
    """A variant, a release, and rollouts: one aborted, one finished, one under way."""
    store.derive("kept@1", {"int8": "row"}, message="smaller")
    store.releases.create("set", ["kept@1", "first@2"], alias="prod")
    store.alias("kept", "prod", "kept@1")
    rollouts = store.rollouts
    for message in ("aborted", "finished", "under way"):
        rollouts.start(
            "kept", "prod", "kept@2", stages=[5000, 10_000], gates=["p99_ms<=12.5"],
            labels={"region": "eu"}, windows=["22:00-06:00"], message=message,
        )  # fmt: skip
        if message == "aborted":
            rollouts.pause("kept", "prod")
            rollouts.resume("kept", "prod")
            rollouts.abort("kept", "prod")
        elif message == "finished":
            rollouts.step("kept", "prod", force=True)
            rollouts.step("kept", "prod", force=True)
            store.rollback("kept", "prod")


def _note(store: tierstore.Store) -> None:
    """What nodes write: reads, reports, growth, that an agent is there; and one that is gone."""
    home = store._parts.home
    store.pins.add(store.resolve("kept@1").digest, "kept@1", ["hot"])
    store.load("kept@1").load()
    assert store.heat().chunks()
    for node in ("golden", "retired"):
        store.rollouts.report("kept@2", node, {"p99_ms": "11.5"})
    Growth(home, "golden").add(4096)
    store.purges._dropping.note()
    store.purges.say_gone("retired", reason="its disk was shredded")
    with HeldLease(home.blobs):
        pass


def _collect(store: tierstore.Store) -> None:
    store.remove_model("gone", message="not needed")
    assert store.reclaim.run(window=NOTHING, grace=NOTHING).of("deleted")


def _purge(store: tierstore.Store, scratch: Path) -> None:
    """Purge one that shares a chunk, and save it again; another one has to wait for a save."""
    purged = store.resolve("first@1").digest
    [receipt] = store.purge("first@1", message="request 7")
    assert receipt.is_done
    assert receipt.shared_chunks == 1
    again = store.save("again", scratch / "first-1", base=None)
    assert again.digest != purged, "a manifest with a salt"
    with WriterLease(store._parts.home.blobs):
        [receipt] = store.purge("secret@1", message="while a save runs")
    assert not receipt.is_done
