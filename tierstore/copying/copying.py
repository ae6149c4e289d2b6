"""Copies what a reference names to another store: a version, or a release with its members."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tierstore.arguments import wrong
from tierstore.copying.models import ModelCopy
from tierstore.copying.report import CopiedVersion
from tierstore.errors import UsageError
from tierstore.ids import check_name
from tierstore.modelstore.names.members import members_of
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.progress import Progress, reported


def copy_version(
    source: Store,
    ref: str | Version,
    target: Store,
    *,
    model: str | None,
    history: bool,
    progress: Progress | bool | None,
) -> list[CopiedVersion]:
    """Copy a version, or a release; see ``Store.copy``."""
    if not isinstance(target, Store):
        raise wrong("to", "a store, as tierstore.open gives it", target)
    version = source.resolve(ref)
    if version.variant is not None:
        raise UsageError(
            f"{version} is a variant, which goes with its version: copy "
            f"{version.model}@{version.number}"
        )
    if version.is_release and model is not None:
        raise UsageError(f"{version} is a release, and keeps its name, as its members do")
    into = check_name("model", version.model if model is None else model)
    with reported(progress, f"copying {version}") as told:

        def copier_of(name: str, into: str) -> ModelCopy:
            return ModelCopy(source, target, name, into, history=history, progress=told)

        if version.is_release:

            def bring(member: Version) -> Iterator[CopiedVersion]:
                copier = copier_of(member.model, member.model)
                return copier.copy(member, copier.find(member.digest))

            return list(copy_release(source, version, target, bring))
        copier = copier_of(version.model, into)
        return list(copier.copy(version, copier.find(version.digest), heal=True))


def copy_release(
    source: Store,
    release: Version,
    target: Store,
    bring: Callable[[Version], Iterator[CopiedVersion]],
) -> Iterator[CopiedVersion]:
    """Copy the members of a release that are not there, and make it of them; yield what came.

    It names the members by the numbers that they have in the target.

    Args:
        source: The store that has it.
        release: The release.
        target: The store that it comes to.
        bring: Copies a member unless it is there, and yields what came of it and its variants.
    """
    members: list[Version] = []
    for member in members_of(source._parts.home, release).values():
        for one in bring(member):
            yield one
            if one.source == member and one.version is not None:
                members.append(one.version)
    there = same_release(target, release.model, members)
    if there is not None:
        yield CopiedVersion(release, there, "there")
        return
    made = target.releases.create(release.model, members, message=release.message)
    yield CopiedVersion(release, made.version, "copied")


def same_release(target: Store, name: str, members: list[Version]) -> Version | None:
    """Return the newest release of this name in the target that names exactly these versions."""
    if not target._names.has(name):
        return None
    wanted = {(one.model, one.number) for one in members}
    for version in target.versions(name):
        if not version.is_release:
            return None  # making it says why that is none
        named = members_of(target._parts.home, version).values()
        if {(one.model, one.number) for one in named} == wanted:
            return version
    return None
