"""What users of a store were promised, and whether that holds at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from tierstore import Rows
from tierstore.admin.purges import purges_of
from tierstore.errors import Damaged, TierstoreError
from tierstore.format.keys import ALIASES, LEASES, VERSIONS, version_key
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.footers import list_packs, read_chunks
from tierstore.modelstore.home.home import chunks_of
from tierstore.modelstore.names.removed import PURGE
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.store import Store

Content = dict[str, np.ndarray]


class Lost(AssertionError):
    """Something that was promised is not there, or something that nothing needs stays."""


def _weights(seed: int) -> Content:
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((25, 200), np.float32),
        "head": rng.standard_normal((10, 100), np.float32),
        "common": np.arange(3000, dtype=np.float32),
    }


def _tuned(content: Content, seed: int) -> Content:
    rng = np.random.default_rng(seed)
    return {
        name: array * (1 + np.float32(1e-4) * rng.standard_normal(array.shape, np.float32))
        for name, array in content.items()
    }


CONTENTS = {
    "first": _weights(1),
    "other": _weights(2),
    "third": _weights(4),
    "tuned": _tuned(_weights(1), 3),
    "fresh": _weights(9),
}
"""What is saved; few, so that equal content is saved again and again."""


def patched(content: Content, rows: int) -> tuple[dict[str, Rows], Content]:
    """Return changes of a content, which depend on a number, and what they make of it."""
    head = content["head"].copy()
    head[: rows % 3 + 2] += np.float32(1 + rows)
    return {"head": Rows(list(range(rows % 3 + 2)), head[: rows % 3 + 2])}, {
        **content,
        "head": head,
    }


def differs(got: dict[str, Any], expected: Content) -> bool:
    """Return whether a loaded model is another than what was saved."""
    return sorted(got) != sorted(expected) or any(
        got[name].tobytes() != array.tobytes() for name, array in expected.items()
    )


def _is_purged(store: Store, model: str, number: int) -> bool:
    entry = store._names.removals.of(model).get(number)
    return entry is not None and entry.action == PURGE


@dataclass(eq=False)
class Promises:
    """What users of a store were promised.

    Attributes:
        versions: The content of the versions whose save has returned, by model and number.
        undeleted: Notes of undeletes that have returned.
        aliases: The entries, by model, alias and number of the version, that were promised.
        pinned: The versions whose pin was promised.
        released: The members of promised releases, by the release.
        asked: The versions that somebody was about to purge.
        purged: The chunks of the versions whose purge has returned.
        is_kept: Whether no collector ignored the window, and the time did not end it.
    """

    versions: dict[tuple[str, int], Content] = field(default_factory=dict)
    undeleted: set[str] = field(default_factory=set)
    aliases: set[tuple[str, str, int]] = field(default_factory=set)
    pinned: list[tuple[str, int]] = field(default_factory=list)
    released: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    asked: set[tuple[str, int]] = field(default_factory=set)
    purged: dict[tuple[str, int], frozenset[bytes]] = field(default_factory=dict)
    is_kept: bool = True

    def settle(
        self,
        open_store: Callable[[], Store],
        end_leases: Callable[[], None],
    ) -> None:
        """Collect until nothing is left to do, then look that all is as it was promised.

        Args:
            open_store: Opens the store, in a process without faults.
            end_leases: Lets so much time pass that every lease ends.

        Raises:
            Lost: Something is not as it was promised.
        """
        end_leases()
        if self.is_kept:
            with open_store() as store:
                self._bring_back(store)
        with open_store() as store:
            self._collect(store, end_leases)
        with open_store() as store:
            self._finish_purges(store)
        with open_store() as store:
            removed = {
                model: store._names.removals.of(model).keys()
                for model in store._parts.home.models()
            }
            for (model, number), content in self.versions.items():
                if number not in removed.get(model, ()):
                    self._look(store, f"{model}@{number}", content)
            self._look_at_names(store)
            if self.asked:
                self._use(store, removed)

    def _use(self, store: Store, removed: Mapping[str, Collection[int]]) -> None:
        """Name and patch what stays: a purge beside it has condemned nothing of that."""
        for (model, number), content in self.versions.items():
            if number in removed.get(model, ()):
                continue
            ref = f"{model}@{number}"
            try:
                store.alias(model, "used", ref)
                store.patch(ref, patched(content, 1)[0])
            except TierstoreError as error:
                raise Lost(f"{ref} cannot be used any more: {error}") from error

    def _finish_purges(self, store: Store) -> None:
        """Go on with all purges, whatever ended them: nothing that was purged is left anywhere."""
        store.retention.set(None, window=timedelta(0), alias_history=timedelta(0))
        for receipt in purges_of(store).run():
            of, _, at = receipt.version.rpartition("@")
            if not receipt.is_done and _is_purged(store, of, int(at)):
                raise Lost(f"a purge is not done: {receipt}")
        home = store._parts.home
        for model, number in self.purged:
            if not _is_purged(store, model, number):
                raise Lost(f"{model}@{number} was purged, and is not")
        for model, number in self.versions:
            if _is_purged(store, model, number) and (model, number) not in self.asked:
                raise Lost(f"{model}@{number} was purged by nobody")
        present = [Digest.from_hex(info.key[-64:]) for info in home.blobs.list(VERSIONS)]
        needed = set[bytes]().union(*(chunks_of(home.manifest(one)) for one in present))
        gone = set[bytes]().union(*self.purged.values()) - needed
        for info in list_packs(home.packs).packs:
            table = read_chunks(home.packs, info.key, info.size)
            if not gone.isdisjoint(table.digests):
                raise Lost(f"chunks that were purged are in {info.key}")
        named = {
            entry.manifest
            for model in home.models()
            for entry in home.log(model).entries()
            if not _is_purged(store, model, entry.seq)
        }
        for order in Orders(home.blobs).all():
            left = home.blobs.present([version_key(Digest.from_hex(order.manifest))])
            if left and not order.manifests_left and order.manifest not in named:
                raise Lost(f"the manifest of {order.model}@{order.version} was purged, and stays")

    def _bring_back(self, store: Store) -> None:
        """Undelete everything that was not purged: no window has ended."""
        for (model, number), content in self.versions.items():
            if _is_purged(store, model, number) and (model, number) in self.asked:
                continue
            if number in store._names.removals.of(model):
                ref = f"{model}@{number}"
                try:
                    store.undelete(ref)
                except TierstoreError as error:
                    raise Lost(f"{ref} cannot be undeleted in its window: {error}") from error
                self._look(store, ref, content)

    def _look_at_names(self, store: Store) -> None:
        home = store._parts.home
        for model, alias, number in self.aliases:
            last = home.log(model, ALIASES + alias).last()
            if last is not None and last.version == number:
                content = self.versions.get((model, number))
                if content is not None:
                    self._look(store, f"{model}@{alias}", content)
        for members in self.released.values():
            for model, number in members:
                self._look(store, f"{model}@{number}", self.versions[model, number])
        active = {pin.version.hex for pin in store.pins.active()}
        for model, number in self.pinned:
            manifest = home.log(model).entry(number).manifest
            if manifest in active:  # a version of equal content may be all that is in force of it
                ref = self._in_force(store, manifest)
                self._look(store, ref or f"{model}@{number}", self.versions[model, number])

    def _in_force(self, store: Store, manifest: str | None) -> str | None:
        """Return a version of this content that is not removed, if there is one."""
        home = store._parts.home
        for model in home.models():
            removed = store._names.removals.of(model)
            for entry in home.log(model).entries():
                if entry.manifest == manifest and entry.seq not in removed:
                    return f"{model}@{entry.seq}"
        return None

    def _look(self, store: Store, ref: str, content: Content) -> None:
        try:
            got = store.load(ref).load()
        except TierstoreError as error:
            raise Lost(f"{ref} is lost: {error}") from error
        if differs(got, content):
            raise Lost(f"{ref} has other bytes")

    def _collect(self, store: Store, end_leases: Callable[[], None]) -> None:
        """Collect everything; a version that was promised to nobody may have to be removed first.

        Such a one is left by a process that died, or had an error, between its entry and its look.
        """
        home = store._parts.home
        collector = Collector(home)
        for _ in range(10):
            try:
                collector.run(grace_s=0, window_s=0)
                break
            except Damaged as error:
                if not self._remove_unpromised(store):
                    raise Lost(f"nothing more is collected: {error}") from error
                end_leases()
        else:
            raise Lost("nothing more is collected")
        store.close()
        end_leases()
        done = collector.run(grace_s=0, window_s=0)
        states = {one.state for one in done.packs}
        if "deleted" in states:  # as a pack goes, a move may lead to another copy than before
            done = collector.run(grace_s=0, window_s=0)
            states = {one.state for one in done.packs}
        if not states <= {"live", "chain", "base"}:
            raise Lost(f"garbage stays: {done.reasons()}")
        left = [info.key for info in home.blobs.list(LEASES)]
        if left:
            raise Lost(f"leases stay: {left}")

    def _remove_unpromised(self, store: Store) -> bool:
        removed = 0
        home = store._parts.home
        for model in home.models():
            gone = store._names.removals.of(model)
            for entry in home.log(model).entries():
                if entry.seq in gone or self._is_promised(model, entry.seq, store):
                    continue
                try:
                    store.load(f"{model}@{entry.seq}").load()
                except TierstoreError:
                    store.remove(f"{model}@{entry.seq}", force=True)
                    removed += 1
        return removed > 0

    def _is_promised(self, model: str, number: int, store: Store) -> bool:
        if (model, number) not in self.versions:
            return False
        last: RefEntry | None = next(
            (one for one in store._names.removals.entries(model) if number in one.versions), None
        )
        return last is None or (last.action == "undelete" and last.message in self.undeleted)
