"""This node's hot tier: plain chunks as immutable files in a directory of NVMe or tmpfs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tierstore.blobs.stats import TierStats
from tierstore.ids import Buffer
from tierstore.placement.base import Access, PlacementPolicy
from tierstore.tiers.base import TierUsage

Offer: TypeAlias = tuple[Access, Buffer]
"""A verified chunk: the read that brought it (key: its digest, time: since the epoch), its bytes."""

Verify: TypeAlias = Literal["boot", "always"]


class LocalHot:
    """Plain chunks in a directory that the processes of this node share. Thread-safe, fork-safe.

    It may lose anything at any time. No method raises when the directory fails: what cannot be read
    is a counted miss, what cannot be written a counted rejection, and after a failure the tier is
    skipped for a while (``stats.breaker_open``).

    Args:
        root: the directory; made when it is missing. It may serve several stores.
        store_id: the store whose chunks these are; a folder of its own below ``root``.
        quota: bytes, all processes of the node together.
        policy: makes the policy for a capacity in bytes.
        name: how commands and messages call it.
        high: percent of the quota up to which it is filled.
        low: percent of the quota down to which it is emptied when it is found above ``high``.
        verify: ``boot`` compares a file with its digest when it is written, and at its first use
            after a reboot; ``always`` at every use.
        stats: what it has done so far.
        boot_id: what changes when the machine starts again; the kernel's own by default.
    """

    name: str
    """How commands and messages call it."""

    stats: TierStats
    """What it has done so far."""

    def __init__(
        self,
        root: Path,
        store_id: str,
        quota: int,
        policy: Callable[[int], PlacementPolicy],
        *,
        name: str = "hot",
        high: int = 95,
        low: int = 85,
        verify: Verify = "boot",
        stats: TierStats | None = None,
        boot_id: str | None = None,
    ) -> None:
        raise NotImplementedError

    def resident(self, digests: Sequence[bytes]) -> list[bool]:
        """Whether each chunk has a file here; neither counts as a read nor verifies anything."""
        raise NotImplementedError

    def read_into(self, digests: Sequence[bytes], outs: Sequence[memoryview]) -> list[bool]:
        """Copy chunks into buffers of exactly their plain bytes.

        Returns:
            Whether each was here; the others' buffers have undefined content.
        """
        raise NotImplementedError

    def map_tensor(
        self, digests: Sequence[bytes], chunk_size: int, nbytes: int
    ) -> npt.NDArray[np.uint8] | None:
        """The chunks of one tensor as one writable array, without copying.

        Writing to it is private to the array and never reaches the files; evicting the chunks does
        not hurt it. The memory is released with the last view.

        Args:
            digests: its chunks in order; each but the last has ``chunk_size`` bytes.
            chunk_size: of the store.
            nbytes: of the tensor.

        Returns:
            ``None`` when a chunk is missing or mapping cannot be done (a tensor under 1 MiB, chunks
            that are no whole pages, too many mappings in this process, not Linux): use
            ``read_into``. Only a mapped tensor counts as hits.
        """
        raise NotImplementedError

    def record(self, accesses: Sequence[Access]) -> None:
        """Count reads, hit or miss, as heat: in memory; never waits."""
        raise NotImplementedError

    def offer(self, offers: Sequence[Offer], *, force: bool = False) -> list[bool]:
        """Take in chunks that were read and verified, as far as the policy admits them.

        Victims are removed first, so that the quota holds for all processes together.

        Args:
            offers: distinct chunks.
            force: take all that fit, whatever the policy thinks of them: for a warm-up.

        Returns:
            Whether each is here now.
        """
        raise NotImplementedError

    def evict(self, digests: Sequence[bytes] | None = None) -> int:
        """Remove these chunks, or all, but for pinned ones; returns the bytes that are free now."""
        raise NotImplementedError

    def pin(self, digests: Sequence[bytes]) -> None:
        """Never evict these chunks until ``unpin``, here already or not."""
        raise NotImplementedError

    def unpin(self, digests: Sequence[bytes]) -> None:
        """Undo ``pin``."""
        raise NotImplementedError

    def usage(self) -> TierUsage:
        """What it holds now, of all processes together."""
        raise NotImplementedError

    def explain(self, digest: bytes, time: float) -> dict[str, float | str]:
        """Why the policy holds or does not hold a chunk."""
        raise NotImplementedError

    def scrub(self, budget: int) -> int:
        """Compare about ``budget`` bytes of files with their digests, going on where it stopped.

        Returns:
            How many were wrong; they are removed.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Write the heat that was counted to the index, for the other processes."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush and release the index; arrays that were mapped stay valid."""
        raise NotImplementedError
