"""Releases: versions of several models that belong together, behind one switch (SPEC.md 14.4).

A release is a version under a name of its own, whose content is the list of its members. Aliases,
rollouts, rollback, reports and history of that name work as those of a model, and one entry
switches all members at once on a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tierstore.arguments import as_list, as_message
from tierstore.errors import InvalidName, UsageError
from tierstore.format.keys import layout_key, version_key
from tierstore.format.layout import seal_layout
from tierstore.format.manifest import MAX_MEMBERS, RELEASE_KIND, Manifest, Member, seal_manifest
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import check_features
from tierstore.ids import Digest, check_alias, check_name
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.sealing import seal_fit
from tierstore.modelstore.home.settling import Publication, Purged, publish
from tierstore.modelstore.names.members import members_of
from tierstore.modelstore.names.names import Names, check_case, refuse_mixed
from tierstore.modelstore.version import RELEASED, Version, version_of


@dataclass(frozen=True, slots=True)
class Release:
    """A release: a numbered list of versions of different models.

    Attributes:
        version: The release's own name and number, with who made it, when and why.
        members: The versions in the release, by model.
    """

    version: Version
    members: Mapping[str, Version]

    def __str__(self) -> str:
        return str(self.version)


class Releases:
    """The releases of a store, as this node sees them."""

    def __init__(self, names: Names) -> None:
        self._names, self._home = names, names.home

    def __repr__(self) -> str:
        return f"<Releases of {self._home.blobs.url}>"

    def create(
        self,
        name: str,
        refs: Iterable[str | Version],
        *,
        based_on: str | Version | None = None,
        alias: str | None = None,
        message: str | None = None,
    ) -> Release:
        """Make a release; nothing uses it until an alias of its name points to it.

        Args:
            name: Name of the release; its releases are numbered from 1, as a model's versions are.
            refs: References to its members, each of another model. An alias is resolved now, once
                and for all.
            based_on: A release whose members are taken over for models that ``refs`` does not name.
            alias: An alias of ``name`` to point to it at once, on every node.
            message: Note for the log: why this is done; ``None`` for no note.

        Raises:
            UsageError: ``refs`` is no list, there is no member, a model is named twice, or a member
                is a variant or a release.
            Conflict: The name belongs to a model.
            NotFound: A member does not exist, or is removed.
        """
        name = check_name("release", name)
        as_message(message)  # before anything is stored
        if "+" in name:
            raise InvalidName(f"release name {name!r} is not allowed: '+' begins a variant")
        check_features(self._home.config, "write", self._home.blobs.url)
        given: dict[str, Version] = {}
        for version in map(self._names.resolve, _references(refs)):
            if version.variant is not None or version.is_release:
                what = "variant" if version.variant else "release"
                raise UsageError(f"{version} is a {what}; the members of a release are versions")
            if given.setdefault(version.model, version) != version:
                raise UsageError(f"both {given[version.model]} and {version} are named; give one")
        members = {**(self.get(based_on).members if based_on is not None else {}), **given}
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise UsageError(f"a release has 1 to {MAX_MEMBERS} members, not {len(members)}")
        members = dict(sorted(members.items()))
        for member in members.values():
            self._names.refuse_removed(member.model, member.number)
        entry = self._publish(name, members, alias, message)
        return Release(version_of(name, entry), members)

    def _publish(
        self, name: str, members: Mapping[str, Version], alias: str | None, message: str | None
    ) -> RefEntry:
        def target(last: RefEntry | None, digest: Digest) -> tuple[int, str, None]:
            refuse_mixed(name, last, release=True)
            return 0, digest.hex, None

        log = self._home.log(name)
        check_case("release", name, self._home.models())
        refuse_mixed(name, log.last(), release=True)
        if alias is not None:
            self._names.check_movable(name, check_alias(alias))
        named = self._names.named
        how: Publication[RefEntry] = Publication(
            lambda digest: log.append(RELEASED, lambda last: target(last, digest), message),
            lambda entry, why: named.unpublish(version_of(name, entry), why),
            lambda entry: named.see(members.values()),
            own=log.own,
        )
        with WriterLease(self._home.blobs):
            entry = publish(how, lambda is_again: self._write(members, is_again), self._look)
        if alias is not None:
            self._names.point_to_new(name, check_alias(alias), entry, message)
        return entry

    def _write(self, members: Mapping[str, Version], is_again: bool) -> Digest:
        """Write the manifest of a release, and return its digest."""
        home = self._home
        digest, sealed = seal_fit(home, _manifest(home, members), is_again)
        home.blobs.put(version_key(digest), sealed)
        home.blobs.put(layout_key(digest), seal_layout(digest, [], {}))
        return digest

    def _look(self, digest: Digest) -> None:
        """Raise ``Purged`` when the manifest of a release that is there was, or is, condemned."""
        if self._home.reclaims and self._home.condemned.among((), {digest.raw}):
            raise Purged(digest)

    def get(self, ref: str | Version) -> Release:
        """Return the release that a reference such as ``search@prod`` points to on this node now.

        A node that loads several members asks once and loads the versions found here: an alias may
        move between two calls.

        Raises:
            NotFound: There is no such release.
            UsageError: The reference points to a model's version.
        """
        version = self._names.resolve(ref)
        return Release(version, members_of(self._home, version))

    def names(self) -> list[str]:
        """Return the names that have releases, sorted."""
        found = []
        for name in self._names.models():
            last = self._home.log(name).last()
            if last is not None and last.action == RELEASED:
                found.append(name)
        return found


def _manifest(home: Home, members: Mapping[str, Version]) -> Manifest:
    named = [
        Member(model=model, version=one.number, manifest=one.digest.raw)
        for model, one in sorted(members.items())
    ]
    return Manifest(
        kind=RELEASE_KIND, chunk_size=home.config.chunk_size, files=(), members=tuple(named)
    )


def named_digest(home: Home, members: Mapping[str, Version]) -> Digest:
    """Return the digest of the release of these versions in a store, whether it is there or not.

    One that was purged, and made again, has another one.
    """
    return seal_manifest(_manifest(home, members))[0]


def _references(refs: Iterable[str | Version]) -> list[str | Version]:
    """Return the references of a list; ``UsageError`` for numbers by model, or for one alone."""
    if isinstance(refs, Mapping):
        meant = [f"{model}@{which}" for model, which in refs.items()]
        raise UsageError(f"refs takes a list of references, such as {meant}, not a dict")
    return as_list("refs", refs, "['ranker@1', 'retriever@prod']")
