"""What save gives back and history lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.shown import html_facts, size

DERIVED_FROM, DISTILLED_FROM = "derived-from", "distilled-from"
"""Relations in a manifest: of a lossy variant to its version, of a pupil to its teacher."""


_SHOWN = 60
_TIME = "%Y-%m-%d %H:%M:%S UTC"

RELEASED: Final = "release"
"""The action of an entry that publishes a release."""


@dataclass(frozen=True, slots=True)
class SaveStats:
    """What one save cost.

    Attributes:
        logical_bytes: size of the model's files.
        new_bytes: plain bytes of chunks that the store did not have.
        delta_bytes: those of ``new_bytes`` whose chunks were stored as deltas.
        delta_stored_bytes: what these deltas take.
        reused_bytes: plain bytes of chunks that it had, or that came again within the model.
        stored_bytes: bytes written to storage, all objects together.
        chunks: chunks in the model, repeats included.
        new_chunks: chunks that were encoded and stored.
        objects: objects written to storage.
        seconds: wall time.
        base: the version that the deltas refer to, as ``model@number``; ``None`` without deltas.
    """

    logical_bytes: int
    new_bytes: int
    delta_bytes: int
    delta_stored_bytes: int
    reused_bytes: int
    stored_bytes: int
    chunks: int
    new_chunks: int
    objects: int
    seconds: float
    base: str | None = None

    @property
    def full_bytes(self) -> int:
        """Plain bytes of new chunks that were stored standalone."""
        return self.new_bytes - self.delta_bytes


@dataclass(frozen=True, slots=True)
class Version:
    """One published version of a model.

    Attributes:
        model: its name.
        number: counts the model's versions from 1.
        digest: of the manifest: equal content has an equal digest.
        created: when it was published, by the publisher's clock.
        who: ``user@host`` of the publisher.
        message: why.
        stats: what the save cost; ``None`` unless this object came from ``save``.
        variant: name of the lossy variant of version ``number`` that this is, or ``None``.
        is_release: whether it has no content of its own, but names versions of several models.
    """

    model: str
    number: int
    digest: Digest
    created: datetime
    who: str
    message: str
    stats: SaveStats | None = field(default=None, compare=False)
    variant: str | None = None
    is_release: bool = False

    def __str__(self) -> str:
        variant = f"+{self.variant}" if self.variant else ""
        return f"{self.model}@{self.number}{variant}"

    def __repr__(self) -> str:
        said = f", {self.message[:_SHOWN]!r}" if self.message else ""
        return f"<Version {self} {self.digest.short}, {self.created:{_TIME}} by {self.who}{said}>"

    def _repr_html_(self) -> str:
        facts = [
            ("digest", str(self.digest)),
            ("created", f"{self.created:{_TIME}} by {self.who}"),
            ("message", self.message),
        ]
        if self.stats is not None:
            stats = self.stats
            facts += [
                ("size", size(stats.logical_bytes)),
                ("new", f"{size(stats.new_bytes)}, stored as {size(stats.stored_bytes)}"),
                ("base", stats.base or ""),
            ]
        return html_facts(str(self), [(name, value) for name, value in facts if value])


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a version.

    Attributes:
        path: in the version, ``/`` between its parts.
        size: in bytes.
        sha256: 64 hex digits; empty for a file that patches change, until the version is folded.
        metadata: a safetensors file's ``__metadata__``, if any.
    """

    path: str
    size: int
    sha256: str
    metadata: dict[str, str] | None


def version_of(
    model: str, entry: RefEntry, stats: SaveStats | None = None, variant: str | None = None
) -> Version:
    """The version that an entry of a model's ``versions``, or of a variant's log publishes."""
    assert entry.version is not None
    assert entry.manifest is not None
    return Version(
        model, entry.version, Digest.from_hex(entry.manifest), when(entry), entry.who,
        entry.message, stats, variant, entry.action == RELEASED,
    )  # fmt: skip


def when(entry: RefEntry) -> datetime:
    """The time of an entry, in UTC."""
    return datetime.fromtimestamp(entry.time_us / 1e6, UTC)
