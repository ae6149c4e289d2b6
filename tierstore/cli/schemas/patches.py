"""What ``--json`` prints of patches and folds; the rules are those of ``core``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema, VersionJson


class Patched(VersionJson):
    """The new version; it is ``base`` but for ``tensors`` tensors.

    ``bytes`` are the plain bytes of the patch, ``stored_bytes`` was written to storage for it.
    ``folded`` says whether it was also stored as a whole.
    """

    base: str
    alias: str | None
    tensors: int
    bytes: int
    stored_bytes: int
    folded: bool
    seconds: float


class Fold(Schema):
    """A version that was stored as a whole: ``full`` is the manifest that equals it.

    ``patches`` lay on it; with 0 there was nothing to do. ``new_bytes`` are plain bytes that the
    store did not have, ``stored_bytes`` was written to storage.
    """

    model: str
    version: int
    digest: str
    patches: int
    full: str
    new_bytes: int
    stored_bytes: int
    seconds: float


class PatchedTensor(Schema):
    """What a patch does to one tensor: ``count`` rows or elements, or all of it (``dense``)."""

    name: str
    kind: Literal["rows", "elements", "dense"]
    dtype: str
    shape: list[int]
    count: int


class PatchJson(Schema):
    """A patch: ``version`` is the reference of what it makes of ``base`` (a digest).

    ``file`` is where it was written, if it was.
    """

    version: str | None
    base: str
    bytes: int
    stored_bytes: int
    tensors: list[PatchedTensor]
    file: str | None


class Patches(Schema):
    """The patches that lead from one version to another, in order."""

    since: str
    until: str
    patches: list[PatchJson]
