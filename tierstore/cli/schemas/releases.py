"""What ``--json`` prints of releases; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema, VersionJson


class MemberJson(Schema):
    """A version that a release names; ``was`` is the one that the release before it names, null
    where that names none of this model.
    """

    model: str
    version: int
    digest: str
    was: int | None


class ReleaseJson(VersionJson):
    """A release: ``model`` is its name, ``version`` its number, ``digest`` that of its list of
    members.
    """

    members: list[MemberJson]


class ListedRelease(Schema):
    """A name of releases: how many it has, what the newest names, and the aliases' numbers."""

    name: str
    releases: int
    latest: ReleaseJson
    aliases: dict[str, int]


class ReleaseNames(Schema):
    """All names that have releases."""

    names: list[ListedRelease]


class ReleaseList(Schema):
    """The releases of one name, newest first."""

    name: str
    releases: list[ReleaseJson]
