"""Output of ``diff`` and ``rebase`` with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema, VersionJson


class Rebase(Schema):
    """The deltas of a version that were replaced by standalone chunks.

    ``variant`` is null for the version itself.
    ``chunks`` of its ``deltas`` were replaced; they hold ``plain_bytes``. A cost is the bytes that
    a read of the whole version fetches, divided by what it would fetch without deltas.
    """

    model: str
    version: int
    variant: str | None
    digest: str
    deltas: int
    chunks: int
    plain_bytes: int
    stored_bytes: int
    cost_before: float
    cost_after: float


class ChangeJson(Schema):
    """The change of one tensor or file.

    ``new_chunk_bytes`` are plain bytes of chunks that the old version does not have, and
    ``stored_bytes`` is what these chunks take in storage.
    """

    name: str
    change: Literal["added", "removed", "changed", "retyped", "same"]
    old_bytes: int
    new_bytes: int
    new_chunk_bytes: int
    stored_bytes: int


class DiffJson(Schema):
    """The differences between two versions; unchanged items are listed too.

    The new chunks take ``stored_bytes``, which is ``delta_saved_bytes`` less than without deltas.
    """

    old: VersionJson
    new: VersionJson
    tensors: list[ChangeJson]
    files: list[ChangeJson]
    shared_bytes: int
    new_bytes: int
    stored_bytes: int
    delta_saved_bytes: int
