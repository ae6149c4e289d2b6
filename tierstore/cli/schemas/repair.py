"""What ``repair`` prints as JSON."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema


class RepairedJson(Schema):
    """An object that was damaged or lacking: ``what`` was wrong, and what was ``done`` about it.

    ``lost`` means that some of it is nowhere any more, ``left`` that it could not be repaired now.
    ``tier`` is where the damaged copy lies; it is empty for what is no copy in a tier.
    """

    outcome: Literal["repaired", "lost", "left"]
    key: str
    tier: str
    what: str
    done: str


class HitPartJson(Schema):
    """A tensor or a file of which ``lost_bytes`` are lost."""

    name: str
    lost_bytes: int
    plain_bytes: int


class HitVersionJson(Schema):
    """A version that cannot be read in full; ``parts`` lie in ``manifest``."""

    version: str
    manifest: str
    lost_bytes: int
    parts: list[HitPartJson]


class Repair(Schema):
    """What was repaired and what is lost; with ``dry_run`` nothing was changed.

    ``down`` says why tiers could not be asked, ``full`` why there was no room for what is repaired;
    it is empty where there was. ``whole`` is whether nothing is lost or left.
    """

    dry_run: bool
    whole: bool
    objects: list[RepairedJson]
    hit: list[HitVersionJson]
    packs: int
    read_bytes: int
    hot_bytes: int
    down: dict[str, str]
    full: str
