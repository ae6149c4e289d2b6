"""Who needs a version: what a collector keeps for it, what refuses ``rm``, and what rules keep.

The table is that of ``tierstore.modelstore.reclaim.roots``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.integration.kit import created, tensors
from tests.waiting import wait_until
from tierstore import Dense, Model
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict
from tierstore.format.keys import LEASES, REMOVED_LOG
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.leases import in_force, new_lease
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.reclaim import roots
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.mark import Marker
from tierstore.modelstore.store import Store

TABLE = {
    row[0]: tuple(row[1:])
    for line in (roots.__doc__ or "").splitlines()
    if len(row := re.split(r"\s{2,}", line.strip())) == 4
}


def read_elsewhere(store: Store) -> None:
    lease = new_lease("reader")
    lease = msgspec.structs.replace(lease, pid=1, versions=[store.resolve("m@1").digest.hex])
    store._blobs.put(f"{LEASES}{lease.id}", seal_body(Kind.LEASE, lease))


def read_here(store: Store) -> Model:
    model = store.load("m@1")
    model.load()
    wait_until(lambda: bool(in_force(store._blobs, "reader")), "this process has a lease")
    return model  # nothing is held for a model that is gone


def alias(*names: str | None, history: timedelta | None = None) -> Callable[[Store], None]:
    """Let an alias mean one version after the other, or nothing."""

    def act(store: Store) -> None:
        for name in names:
            if name is None:
                store.remove_alias("m", "prod")
            else:
                store.alias("m", "prod", name)
        if history is not None:
            store.retention.set("m", alias_history=history)

    return act


def roll_out(store: Store) -> None:
    store.alias("m", "prod", "m@2")
    store.rollouts.start("m", "prod", "m@1")


def hold_for_a_rollout(store: Store) -> None:
    store.pins.hold("rollout of m@prod", [store.resolve("m@1").digest])


SOURCES: dict[str, Callable[[Store], object]] = {
    "alias": alias("m@1"),
    "target of a rollout": roll_out,
    "pin of a rollout": hold_for_a_rollout,
    "member of a release": lambda store: store.releases.create("all", ["m@1"]),
    "pin of a user": lambda store: store.pins.add(store.resolve("m@1").digest, "m@1", ["hot"]),
    "lease of another process": read_elsewhere,
    "lease of this process": read_here,
    "patch that lies on it": lambda store: store.patch("m@1", {"bias": Dense(np.ones(77, "i1"))}),
    "where an alias would go back to": alias("m@1", "m@2", history=timedelta(0)),
    "what an alias meant lately": alias("m@1", "m@2", "m@3"),
    "where a removed alias would go back": alias("m@1", None, history=timedelta(0)),
    "what a removed alias meant lately": alias("m@1", "m@2", None),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = created(MemoryStore("needed"), tmp_path)
    enable(store._parts.home, wait_s=0)
    for number in range(1, 4):
        store.save("m", tensors(number), base=None)
    return store


def test_the_table_has_every_source() -> None:
    assert ["source", *SOURCES] == list(TABLE)
    assert TABLE["source"] == ("a root", "refuses rm", "rules keep it")


@pytest.mark.parametrize("source", SOURCES)
def test_who_needs_a_version(store: Store, source: str) -> None:
    with store:
        digest = store.resolve("m@1").digest
        keep = SOURCES[source](store)
        kept = store.forget("m", keep_last=1, dry_run=True).kept
        refused = False
        try:
            store.remove("m@1")
        except Conflict:
            refused = True
            log = store._parts.home.log("m", REMOVED_LOG)
            log.append("forget", lambda last: NOWHERE, None, [1])
        marker = Marker(store._parts.home, ReadCache(None))
        now_s = 1e-6 * store._parts.home.log("m", REMOVED_LOG).entry(1).time_us + 60
        mark = marker.mark(now_s, window_s=0)
        is_root = any(one.digest == digest for one in marker._roots.find(now_s, 0).roots)
        root = "yes" if is_root else "below" if digest in mark.kept else "no"
        rules = any(one.version.number == 1 for one in kept)
        del keep
        assert (root, *("yes" if one else "no" for one in (refused, rules))) == TABLE[source]
