"""The dedup index: whatever happens to its cache file, at worst a duplicate is missed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.format.layout import seal_segment
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.index import ChunkIndex

PACK = bytes([7]) * 32
SIZE = 1 << 20


def place(number: int, pack: bytes = PACK, bases: tuple[bytes, ...] = ()) -> ChunkPlace:
    digest = number.to_bytes(32, "big")
    return ChunkPlace(digest, pack, 64 + 200 * number, 200, 100, 4096, 3 if bases else 0, bases)


def segment(numbers: range, pack: bytes = PACK) -> bytes:
    return seal_segment([place(number, pack) for number in numbers], {pack: SIZE})


def home_with(*segments: tuple[str, bytes]) -> MemoryStore:
    home = MemoryStore()
    for name, data in segments:
        home.put(f"index/{name}", data)
    return home


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "index.sqlite"


def test_sync_reads_each_segment_once(path: Path) -> None:
    home = home_with(("a", segment(range(5))))
    index = ChunkIndex(home, path)
    index.sync()
    assert index.find(place(3).digest) == (place(3), SIZE)
    assert index.find(place(9).digest) is None
    home.put("index/b", segment(range(5, 10)))
    home.put("index/a", b"not read again")
    index.sync()
    assert index.find(place(9).digest) == (place(9), SIZE)
    index.close()
    again = ChunkIndex(home, path)
    again.sync()
    assert again.find(place(3).digest) == (place(3), SIZE)
    again.close()


def test_a_copy_of_a_store_has_a_cache_of_its_own(path: Path) -> None:
    """It has the id of the store, and so the folder, but not the packs that came since."""
    home, copy = home_with(("a", segment(range(5)))), MemoryStore("copy")
    indexes = [ChunkIndex(blobs, path) for blobs in (home, copy, copy)]
    for _ in range(2):
        for index in indexes:
            index.sync()
        found = [index.find(place(3).digest) is not None for index in indexes]
        assert found == [True, False, False]
        for index in indexes:
            index.close()
    assert len({one for one in path.parent.iterdir() if one.suffix == ".sqlite"}) == 2


def test_no_part_of_the_cache_is_mapped(path: Path) -> None:
    """On a full disk a process would be killed that maps what has no room (SIGBUS)."""
    index = ChunkIndex(home_with(("a", segment(range(5)))), path)
    index.sync()
    found = {one.name for one in path.parent.iterdir()}
    index.close()
    assert found <= {"index.sqlite", "index.sqlite-journal"}


def test_a_cache_of_an_earlier_version_is_taken_over(path: Path) -> None:
    index = ChunkIndex(home_with(("a", segment(range(5)))), path)
    index.sync()
    index.close()
    with contextlib.closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        old.execute("DELETE FROM chunks WHERE digest = ?", (place(2).digest,))
        old.commit()
    index = ChunkIndex(home_with(), path)
    assert index.find(place(3).digest) == (place(3), SIZE)
    assert index.find(place(2).digest) is None
    index.close()


def test_a_cache_from_before_there_were_proofs_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE segments (key TEXT PRIMARY KEY) WITHOUT ROWID")
        old.execute(
            "CREATE TABLE chunks (digest BLOB PRIMARY KEY, pack BLOB NOT NULL, place BLOB NOT NULL,"
            " bases BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID"
        )
        old.execute("INSERT INTO segments VALUES ('index/a')")
        old.commit()
    index = ChunkIndex(home_with(("a", segment(range(3)))), path)
    index.sync()
    assert index.find(place(2).digest) == (place(2), SIZE)
    index.close()


def test_a_place_survives_with_its_proof(path: Path) -> None:
    proven = replace(place(5), offset=9_000, proof_bytes=612)
    index = ChunkIndex(MemoryStore(), path)
    index.sync()
    index.add("index/x", [proven], {PACK: SIZE})
    assert index.find(proven.digest) == (proven, SIZE)
    index.close()


def test_a_place_survives_with_its_bases(path: Path) -> None:
    bases = (place(1).digest, place(2).digest)
    index = ChunkIndex(MemoryStore(), path)
    index.sync()
    index.add("index/x", [place(5, bases=bases)], {PACK: SIZE})
    assert index.find(place(5).digest) == (place(5, bases=bases), SIZE)
    index.forget([PACK])
    assert index.find(place(5).digest) is None
    index.close()


@pytest.mark.parametrize(
    "bad",
    [b"", b"not a segment", segment(range(3))[:-1], segment(range(3))[:5] + b"\x02" + bytes(60)],
    ids=["empty", "noise", "cut short", "of a newer version"],
)
def test_a_bad_segment_is_skipped(path: Path, bad: bytes) -> None:
    index = ChunkIndex(home_with(("a", bad), ("b", segment(range(3)))), path)
    index.sync()
    assert index.find(place(2).digest) == (place(2), SIZE)
    index.close()


def test_a_segment_that_vanishes_while_it_is_read_is_skipped(path: Path) -> None:
    class Vanishing(MemoryStore):
        def get(self, key, byte_range=None):
            if key == "index/a":
                self.delete([key])
            return super().get(key, byte_range)

    home = Vanishing()
    home.put("index/a", segment(range(3)))
    home.put("index/b", segment(range(3, 6)))
    index = ChunkIndex(home, path)
    index.sync()
    assert index.find(place(1).digest) is None
    assert index.find(place(4).digest) == (place(4), SIZE)
    index.close()


@pytest.mark.parametrize("moment", ["closed", "open", "between sync and find", "folder"])
def test_the_file_can_be_deleted_at_any_moment(path: Path, moment: str) -> None:
    home = home_with(("a", segment(range(3))))
    index = ChunkIndex(home, path)
    index.sync()
    if moment == "closed":
        index.close()
    for file in path.parent.iterdir():
        file.unlink()
    if moment == "folder":
        path.parent.rmdir()
    if moment != "between sync and find":
        index.sync()
    found = index.find(place(1).digest)
    assert found in (None, (place(1), SIZE))
    index.add("index/b", [place(8)], {PACK: SIZE})
    index.forget([PACK])
    index.close()
    again = ChunkIndex(home, path)
    again.sync()
    assert again.find(place(1).digest) in (None, (place(1), SIZE))
    again.close()


@pytest.mark.parametrize("how", ["noise", "cut short", "other tables", "is a folder", "empty"])
def test_a_damaged_file_is_replaced_or_done_without(path: Path, how: str) -> None:
    home = home_with(("a", segment(range(3000))))
    index = ChunkIndex(home, path)
    index.sync()
    index.close()
    if how == "noise":
        path.write_bytes(b"no database at all" * 500)
    elif how == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "is a folder":
            path.mkdir()
        else:
            db = sqlite3.connect(path)
            db.execute("CREATE TABLE chunks (digest BLOB PRIMARY KEY)")
            db.execute("CREATE TABLE segments (key TEXT PRIMARY KEY, more TEXT)")
            db.close()
    again = ChunkIndex(home, path)
    again.sync()
    hits = [again.find(place(number).digest) for number in range(3000)]
    assert all(hit in (None, (place(n), SIZE)) for n, hit in enumerate(hits))
    again.add("index/b", [place(5000)], {PACK: SIZE})
    again.sync()
    assert how == "cut short" or all(hits)
    again.close()


def test_no_flipped_bit_gives_a_wrong_place(path: Path) -> None:
    """SQLite has no checksums: a flipped bit in a row must not become a place in a layout."""
    home = home_with(("a", segment(range(40))))
    index = ChunkIndex(home, path)
    index.sync()
    index.close()
    good = path.read_bytes()
    missed = 0
    for at in range(4096, len(good), 29):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        again = ChunkIndex(MemoryStore(), path)
        try:
            again._connection()
        except sqlite3.Error:
            missed += 1
            continue
        for number in range(40):
            hit = again.find(place(number).digest)
            assert hit is None or hit[0] == place(number), f"byte {at}: {hit}"
            missed += hit is None
        again.close()
    assert missed, "the flips hit nothing: the test does not test"


@pytest.mark.parametrize("why", ["a file is in the way", "no permission"])
def test_without_a_place_for_the_file_it_is_kept_in_memory(tmp_path: Path, why: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    where = blocked / "index.sqlite" if why == "a file is in the way" else Path("/proc/nothing/x")
    index = ChunkIndex(home_with(("a", segment(range(3)))), where)
    index.sync()
    assert index.find(place(1).digest) == (place(1), SIZE)
    index.add("index/b", [place(8)], {PACK: SIZE})
    assert index.find(place(8).digest) == (place(8), SIZE)
    index.close()


def test_a_full_disk_does_not_stop_it(path: Path) -> None:
    home = home_with(*((f"{n:02}", segment(range(n * 200, n * 200 + 200))) for n in range(5)))
    index = ChunkIndex(home, path)
    index._connection().execute("PRAGMA max_page_count = 8")
    index.sync()
    assert index.find(place(999).digest) == (place(999), SIZE)
    index.close()


def test_a_forked_child_opens_its_own(path: Path) -> None:
    home = home_with(("a", segment(range(3))))
    index = ChunkIndex(home, path)
    index.sync()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        home.put("index/b", segment(range(3, 6)))
        index.sync()
        good = index.find(place(1).digest) == index.find(place(1).digest) != None  # noqa: E711
        good = good and index.find(place(4).digest) == (place(4), SIZE)
        index.close()
        os.write(write, b"+" if good else b"-")
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"+"
    os.close(read)
    assert index.find(place(1).digest) == (place(1), SIZE)
    index.add("index/c", [place(8)], {PACK: SIZE})
    assert index.find(place(8).digest) == (place(8), SIZE)
    index.close()


CHILD = """
import sys
from pathlib import Path
from tierstore.blobs.local.store import LocalStore
from tierstore.modelstore.home.index import ChunkIndex
home, path, me = LocalStore(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, sys.argv[4])
from test_modelstore_index import place, segment, PACK, SIZE
for n in range(15):
    first = (me * 15 + n) * 10
    home.put(f"index/{me}-{n}", segment(range(first, first + 10)))
    index = ChunkIndex(home, path)
    index.sync()
    assert index.find(place(first + 9).digest) == (place(first + 9), SIZE)
    index.add(f"index/{me}-{n}", [place(first)], {PACK: SIZE})
    index.close()
