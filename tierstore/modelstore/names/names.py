"""Names: which version a reference points to, and the aliases that move between versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tierstore.arguments import as_whole
from tierstore.errors import Conflict, InvalidName, NotFound, TierstoreError, UsageError
from tierstore.format.keys import ALIASES, HEAD, REFS, VARIANTS, VERSION_LOG, segment
from tierstore.format.reflog import HOLDS_NUMBER, RefEntry, Summary, that_count
from tierstore.format.storeconfig import check_features
from tierstore.ids import FULL, Digest, ModelRef, check_alias, check_name
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.refs import RefLog, RefTarget
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.home.settling import Publication, appended
from tierstore.modelstore.names.aliaslog import goes_back_to
from tierstore.modelstore.names.members import members_of, refuse_release, variant_of, variants_of
from tierstore.modelstore.names.named import Keep, Named
from tierstore.modelstore.names.removalprotocol import undone
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.names.turns import takes_new
from tierstore.modelstore.version import RELEASED, Version, version_of
from tierstore.shown import nearest


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points to a version of a model; the alias moves, the version does not.

    Attributes:
        model: The model's name.
        name: The alias.
        version: The version that it pointed to when it was looked up.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
        >>> [alias] = store.aliases("ranker")
        >>> alias.name, str(alias.version)
        ('prod', 'ranker@1')
    """

    model: str
    name: str
    version: Version


class Before(NamedTuple):
    """What there is of a name before something is saved under it.

    Attributes:
        last: The last entry of its versions, removed or not; ``None`` for a new name.
        others: The names of all other models, where the name is new; else nobody asked.
    """

    last: RefEntry | None
    others: Sequence[str] = ()


