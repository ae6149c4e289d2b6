"""What a receipt has for whoever must show what went, and what a purge says before it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, opened
from tests.integration.test_purge import content, purges
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import UsageError
from tierstore.format.keys import NODES
from tierstore.format.purge import NodeNote
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.store import Store
from tierstore.variants.derive import derive


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("receipts")


@pytest.fixture
def store(blobs: MemoryStore, tmp_path: Path) -> Iterator[Store]:
    """A store with m@1 to m@3, which share a tensor."""
    with created(blobs, tmp_path) as store:
        enable(store._parts.home, wait_s=0)
        for seed in (1, 2, 3):
            store.save("m", content(seed), base=None)
        yield store


def chunks(store: Store, ref: str) -> set[str]:
    home = store._parts.home
    return {one.hex() for one in home.manifest_chunks(store.resolve(ref).digest).digests}


def seen(store: Store, node: str) -> None:
    """Let an agent have been on a node."""
    purges(store)._orders.note(purges(store)._dropping.note_of(node))


def test_a_receipt_has_the_digests_of_what_went_and_of_what_stays(store: Store) -> None:
    digest = store.resolve("m@1").digest.hex
    shared = chunks(store, "m@1") & chunks(store, "m@2")
    purges(store).begin(["m@1"], force=False, message=None)
    receipt = purges(store).receipt("m@1")
    assert receipt.digests == {"m@1": [digest]}
    assert receipt.shared_digests == sorted(shared)
    assert [one.shared_digests for one in purges(store).all()] == [None]


def test_it_has_those_of_variants(store: Store) -> None:
    store.save("n", {"w": np.ones((100, 1000), np.float32)})
    variant = derive(store, "n@1", {"cast": "bf16"})
    digests = {"n@1": [store.resolve("n@1").digest.hex], str(variant): [variant.digest.hex]}
    plan = purges(store).plan("n@1", force=True)
    assert plan.digests == digests
    purges(store).begin(["n@1"], force=True, message=None)
    assert purges(store).receipt("n@1").digests == digests


def test_it_says_who_said_that_a_node_is_gone_and_why(store: Store, blobs: MemoryStore) -> None:
    seen(store, "retired")
    purges(store).begin(["m@1"], force=False, message=None)
    assert purges(store).receipt("m@1").outstanding == ["retired"]
    with pytest.raises(UsageError, match="give a reason"):
        purges(store).say_gone("retired", reason=" ")
    purges(store).say_gone("retired", reason="its disk was shredded")
    receipt = purges(store).receipt("m@1")
    [node] = [one for one in receipt.nodes if one.node == "retired"]
    assert receipt.is_complete
    assert node.gone is not None
    assert (node.gone_by, node.gone_reason) == (whoami(), "its disk was shredded")


def test_a_note_without_a_reason_counts_as_before(store: Store, blobs: MemoryStore) -> None:
    """Notes that were written before had none; and one may be damaged."""
    seen(store, "retired")
    purges(store).begin(["m@1"], force=False, message=None)
    orders = Orders(blobs)
    orders.say_gone(purges(store)._dropping.note_of("retired"))
    key = f"{NODES}retired/gone"
    assert unseal_body(Kind.NODE, blobs.get(key), NodeNote, key).message == ""
    [node] = [one for one in purges(store).receipt("m@1").nodes if one.node == "retired"]
    assert (node.gone_by, node.gone_reason, node.is_outstanding) == (whoami(), None, False)
    blobs.put(key, b"damaged")
    [node] = [one for one in purges(store).receipt("m@1").nodes if one.node == "retired"]
    assert (node.gone_by, node.gone_reason, node.is_outstanding) == (None, None, False)


def test_a_plan_says_what_the_receipt_says_then(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    seen(store, "other")
    store.remove("m@2")
    with opened(blobs, tmp_path / "again") as again:
        plan = purges(again).plan("m@1")
    everything = {info.key: (bytes(blobs.get(info.key)), info.mtime) for info in blobs.list()}
    with opened(blobs, tmp_path / "third") as again:
        assert purges(again).plan("m@1") == plan
    after = {info.key: (bytes(blobs.get(info.key)), info.mtime) for info in blobs.list()}
    assert after == everything
    assert plan.refused is None
    assert plan.nodes == ["other"]
    [receipt] = purges(store).begin(["m@1"], force=False, message=None)
    assert (plan.chunks, plan.plain_bytes) == (receipt.chunks, receipt.plain_bytes)
    assert (plan.shared_chunks, plan.shared_plain_bytes) == (
        receipt.shared_chunks,
        receipt.shared_plain_bytes,
    )
    whys = [one.why for one in plan.shared]
    assert whys[0].startswith("m@2 was removed") or whys[0] == "m@3"
    assert [one.name for one in plan.tiers] == ["home"]


def test_a_plan_says_why_it_would_be_refused(store: Store) -> None:
    assert "newest version" in (purges(store).plan("m@3").refused or "")
    assert purges(store).plan("m@3", force=True).refused is None
    store.alias("m", "prod", "m@1")
    assert "alias prod" in (purges(store).plan("m@1").refused or "")
    assert [str(one) for one in store.versions("m")] == ["m@3", "m@2", "m@1"]
