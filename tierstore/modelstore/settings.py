"""Settings of one process: what a store may use of the machine it runs on."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tierstore.arguments import as_text
from tierstore.ids import FULL, check_variant

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


PartVerification = Literal["blocks", "chunks"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and places for one process.

    Attributes:
        cache_dir: Local directory for what can be lost at any time, such as the dedup index.
        threads: Number of threads that hash, encode and decode.
        memory_limit_bytes: Bytes of staging memory that loads may use at once.
        node: This node's name, the same after a restart: it decides the node's turn in a rollout.
        labels: Labels of this node that rollouts may ask for, such as ``region``.
        profile: The variants that this node prefers, or a name in ``profiles``; see ``Store.load``.
        profiles: Orders of preference by name, each a comma-separated list of variants.
        verify_parts: What rows, slices and ranges of a chunk that was stored without a proof are
            verified by: ``blocks`` by the checksums of their blocks, which find damage; ``chunks``
            by the digest of the whole chunk, which is read for that.
    """

    cache_dir: Path
    threads: int = field(default_factory=lambda: cpu_count())
    memory_limit_bytes: int = field(default_factory=lambda: default_memory_limit())
    node: str = field(default_factory=socket.gethostname)
    labels: Mapping[str, str] = field(default_factory=dict)
    profile: str | None = None
    profiles: Mapping[str, str] = field(default_factory=dict)
    verify_parts: PartVerification = "blocks"

    def preference(self, profile: str | None) -> list[str]:
        """Return the preferred variants, best first; ``full`` is the version itself.

        Args:
            profile: A comma-separated list of variants, or a name in ``profiles``; ``None`` takes
                this node's.

        Raises:
            InvalidName: An entry of the list is not a variant's name.
            UsageError: ``profile`` is no text.
        """
        if profile is not None:
            as_text("profile", profile, "names in one text, such as 'int8-channel,bf16,full'")
        chosen = profile if profile is not None else self.profile
        if not chosen:
            return [FULL]
        names = self.profiles.get(chosen, chosen).split(",")
        return [name if name == FULL else check_variant(name) for name in map(str.strip, names)]


def cpu_count() -> int:
    """Return the number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_memory_limit() -> int:
    """Return 2 GiB, or if smaller a quarter of the cgroup's limit or of the RAM, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
            break
    return min(2 << 30, total // 4)
