"""Versions are removed and brought back: what is looked at before and after entries (SPEC.md 9.1).

The entries themselves, and what each failure leaves, are in ``names/removalprotocol.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from tierstore.arguments import as_message
from tierstore.errors import Conflict, Damaged, NotFound, TierstoreError, UsageError
from tierstore.ids import ModelRef, check_name
from tierstore.modelstore.names.members import numbered
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removalprotocol import Appended, Removal, gone_meanwhile, undone
from tierstore.modelstore.names.removed import Windows
from tierstore.modelstore.reclaim.feature import check_enabled, is_enabled
from tierstore.modelstore.reclaim.givingup import GivingUp
from tierstore.modelstore.reclaim.holders import (
    Holder,
    HolderKind,
    Holders,
    Reasons,
    numbers_in_force,
)
from tierstore.modelstore.reclaim.removedlist import removed_version
from tierstore.modelstore.version import Version

_SHOWN = 5
_FIRST: dict[HolderKind, str] = {
    "alias": "point the alias elsewhere ('tierstore alias set') or remove it",
    "rollout": "let the rollout end ('tierstore rollout abort')",
    "release": "remove the release as well",
    "pin": "take off the pin ('tierstore unpin')",
    "lease": "end the process that reads it, or wait for it",
    "patch": "remove the patch as well, or fold it ('tierstore fold')",
}
"""What to do about who names a version."""

_ROUNDS = 5
_log = logging.getLogger("tierstore.removal")


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """Versions that are removed together, all or none.

    Attributes:
        going: Their numbers, rising, by model; releases before their members.
        stops_for_readers: Whether who reads one of them keeps all.
        is_by_rules: Whether what aliases left lately keeps all, too.
        lost: Numbers of versions of which the entries are lost, by model: nobody looks at these.
    """

    going: Mapping[str, Sequence[int]]
    stops_for_readers: bool = True
    is_by_rules: bool = False
    lost: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def look(self, names: Names, holders: Holders) -> None:
        """Raise ``Conflict`` when somebody needs one of them, with all the reasons.

        What names mean is read anew each time: the look after these versions were announced is the
        same as the one before.

        Args:
            names: The names of the store.
            holders: Finds who names versions.
        """
        held: dict[str, Sequence[Holder]] = {}
        for model, numbers in self.going.items():
            reasons = self._needed(names, holders, model, numbers)
            held |= {f"{model}@{number}": reasons[number] for number in sorted(reasons)}
        if held:
            _refuse(held)

    def equal(self, names: Names, holders: Holders) -> list[tuple[str, int]]:
        """Return versions of equal content that stay, if the removal of them is stopped."""
        found = []
        for model, numbers in self.going.items():
            present, announced = numbers_in_force(names, model)
            contents = holders.contents(model, self._readable(model, present))
            goes = {digest for n in numbers if n in contents for digest in contents[n].digests}
            found += [
                (model, number)
                for number in sorted(announced & contents.keys() - set(numbers))
                if contents[number].digests & goes
            ]
        return found

    def _readable(self, model: str, numbers: Iterable[int]) -> list[int]:
        lost = self.lost.get(model, ())
        return [number for number in numbers if number not in lost]

    def _needed(
        self, names: Names, holders: Holders, model: str, numbers: Sequence[int]
    ) -> Reasons:
        """Return who needs versions of a model, by number."""
        present, announced = numbers_in_force(names, model)
        contents = holders.contents(model, self._readable(model, present))
        if gone := [number for number in numbers if number not in contents]:
            raise Conflict(gone_meanwhile(model, gone[0]))
        going = {number: contents[number] for number in numbers}
        stays = {number: one for number, one in contents.items() if number not in going}
        # of equal contents that are about to go, each would be excused by the other
        staying = frozenset(
            digest
            for number, one in stays.items()
            if number not in announced
            for digest in one.digests
        )
        releases = {(name, number) for name, every in self.going.items() for number in every}
        aliases = holders.aliases(model)
        if self.is_by_rules:
            _refuse_left(model, going, holders.left(model, aliases))
        needed = holders.named(
            model, going, staying, aliases, releases, readers=self.stops_for_readers
        )
        # older ones as well: a patch may have been copied before what it lies on
        chains = holders.chains(model, stays)
        for number, content in going.items():
            patch = chains.get(content.entry.manifest or "")
            if patch is not None and content.entry.manifest not in staying:
                needed.setdefault(number, []).append(
                    Holder("patch", f"patch {patch}, which lies on it")
                )
        return needed


class Removing:
    """Removes versions of a store and brings them back.

    Args:
        names: The names of the store.
    """

    def __init__(self, names: Names) -> None:
        self._names, self._home = names, names.home
        self._protocol = names.named.protocol

    def remove(
        self, refs: Iterable[str | Version], *, force: bool, message: str | None
    ) -> list[Version]:
        """Remove versions, all or none; see ``Store.remove``."""
        note = as_message(message)
        check_enabled(self._home)
        named = [as_text(ref) for ref in refs]
        if not named:
            raise UsageError("no version was named; give references, such as 'ranker@3'")
        giving_up = GivingUp(self._home, Holders(self._names))
        if of_variants := giving_up.lost_variants(named):
            if left := [ref for ref in named if ref not in of_variants]:
                raise UsageError(
                    f"what logs of variants have lost is given up by itself: name {left[0]} after "
                    "that; nothing was given up"
                )
            giving_up.give_up_variants(of_variants)
            return []
        if lost := giving_up.lost_of(named):
            giving_up.check(lost, force=force)
            # all that may refuse it comes first: an entry that was written stays
            left = [ref for ref in named if not _is_among(ref, lost)]
            others = self._planned(map(self._names.resolve, left), force=force)
            self._look(replace(others, lost=lost), Holders(self._names))
            giving_up.fill(lost)
        versions = [self._names.resolve(ref) for ref in named]
        plan = self._planned(versions, force=force)
        self.carry_out(plan, Holders(self._names), note)
        return list(dict.fromkeys(versions))

    def _planned(self, versions: Iterable[Version], *, force: bool) -> RemovalPlan:
        going: dict[str, set[int]] = {}
        for version in _releases_first(versions):
            if version.variant is not None:
                raise UsageError(
                    f"{version} is a variant, which goes with its version and not without it: "
                    f"remove {version.model}@{version.number}"
                )
            going.setdefault(version.model, set()).add(version.number)
        if not force:
            self._refuse_newest(going)
        return RemovalPlan({model: sorted(numbers) for model, numbers in going.items()})

    def purge(self, versions: Iterable[Version], *, force: bool, note: str) -> None:
        """Remove versions for good: those in force all or none, and those that are removed.

        Raises:
            Conflict: Somebody needs one of them, or one is the newest of its model; or a patch that
                is removed and can be brought back lies on one.
        """
        going, late = self._apart(versions)
        holders = Holders(self._names)
        plan = self._plan_purge(going, late, holders, force=force)
        self.carry_out(plan, holders, note, "purge")
        for model, numbers in late.items():
            for number in sorted(numbers):
                self._protocol.purge_removed(model, number, note)

    def look_at_purge(self, versions: Iterable[Version], *, force: bool) -> None:
        """Raise ``Conflict`` where ``purge`` would do so now; nothing is changed."""
        going, late = self._apart(versions)
        holders = Holders(self._names)
        self._plan_purge(going, late, holders, force=force).look(self._names, holders)

    def _apart(
        self, versions: Iterable[Version]
    ) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
        """Return the numbers of versions in force by model, and of those that are removed."""
        going: dict[str, set[int]] = {}
        late: dict[str, set[int]] = {}
        for version in _releases_first(versions):
            is_late = version.number in self._names.removals.of(version.model)
            (late if is_late else going).setdefault(version.model, set()).add(version.number)
        return going, late

    def _plan_purge(
        self,
        going: Mapping[str, Set[int]],
        late: Mapping[str, Set[int]],
        holders: Holders,
        *,
        force: bool,
    ) -> RemovalPlan:
        if not force:
            self._refuse_newest(going)
        windows = Windows(self._home, self._names.removals)
        for model in going.keys() | late.keys():
            every = {*going.get(model, ()), *late.get(model, ())}
            self._refuse_below(model, every, holders, windows)
        return RemovalPlan({model: sorted(numbers) for model, numbers in going.items()})

    def _refuse_below(
        self, model: str, going: Set[int], holders: Holders, windows: Windows
    ) -> None:
        """Raise ``Conflict`` when a patch lies on one of these that can still be brought back.

        Whoever brings it back behind this look has it in force again by the next one.
        """
        removed = self._names.removals.of(model)
        back = removed.keys() - windows.expired(model) - going
        if not back:
            return
        every = holders.contents(model, sorted(going | back))
        staying = {digest for number in back for digest in every[number].digests}
        manifests = {every[number].entry.manifest: number for number in going}
        for number in sorted(back):
            try:
                needed = holders.chains(model, {number: every[number]})
            except (Damaged, NotFound) as error:
                _log.info("%s@%d cannot be brought back: %s", model, number, error)
                continue
            if below := needed.keys() & manifests.keys() - staying:
                raise Conflict(
                    f"{model}@{manifests[min(below)]} is needed by patch {model}@{number}, which "
                    "is removed and can be brought back: purge that as well; nothing was purged"
                )

    def remove_models(self, models: Iterable[str], *, message: str | None) -> list[Version]:
        """Remove all versions of models, all or none; see ``Store.remove_model``."""
        names = [check_name("model", model) for model in models]
        check_enabled(self._home)
        giving_up = GivingUp(self._home, Holders(self._names))
        refs: list[str | Version] = []
        for name in names:
            if lost := giving_up.all_of(name):  # versions cannot be listed then
                present, _ = numbers_in_force(self._names, name)
                refs += [f"{name}@{number}" for number in sorted({*present, *lost})]
            else:
                refs += self._names.versions(name)
        return self.remove(refs, force=True, message=message)

    def _refuse_newest(self, going: Mapping[str, Iterable[int]]) -> None:
        for model, numbers in going.items():
            newest = self._names.newest(model)
            if newest is not None and newest.seq in numbers:
                raise Conflict(
                    f"{model}@{newest.seq} is the newest version of {model!r}, which programs that "
                    "know no removal go on loading: update them all, then give force=True "
                    f"(--force); 'tierstore rm {model} --all' removes the whole model"
                )

    def carry_out(
        self, plan: RemovalPlan, holders: Holders, note: str, action: Removal = "forget"
    ) -> None:
        """Announce that versions are removed, look who names them, and if nobody does, remove them.

        Whoever names one of them stops the removal as long as it is announced only: then none goes.
        What is purged is purged for good, also if somebody stops a part of it just then.
        """
        announced, done = list[Appended](), list[Appended]()
        self._look(plan, holders)
        try:
            for model, numbers in plan.going.items():
                for entry in self._protocol.announce(model, numbers, note):
                    announced.append(entry)
            self._look(plan, holders)
            for entry in announced:
                done.append(self._protocol.forget(entry, note, action))
                if done[-1].flaw is not None:
                    raise done[-1].flaw
        except BaseException as error:
            for entry in reversed(done if action == "forget" else []):  # members before releases
                self._take_back(entry, undone(error))
            for entry in announced[len(done) :]:
                self._end(entry, undone(error))
            raise

    def is_needed(self, version: Version) -> bool:
        """Return whether anything but a reader's lease refuses the removal of a version."""
        plan = RemovalPlan({version.model: [version.number]}, stops_for_readers=False)
        try:
            self._look(plan, Holders(self._names))
        except Conflict:
            return True
        return False

    def _look(self, plan: RemovalPlan, holders: Holders) -> None:
        """Raise ``Conflict`` when somebody needs versions of a plan.

        Others of equal content whose removal is announced stay in their place: that is stopped.
        """
        try:
            plan.look(self._names, holders)
        except Conflict:
            equal = plan.equal(self._names, holders)
            if not equal:
                raise
            for model, number in equal:
                self._protocol.stop(model, number, "others of the same content are removed")
            plan.look(self._names, holders)

    def _end(self, announced: Appended, note: str) -> None:
        """End a removal that was announced; where that fails, the next one that names them does."""
        try:
            self._protocol.undo(announced, note)
        except TierstoreError as error:
            _log.warning("the removal of %s is announced still: %s", announced.model, error)

    def _take_back(self, done: Appended, note: str) -> None:
        """Bring back what was just removed; what cannot come back is logged, and stays removed."""
        try:
            numbers = self._protocol.undo(done, note)
            versions = numbered(self._home, done.model, numbers)
        except TierstoreError as error:
            some = ", ".join(f"{done.model}@{number}" for number in done.numbers[:_SHOWN])
            _log.warning("%s and others may stay removed, see 'tierstore ls': %s", some, error)
            return
        for version in versions:  # each by itself: what fails for one says nothing of the others
            try:
                self._settle(version, note)
            except TierstoreError as error:
                self._tell(version, error)

    def _tell(self, version: Version, error: TierstoreError) -> None:
        """Log what became of a version that could not be looked at once it was brought back."""
        try:
            is_removed = version.number in self._names.removals.of(version.model)
            state = "stays removed" if is_removed else "is in force, and may have lost content"
        except TierstoreError:
            state = "may be removed, or in force with content that is lost"
        _log.warning("%s %s: %s", version, state, error)

    def undelete(self, ref: str | Version, *, message: str | None) -> Version:
        """Bring a removed version back; see ``Store.undelete``."""
        note = as_message(message)
        is_enabled(self._home)  # asks whether it was since the store was opened
        version = removed_version(self._names, ModelRef.parse(as_text(ref)))
        check_enabled(self._home)
        self._names.removals.refuse_purged(version.model, version.number)
        self._see_whole(version)  # what is gone already never comes into force, if we end here, too
        flaw = self._protocol.bring_back(version.model, [version.number], note)
        self._settle(version, None)
        if flaw is not None:
            raise flaw
        return version

    def _settle(self, version: Version, note: str | None) -> None:
        """See that a version that was brought back stays, or remove it again.

        Args:
            version: The version.
            note: Why it was brought back, for the log; ``None`` for what is wrong with it.
        """
        for again in reversed(range(_ROUNDS)):
            try:
                self._see_whole(version)
                return
            except BaseException as error:
                # who named it meanwhile saw that it was whole, or sees now that it is not
                why = undone(error) if note is None else note
                is_removed = self._names.named.remove_own(version, why)
                if is_removed or not again or not isinstance(error, TierstoreError):
                    raise

    def _see_whole(self, version: Version) -> None:
        """Raise ``NotFound`` unless all that a version needs is there, and will stay."""
        try:
            self._names.named.see_whole(version, f"{version} names it again")
        except (NotFound, Damaged) as error:
            raise NotFound(f"it is too late for {version}: {error}") from error


