"""Output of commands on patches with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema, VersionJson
from tierstore.format.patch import PatchKind


class Patched(VersionJson):
    """The new version, which differs from ``base`` in ``tensors`` tensors.

    The patch has ``bytes`` plain bytes and took ``stored_bytes`` in storage. ``folded`` says
    whether the version was also stored as full chunks.
    """

    base: str
    alias: str | None
    tensors: int
    bytes: int
    stored_bytes: int
    folded: bool
    seconds: float


class FoldJson(Schema):
    """A version that was stored as full chunks; ``full`` is the digest of its full manifest.

    ``patches`` is the number of patches that it lay on; with 0 there was nothing to fold.
    ``new_bytes`` are plain bytes that were new to the store and took ``stored_bytes`` in storage.
    """

    model: str
    version: int
    digest: str
    patches: int
    full: str
    new_bytes: int
    stored_bytes: int
    seconds: float


class PatchedTensorJson(Schema):
    """A tensor that a patch changes: ``count`` of its rows or elements, or all (``dense``)."""

    name: str
    kind: PatchKind
    dtype: str
    shape: list[int]
    count: int


class PatchJson(Schema):
    """A patch that makes ``version`` (a reference) out of ``base`` (a digest).

    ``file`` is the path that it was written to, or null.
    """

    version: str | None
    base: str
    bytes: int
    stored_bytes: int
    tensors: list[PatchedTensorJson]
    file: str | None


class Patches(Schema):
    """The patches that lead from one version to another, in order."""

    since: str
    until: str
    patches: list[PatchJson]
