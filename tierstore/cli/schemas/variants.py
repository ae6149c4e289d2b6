"""Output of commands on variants with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema, VersionJson


class VariantErrorJson(Schema):
    """The distance from the original; null is infinity, which in ``snr_db`` is an exact copy."""

    max_abs: float | None
    relative_l2: float | None
    snr_db: float | None


class ApproximatedTensor(Schema):
    """An approximated tensor and its own error."""

    name: str
    dtype: str
    shape: list[int]
    error: VariantErrorJson


class VariantJson(VersionJson):
    """A lossy variant, named by ``ref``; ``version`` is the number of its original."""

    ref: str
    variant: str
    parameters: dict[str, str]
    kept: str
    tool: str
    error: VariantErrorJson
    tensors: list[ApproximatedTensor]


class Derived(VariantJson):
    """The variant and its size, beside that of the original.

    ``existed`` is true where the version had it already: nothing was stored then.
    """

    existed: bool
    logical_bytes: int
    original_bytes: int
    stored_bytes: int


class Variants(Schema):
    """The variants of a version, the newest of each name."""

    ref: str
    variants: list[VariantJson]


class LineageNode(Schema):
    """A version and those made from it; ``relation`` says how it was made from its parent.

    ``names`` are all references to this content. ``asked`` marks the version that was asked for.
    """

    digest: str
    names: list[str]
    relation: str
    asked: bool
    children: list[LineageNode]


class LineageTree(Schema):
    """The trees that contain a version, from its oldest ancestors down."""

    ref: str
    roots: list[LineageNode]