def _is_among(ref: str, numbers: Mapping[str, Sequence[int]]) -> bool:
    parsed = ModelRef.parse(ref)
    return parsed.number in numbers.get(parsed.model, ())


def _releases_first(versions: Iterable[Version]) -> list[Version]:
    """Return versions in the order in which they go: a release names its members until then."""
    return sorted(versions, key=lambda version: not version.is_release)


def as_text(ref: str | Version) -> str:
    """Return a reference as text: whether a version is removed is looked up by its number."""
    return str(ref) if isinstance(ref, Version) else ref


def _refuse_left(model: str, going: Iterable[int], left: Mapping[int, list[str]]) -> None:
    """Raise ``Conflict`` where an alias was moved since rules were asked what stays."""
    for number in going:
        if reasons := left.get(number):
            raise Conflict(
                f"{model}@{number} stays by now ({', '.join(reasons)}), as an alias was moved just "
                "now; nothing was removed: try again"
            )


def _refuse(held: Mapping[str, Sequence[Holder]]) -> None:
    needed = [
        f"{ref} is needed by {', '.join(one.text for one in holders)}"
        for ref, holders in held.items()
    ]
    more = f"; and {len(needed) - _SHOWN} more" if len(needed) > _SHOWN else ""
    kinds = {one.kind for holders in held.values() for one in holders}
    first = ", ".join(what for kind, what in _FIRST.items() if kind in kinds)
    raise Conflict(f"{'; '.join(needed[:_SHOWN])}{more}; nothing was removed: first {first}")
