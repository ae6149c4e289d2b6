"""Versions, files and the cost of a save, as the API returns them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from tierstore.format.reflog import RefEntry, Summary
from tierstore.ids import Digest
from tierstore.shown import html_facts, size, time_text

DERIVED_FROM, DISTILLED_FROM = "derived-from", "distilled-from"
"""Relations in a manifest: of a lossy variant to its version, of a pupil to its teacher."""


_SHOWN = 60

RELEASED: Final = "release"
"""The action of an entry that publishes a release."""


@dataclass(frozen=True, slots=True)
class SaveStats:
    """The cost of one save.

    Attributes:
        logical_bytes: Size of the model's files.
        new_bytes: Plain bytes of chunks that the store did not have.
        delta_bytes: Those of ``new_bytes`` whose chunks were stored as deltas.
        delta_stored_bytes: Bytes that these deltas take.
        reused_bytes: Plain bytes of chunks that the store had, or that came again within the model.
        stored_bytes: Bytes written to storage, all objects together.
        chunks: Number of chunks in the model, repeats included.
        new_chunks: Number of chunks that were encoded and stored.
        objects: Number of objects written to storage.
        seconds: Wall time.
        base: The version that the deltas refer to, as ``model@number``; ``None`` without deltas.

    Examples:
        >>> store = tierstore.init("store")
        >>> stats = store.save("ranker", {"w": np.ones(1000, np.float32)}).stats
        >>> stats.new_bytes, stats.new_chunks, stats.base
        (4000, 1, None)
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
    """One published version of a model. Versions are equal whatever their save cost.

    Attributes:
        model: The model's name.
        number: The version's number; a model's versions count from 1.
        digest: Digest of the manifest: equal content has an equal digest.
        created: When it was published, by the publisher's clock, in UTC.
        who: ``user@host`` of the publisher.
        message: Why it was published.
        stats: What the save cost; ``None`` unless this object came from ``save``.
        variant: The name of the lossy variant of version ``number`` that this is, or ``None``.
        is_release: Whether it has no content of its own, but names versions of several models.
        size: Bytes of its files, as its entry in the log says; ``None`` of a release, and where the
            entry is an early one that does not say it.
        file_count: Number of its files, likewise.
        tensor_count: Number of its tensors, likewise.

    Examples:
        >>> store = tierstore.init("store")
        >>> version = store.save("ranker", {"w": np.ones(3, np.float32)}, message="nightly")
        >>> version
        <Version ranker@1 b3:..., 20...UTC by ...@..., 'nightly'>
        >>> str(version), version == store.resolve("ranker")
        ('ranker@1', True)
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
    size: int | None = field(default=None, compare=False)
    file_count: int | None = field(default=None, compare=False)
    tensor_count: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        variant = f"+{self.variant}" if self.variant else ""
        return f"{self.model}@{self.number}{variant}"

    def __repr__(self) -> str:
        said = f", {self.message[:_SHOWN]!r}" if self.message else ""
        return (
            f"<Version {self} {self.digest.short}, {time_text(self.created)} by {self.who}{said}>"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("digest", str(self.digest)),
            ("created", f"{time_text(self.created)} by {self.who}"),
            ("message", self.message),
        ]
        if self.size is not None:
            facts += [("size", size(self.size))]
        if self.stats is not None:
            stats = self.stats
            facts += [
                ("new", f"{size(stats.new_bytes)}, stored as {size(stats.stored_bytes)}"),
                ("base", stats.base or ""),
            ]
        return html_facts(str(self), [(name, value) for name, value in facts if value])


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a version.

    Attributes:
        path: The path in the version, ``/`` between its parts.
        size: The size in bytes.
        sha256: 64 hex digits; empty for a file that patches change, until the version is folded.
        metadata: A safetensors file's ``__metadata__``, if any.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, metadata={"step": "7"})
        >>> [file] = store.load("ranker").files
        >>> file.path, file.size, file.metadata
        ('model.safetensors', 108, {'step': '7'})
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
    version = Version(
        model, entry.version, Digest.from_hex(entry.manifest), when(entry), entry.who,
        entry.message, stats, variant, entry.action == RELEASED,
    )  # fmt: skip
    return with_summary(version, entry.summary) if entry.summary else version


def with_summary(version: Version, summary: Summary) -> Version:
    """Return a version with how large it is."""
    return replace(
        version,
        size=summary.bytes,
        file_count=summary.files,
        tensor_count=summary.tensors,
    )


def when(entry: RefEntry) -> datetime:
    """The time of an entry, in UTC."""
    return datetime.fromtimestamp(entry.time_us / 1e6, UTC)
