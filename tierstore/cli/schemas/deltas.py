"""What ``diff`` and ``rebase`` print with ``--json``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema, VersionJson


class Rebase(Schema):
    """What became of the deltas of a version.

    ``chunks`` of its ``deltas``, of ``plain_bytes``, are stored in full now. The costs are bytes
    that a read of the whole version fetches, for each that it would fetch without deltas.
    """

    model: str
    version: int
    digest: str
    deltas: int
    chunks: int
    plain_bytes: int
    stored_bytes: int
    cost_before: float
    cost_after: float


class Change(Schema):
    """How one tensor or file changed; ``new_chunk_bytes`` are nowhere in the old version, and
    ``stored_bytes`` is what the chunks that hold them take.
    """

    name: str
    change: Literal["added", "removed", "changed", "retyped", "same"]
    old_bytes: int
    new_bytes: int
    new_chunk_bytes: int
    stored_bytes: int


class DiffJson(Schema):
    """What differs between two versions; unchanged items are listed too.

    The chunks that are new take ``stored_bytes``; ``delta_saved_bytes`` more, were they plain and
    not deltas.
    """

    old: VersionJson
    new: VersionJson
    tensors: list[Change]
    files: list[Change]
    shared_bytes: int
    new_bytes: int
    stored_bytes: int
    delta_saved_bytes: int
