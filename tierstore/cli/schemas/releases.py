"""Output of commands on releases with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema, VersionJson


class MemberJson(Schema):
    """A version that a release names.

    ``was`` is the number that the release before it names, or null where that has no such model.
    """

    model: str
    version: int
    digest: str
    was: int | None


class ReleaseJson(VersionJson):
    """A release: ``model`` is its name, ``version`` its number, ``digest`` that of its members."""

    members: list[MemberJson]


class ListedRelease(Schema):
    """A name of releases: how many there are, the newest one, and where its aliases point."""

    name: str
    releases: int
    latest: ReleaseJson
    aliases: dict[str, int]


class ReleaseNames(Schema):
    """All names of releases."""

    names: list[ListedRelease]


class ReleaseList(Schema):
    """The releases of one name, newest first."""

    name: str
    releases: list[ReleaseJson]
