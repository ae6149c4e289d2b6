"""Versions of which the entry is lost are given up, so that the log has no gap any more (SPEC 9).

An entry with a manifest that no content has takes the place of the lost one, and that version is
removed as any other: its number is never given again, and whatever it was nobody keeps. In the log
of a variant it is an entry that names nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version as package_version

from msgspec.structs import replace

from tierstore.errors import Conflict, Damaged, InvalidName, NotFound, UnsupportedFormat
from tierstore.format.keys import VARIANTS, VERSION_LOG
from tierstore.format.reflog import LOST_MANIFEST, Action, RefEntry
from tierstore.format.sealed import Kind, mended, seal_body
from tierstore.ids import Digest, ModelRef
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import MOST_MISSING, highest_of, whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.names.claims import pinned
from tierstore.modelstore.names.witnesses import Witnesses, numbers, readable_entries
from tierstore.modelstore.reclaim.holders import Holders, VersionDigests

_SHOWN = 5
_NOTE = "given up: what this entry said was lost"


class GivingUp:
    """Puts entries in the place of those that are lost, where nothing says what they were.

    Args:
        home: The store's home.
        holders: Finds who names versions.
    """

    def __init__(self, home: Home, holders: Holders) -> None:
        self._home, self._holders = home, holders
        self._witnesses = Witnesses(home)

    def lost_of(self, refs: Sequence[str]) -> dict[str, list[int]]:
        """Return the versions among references of which the entries are lost, by model.

        Costs nothing but a read for each that has a number, unless one is lost.
        """
        found: dict[str, list[int]] = {}
        for ref in refs:
            parsed = ModelRef.parse(ref)
            if parsed.number is None or parsed.variant is not None:
                continue
            if self._is_there(parsed.model, parsed.number):
                continue
            if parsed.number in self._witnesses.lost(parsed.model):
                found.setdefault(parsed.model, []).append(parsed.number)
        return {model: sorted(set(numbers)) for model, numbers in found.items()}

    def all_of(self, model: str) -> list[int]:
        """Return the numbers of all versions of a model of which the entries are missing.

        Other objects are asked only where the log has gaps, or is not what its hint says.
        """
        hinted = self._home.log(model).hinted()  # first: what is published meanwhile is not lost
        there = numbers(self._home, model, VERSION_LOG)
        if there and len(there) == max(there) >= hinted:
            return []
        return self._witnesses.lost(model)

    def _is_there(self, model: str, number: int, name: str = VERSION_LOG) -> bool:
        try:
            self._home.log(model, name).entry(number)
        except (Damaged, NotFound):
            return False
        return True

    def lost_variants(self, refs: Sequence[str]) -> dict[str, list[int]]:
        """Return the lost entries of the logs of variants among references, by reference.

        Whose variants these were nobody knows: whatever version a reference names, all are meant.

        Raises:
            UnsupportedFormat: An entry was written by a newer version of tierstore.
        """
        found: dict[str, list[int]] = {}
        for ref in refs:
            parsed = ModelRef.parse(ref)
            if parsed.variant is not None and (lost := self._lost_of(parsed.model, parsed.variant)):
                found[ref] = lost
        return found

    def _lost_of(self, model: str, variant: str) -> list[int]:
        name = VARIANTS + variant
        log, there = self._home.log(model, name), numbers(self._home, model, name)
        last = max(highest_of(there), log.hinted(), self._witnesses.least(model, name))
        if last - len(there) > MOST_MISSING:
            raise Damaged(
                f"of the {last} entries of the log of {model}@+{variant} {last - len(there)} or so "
                "are lost: restore them from a copy of home"
            )
        return [seq for seq in range(1, last + 1) if not self._is_there(model, seq, name)]

    def give_up_variants(self, lost: Mapping[str, Sequence[int]]) -> None:
        """Put entries that name nothing in the place of lost ones of logs of variants.

        Args:
            lost: What ``lost_variants`` returned.

        Raises:
            Conflict: One can be mended, or a pin names a variant that only it can have named.
        """
        logs = {(ModelRef.parse(ref).model, ModelRef.parse(ref).variant): lost[ref] for ref in lost}
        for (model, variant), every in logs.items():
            name = f"{VARIANTS}{variant}"
            for number in every:
                if self._can_be_mended(model, number, name):
                    raise Conflict(
                        f"entry {number} of the log of {model}@+{variant} is damaged, and "
                        "'tierstore repair' can write it as it was; nothing was given up"
                    )
            known = {one.manifest for one in readable_entries(self._home, model, name)}
            for pin in Pins(self._home.blobs).active(self._holders.now_s):
                ref = f"+{variant}"
                if (
                    pin.ref.startswith(f"{model}@")
                    and pin.ref.endswith(ref)
                    and (pin.version.hex not in known)
                ):
                    raise Conflict(
                        f"a lost entry of the log of {model}@+{variant} is named by the pin of "
                        f"{pin.who} ({pin.ref}): end that first; nothing was given up"
                    )
        for (model, variant), every in logs.items():
            self._fill(model, every, f"{VARIANTS}{variant}")

    def check(self, lost: Mapping[str, Sequence[int]], *, force: bool) -> None:
        """Raise ``Conflict`` where something says what one of them was, or names it.

        Args:
            lost: The numbers of versions by model.
            force: Whether the newest version of a model may be among them.
        """
        for model, every in lost.items():
            self._check(model, every, force=force)

    def fill(self, lost: Mapping[str, Sequence[int]]) -> None:
        """Put entries in the place of those that are lost, so that they can be removed.

        Raises:
            Conflict: One has come back meanwhile.
        """
        for model, every in lost.items():
            self._fill(model, every)

    def _check(self, model: str, lost: Sequence[int], *, force: bool) -> None:
        """Raise ``Conflict`` unless these can be given up."""
        if left := sorted(set(self._witnesses.lost(model)) - set(lost)):
            raise Conflict(
                f"{model} has lost the entries of {_refs(model, left)}, too: restore them from a "
                "copy of home, or give all that are lost up at once; nothing was removed"
            )
        newest = max(lost)
        if not force and newest > max(numbers(self._home, model, VERSION_LOG), default=0):
            raise Conflict(
                f"{model}@{newest} is the newest version of {model!r}: give force=True (--force) "
                f"to give it up; 'tierstore rm {model} --all' removes the whole model"
            )
        for number in lost:
            if any(map(self._is_readable, self._witnesses.manifests(model, number))):
                raise Conflict(
                    f"the entry of {model}@{number} is lost, and another object says what it was: "
                    "'tierstore repair' makes it anew; nothing was removed"
                )
            if self._can_be_mended(model, number):
                raise Conflict(
                    f"the entry of {model}@{number} is damaged, and 'tierstore repair' can write "
                    "it as it was; nothing was removed"
                )
            if reasons := self._named(model, number):
                raise Conflict(
                    f"{model}@{number}, of which the entry is lost, is named by "
                    f"{', '.join(reasons)}: end that first; nothing was removed"
                )

    def _can_be_mended(self, model: str, number: int, name: str = VERSION_LOG) -> bool:
        key = self._home.log(model, name).key_of(number)
        data = self._home.blobs.get_many([key]).get(key)
        return data is not None and mended(Kind.REF, data) is not None

    def _named(self, model: str, number: int) -> list[str]:
        """Return who names a version that has no entry."""
        blank = {number: VersionDigests(self._blank(model, number), frozenset())}
        aliases = self._holders.aliases(model)
        found = self._holders.named(model, blank, frozenset(), aliases, readers=False)
        pins = Pins(self._home.blobs).active(self._holders.now_s)
        pinned_by = [f"pin of {pin.who}" for pin in pins if pinned(pin.ref) == (model, number)]
        return [*(one.text for one in found.get(number, [])), *pinned_by]

    def _fill(self, model: str, lost: Sequence[int], name: str = VERSION_LOG) -> None:
        """Write an entry in the place of each lost one, unless that came back meanwhile."""
        log, blobs = self._home.log(model, name), self._home.blobs
        for number in lost:
            blank = self._blank(model, number)
            if name != VERSION_LOG:
                blank = replace(blank, action="remove", version=None, manifest=None)
            key, sealed = log.key_of(number), seal_body(Kind.REF, blank)
            came_back = self._is_there(model, number, name)
            if not came_back and key in blobs.get_many([key]):
                with_reserve(blobs, partial(blobs.put, key, sealed))  # it is damaged
            elif came_back or not with_reserve(blobs, partial(create_once, blobs, key, sealed)):
                of = f"the entry of {model}@{number}" if name == VERSION_LOG else f"entry {key}"
                raise Conflict(
                    f"{of} was lost, and is there again: nothing was removed; look at it and try "
                    "again"
                )
        log.point_at(max(numbers(self._home, model, name)))

    def _is_readable(self, manifest: str) -> bool:
        try:
            self._home.manifest(Digest.from_hex(manifest))
        except (Damaged, NotFound, UnsupportedFormat, InvalidName):
            return False
        return True

    def _blank(self, model: str, number: int) -> RefEntry:
        return RefEntry(
            seq=number,
            write_id=uuid.uuid4().hex,
            action=self._action(model),
            version=number,
            manifest=LOST_MANIFEST,
            time_us=time.time_ns() // 1000,
            who=whoami(),
            message=_NOTE,
            tool=f"tierstore {package_version('tierstore')}",
        )

    def _action(self, model: str) -> Action:
        """Return what entries of a log do: one name never holds versions and releases."""
        first = next(readable_entries(self._home, model, VERSION_LOG), None)
        return "publish" if first is None else first.action


def _refs(model: str, numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(f"{model}@{number}" for number in numbers[:_SHOWN]) + more
