"""What ``cp`` and ``sync`` print as JSON."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema


class CopiedVersionJson(Schema):
    """A version, variant or release of the source, and what came of it.

    ``version`` is what it is called in the target; null where it is not there. What is ``healed``
    was there, and what the target had lost of it is put back. ``left`` is what was not to be
    copied; ``why`` says why, or why it failed. With ``dry_run``, ``copied`` is what would be.
    """

    source: str
    version: str | None
    digest: str
    outcome: Literal["copied", "there", "healed", "left", "failed"]
    why: str
    sent_bytes: int


class Copied(Schema):
    """The version that was copied, with its variants; of a release its members, and it.

    ``sent_bytes`` are those of packs, manifests and layouts that were written to the target.
    """

    store: str
    versions: list[CopiedVersionJson]
    sent_bytes: int


class CopiedAliasJson(Schema):
    """An alias that was to be the same; ``version`` is what it points to in the target.

    ``version`` is null where it points to nothing, or where it failed; ``why`` says why then.
    """

    alias: str
    version: str | None
    outcome: Literal["copied", "there", "removed", "failed"]
    why: str


class DeletedVersionJson(Schema):
    """A version of the target that the source does not have; ``why`` says why it stays, if so."""

    version: str
    why: str


class SyncJson(Schema):
    """What came of each version, alias and removal; with ``dry_run`` what would.

    ``sent_bytes`` are those of packs, manifests and layouts that were written to the target; with
    ``dry_run`` those of the frames that would be.
    """

    dry_run: bool
    store: str
    versions: list[CopiedVersionJson]
    aliases: list[CopiedAliasJson]
    deleted: list[DeletedVersionJson]
    sent_bytes: int
