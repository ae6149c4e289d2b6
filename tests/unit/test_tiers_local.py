"""This node's hot tier: what goes in comes out, and what was spoilt never does."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tierstore.format.checks import digest_of
from tierstore.placement.base import Access
from tierstore.placement.policies import POLICIES, make
from tierstore.tiers.node import files as node_files
from tierstore.tiers.node import mapping
from tierstore.tiers.node import tensors as whole
from tierstore.tiers.node.local import MIN_MAPPED_BYTES, LocalHot

MIB = 1 << 20
STORE = "s" * 32


def hot(
    root: Path,
    quota: int = 64 * MIB,
    *,
    boot: str | None = "boot-1",
    policy: str = "s3fifo",
    **more: Any,
) -> LocalHot:
    return LocalHot(
        root, STORE, quota, lambda capacity: make(policy, capacity), boot_id=boot, **more
    )


def chunk(seed: int, size: int = MIB) -> tuple[bytes, bytes]:
    data = random.Random(seed).randbytes(size)
    return digest_of(data).raw, data


def offer(tier: LocalHot, *chunks: tuple[bytes, bytes], force: bool = False) -> list[bool]:
    now = time.time()
    return tier.offer([(Access(d, len(data), now), data) for d, data in chunks], force=force)


def read(tier: LocalHot, digest: bytes, size: int = MIB) -> bytes | None:
    out = memoryview(bytearray(size))
    return bytes(out) if tier.read_into([digest], [out]) == [True] else None


def files(root: Path, boot: str = "boot-1") -> dict[str, Path]:
    return {path.name: path for path in (root / STORE / boot).iterdir()}


def spoil(path: Path) -> None:
    """Turn a bit over, as a disk would: the file's owner may not write to it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_what_is_offered_is_read_by_everybody_who_opens_it(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    chunks = [chunk(n, size) for n, size in enumerate((1, 4096, MIB, 3 * MIB + 5))]
    assert offer(tier, *chunks) == [True] * 4
    for one in (tier, hot(tmp_path)):
        assert one.resident([d for d, _ in chunks] + [bytes(32)]) == [True] * 4 + [False]
        for digest, data in chunks:
            assert read(one, digest, len(data)) == data
        assert read(one, bytes(32)) is None
        assert one.usage().objects == 4
        assert one.usage().used_bytes == 4096 + 4096 + MIB + 3 * MIB + 4096
    assert (tier.stats.hits, tier.stats.misses, tier.stats.admitted) == (4, 1, 4)


