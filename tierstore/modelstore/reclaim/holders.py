"""What keeps a version from being removed: who names it now (SPEC.md section 9.1).

A collector asks the same sources for the whole store: see the table of ``roots``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta

from tierstore.format.keys import ALIASES, VARIANTS
from tierstore.format.manifest import Member, patch_info
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.chain import find_chain
from tierstore.modelstore.home.leases import in_force
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.retention import SetRetentions
from tierstore.modelstore.names.aliaslog import current, goes_back_to, meant_since
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.rollout import HOLDER
from tierstore.modelstore.version import RELEASED
from tierstore.shown import duration_text

Reasons = dict[int, list[str]]
"""Why versions stay, by their numbers."""


@dataclass(frozen=True, slots=True)
class Content:
    """The entry of a version, and all that nodes may serve of it.

    Attributes:
        entry: Its entry in the model's log.
        digests: Its manifest and those of its variants, in hex.
    """

    entry: RefEntry
    digests: frozenset[str]


class Holders:
    """Finds who names versions. What cannot change is read once by each of these.

    Args:
        names: The names of the store.
    """

    def __init__(self, names: Names) -> None:
        self._names, self._home = names, names.home
        self._models: set[str] = set()
        self._members: dict[str, tuple[Member, ...]] = {}

    def contents(self, model: str, numbers: Iterable[int]) -> dict[int, Content]:
        """Return the contents of these versions of a model, by number."""
        entries = {one.seq: one for one in self._home.log(model).numbered(list(numbers))}
        digests = {number: {entry.manifest or ""} for number, entry in entries.items()}
        for variant in self._home.variants(model):
            for entry in self._home.log(model, VARIANTS + variant).entries():
                if entry.version in digests and entry.manifest:
                    digests[entry.version].add(entry.manifest)
        return {
            number: Content(entry, frozenset(digests[number])) for number, entry in entries.items()
        }

    def named(self, model: str, going: Mapping[int, Content], staying: Set[str]) -> Reasons:
        """Return who names versions of a model now, by number.

        Args:
            model: The model's name.
            going: The versions that are asked about.
            staying: The digests of versions that stay in any case: a pin or lease of the same
                content means those.
        """
        found: Reasons = {}
        for number, reason in [*self._aliases(model), *self._releases(model)]:
            if number in going:
                found.setdefault(number, []).append(reason)
        by_digest = self._pinned_and_read()
        for number, content in going.items():
            for digest in sorted(content.digests - staying):
                found.setdefault(number, []).extend(by_digest.get(digest, []))
        return {number: sorted(set(reasons)) for number, reasons in found.items() if reasons}

    def _aliases(self, model: str) -> list[tuple[int, str]]:
        found = []
        for alias in self._home.aliases(model):
            last = self._home.log(model, ALIASES + alias).last()
            for one in current([last] if last is not None else []):
                why = f"rollout of {model}@{alias}" if one.is_rollout else f"alias {alias}"
                found.append((one.version, why))
        return found

    def left(self, model: str) -> Reasons:
        """Return the versions that aliases left lately (SPEC 9.1), or would go back to."""
        found: Reasons = {}
        now_us = time.time() * 1e6
        history_s = SetRetentions(self._home.blobs).alias_history_s(model)
        lately = f"in the last {duration_text(timedelta(seconds=history_s))}"
        for alias in self._home.aliases(model):
            log = list(self._home.log(model, ALIASES + alias).entries())[::-1]
            numbered = {entry.seq: entry for entry in log}
            before = goes_back_to(log[-1] if log else None, numbered.__getitem__)
            if before is not None and before.version is not None:
                found.setdefault(before.version, []).append(f"rollback of {alias}")
            for one in meant_since(log, now_us - history_s * 1e6, now_us):
                found.setdefault(one.version, []).append(f"alias {alias} {lately}")
        return found

    def _releases(self, model: str) -> list[tuple[int, str]]:
        names = [name for name in self._home.models() if name not in self._models]
        return [one for found in parallel(lambda n: self._naming(n, model), names) for one in found]

    def _naming(self, name: str, model: str) -> list[tuple[int, str]]:
        """Return which versions of a model the releases of a name have, and which release."""
        log = self._home.log(name)
        last, removed = self._names.removals.last(name)
        if last is None:
            return []
        if last.action != RELEASED:  # a name never changes its kind
            self._models.add(name)
            return []
        return [
            (member.version, f"release {name}@{entry.seq}")
            for entry in log.entries()
            if entry.seq not in removed and entry.manifest
            for member in self._members_of(entry.manifest)
            if member.model == model
        ]

    def _members_of(self, manifest: str) -> tuple[Member, ...]:
        if manifest not in self._members:
            found = self._home.manifest(Digest.from_hex(manifest)).members
            self._members[manifest] = tuple(found or ())
        return self._members[manifest]

    def _pinned_and_read(self) -> dict[str, list[str]]:
        """Return who pins or reads versions, by the digests of their manifests."""
        found: dict[str, list[str]] = {}
        for pin in Pins(self._home.blobs).active():
            if not pin.ref.startswith(HOLDER):  # the alias names what a rollout pins
                found.setdefault(pin.version.hex, []).append(f"pin of {pin.who}")
        for lease in in_force(self._home.blobs, "reader"):
            # what this process reads itself its lease keeps from being deleted; that is enough
            if (lease.host, lease.pid) != (
                socket.gethostname(),
                os.getpid(),
            ):
                for version in lease.versions:
                    reader = f"lease of {lease.who} (pid {lease.pid} on {lease.host})"
                    found.setdefault(version, []).append(reader)
        return found

    def chains(self, model: str, staying: Mapping[int, Content]) -> dict[str, str]:
        """Return what the patches among the versions that stay lie on.

        Returns:
            By the digest of a manifest down to the nearest fold, the version that needs it.
        """
        found: dict[str, str] = {}

        def needed(content: Content) -> list[tuple[str, str]]:
            digest = Digest.from_hex(content.entry.manifest or "")
            if not self.is_patch(content):
                return []
            chain = find_chain(self._home, digest)
            ref = f"{model}@{content.entry.seq}"
            return [(one.hex, ref) for one in (chain.full, *chain.patches[:-1])]

        for pairs in parallel(needed, list(staying.values())):
            for digest, ref in pairs:
                found.setdefault(digest, ref)
        return found

    def is_patch(self, content: Content) -> bool:
        """Return whether a version is a patch on others, folded or not."""
        manifest = self._home.manifest(Digest.from_hex(content.entry.manifest or ""))
        return patch_info(manifest) is not None