"""


def test_processes_share_one_file(tmp_path: Path) -> None:
    LocalStore(tmp_path / "home", create=True)
    path = tmp_path / "cache" / "index.sqlite"
    here = str(Path(__file__).parent)
    command = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path / "home"), str(path)]
    children = [
        subprocess.Popen([*command, str(me), here], stderr=subprocess.PIPE, text=True)
        for me in range(3)
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        assert "index cache" not in errors, "no process took the file from another"
    index = ChunkIndex(LocalStore(tmp_path / "home"), path)
    index.sync()
    assert all(index.find(place(number).digest) for number in range(450))
    index.close()


def test_threads_share_one_index(path: Path) -> None:
    home = home_with(("a", segment(range(500))))
    index = ChunkIndex(home, path)
    index.sync()
    wrong: list[int] = []

    def look() -> None:
        for number in range(500):
            if index.find(place(number).digest) != (place(number), SIZE):
                wrong.append(number)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        index.add(f"index/{number}", [place(1000 + number)], {PACK: SIZE})
    for thread in threads:
        thread.join()
    assert wrong == []
    index.close()


def test_a_delta_never_takes_the_place_of_a_standalone_frame(path: Path) -> None:
    """It may be a base: a layout whose base is a delta could not be read."""
    index = ChunkIndex(home_with(("a", segment(range(2)))), path)
    index.sync()
    delta, other = place(0, bases=(place(1).digest,)), bytes([8]) * 32
    index.add("index/b", [delta, place(5, bases=(place(1).digest,))], {PACK: SIZE})
    assert index.find(place(0).digest) == (place(0), SIZE)
    index.add("index/c", [place(0, other), place(5, other)], {other: SIZE})
    assert index.find(place(0).digest) == (place(0, other), SIZE)  # a newer one does
    assert index.find(place(5).digest) == (place(5, other), SIZE)
    index.close()
