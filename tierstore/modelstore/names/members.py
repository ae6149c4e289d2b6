"""Finds versions by number, and what belongs to one: its variants, or a release's members."""

from __future__ import annotations

from collections.abc import Iterable

from tierstore.errors import Damaged, NotFound, UsageError
from tierstore.format.keys import VARIANTS
from tierstore.format.reflog import that_count
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.version import Version, version_of


def numbered(home: Home, model: str, numbers: Iterable[int]) -> list[Version]:
    """Return these versions of a model, newest first, whether they are removed or not."""
    entries = home.log(model).numbered(sorted(numbers, reverse=True))
    return [version_of(model, entry) for entry in entries]


def variant_of(home: Home, version: Version, name: str) -> Version | None:
    """Return the newest variant of this name that a version has; ``None`` when there is none."""
    for entry in that_count(home.log(version.model, VARIANTS + name).entries()):
        if entry.version == version.number:
            return version_of(version.model, entry, variant=name)
    return None


def variants_of(home: Home, version: Version) -> list[Version]:
    """Return all variants of a version, the newest of each name."""
    found = (variant_of(home, version, name) for name in home.variants(version.model))
    return [one for one in found if one is not None]


def members_of(home: Home, release: Version) -> dict[str, Version]:
    """Return the versions that a release names, by model.

    Raises:
        UsageError: The version is not a release.
        Damaged: The log of a member has another version under that number, or none.
    """
    found = {}
    for member in home.manifest(release.digest).members or ():
        try:
            entry = home.log(member.model).entry(member.version)
        except NotFound:
            entry = None
        if entry is None or entry.manifest != member.manifest.hex():
            raise Damaged(
                f"{release} names {member.model}@{member.version}, which its log does not have as "
                f"b3:{member.manifest.hex()}; run 'tierstore repair'"
            )
        found[member.model] = version_of(member.model, entry)
    if not found:
        raise UsageError(f"{release} is not a release; 'tierstore release ls' lists releases")
    return found


def refuse_release(version: Version) -> Version:
    """Return the version; ``UsageError`` for a release, which has no content of its own."""
    if version.is_release:
        raise UsageError(
            f"{version} is a release: it holds no tensors, but names versions of models, which "
            f"'tierstore release show' lists; load MODEL@release:{version}"
        )
    return version


def contents_of(home: Home, version: Version) -> list[Digest]:
    """Return the manifests of all that nodes may serve of a version.

    These are its own and its variants', or those of a release's members.
    """
    versions = members_of(home, version).values() if version.is_release else [version]
    return [one.digest for member in versions for one in (member, *variants_of(home, member))]
