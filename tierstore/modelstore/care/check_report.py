"""The report of a check."""

from __future__ import annotations

from dataclasses import dataclass, field

from tierstore.modelstore.care.check_data import DataRead
from tierstore.modelstore.care.check_findings import Finding


@dataclass(slots=True)
class CheckReport:
    """The findings of a check, and what it looked at.

    Attributes:
        findings: What was found, damage first.
        refs: Number of ref log entries read.
        versions: Number of distinct manifests verified, those of variants among them.
        packs: Number of packs whose footer was verified.
        archived: Number of packs that only an archive has: they are there, and cannot be verified.
        chunks: Number of distinct chunks that versions need.
        data_bytes: Plain bytes decoded and compared with their digests; 0 without ``read_data``.
        hot_bytes: Bytes of this node's hot tier that were compared; 0 without ``hot``.
        quarantined: Keys of the packs that are quarantined, whoever did it: no tier has a good
            copy, and saves store anew what is in them.
        data: How much was read with ``read_data``, and was left for another time.
        down: Why tiers could not be asked from some time on, by name. What they have was not looked
            at since, and nothing that they may have is called lost.
    """

    findings: list[Finding] = field(default_factory=list)
    refs: int = 0
    versions: int = 0
    packs: int = 0
    archived: int = 0
    chunks: int = 0
    data_bytes: int = 0
    hot_bytes: int = 0
    quarantined: list[str] = field(default_factory=list)
    data: DataRead = field(default_factory=DataRead)
    down: dict[str, str] = field(default_factory=dict)

    @property
    def damaged(self) -> bool:
        """Whether data or history is lost."""
        return any(finding.severity == "damage" for finding in self.findings)

    @property
    def garbage_keys(self) -> list[str]:
        """Keys of objects that no version needs."""
        return [finding.key for finding in self.findings if finding.severity == "garbage"]
