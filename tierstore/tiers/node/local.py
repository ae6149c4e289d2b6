"""This node's hot tier: plain chunks as immutable files in a directory of NVMe or tmpfs.

Reading opens files and nothing else: no lock, no index. Filling, evicting and pinning agree through
an index that all processes of the node share. Linux and macOS; arrays are mapped on Linux only.

What is trusted: a chunk was verified in memory by whoever offered it, and its file is compared with
its digest at its first use after the machine was started, or after its disk had failed; with
``verify="first"`` at its first use in each process, and whenever it is not the same file any more;
with ``verify="always"`` every copy that is read. What changes behind that, and says nothing, is
found by ``scrub``. A disk that fails under a mapped array kills the process (SIGBUS), as with every
mapped file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tierstore.deferred import np
from tierstore.folders import Owners
from tierstore.forks import begin
from tierstore.format.checks import digest_of
from tierstore.ids import DIGEST_BYTES
from tierstore.placement.base import Access, PlacementPolicy
from tierstore.tiers.base import TierUsage
from tierstore.tiers.node.claims import Claims
from tierstore.tiers.node.directory import HotDirectory
from tierstore.tiers.node.files import disk_size, kernel_boot_id, note_scrubbed, scrubbed
from tierstore.tiers.node.fill import HotFill, Offer
from tierstore.tiers.node.tensors import MIN_MAPPED_BYTES, Stored, WholeTensors
from tierstore.tiers.stats import TierStats

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MIN_MAPPED_BYTES", "LocalHot", "Scrubbed", "Stored", "Verify", "disk_size"]

Verify: TypeAlias = Literal["boot", "first", "always"]
"""When a file is compared with its digest (SPEC.md section 13)."""

_FLUSH_AT_READS = 4096

_log = logging.getLogger("tierstore.tiers")


@dataclass(slots=True)
class Scrubbed:
    """What was compared with its digest.

    Attributes:
        chunks: Number of files.
        plain_bytes: Bytes of those.
        damaged: Digests of the files that were wrong.
    """

    chunks: int = 0
    plain_bytes: int = 0
    damaged: list[bytes] = field(default_factory=list)


class LocalHot:
    """Plain chunks in a directory that the processes of this node share. Thread-safe, fork-safe.

    It may lose anything at any time. No method raises when the directory fails: what cannot be read
    is a counted miss, what cannot be written a counted rejection, and after a failure the tier is
    skipped for a while (``stats.breaker_open``).

    Args:
        root: The directory; made when it is missing. It may serve several stores.
        store_id: The id of the store; its chunks lie in a folder of this name below ``root``.
        quota_bytes: The most bytes that all processes of the node may use together.
        policy: Makes the policy for a capacity in bytes.
        name: The name of the tier in commands and messages.
        high_percent: Percent of the quota up to which it is filled.
        low_percent: Percent of the quota down to which it is emptied when it is found above
            ``high_percent``.
        verify: ``boot`` compares a file with its digest once after each start of the machine, for
            all processes; ``first`` at its first use in this process, and again when its device,
            inode, length, mtime or ctime is another one; ``always`` every copy that is read, and
            maps no file.
        half_life_s: The half-life of the heat that is kept beside the chunks.
        retry_s: Seconds that the directory is left alone after it failed.
        stats: The tier's counters.
        boot_id: An id that changes when the machine is started; by default the kernel's own, and
            where there is none ``boot`` is as ``always``.
        group: Id of the group whose members share the directory; by default nobody does.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        quota_bytes: int,
        policy: Callable[[int], PlacementPolicy],
        *,
        name: str = "hot",
        high_percent: int = 95,
        low_percent: int = 85,
        verify: Verify = "boot",
        half_life_s: float = 3600.0,
        retry_s: float = 30.0,
        stats: TierStats | None = None,
        boot_id: str | None = None,
        group: int | None = None,
    ) -> None:
        owners = Owners(group)
        self.name, self.root, self.quota_bytes = name, root, quota_bytes
        self.capacity_bytes = quota_bytes * high_percent // 100
        """Bytes up to which it is filled."""
        self.stats = stats or TierStats()
        boot_id = boot_id or kernel_boot_id()
        self._always = verify == "always" or (verify == "boot" and boot_id is None)
        self._dir = HotDirectory(
            name,
            root,
            store_id,
            boot_id or "any",
            policy,
            high_bytes=self.capacity_bytes,
            low_bytes=quota_bytes * low_percent // 100,
            half_life_s=half_life_s,
            retry_s=retry_s,
            stats=self.stats,
            owners=owners,
            compare_first=verify == "first",
        )
        self._fill = HotFill(self._dir)
        self._claims = Claims(self._dir.files.folder, owners)
        self._whole = WholeTensors(name, self._dir.files, self._always, self.reject)
        begin(self._begin)
        self._dir.ready(self._dir.reading)

    def _begin(self) -> None:
        self._flusher: threading.Thread | None = None

    def resident(self, digests: Sequence[bytes]) -> list[bool]:
        """Return whether each chunk has a file here; this verifies nothing and is no read."""
        if not self._dir.ready(self._dir.reading):
            return [False] * len(digests)
        try:
            return [self._dir.files.exists(digest) for digest in digests]
        except OSError as error:
            self._dir.read_failed(error)
            return [False] * len(digests)

    def read_into(
        self, digests: Sequence[bytes], outs: Sequence[memoryview], *, verify: bool = False
    ) -> list[bool]:
        """Copy chunks into buffers of exactly their plain bytes.

        Args:
            digests: The chunks.
            outs: A buffer for each.
            verify: Whether to compare each copy with its digest, whatever was verified before; a
                wrong one is removed, and counts as missing.

        Returns:
            Whether each was here; the buffers of the others have undefined content.
        """
        started = time.perf_counter()
        found = []
        usable = self._dir.ready(self._dir.reading)
        failed = False
        for digest, out in zip(digests, outs, strict=True):
            here = False
            if usable:
                try:
                    here = self._read(digest, out, verify or self._always)
                except OSError as error:
                    failed = True
                    self._dir.read_failed(error, digest)
                    usable = not self._dir.reading.open
            found.append(here)
        if usable and not failed:
            self._dir.reading.worked()
        nbytes = sum(len(out) for out, here in zip(outs, found, strict=True) if here)
        hits = sum(found)
        self.stats.count(hits=hits, misses=len(found) - hits, hit_bytes=nbytes)
        self.stats.record("get", time.perf_counter() - started, nbytes, failed=failed)
        return found

    def _read(self, digest: bytes, out: memoryview, verify: bool) -> bool:
        if not self._dir.files.read_into(digest, out):
            return False
        if verify and digest_of(out).raw != digest:
            self.reject(digest)
            return False
        return True

    def open(self, digest: bytes, size: int) -> FileIO | None:
        """Open a chunk of ``size`` bytes as a file, to be sent from there; the caller closes it.

        Evicting the chunk does not affect an open file. Returns ``None`` when it is missing, or
        when every use is to be verified: use ``read_into``.
        """
        if self._always or not self._dir.ready(self._dir.reading):
            return None
        started = time.perf_counter()
        try:
            fd = self._dir.files.open(digest, size)
        except OSError as error:
            self._dir.read_failed(error)
            return None
        if fd is None:
            return None
        self._dir.reading.worked()
        self.stats.count(hits=1, hit_bytes=size)
        self.stats.record("get", time.perf_counter() - started, size)
        if hasattr(os, "posix_fadvise"):  # whoever sends it is not to wait for the disk
            os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)
        return FileIO(fd, "rb")

    def failed(self, digest: bytes, error: OSError) -> None:
        """Count a failure of reading a file from ``open``; it is removed if it lost bytes."""
        self._dir.read_failed(error, digest)

    def reject(self, digest: bytes) -> None:
        """Remove a chunk whose bytes proved wrong."""
        with contextlib.suppress(OSError):
            self._dir.files.remove(digest)
        self._dir.on_bad(digest)

    def map_tensor(
        self, digests: Sequence[bytes], chunk_size: int, nbytes: int
    ) -> npt.NDArray[np.uint8] | None:
        """Return one tensor as ``tensors`` does; ``None`` if it is smaller than 128 KiB."""
        if nbytes < MIN_MAPPED_BYTES:
            return None
        return self.tensors([(b"".join(digests), nbytes)], chunk_size)[0]

    def tensors(
        self, wanted: Sequence[Stored], chunk_size: int
    ) -> list[npt.NDArray[np.uint8] | None]:
        """Return whole tensors, each as a writable array: mapped, or copied below 128 KiB.

        Writes to a mapped array are private to it and never reach the files; evicting the chunks
        does not affect it. The memory is released with the last view.

        Args:
            wanted: For each tensor the digests of its chunks in order, end to end, and its bytes.
            chunk_size: The bytes of each chunk of a tensor but the last.

        Returns:
            An array for each tensor; ``None`` where a chunk is missing, or where it is not mapped
            (chunks that are not whole pages, too many mappings in this process, not Linux, every
            use verified): use ``read_into``. Only what is found counts as hits.
        """
        started = time.perf_counter()
        nothing: list[npt.NDArray[np.uint8] | None] = [None] * len(wanted)
        if not self._dir.ready(self._dir.reading):
            return nothing
        errors: list[OSError] = []
        found = self._whole.take(wanted, chunk_size, errors)
        for error in errors:
            self._dir.read_failed(error)
        if not errors:
            self._dir.reading.worked()
        here = [one for one, array in zip(wanted, found, strict=True) if array is not None]
        if here or errors:
            nbytes = sum(nbytes for _, nbytes in here)
            hits = sum(len(digests) for digests, _ in here) // DIGEST_BYTES
            self.stats.count(hits=hits, hit_bytes=nbytes)
            self.stats.record("get", time.perf_counter() - started, nbytes, failed=bool(errors))
        return found

    def claim(self, digests: Sequence[bytes]) -> list[bool]:
        """Claim the fetching of chunks for the whole node; return which this process has to fetch.

        Those are the chunks that no other process fetches now. They stay claimed until ``unclaim``,
        or until this process ends. Where the directory takes nothing in, that is all of them.
        """
        if not self._dir.ready(self._dir.filling):
            return [True] * len(digests)
        return self._claims.take(digests)

    def unclaim(self, digests: Iterable[bytes]) -> None:
        """Give claims back: the chunks are here now, or could not be had."""
        self._claims.release(digests)

    def record(self, accesses: Sequence[Access]) -> None:
        """Count reads, hits or misses, as heat in memory; never waits."""
        self._dir.book.reads.extend(accesses)
        if len(self._dir.book.reads) >= _FLUSH_AT_READS and self._flusher is None:
            self._flusher = threading.Thread(target=self.flush, name="tierstore-heat", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                self._flusher.start()

    def offer(self, offers: Sequence[Offer], *, force: bool = False) -> list[bool]:
        """Take in chunks that were read and verified, as far as the policy admits them.

        Victims are removed first, so that the quota holds for all processes together.

        Args:
            offers: Distinct chunks.
            force: Whether to take all that fit, whatever the policy says, as a warm-up does.

        Returns:
            Whether each is here now.
        """
        return self._fill.offer(offers, force)

    @property
    def refused(self) -> OSError | None:
        """Why nothing can be written to the directory; ``None`` unless rights forbid it."""
        return self._dir.refused

    def evict(self, digests: Sequence[bytes] | None = None) -> int:
        """Remove these chunks, or all of them, except pinned ones; return the bytes freed."""
        return self._dir.manage(lambda: self._dir.book.evict(digests), 0)

    def drop(self, digests: Sequence[bytes]) -> int:
        """Remove every file of these chunks, pinned or not; return how many chunks had one.

        Raises:
            OSError: The directory failed: some may still be here.
        """
        self._dir.files.prepare()
        return self._dir.transact(lambda: self._dir.book.drop(digests))

    def pin(self, digests: Sequence[bytes]) -> None:
        """Protect these chunks from eviction until ``unpin``, here already or not."""
        self._dir.manage(lambda: self._dir.book.pin(digests, True), None)

    def unpin(self, digests: Sequence[bytes]) -> None:
        """Undo ``pin``."""
        self._dir.manage(lambda: self._dir.book.pin(digests, False), None)

    def pinned(self) -> set[bytes]:
        """Return the chunks that are pinned, here already or not."""
        return self._dir.manage(lambda: set(self._dir.book.pinned), set())

    def usage(self) -> TierUsage:
        """Return what the tier holds now, for all processes together."""
        used_bytes, objects, pinned_bytes = self._dir.manage(self._dir.book.totals, (0, 0, 0))
        return TierUsage(used_bytes, objects, pinned_bytes, self.quota_bytes)

    def explain(self, digest: bytes, time: float) -> dict[str, float | str]:
        """Return why the policy holds or does not hold a chunk."""

        def explained() -> dict[str, float | str]:
            pinned = "yes" if digest in self._dir.book.pinned else "no"
            return {**self._dir.book.policy.explain(digest, time), "pinned": pinned}

        return self._dir.manage(explained, {})

    def scrub(self, budget_bytes: int) -> Scrubbed:
        """Compare about ``budget_bytes`` of files with their digests.

        It continues where any process of this node stopped; while another one is at it, nothing is
        done. What is wrong is removed.
        """
        done = Scrubbed()
        if not self._dir.ready(self._dir.reading):
            return done
        try:
            with self._dir.files.scrubbing() as fd:
                if fd is None:
                    return done
                sizes = self._dir.files.sizes()
                digests = sorted(sizes)
                start = bisect_right(digests, scrubbed(fd))
                for digest in digests[start:] + digests[:start]:
                    if done.plain_bytes >= budget_bytes or self._dir.reading.open:
                        break
                    self._compare(digest, sizes[digest], done)
                    note_scrubbed(fd, digest)
        except OSError as error:  # a disk that became read-only can still be read
            self._dir.fill_failed(error)
        self.stats.count(scrubbed_bytes=done.plain_bytes)
        return done

    def compare_all(self, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
        """Compare every file with its digest, and remove what is wrong.

        Args:
            progress: Called with the bytes done and the bytes in all.

        Raises:
            OSError: The directory failed.
        """
        done = Scrubbed()
        self._dir.files.prepare()
        sizes = self._dir.files.sizes()
        total_bytes = sum(sizes.values())
        for digest, size in sizes.items():
            self._compare(digest, size, done)
            if progress is not None:
                progress(done.plain_bytes, total_bytes)
        return done

    def _compare(self, digest: bytes, size: int, done: Scrubbed) -> None:
        """Compare one file with its digest; one that cannot be read is wrong as well."""
        try:
            right = self._dir.files.verify(digest)
        except OSError as error:
            right = False
            self._dir.read_failed(error, digest)
        done.chunks += 1
        done.plain_bytes += size
        if not right:
            done.damaged.append(digest)

    def flush(self) -> None:
        """Write the heat that was counted to the index, for the other processes."""
        self._dir.manage(lambda: None, None)
        self._flusher = None

    def close(self) -> None:
        """Flush and release the index; arrays that were mapped stay valid."""
        self.flush()
        self._claims.close()
        self._dir.book.close()