class Names:
    """The names of a store, as this node sees them.

    Args:
        home: The store's home.
        node: This node's name, which decides its turn in a rollout.
        labels: This node's labels.
        keep: Sees to it that the packs of what gets a name stay.
        is_needed: Whether anything but a reader's lease refuses the removal of a version.
    """

    def __init__(
        self,
        home: Home,
        node: str,
        labels: Mapping[str, str],
        keep: Keep = lambda what, find, were_removed: None,
        is_needed: Callable[[Version], bool] = lambda version: False,
    ) -> None:
        self.home = home
        self.removals = Removals(home)
        self.named = Named(home, self.removals, keep, is_needed)
        self._node, self._labels = node, labels

    def resolve(self, ref: str | Version) -> Version:
        """Return the version that a reference points to now; a version is returned as it is.

        The message of ``NotFound`` says which part of the reference does not exist.
        """
        if isinstance(ref, Version):
            return ref
        parsed = ModelRef.parse(ref)
        log = self.home.log(parsed.model)
        if parsed.release is not None:
            return self._of_release(parsed, parsed.release)
        if parsed.number is not None:
            entry = self._version_entry(parsed.model, parsed.number)
        elif parsed.alias is not None:
            pointed = self.home.log(parsed.model, ALIASES + parsed.alias).last()
            if pointed is None or pointed.version is None:
                hint = self._alias_hint if log.last() else self._hint
                raise NotFound(f"{parsed} does not exist; {hint(parsed.model)}")
            number = pointed.version
            if pointed.rollout and takes_new(pointed.rollout, self._node, self._labels):
                number = pointed.rollout.version
            try:
                entry = log.entry(number)
            except NotFound:
                raise NotFound(
                    f"{parsed} points to {parsed.model}@{number}, whose entry is missing; "
                    "run 'tierstore repair', or restore it from a copy"
                ) from None
        elif parsed.prefix is not None:
            entry = self._by_digest(parsed)
        else:
            newest = self.newest(parsed.model)
            if newest is None:
                raise NotFound(self._no_model(parsed.model))
            entry = newest
        return self._with_variant(version_of(parsed.model, entry), parsed.variant)

    def newest(self, model: str, seen: RefEntry | None = None) -> RefEntry | None:
        """Return the entry of a model's newest version that is not removed.

        Args:
            model: Name of the model.
            seen: The last entry of its versions, where the caller has just read that.

        Returns:
            The entry; ``None`` when there is no such model.

        Raises:
            NotFound: All versions of the model are removed.
        """
        last, removed = (seen, self.removals.of(model)) if seen else self.removals.last(model)
        if last is None:
            return None
        number = next((one for one in range(last.seq, 0, -1) if one not in removed), None)
        if number is None:
            why = self.removals.why(model, last.seq, removed[last.seq])
            raise NotFound(
                f"every version of {model!r} is removed: {why}; 'tierstore ls --deleted {model}' "
                "lists them"
            )
        return last if number == last.seq else self.home.log(model).entry(number)

    def models(self) -> list[str]:
        """Return the names of all models that have a version which is not removed, sorted."""
        return self.removals.listed(self.home.models())

    def has(self, model: str) -> bool:
        """Return whether ``models`` has this name; reads nothing of any other."""
        return self.removals.has_entries(model) and bool(self.removals.listed([model]))

    def refuse_removed(self, model: str, number: int, meanwhile: str = "") -> None:
        """Raise ``NotFound`` for a version that is removed; see ``Named.refuse_removed``."""
        self.named.refuse_removed(model, number, meanwhile)

    def look_at_pin(self, ref: str, digest: Digest) -> None:
        """Raise ``NotFound`` unless what a user pins is not removed and stays.

        Args:
            ref: What the user said: a reference, or any other text.
            digest: Digest of the manifest of the version, or of a variant of it.
        """
        if not self.home.reclaims_by_now():  # no entry is appended that would have asked
            return
        were_removed = False
        with suppress(InvalidName):
            parsed = ModelRef.parse(ref)
            number = parsed.number
            if number is None:
                version = self.resolve(ref)
                number = version.number if version.digest == digest else None
            if number is not None:
                if self.named.protocol.stop(parsed.model, number, f"{ref} is pinned"):
                    self.refuse_removed(parsed.model, number)
                were_removed = number in self.removals.ever(parsed.model)
        self.named.keep_digest(ref, digest, were_removed)

    def _of_release(self, parsed: ModelRef, ref: str) -> Version:
        release = self.resolve(ref)
        members = members_of(self.home, release)
        if parsed.model not in members:
            raise NotFound(f"{release} has no {parsed.model!r}: it names {', '.join(members)}")
        return self._with_variant(members[parsed.model], parsed.variant)

    def _with_variant(self, version: Version, name: str | None) -> Version:
        if name is None:
            return version
        found = self.variant(version, name)
        if found is None:
            names = [one.variant for one in self.variants(version) if one.variant]
            has = f"it has {', '.join(names)}" if names else "it has none"
            raise NotFound(
                f"{version} has no variant {name!r}; {has}: 'tierstore derive' makes one"
            )
        return found

    def variant(self, version: Version, name: str) -> Version | None:
        """Return the newest variant of this name that a version has; ``None`` if there is none."""
        return variant_of(self.home, version, name)

    def prefer(self, version: Version, order: Sequence[str]) -> Version:
        """Return the first of these variants that a version has.

        A variant that was asked for by name is returned as it is.

        Args:
            version: A version, or a variant that somebody asked for by name.
            order: Names of variants, best first; ``full`` is the version itself.

        Raises:
            NotFound: The version has none of them.
            UsageError: The version is a release, which has no content of its own.
        """
        refuse_release(version)
        if version.variant is not None:
            return version
        for name in order:
            found = version if name == FULL else self.variant(version, name)
            if found is not None:
                return found
        raise NotFound(
            f"{version} has none of the variants {', '.join(order)}: 'tierstore derive' makes one; "
            f"'{FULL}' in the profile stands for the version itself"
        )

    def variants(self, version: Version) -> list[Version]:
        """Return all variants of a version, the newest of each name."""
        return variants_of(self.home, version)

    def all_variants(self, model: str) -> list[Version]:
        """Return every variant that any version of a model has or had, but of removed ones."""
        model = check_name("model", model)
        removed = self.removals.of(model)
        return [
            version_of(model, entry, variant=name)
            for name in self.home.variants(model)
            for entry in that_count(self.home.log(model, VARIANTS + name).entries())
            if entry.version not in removed
        ]

    def _no_model(self, model: str) -> str:
        if model.startswith("release:"):
            return f"there is no model {model!r}: a release follows a model's name, MODEL@{model}"
        near = nearest(model, self.home.models(), "'tierstore ls' lists them")
        return f"there is no model {model!r}; {near}"

    def _hint(self, model: str) -> str:
        last = self.home.log(model).last()
        if last is None:
            return self._no_model(model)
        many = "version 1 only" if last.seq == 1 else f"versions 1 to {last.seq}"
        return f"{model} has {many}: 'tierstore ls {model}' lists them"

    def _alias_hint(self, model: str) -> str:
        names = ", ".join(alias.name for alias in self.aliases(model))
        return f"the aliases of {model} are: {names}" if names else f"{model} has no alias"

    def _version_entry(self, model: str, number: int) -> RefEntry:
        entry, removed = self.removals.entry(model, number)
        if entry is None:
            raise NotFound(f"{model}@{number} does not exist; {self._hint(model)}")
        if number in removed:
            raise NotFound(self.removals.why(model, number, removed[number]))
        return entry

    def _by_digest(self, parsed: ModelRef) -> RefEntry:
        found: dict[str, RefEntry] = {}
        gone: RefEntry | None = None
        removed = self.removals.of(parsed.model)
        for entry in self.home.log(parsed.model).entries():
            if entry.manifest and entry.manifest.startswith(parsed.prefix or ""):
                if entry.seq in removed:
                    gone = gone or entry
                else:
                    found.setdefault(entry.manifest, entry)
        if not found and gone is not None:
            raise NotFound(self.removals.why(parsed.model, gone.seq, removed[gone.seq]))
        if not found:
            raise NotFound(f"{parsed} does not exist; {self._hint(parsed.model)}")
        if len(found) > 1:
            raise UsageError(f"{parsed} matches {len(found)} versions; give more digits")
        return next(iter(found.values()))

    def versions(self, model: str, limit: int | None = None) -> list[Version]:
        """Return the versions of a model, newest first; ``NotFound`` if there is no such model."""
        model = check_name("model", model)
        limit = _most(limit)
        last, removed = self.removals.last(model)
        if last is None:
            raise NotFound(self._no_model(model))
        kept = (number for number in range(last.seq, 0, -1) if number not in removed)
        numbers = list(islice(kept, limit))
        if not numbers:
            self.newest(model)  # says when there are none
        entries = self.home.log(model).numbered(numbers)
        return [version_of(model, entry) for entry in entries]

    def count(self, model: str) -> int:
        """Return how many versions a model has that are not removed."""
        last, removed = self.removals.last(model)
        return 0 if last is None else last.seq - len(removed)

    def before(self, version: Version) -> Version | None:
        """Return the version before this one, but for removed ones; ``None`` for the first."""
        removed = self.removals.of(version.model)
        older = (number for number in range(version.number - 1, 0, -1) if number not in removed)
        number = next(older, None)
        if number is None:
            return None
        return version_of(version.model, self.home.log(version.model).entry(number))

    def aliases(self, model: str) -> list[Alias]:
        """Return the aliases of a model and the versions that they point to now."""
        model = check_name("model", model)
        found = []
        for name in self.home.aliases(model):
            pointed = self.home.log(model, ALIASES + name).last()
            if pointed is not None and pointed.version is not None:
                entry = self.home.log(model).entry(pointed.version)
                found.append(Alias(model, name, version_of(model, entry)))
        return found

    def history(self, model: str, alias: str | None, limit: int | None) -> list[RefEntry]:
        """Return the entries of the log of a model's versions or of one alias, newest first."""
        model = check_name("model", model)
        name = VERSION_LOG if alias is None else ALIASES + check_alias(alias)
        return list(self.home.log(model, name).entries(_most(limit)))

    def check_new(self, model: str, alias: str | None, *, release: bool = False) -> Before:
        """Raise ``Conflict`` where ``publish`` or ``point`` would, before anything is stored.

        Models are listed for a new name alone: one that has a log was compared with all others when
        it came, and has its log for ever.
        """
        before = Before(self.home.log(model).last())
        if before.last is None or self._may_be_of_another_case(model):
            others = [name for name in self.home.models() if name != model]
            check_case("model", model, others)
            before = Before(before.last, others)
        refuse_mixed(model, before.last, release=release)
        if alias is not None:
            self.check_movable(model, check_alias(alias))
        return before

    def _may_be_of_another_case(self, model: str) -> bool:
        """Return whether a log that was found may be that of a model that differs only in case.

        A file system that takes names of any case for one finds it under this one as well.
        """
        of, other = segment(model), segment(model).swapcase()
        key = f"{REFS}{other}/{VERSION_LOG}/{HEAD}"
        return other != of and bool(self.home.blobs.present([key]))

    def publish(
        self,
        model: str,
        digest: Digest,
        summary: Summary | None,
        message: str | None,
        after: int | None = None,
        origin: RefEntry | None = None,
        seen: RefEntry | None = None,
    ) -> RefEntry:
        """Append a new version to a model's log; for ``origin`` and ``seen`` see ``RefLog.append``.

        Args:
            model: Name of the model.
            digest: Digest of the version's manifest.
            summary: How large the version is; ``None`` where that is not known.
            message: Note for the log.
            after: The number that the newest version must have.
            origin: The entry that this one is a copy of.
            seen: An entry that was the last one a while ago.

        Raises:
            Conflict: The newest version is not number ``after`` (0 for none), or the name is a
                release's.
        """

        def target(last: RefEntry | None) -> RefTarget:
            refuse_mixed(model, last, release=False)
            if after is not None and not self._is_newest(model, after, last):
                raise Conflict(
                    f"the newest version of {model} is not {after} any more; look at it and try "
                    "again"
                )
            return RefTarget(0, digest.hex, summary=summary)

        return self.home.log(model).append("publish", target, message, origin=origin, seen=seen)

    def hold_number(self, model: str, digest: Digest, message: str) -> RefEntry:
        """Append an entry that only has the next number of a model taken.

        Whoever does it removes it, once a version with a higher number is there.
        """

        def target(last: RefEntry | None) -> tuple[int, str, None]:
            refuse_mixed(model, last, release=False)
            return 0, digest.hex, None

        return self.home.log(model).append("publish", target, message, mark=HOLDS_NUMBER)

    def publication(
        self,
        model: str,
        summary: Summary | None,
        message: str | None,
        after: int | None = None,
        origin: RefEntry | None = None,
        seen: RefEntry | None = None,
    ) -> Publication[RefEntry]:
        """Return how a new version of a model is published; see ``publish``."""
        return Publication(
            lambda digest: self.publish(model, digest, summary, message, after, origin, seen),
            lambda entry, why: self.named.unpublish(version_of(model, entry), why),
            own=self.home.log(model).own,
        )

    def derivation(
        self,
        version: Version,
        label: str,
        summary: Summary | None,
        message: str | None,
        origin: RefEntry | None = None,
    ) -> Publication[RefEntry]:
        """Return how a variant of a version is published, by an entry of its log; see ``publish``.

        Args:
            version: The version.
            label: Name of the variant.
            summary: How large the variant is; ``None`` where that is not known.
            message: Note for the log.
            origin: The entry that this one is a copy of.
        """
        log = self.home.log(version.model, VARIANTS + label)

        def take_back(entry: RefEntry, why: BaseException) -> str:
            back = RefTarget(entry.version, entry.manifest, entry.seq)
            with_reserve(self.home.blobs, lambda: log.append("derive", lambda _: back, undone(why)))
            return f"{version}+{label} was published, and is taken back"

        def append(digest: Digest) -> RefEntry:
            to = RefTarget(version.number, digest.hex, summary=summary)
            return log.append("derive", lambda _: to, message, origin=origin)

        return Publication(append, take_back, own=log.own)

    def _is_newest(self, model: str, number: int, last: RefEntry | None) -> bool:
        """Return whether all versions behind this one are removed; 0 stands before the first."""
        behind = range(number + 1, (last.seq if last else 0) + 1)
        if not behind:
            return last is None or number == last.seq
        return self.removals.of(model).keys() >= set(behind)

    def alias(
        self, model: str, name: str, ref: str | Version, message: str | None, was: int | None
    ) -> Alias:
        """Point an alias of ``model`` to a version of it (``ref``); see ``Store.alias``."""
        if was is not None:
            was = as_whole("was", was, "the number of a version, such as 3")
        version = self.resolve(ref)
        if version.variant is not None:
            raise UsageError(f"{ref} is a variant; an alias points to versions")
        if version.model != check_name("model", model):
            raise UsageError(f"{ref} is not a version of {model!r}; an alias stays in its model")
        entry = self._version_entry(version.model, version.number)
        self.point(version.model, check_alias(name), entry, message, was)
        return Alias(version.model, check_alias(name), version)

    def point_to_new(
        self, model: str, alias: str, entry: RefEntry, message: str | None, was: int | None = None
    ) -> None:
        """Point an alias to a version that was just published; errors say that it was published."""
        try:
            self.point(model, alias, entry, message, was, is_settled=True)
        except TierstoreError as error:
            raise type(error)(
                f"{model}@{entry.version} is published, but {model}@{alias} does not point to "
                f"it: {error}"
            ) from error

    def point(
        self,
        model: str,
        alias: str,
        entry: RefEntry,
        message: str | None,
        was: int | None = None,
        *,
        is_settled: bool = False,
    ) -> None:
        """Append to an alias's log that it points to the version of ``entry`` now.

        Args:
            model: Name of the model.
            alias: Name of the alias.
            entry: Log entry of the version.
            message: Note for the log: why this is done; ``None`` for no note.
            was: Number of the version that the alias must point to before.
            is_settled: Whether the caller has just published the version.

        Raises:
            Conflict: The alias is in a rollout, differs from another one only in case, or does not
                point to version ``was``.
            NotFound: The version is removed, or packs of it are gone.
        """

        def target(last: RefEntry | None) -> RefTarget:
            _refuse_to_move(model, alias, last, was)
            return RefTarget(entry.version, entry.manifest, last.seq if last else None)

        check_case("alias", alias, self.home.aliases(model))
        check_features(self.home.config, "write", self.home.blobs.url)
        log = self.home.log(model, ALIASES + alias)
        new, flaw = appended(lambda: log.append("set", target, message), log.own)
        self._look_again(version_of(model, entry), log, new, is_settled=is_settled)
        if flaw is not None:
            raise flaw

    def _look_again(
        self, version: Version, log: RefLog, new: RefEntry, *, is_settled: bool = False
    ) -> None:
        """Put an alias back where the version that it was just pointed to cannot be named."""
        self.named.look(
            [version], lambda note: self._put_back(version.model, log, new, note), is_settled
        )

    def _put_back(self, model: str, log: RefLog, new: RefEntry, note: str) -> str:
        """Let an alias point to where it did before an entry; return in words where that is."""
        before = RefTarget(None, None)
        if new.seq > 1:
            entry = log.entry(new.seq - 1)
            before = RefTarget(entry.version, entry.manifest, entry.previous)
        return self.named.put_back(model, log, new, before, "rollback", note)

    def check_movable(self, model: str, alias: str, was: int | None = None) -> None:
        """Raise ``Conflict`` where ``point`` would, before anything is published."""
        check_case("alias", alias, self.home.aliases(model))
        _refuse_to_move(model, alias, self.home.log(model, ALIASES + alias).last(), was)

    def remove_alias(self, model: str, name: str, message: str | None) -> None:
        """Remove an alias; the versions and the alias's log stay."""

        def target(last: RefEntry | None) -> RefTarget:
            if last is None or last.version is None:
                hint = self._alias_hint if self.home.log(model).last() else self._hint
                raise NotFound(f"{model}@{name} does not exist; {hint(model)}")
            _refuse_in_rollout(model, name, last)
            return RefTarget(None, None, last.seq)

        model = check_name("model", model)
        check_features(self.home.config, "write", self.home.blobs.url)
        log = self.home.log(model, ALIASES + check_alias(name))
        log.append("remove", target, message)

    def rollback(self, model: str, alias: str, message: str | None) -> Alias:
        """Point an alias back to its previous version; see ``Store.rollback``."""
        model = check_name("model", model)
        check_features(self.home.config, "write", self.home.blobs.url)
        log = self.home.log(model, ALIASES + check_alias(alias))

        def target(last: RefEntry | None) -> RefTarget:
            if last is not None and last.rollout is not None:
                return RefTarget(last.version, last.manifest, last.seq)
            before = goes_back_to(last, log.entry)
            if last is None or before is None:
                raise NotFound(
                    f"{model}@{alias} has nothing to go back to; see 'tierstore log "
                    f"{model}@{alias}'"
                )
            if before.version is not None:
                self.refuse_removed(
                    model,
                    before.version,
                    f". {log.title} goes back to no other version; 'tierstore alias set' points it "
                    "to any",
                )
            return RefTarget(before.version, before.manifest, before.previous)

        entry, flaw = appended(lambda: log.append("rollback", target, message), log.own)
        assert entry.version is not None
        version = version_of(model, self.home.log(model).entry(entry.version))
        self._look_again(version, log, entry)
        if flaw is not None:
            raise flaw
        return Alias(model, alias, version)


