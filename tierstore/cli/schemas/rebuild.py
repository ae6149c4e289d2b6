"""What ``index rebuild`` and ``layout rebuild`` print as JSON."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema


class IndexRebuilt(Schema):
    """The dedup index that was made anew: its chunks, segments and bytes.

    ``replaced`` counts the segments that were there before. ``unread`` are the keys of layouts and
    packs that could not be read, and ``down`` says why tiers could not be asked.
    """

    chunks: int
    segments: int
    stored_bytes: int
    replaced: int
    unread: list[str]
    down: dict[str, str]


class LostVersionJson(Schema):
    """A version that cannot be read: the digest of the manifest that has no layout, and why."""

    version: str
    manifest: str
    why: str


class LayoutsRebuilt(Schema):
    """How many layouts were whole, and how many were written.

    ``lost`` are the versions that cannot be read. ``unread`` are the keys of packs that could not
    be looked into, and ``down`` says why tiers could not be asked: what is missing may lie there.
    """

    whole: int
    written: int
    lost: list[LostVersionJson]
    unread: list[str]
    down: dict[str, str]
