"""What ``--json`` prints of variants and lineage; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema, VersionJson


class ErrorJson(Schema):
    """Distance from the original: null is an infinite number, which for ``snr_db`` is an exact
    copy.
    """

    max_abs: float | None
    relative_l2: float | None
    snr_db: float | None


class ApproximatedTensor(Schema):
    """A tensor that was approximated, and its own error."""

    name: str
    dtype: str
    shape: list[int]
    error: ErrorJson


class VariantJson(VersionJson):
    """A lossy variant: ``ref`` names it, ``version`` is the one that it was made from."""

    ref: str
    variant: str
    parameters: dict[str, str]
    kept: str
    tool: str
    error: ErrorJson
    tensors: list[ApproximatedTensor]


class Derived(VariantJson):
    """The new variant, and what it takes beside the original."""

    logical_bytes: int
    original_bytes: int
    stored_bytes: int


class Variants(Schema):
    """The variants of a version, the newest of each name."""

    ref: str
    variants: list[VariantJson]


class LineageNode(Schema):
    """A version and what was made from it; ``relation`` is what its parent is to it.

    ``names`` are all references to this content; ``asked`` marks the one that was asked for.
    """

    digest: str
    names: list[str]
    relation: str
    asked: bool
    children: list[LineageNode]


class LineageTree(Schema):
    """The trees that a version is in, from the oldest ancestors down."""

    ref: str
    roots: list[LineageNode]