def _most(limit: int | None) -> int | None:
    """Return a limit as it was given; ``UsageError`` for what is none."""
    if limit is None:
        return None
    return as_whole("limit", limit, "how many at most, 0 or more, or None for all", 0)


def _refuse_in_rollout(model: str, alias: str, last: RefEntry | None) -> None:
    if last is not None and last.rollout is not None:
        raise Conflict(
            f"{model}@{alias} is in a rollout to {model}@{last.rollout.version}; end it first with "
            "'tierstore rollout abort' or 'step'"
        )


def refuse_mixed(name: str, last: RefEntry | None, *, release: bool) -> None:
    """Raise ``Conflict`` for a model's version under a release's name, or the reverse."""
    if last is not None and (last.action == RELEASED) != release:
        kinds = ("a model", "a release") if release else ("a release", "a model")
        raise Conflict(f"{name!r} is the name of {kinds[0]}; choose another one for {kinds[1]}")


def _refuse_to_move(model: str, alias: str, last: RefEntry | None, was: int | None) -> None:
    _refuse_in_rollout(model, alias, last)
    if was is not None and (last is None or last.version != was):
        raise Conflict(
            f"{model}@{alias} does not point to {model}@{was} now: somebody else moved it; look at "
            "it and try again"
        )


def check_case(kind: str, name: str, existing: Iterable[str]) -> None:
    """Raise ``Conflict`` for a new name that differs from an existing one only in case."""
    for other in existing:
        if other != name and other.casefold() == name.casefold():
            raise Conflict(
                f"{kind} {name!r} differs from the existing {other!r} only in case; "
                "use that name, or a clearly different one"
            )
