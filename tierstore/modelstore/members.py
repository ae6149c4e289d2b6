"""What a release names (SPEC.md 14.4)."""

from __future__ import annotations

from tierstore.errors import Damaged, NotFound, UsageError
from tierstore.ids import Digest
from tierstore.modelstore.home import Home
from tierstore.modelstore.version import Version, version_of


def members_of(home: Home, release: Version) -> dict[str, Version]:
    """The versions that a release names, by model.

    Raises:
        UsageError: it is no release.
        Damaged: a member's log says something else.
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
                f"b3:{member.manifest.hex()}; run 'tierstore check'"
            )
        found[member.model] = version_of(member.model, entry)
    if not found:
        raise UsageError(f"{release} is a model and no release; 'tierstore release ls' lists those")
    return found


def refuse_release(version: Version) -> None:
    """Raise ``UsageError`` where something asks a release for content of its own."""
    if version.is_release:
        raise UsageError(
            f"{version} is a release: it holds no tensors, but names versions of models, which "
            f"'tierstore release show' lists; load MODEL@release:{version}"
        )


def contents_of(home: Home, version: Version) -> list[Digest]:
    """The manifests that hold what a version serves: its own, or its members' of a release."""
    if not version.is_release:
        return [version.digest]
    return [member.digest for member in members_of(home, version).values()]