def test_a_file_of_another_length_is_no_chunk(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    digest, _ = one = chunk(1)
    offer(tier, one)
    path = files(tmp_path)[digest.hex()]
    path.unlink()
    path.write_bytes(b"short")
    assert read(tier, digest) is None
    assert not path.exists()
    assert tier.stats.damaged == 1


def test_what_was_there_before_the_machine_started_is_verified_first(tmp_path: Path) -> None:
    good, bad, mapped = chunk(1), chunk(2), chunk(3)
    offer(hot(tmp_path), good, bad, mapped)
    for digest, _ in (bad, mapped):
        spoil(files(tmp_path)[digest.hex()])
    tier = hot(tmp_path, boot="boot-2")
    assert read(tier, good[0]) == good[1]
    assert read(tier, bad[0]) is None
    assert tier.map_tensor([mapped[0]], MIB, MIB) is None
    assert set(files(tmp_path, "boot-2")) == {good[0].hex()}
    assert (tier.stats.damaged, tier.usage().objects) == (2, 1)


def rewritten(path: Path) -> None:
    """Turn a bit over in the file that is there, and leave its length and time as they were."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        data = bytearray(file.read())
        data[len(data) // 2] ^= 1
        file.seek(0)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("spoilt", [spoil, rewritten])
def test_verify_first_compares_at_the_first_use_in_a_process_and_when_the_file_is_another(
    tmp_path: Path, spoilt: Callable[[Path], None], native: bool
) -> None:
    def taken(tier: LocalHot, one: tuple[bytes, bytes], way: str) -> bytes | None:
        digest, data = one
        if way == "file":
            file = tier.open(digest, len(data))
            return None if file is None else file.readall()
        if way == "tensor":
            (array,) = tier.tensors([(digest, len(data))], MIB)
            return None if array is None else array.tobytes()
        return read(tier, digest, len(data))

    for number, (way, size) in enumerate(
        [("read", MIB), ("file", MIB), ("tensor", MIB), ("tensor", 4096)]
    ):
        one, two = chunk(2 * number, size), chunk(2 * number + 1, size)
        tier = hot(tmp_path / str(number), verify="first")
        offer(tier, one, two)
        spoilt(files(tmp_path / str(number))[one[0].hex()])  # it was never read in this process
        assert taken(tier, one, way) is None
        assert taken(tier, two, way) == two[1]
        spoilt(files(tmp_path / str(number))[two[0].hex()])  # it was
        assert taken(tier, two, way) is None
        assert tier.stats.damaged == 2
        assert tier.resident([one[0], two[0]]) == [False, False]


def test_verify_first_compares_a_file_that_stays_the_same_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def digest(data: bytes) -> object:
        compared.append(len(data))
        return digest_of(data)

    monkeypatch.setattr(node_files, "digest_of", digest)
    one = chunk(1)
    tier = hot(tmp_path, verify="first")
    offer(tier, one)
    for _ in range(3):
        assert read(tier, one[0]) == one[1]
        assert tier.map_tensor([one[0]], MIB, MIB) is not None
    assert compared == [MIB]
    assert read(hot(tmp_path, verify="first"), one[0]) == one[1]  # as another process does
    assert compared == [MIB, MIB]


def test_verify_first_compares_a_file_again_that_changes_while_it_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chunk(1)
    tier = hot(tmp_path, verify="first")
    offer(tier, one)
    path = files(tmp_path)[one[0].hex()]
    reading = node_files._read_all

    def read_and_changed(fd: int) -> bytearray | None:
        data = reading(fd)
        monkeypatch.setattr(node_files, "_read_all", reading)
        rewritten(path)
        return data

    monkeypatch.setattr(node_files, "_read_all", read_and_changed)
    assert read(tier, one[0]) is None
    assert (tier.stats.damaged, path.exists()) == (1, False)


def test_verify_first_needs_no_id_of_the_machines_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.tiers.node.local.kernel_boot_id", lambda: None)
    one, two = chunk(1), chunk(2)
    for verify, mapped in (("first", True), ("boot", False)):  # else every use is verified
        tier = hot(tmp_path / verify, boot=None, verify=verify)
        offer(tier, one, two)
        assert (tier.map_tensor([one[0]], MIB, MIB) is not None) == mapped
        spoil(files(tmp_path / verify, "any")[two[0].hex()])
        assert read(tier, two[0]) is None


def test_the_scrub_goes_on_where_any_process_stopped(tmp_path: Path) -> None:
    chunks = sorted(chunk(n) for n in range(4))
    offer(hot(tmp_path), *chunks)
    for number in (0, 2):
        spoil(files(tmp_path)[chunks[number][0].hex()])
    found = []
    for _ in range(4):
        tier = hot(tmp_path)  # as after a start of the process
        found.append(tier.scrub(1).damaged)
        assert (tier.stats.damaged, tier.stats.scrubbed_bytes) == (len(found[-1]), MIB)
    assert found == [[chunks[0][0]], [], [chunks[2][0]], []]
    assert hot(tmp_path).scrub(1).damaged == []  # from the begin again


def test_one_process_of_a_node_scrubs_at_a_time(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    offer(tier, chunk(1))
    with tier._dir.files.scrubbing() as held:
        assert held is not None
        assert hot(tmp_path).scrub(MIB).chunks == 0
    assert hot(tmp_path).scrub(MIB).chunks == 1


def test_a_scrub_that_cannot_note_its_place_is_no_failure_of_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chunk(1)
    tier = hot(tmp_path)
    offer(tier, one)

    def read_only(fd: int, digest: bytes) -> None:
        raise OSError(errno.EROFS, "the disk became read-only")

    monkeypatch.setattr("tierstore.tiers.node.local.note_scrubbed", read_only)
    for _ in range(10):
        tier.scrub(MIB)
    assert read(tier, one[0]) == one[1]


def test_the_scrub_goes_on_behind_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = sorted(chunk(n) for n in range(3))
    tier = hot(tmp_path)
    offer(tier, *chunks)
    reading = node_files._read_all
    first = [OSError(errno.EIO, "a bad sector")]

    def failing(fd: int) -> bytearray | None:
        if first:
            raise first.pop()
        return reading(fd)

    monkeypatch.setattr(node_files, "_read_all", failing)
    done = tier.scrub(16 * MIB)
    assert (done.chunks, done.damaged) == (3, [chunks[0][0]])
    assert tier.resident([digest for digest, _ in chunks]) == [False, True, True]


def test_scrub_finds_what_a_disk_has_changed(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(4)]
    offer(hot(tmp_path), *chunks[:2])
    spoil(files(tmp_path)[chunks[0][0].hex()])
    tier = hot(tmp_path, boot="boot-2")  # two files of before, two of now
    offer(tier, *chunks[2:])
    spoil(files(tmp_path, "boot-2")[chunks[2][0].hex()])
    assert sum(len(tier.scrub(MIB).damaged) for _ in range(4)) == 2
    assert not tier.scrub(16 * MIB).damaged
    assert tier.resident([d for d, _ in chunks]) == [False, True, False, True]


def test_verify_always_reads_nothing_that_changed_while_the_machine_ran(tmp_path: Path) -> None:
    one, two = chunk(1), chunk(2)
    tier = hot(tmp_path, verify="always")
    offer(tier, one, two)
    assert read(tier, one[0]) == one[1]
    spoil(files(tmp_path)[one[0].hex()])
    assert read(tier, one[0]) is None
    assert tier.map_tensor([two[0]], MIB, MIB) is None, "a file may change under its mapping"
    small = chunk(3, 4096)
    offer(tier, small)
    assert [array is not None for array in tier.tensors([(small[0], 4096)], MIB)] == [True]
    spoil(files(tmp_path)[small[0].hex()])
    assert tier.tensors([(small[0], 4096)], MIB) == [None]
    assert tier.stats.damaged == 2


def test_a_copy_is_verified_where_that_is_asked_for(tmp_path: Path) -> None:
    one, two = chunk(1), chunk(2)
    tier = hot(tmp_path)
    offer(tier, one, two)
    spoil(files(tmp_path)[one[0].hex()])
    outs = [memoryview(bytearray(MIB)) for _ in range(2)]
    digests = [one[0], two[0]]
    assert tier.read_into(digests, outs) == [True, True]
    assert tier.read_into(digests, outs, verify=True) == [False, True]
    assert bytes(outs[1]) == two[1]
    assert (tier.stats.damaged, tier.resident(digests)) == (1, [False, True])


# Mapping


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether files are taken all at once by the extension, or one by one."""
    if request.param:
        assert whole._native is not None, "it is not built: pip install -e . needs a C compiler"
    else:
        monkeypatch.setattr(whole, "_native", None)
    return bool(request.param)


def tensor_of(tier: LocalHot, nbytes: int) -> tuple[list[bytes], bytes]:
    chunks = [chunk(n, min(MIB, nbytes - n * MIB)) for n in range(-(-nbytes // MIB))]
    assert all(offer(tier, *chunks, force=True))
    return [d for d, _ in chunks], b"".join(data for _, data in chunks)


@pytest.mark.parametrize("nbytes", [MIB, 3 * MIB, 5 * MIB + 12345])
def test_a_tensor_of_several_chunks_is_one_array(tmp_path: Path, native: bool, nbytes: int) -> None:
    tier = hot(tmp_path)
    digests, data = tensor_of(tier, nbytes)
    array = tier.map_tensor(digests, MIB, nbytes)
    assert array is not None
    assert array.tobytes() == data
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert tier.stats.hits == len(digests)


def test_writing_to_an_array_reaches_nobody_else(tmp_path: Path, native: bool) -> None:
    tier = hot(tmp_path)
    digests, data = tensor_of(tier, 3 * MIB)
    one = tier.map_tensor(digests, MIB, 3 * MIB)
    two = tier.map_tensor(digests, MIB, 3 * MIB)
    assert one is not None
    assert two is not None
    one[:] = 7
    one[MIB] = 9
    assert two.tobytes() == data
    assert read(tier, digests[1]) == data[MIB : 2 * MIB]
    assert (one[0], one[MIB], one[-1]) == (7, 9, 7)
    assert not hot(tmp_path).scrub(8 * MIB).damaged


def test_an_array_outlives_its_files_its_tier_and_its_directory(
    tmp_path: Path, native: bool
) -> None:
    tier = hot(tmp_path / "t")
    digests, data = tensor_of(tier, 3 * MIB)
    array = tier.map_tensor(digests, MIB, 3 * MIB)
    assert array is not None
    view = array[MIB:].view(np.float32)
    tier.evict()
    tier.close()
    shutil.rmtree(tmp_path / "t")
    del tier
    assert array.tobytes() == data
    del array
    gc.collect()
    assert view.tobytes() == data[MIB:]


def test_a_chunk_that_is_missing_or_wrong_maps_nothing(tmp_path: Path, native: bool) -> None:
    tier = hot(tmp_path)
    digests, _ = tensor_of(tier, 4 * MIB)
    files(tmp_path)[digests[2].hex()].unlink()
    assert tier.map_tensor(digests, MIB, 4 * MIB) is None
    assert tier.stats.hits == 0


@pytest.mark.parametrize("harm", ["cut", "longer", "link", "pipe", "folder"])
def test_what_is_not_the_chunks_file_gives_no_tensor(
    tmp_path: Path, native: bool, harm: str
) -> None:
    tier = hot(tmp_path)
    small = chunk(50, 5000)
    digests, data = tensor_of(tier, 3 * MIB)
    offer(tier, small, force=True)
    for digest, size in ((digests[1], MIB), (small[0], 5000)):
        path = files(tmp_path)[digest.hex()]
        path.chmod(0o644)
        if harm in {"cut", "longer"}:
            os.truncate(path, size + (7 if harm == "longer" else -7))
            continue
        path.rename(tmp_path / f"was-{size}")
        if harm == "link":
            path.symlink_to(tmp_path / f"was-{size}")
        elif harm == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    wanted = [(b"".join(digests), 3 * MIB), (small[0], 5000), (digests[0], MIB)]
    found = tier.tensors(wanted, MIB)
    assert [array is not None for array in found] == [False, False, True]
    assert found[2] is not None
    assert found[2].tobytes() == data[:MIB]


def test_many_tensors_at_once(tmp_path: Path, native: bool) -> None:
    tier = hot(tmp_path)
    sizes = [0, 1, 4097, MIN_MAPPED_BYTES - 1, MIN_MAPPED_BYTES, MIB, MIB + 1, 2 * MIB + 4096]
    wanted, datas = [], []
    for number, nbytes in enumerate(sizes):
        lengths = [min(MIB, nbytes - at) for at in range(0, nbytes, MIB)]
        chunks = [chunk(100 * number + at, length) for at, length in enumerate(lengths)]
        offer(tier, *chunks, force=True)
        wanted.append((b"".join(digest for digest, _ in chunks), nbytes))
        datas.append(b"".join(data for _, data in chunks))
    missing = (chunk(999)[0], MIB)
    found = tier.tensors([*wanted, missing], MIB)
    assert [None if a is None else a.tobytes() for a in found] == [*datas, None]
    assert all(array.flags.writeable for array in found if array is not None)
    assert tier.stats.hits == sum(len(digests) // 32 for digests, _ in wanted)
    assert tier.stats.hit_bytes == sum(sizes)


def test_the_extension_refuses_what_does_not_fit(tmp_path: Path, native: bool) -> None:
    if not native:
        return
    out = bytearray(10)
    for items, chunk_size, why in [
        ((), 0, "a chunk of 0 bytes"),
        (((bytes(32), out), (bytes(64), out)), 10, "2 digests do not fit 10 bytes"),
        (((bytes(33), out),), 10, "1 digests do not fit 10 bytes"),
    ]:
        with pytest.raises(ValueError, match=why):
            whole._native.fill(str(tmp_path), items, chunk_size, False)
    with pytest.raises(BufferError):
        whole._native.fill(str(tmp_path), ((bytes(32), bytes(10)),), 10, False)
    with pytest.raises(TypeError):
        whole._native.fill(str(tmp_path), [(bytes(32), out)], 10, False)
    assert whole._native.fill(str(tmp_path / "none"), ((bytes(32), out),), 10, False) == [2]
    out.append(1)  # no buffer is held any longer


def test_small_tensors_and_odd_chunks_are_not_mapped(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    digest, data = one = chunk(1, MIN_MAPPED_BYTES - 1)
    offer(tier, one)
    assert tier.map_tensor([digest], MIB, len(data)) is None
    assert tier.map_tensor([digest] * 2, MIB + 1, 2 * MIB + 2) is None
    with pytest.raises(ValueError, match="2 chunks of 1048576 are not 1048576 bytes"):
        tier.map_tensor([digest] * 2, MIB, MIB)


def test_mappings_are_released_with_the_last_view(tmp_path: Path, native: bool) -> None:
    tier = hot(tmp_path)
    digests, _ = tensor_of(tier, 4 * MIB)

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{tmp_path}/")

    before = mapped()
    arrays = [tier.map_tensor(digests, MIB, 4 * MIB) for _ in range(8)]
    assert mapped() == before + 8 * 4
    views = [array[-1:] for array in arrays if array is not None]
    del arrays
    gc.collect()
    assert mapped() == before + 8 * 4
    views.clear()
    gc.collect()
    assert mapped() == before


def test_half_of_the_kernels_mappings_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = hot(tmp_path)
    digests, data = tensor_of(tier, 4 * MIB)
    gc.collect()
    assert mapping._budget.take(0)
    used = mapping._budget._taken
    monkeypatch.setattr(mapping, "map_limit", lambda: 2 * (used + 8))
    held = [tier.map_tensor(digests, MIB, 4 * MIB) for _ in range(3)]
    assert [array is not None for array in held] == [True, True, False]
    del held
    gc.collect()
    array = tier.map_tensor(digests, MIB, 4 * MIB)
    assert array is not None
    assert array.tobytes() == data


def test_a_kernel_that_does_not_map_is_asked_once(
    tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tier = hot(tmp_path)
    digests, _ = tensor_of(tier, 2 * MIB)
    calls: list[object] = []

    def refused(*args: object) -> int | None:
        calls.append(args)
        ctypes.set_errno(errno.ENODEV)
        return ctypes.c_void_p(-1).value

    def no_fill(folder: str, items: Sequence[object], *args: object) -> list[int]:
        calls.append(items)
        return [-errno.ENODEV] * len(items)

    if native:
        monkeypatch.setattr(whole, "_native", SimpleNamespace(fill=no_fill))
    monkeypatch.setattr(mapping, "_libc_mmap", lambda: refused)
    for _ in range(3):
        assert tier.map_tensor(digests, MIB, 2 * MIB) is None
    assert len(calls) == 1
    assert "copies from now on" in caplog.text


def test_a_forked_child_reads_what_its_parent_mapped(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    digests, data = tensor_of(tier, 3 * MIB)
    array = tier.map_tensor(digests, MIB, 3 * MIB)
    assert array is not None
    with tier._dir.book._lock:
        pid = os.fork()
        if not pid:
            right = array.tobytes() == data
            array[:] = 0
            right &= offer(tier, chunk(99)) == [True] and tier.evict(digests) == 3 * MIB
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert array.tobytes() == data
    assert tier.resident([*digests, chunk(99)[0]]) == [False] * 3 + [True]


# Room


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_quota_holds_for_all_who_fill_it(tmp_path: Path, policy: str) -> None:
    tiers = [
        hot(tmp_path, 8 * MIB, high_percent=100, low_percent=75, policy=policy) for _ in range(3)
    ]
    biggest = 0

    def fill(tier: LocalHot, first: int) -> None:
        nonlocal biggest
        for n in range(first, first + 40):
            one = chunk(n % 30)
            tier.record([Access(one[0], MIB, time.time())])
            offer(tier, one)
            if n % 5 == 0:
                biggest = max(biggest, tier.usage().used_bytes)

    threads = [threading.Thread(target=fill, args=(t, 7 * n)) for n, t in enumerate(tiers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < biggest <= 8 * MIB
    on_disk = sum(path.stat().st_size for path in files(tmp_path).values())
    assert {tier.usage().used_bytes for tier in tiers} == {on_disk}
    assert on_disk <= 8 * MIB
    for digest in map(bytes.fromhex, files(tmp_path)):
        data = read(tiers[0], digest)
        assert data is not None
        assert digest_of(data).raw == digest


def test_above_the_high_mark_it_is_emptied_down_to_the_low_one(tmp_path: Path) -> None:
    offer(hot(tmp_path, 32 * MIB), *(chunk(n) for n in range(16)), force=True)
    smaller = hot(tmp_path, 10 * MIB, high_percent=90, low_percent=50)
    assert smaller.usage().used_bytes == 5 * MIB
    assert smaller.stats.evicted == 11


def test_pinned_chunks_stay(tmp_path: Path) -> None:
    tier, other = hot(tmp_path, 4 * MIB, high_percent=100), hot(tmp_path, 4 * MIB, high_percent=100)
    pinned = chunk(1)
    tier.pin([pinned[0]])
    offer(other, pinned)
    for n in range(2, 20):
        offer(other, chunk(n), force=True)
    assert other.evict() > 0
    assert other.usage().pinned_bytes == other.usage().used_bytes == MIB
    assert other.explain(pinned[0], time.time())["pinned"] == "yes"
    tier.unpin([pinned[0]])
    assert other.evict() == MIB
    assert files(tmp_path) == {}


def test_a_chunk_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    tier = hot(tmp_path, 2 * MIB)
    assert offer(tier, chunk(1, 3 * MIB), force=True) == [False]
    assert tier.stats.rejected == 1
    assert tier.usage().used_bytes == 0


def test_reads_of_all_processes_become_heat(tmp_path: Path) -> None:
    tier, other = hot(tmp_path), hot(tmp_path)
    cold, warm = chunk(1), chunk(2)
    offer(tier, cold, warm)
    now = time.time()
    other.record([Access(warm[0], MIB, now)] * 5)
    other.flush()
    tier.flush()
    assert [tier.explain(d, now)["reads"] for d, _ in (cold, warm)] == [0.0, 3.0]
    later = hot(tmp_path)  # learns it from the index alone
    later.flush()
    assert [later.explain(d, now)["reads"] for d, _ in (cold, warm)] == [0.0, 3.0]


# Failure


def test_a_directory_that_vanishes_fails_nothing_and_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "t"
    tier = hot(root, retry_s=0.0)
    one = chunk(1)
    offer(tier, one)
    shutil.rmtree(root)
    assert read(tier, one[0]) is None
    assert tier.resident([one[0]]) == [False]
    assert tier.usage().used_bytes == 0
    assert offer(tier, one) in ([True], [False])
    assert offer(tier, one) == [True]
    assert read(tier, one[0]) == one[1]


def test_a_directory_that_vanishes_after_its_disk_lost_bytes_comes_back(tmp_path: Path) -> None:
    root, one = tmp_path / "hot", chunk(1)
    tier = hot(root)
    offer(tier, one)
    tier.failed(one[0], OSError(errno.EIO, "I/O error"))
    shutil.rmtree(root)
    assert read(tier, one[0]) is None
    assert not tier.stats.breaker_open
    assert offer(tier, one) == [True]
    assert read(tier, one[0]) == one[1]


def test_a_path_that_cannot_be_a_directory_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t").write_bytes(b"")
    tier = hot(tmp_path / "t")
    for n in range(20):
        assert read(tier, bytes(32)) is None
        assert offer(tier, chunk(n, 9)) == [False]
    assert tier.usage().used_bytes == 0
    assert tier.map_tensor([bytes(32)], MIB, MIB) is None
    assert tier.stats.breaker_open
    assert len(caplog.records) == 2  # reading and filling, once each


def test_a_directory_that_everybody_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / STORE).mkdir(mode=0o777)
    (tmp_path / STORE).chmod(0o777)
    tier = hot(tmp_path)
    assert offer(tier, chunk(1)) == [False]


def test_what_stands_in_a_chunks_place_is_no_chunk(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    one, two, three = chunk(1), chunk(2), chunk(3)
    offer(tier, one, two, three)
    paths = files(tmp_path)
    for digest, _ in (one, two, three):
        paths[digest.hex()].unlink()
    (tmp_path / "real").write_bytes(one[1])
    paths[one[0].hex()].symlink_to(tmp_path / "real")
    os.mkfifo(paths[two[0].hex()])
    paths[three[0].hex()].mkdir()
    began = time.monotonic()
    for digest, _ in (one, two, three):
        assert read(tier, digest) is None
    assert time.monotonic() - began < 30


def test_a_lost_index_is_made_anew_from_the_files(tmp_path: Path) -> None:
    tier = hot(tmp_path)
    chunks = [chunk(n) for n in range(3)]
    offer(tier, *chunks)
    index = tmp_path / STORE / "index.db"
    for damage in (index.unlink, lambda: index.write_bytes(b"no database" * 1000)):
        damage()
        assert tier.usage().objects == 3
        assert hot(tmp_path).usage().objects == 3


ROW = (
    "INSERT INTO changes (who, kind, digest, size, time, cost, reads) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        (ROW, (1, 9, b"d" * 32, 1, 1.0, 1.0, 1.0)),
        (ROW, (1, "kind", b"d" * 32, 1, 1.0, 1.0, 1.0)),
        (ROW, (1, 1, 5, 1, 1.0, 1.0, 1.0)),
        (ROW, (1, 1, b"d" * 32, -4096, 1.0, 1.0, 1.0)),
        (ROW, (1, 0, b"d" * 32, 1, "now", 1.0, 1.0)),
        (ROW, (1, 0, b"d" * 32, 1, 1.0, -1.0, 1.0)),
        (ROW, (1, 0, b"d" * 32, 1, 1.0, 1.0, float("inf"))),
        ("INSERT INTO changes (seq, who, kind, digest, size, time, cost, reads) "
         "VALUES (9223372036854775807, 1, 1, zeroblob(32), 1, 1.0, 1.0, 1.0)", ()),
        ("INSERT INTO pins VALUES (?)", ("text",)),
        ("INSERT INTO chunks VALUES (?, ?, ?)", (b"d" * 32, 4096, "score")),
    ],
)  # fmt: skip
def test_an_index_with_a_damaged_row_is_made_anew(
    tmp_path: Path, sql: str, values: tuple[object, ...]
) -> None:
    """A bit flips in its file: SQLite has no checksums. A process is in step, and one opens it."""
    tier = hot(tmp_path)
    chunks = [chunk(n) for n in range(3)]
    offer(tier, *chunks)
    epoch = tier._dir.book._index.epoch
    with contextlib.closing(sqlite3.connect(tmp_path / STORE / "index.db")) as index, index:
        index.execute(sql, values)
    if "INTO changes" in sql:
        assert tier.usage().objects == 3
        assert tier._dir.book._index.epoch != epoch
    other = hot(tmp_path)
    assert offer(other, chunk(3)) == [True]
    assert other.usage().objects == tier.usage().objects == 4
    assert other.pinned() == set()


def test_a_writer_that_dies_leaves_nothing(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        tier = hot(tmp_path)
        monkey: Callable[..., None] = lambda *args: os._exit(9)  # noqa: E731
        tier._dir.files.write = monkey  # type: ignore[method-assign]
        offer(tier, chunk(1))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(list((tmp_path / STORE / "tmp~").iterdir())) == 1
    tier = hot(tmp_path)
    assert tier.usage().objects == 0
    assert not list((tmp_path / STORE / "tmp~").iterdir())
    assert offer(tier, chunk(1)) == [True]


def test_two_stores_share_a_directory_and_no_chunk(tmp_path: Path) -> None:
    one, data = chunk(1)
    offer(hot(tmp_path), (one, data))
    other = LocalHot(tmp_path, "other", MIB, lambda capacity: make("s3fifo", capacity))
    assert read(other, one) is None


def test_pages_are_shared_between_processes(tmp_path: Path) -> None:
    """Mapped, not copied: the pages are the page cache's own, until they are written to."""
    tier = hot(tmp_path)
    digests, _ = tensor_of(tier, 4 * MIB)
    array = tier.map_tensor(digests, MIB, 4 * MIB)
    assert array is not None
    assert int(array[:: mmap.PAGESIZE].sum()) > 0  # touch them
    sizes = {"Anonymous": 0, "Rss": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = f"{STORE}/boot-1/" in line
        name, _, rest = line.partition(":")
        if inside and name in sizes:
            sizes[name] += int(rest.split()[0]) * 1024
    assert sizes["Rss"] >= 4 * MIB
    assert sizes["Anonymous"] == 0
