"""What restic and borg do in the cases that docs/reference/promises.md is about.

Each case works on new, small repositories on the local disk, drives the program itself, and tells
what came of it: exit codes, what was printed last, what can be restored, how many bytes were
written. The page says in words what stands there, and links the table of results.

Two cases need root: they mount a small tmpfs. ``--long`` adds the case in which a writer stands
still for longer than a lock of restic's counts, which takes 35 minutes, by the clock of the wall.

Run: ``python -m benchmarks.promises_peers [CASE...] [--long]``. Needs restic, borg, strace and
faketime. All cases without ``--long`` take a few minutes; the results of the cases that ran replace
theirs in ``docs/assets/promises-peers.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import HERE, console, show
from benchmarks.data import bench_dir
from benchmarks.peers import FILE_BYTES, MIB, PEERS, Done, Peer, flip, versions

RESULTS = HERE.parent / "docs" / "assets" / "promises-peers.json"
FILES = 12
"""Files of a source; 96 MiB together."""
LOCK_COUNTS_S = 35 * 60
"""restic takes a lock for left over once it was not renewed for 30 minutes."""
SLOW_DELETES = (
    "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlink,unlinkat",
    "-e", "inject=unlink,unlinkat:delay_enter=100000",
)  # fmt: skip

Facts = dict[str, str]
Case = Callable[[Peer], Facts]


def told(done: Done) -> str:
    """``exit 1: what it printed last``."""
    return f"exit {done.code}: {done.said}" if done.code and done.said else f"exit {done.code}"


def share(part: int, whole: int) -> str:
    return f"{part / MIB:.0f} of {whole / MIB:.0f} MiB"


def two_saved(peer: Peer) -> None:
    """A repository with two names that share nothing, ``old`` and ``new``, which the source is."""
    peer.init()
    peer.fill(FILES, "old")
    peer.save("old")
    peer.fill(FILES, "new")
    peer.save("new")


def half_saved(peer: Peer, tag: str = "a") -> subprocess.Popen[bytes]:
    """Start a save, and return when about half of it lies in the repository."""
    before, half = peer.stored_bytes(), len(list(peer.source.iterdir())) * FILE_BYTES // 2
    child = peer.start(peer.saving(tag))
    if not peer.until(child, lambda: peer.stored_bytes() - before > half):
        raise RuntimeError(f"{peer.name} was done too soon")
    return child


def collection_under_way(peer: Peer) -> subprocess.Popen[bytes]:
    """Remove ``old``, begin to give its space back, and return when some files are deleted."""
    peer.remove("old")
    files = len(peer.data())
    child = peer.start(peer.at(*peer.collecting), wrap=SLOW_DELETES)
    if not peer.until(child, lambda: len(peer.data()) < files - 1):
        raise RuntimeError(f"{peer.name} was done too soon")
    return child


def killed_saving(peer: Peer) -> Facts:
    peer.init()
    peer.fill(2 * FILES)
    peer.kill(half_saved(peer))
    left = peer.stored_bytes()
    facts = {"names after the kill": ", ".join(peer.tags()) or "none", "check": told(peer.check())}
    facts["next save"] = told(peer.save("b"))
    facts["the next save stored again"] = share(_written(peer, left), 2 * FILES * FILE_BYTES)
    facts["collection"] = told(peer.collect())
    return facts | {"restored": peer.restored("b")}


def _written(peer: Peer, before: int) -> int:
    """Bytes that were added, also where as many were taken away: by what is needless now."""
    return peer.stored_bytes() - before if peer.name == "restic" else _added_by_borg(peer)


def _added_by_borg(peer: Peer) -> int:
    info = peer.run(peer.at("info", "--json", "--last", "1"))
    return int(json.loads(info.out)["archives"][0]["stats"]["deduplicated_size"])


def interrupted_saving(peer: Peer) -> Facts:
    peer.init()
    peer.fill(2 * FILES)
    ended = peer.kill(half_saved(peer), signal.SIGINT)
    left = peer.stored_bytes()
    facts = {"Ctrl-C": told(ended), "names": ", ".join(peer.tags()) or "none"}
    facts["next save"] = told(peer.save("b"))
    stored = share(_written(peer, left), 2 * FILES * FILE_BYTES)
    return facts | {"the next save stored again": stored, "restored": peer.restored("b")}


def killed_collecting(peer: Peer) -> Facts:
    two_saved(peer)
    peer.kill(collection_under_way(peer))
    facts = {"save right after it": told(peer.save("next")), "check": told(peer.check())}
    facts["restored"] = peer.restored("new")
    facts["collected again"] = told(peer.collect())
    if peer.name == "restic":
        peer.run(peer.at("unlock"))
        facts["collected again after 'unlock'"] = told(peer.collect())
        facts["save after 'unlock'"] = told(peer.save("next"))
    return facts | {"check in the end": told(peer.read())}


def two_collectors(peer: Peer) -> Facts:
    two_saved(peer)
    child = collection_under_way(peer)
    with peer.stopped(child):
        second = peer.collect()
    return {"the second one": told(second), "the first one": told(peer.ended(child)),
            "restored": peer.restored("new")}  # fmt: skip


def save_beside_collection(peer: Peer) -> Facts:
    two_saved(peer)
    child = collection_under_way(peer)
    with peer.stopped(child):
        facts = {"save": told(peer.save("meanwhile")), "restore": peer.restored("new")}
    peer.ended(child)
    peer.fill(2 * FILES)
    child = half_saved(peer, "third")
    with peer.stopped(child):
        facts["collection while a save runs"] = told(peer.collect())
        facts["removal while a save runs"] = told(peer.remove("new"))
    return facts | {"that save": told(peer.ended(child))}


def two_saves(peer: Peer) -> Facts:
    peer.init()
    peer.fill(2 * FILES)
    child = half_saved(peer, "first")
    with peer.stopped(child):
        second = peer.save("second")
    return {"the second one": told(second), "the first one": told(peer.ended(child)),
            "restored": peer.restored("first")}  # fmt: skip


def paused_writer(peer: Peer) -> Facts:
    """A save stands still for longer than a lock counts; meanwhile somebody collects."""
    child = half_saved_beside_garbage(peer)
    with peer.stopped(child):
        time.sleep(LOCK_COUNTS_S)
        facts = {"collection": told(peer.collect())}
        unlock = peer.at("unlock") if peer.name == "restic" else peer.at("break-lock")
        facts[f"'{unlock[-1]}'"] = told(peer.run(unlock))
        facts["collection after that"] = told(peer.collect())
    facts["the paused save"] = told(peer.ended(child))
    return facts | {"check": told(peer.check()), "restored": peer.restored("a")}


def broken_lock(peer: Peer) -> Facts:
    """The lock of a save that stands still between two files is broken, and somebody collects."""
    child = half_saved_beside_garbage(peer)
    os.killpg(child.pid, signal.SIGSTOP)
    while any(peer.repo.glob("data/*/*-tmp-*")):  # a pack of restic's that is being written
        os.killpg(child.pid, signal.SIGCONT)
        time.sleep(0.005)
        os.killpg(child.pid, signal.SIGSTOP)
    breaking = ("unlock", "--remove-all") if peer.name == "restic" else ("break-lock",)
    facts = {f"'{' '.join(breaking)}'": told(peer.run(peer.at(*breaking)))}
    facts["collection after that"] = told(peer.collect())
    os.killpg(child.pid, signal.SIGCONT)
    facts["the paused save"] = told(peer.ended(child))
    return facts | {"check": told(peer.check()), "restored": peer.restored("a")}


def half_saved_beside_garbage(peer: Peer) -> subprocess.Popen[bytes]:
    """Start a save where there is something to collect; return when half of it is stored."""
    peer.init()
    peer.fill(FILES, "old")
    peer.save("old")
    peer.remove("old")
    peer.fill(2 * FILES)
    return half_saved(peer)


def undone_removal(peer: Peer) -> Facts:
    two_saved(peer)
    facts = {"removal": told(peer.remove("new"))}
    if peer.name == "restic":
        facts["'recover' before the collection"] = told(peer.run(peer.at("recover")))
        facts["names then"] = ", ".join(peer.tags())
        facts["restored then"] = peer.restored("recovered")
        peer.remove("recovered")
    facts["collection"] = told(peer.collect())
    facts["names after it"] = ", ".join(peer.tags())
    if peer.name == "restic":
        facts["'recover' after it"] = peer.run(peer.at("recover")).out.strip()[-120:]
    return facts


def in_a_full_disk(peer: Peer, size_mib: int, case: Case) -> Facts:
    """Work with a repository on a tmpfs of a size."""
    peer.repo.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(peer.repo)]
    subprocess.run(mount, check=True)
    try:
        return case(peer)
    finally:
        subprocess.run(["umount", str(peer.repo)], check=True)


def full_saving(peer: Peer) -> Facts:
    def case(peer: Peer) -> Facts:
        peer.init()
        peer.fill(4, "small")
        peer.save("small")
        peer.fill(2 * FILES, "large")
        facts = {"save": told(peer.save("large")), "names": ", ".join(peer.tags())}
        facts["free then, MiB"] = str(shutil.disk_usage(peer.repo).free // MIB)
        facts["check"] = told(peer.check())
        peer.fill(1, "little")
        return facts | {"save of 8 MiB more": told(peer.save("little"))}

    return in_a_full_disk(peer, 128, case)


def full_deleting(peer: Peer) -> Facts:
    def case(peer: Peer) -> Facts:
        two_saved(peer)
        filler = peer.repo / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass
        facts = {"removal": told(peer.remove("old")), "collection": told(peer.collect())}
        os.truncate(filler, filler.stat().st_size - MIB)
        facts["removal once 1 MiB is freed by hand"] = told(peer.remove("old"))
        facts["collection after that"] = told(peer.collect())
        return facts | {"free then, MiB": str(shutil.disk_usage(peer.repo).free // MIB)}

    return in_a_full_disk(peer, 256, case)


def flipped(peer: Peer) -> Facts:
    """A bit in each kind of object: which command finds it, and what is restored."""
    peer.init()
    peer.fill(4)
    peer.save("a")
    clean = peer.place / "clean"
    shutil.copytree(peer.repo, clean)
    facts = {}
    for kind, path in _kinds(peer).items():
        shutil.rmtree(peer.place / "cache", ignore_errors=True)
        flip(path)
        facts[f"{kind}: check"] = told(peer.check())
        facts[f"{kind}: check of all data"] = told(peer.read())
        facts[f"{kind}: restored"] = peer.restored("a")
        shutil.rmtree(peer.repo)
        shutil.copytree(clean, peer.repo)
    return facts


def _kinds(peer: Peer) -> dict[str, Path]:
    """A file of each kind of object."""
    data = peer.data()
    if peer.name == "restic":
        metadata = {
            kind: next((peer.repo / kind).iterdir()) for kind in ("keys", "index", "snapshots")
        }
        return {
            "data pack": data[0],
            "tree pack": data[-1],
            "config": peer.repo / "config",
        } | metadata
    found = {name: next(peer.repo.glob(f"{name}.*")) for name in ("hints", "index", "integrity")}
    small = [path for path in data if path.stat().st_size > 200]
    return {"data segment": data[0], "segment with the archive": small[-1],
            "config": peer.repo / "config", "nonce": peer.repo / "nonce"} | found  # fmt: skip


def saved_over_damage(peer: Peer) -> Facts:
    peer.init()
    peer.fill(4)
    peer.save("a")
    flip(peer.data()[0])
    facts = {"save of the same content": told(peer.save("b")), "restored": peer.restored("b")}
    if peer.name == "restic":
        damaged = next(path for path in peer.data() if _is_wrong(path))
        damaged.unlink()
        facts["'rebuild-index' without the damaged pack"] = told(peer.run(peer.at("rebuild-index")))
        facts["save with --force"] = told(peer.run([*peer.saving("c"), "--force"]))
    else:
        facts["'check --repair'"] = told(peer.run(peer.at("check", "--repair", "--verify-data")))
        facts["restored after it"] = peer.restored("a")
        facts["save after it"] = told(peer.save("c"))
        facts["'check --repair' once more"] = told(peer.run(peer.at("check", "--repair")))
    return facts | {"the first one then": peer.restored("a"), "the new one": peer.restored("c")}


def _is_wrong(path: Path) -> bool:
    """Whether a pack of restic's does not have the hash that it is named after."""
    found = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    return not found.startswith(path.name)


def lost_index(peer: Peer) -> Facts:
    peer.init()
    peer.fill(4)
    peer.save("a")
    shutil.rmtree(peer.place / "cache", ignore_errors=True)
    lost = (peer.repo / "index").iterdir() if peer.name == "restic" else peer.repo.glob("index.*")
    for path in list(lost):
        path.unlink()
    facts = {"restored without": peer.restored("a"), "check": told(peer.check())}
    if peer.name == "restic":
        facts["'rebuild-index'"] = told(peer.run(peer.at("rebuild-index")))
    return facts | {"restored": peer.restored("a")}


def lost_config(peer: Peer) -> Facts:
    peer.init()
    peer.fill(4)
    peer.save("a")
    (peer.repo / "config").unlink()
    facts = {"restored without": peer.restored("a"), "check": told(peer.check())}
    facts["'check --repair'" if peer.name == "borg" else "'rebuild-index'"] = told(
        peer.run(peer.at("check", "--repair") if peer.name == "borg" else peer.at("rebuild-index"))
    )
    return facts | {
        "'init' over it": told(peer.init()),
        "restored after 'init'": peer.restored("a"),
    }


def lost_data(peer: Peer) -> Facts:
    """One file with content is gone: a program with one place has no other copy."""
    peer.init()
    if peer.name == "borg":  # else all of it lies in one file of at most 500 MB
        peer.run(peer.at("config", str(peer.repo), "max_segment_size", str(16 * MIB)))
    peer.fill(FILES)
    peer.save("a")
    peer.data()[1].unlink()
    facts = {"check": told(peer.check()), "restored": peer.restored("a")}
    facts["save of the same content"] = told(peer.save("b"))
    facts["restored from that"] = peer.restored("b")
    repair = peer.at("check", "--repair") if peer.name == "borg" else peer.at("rebuild-index")
    facts[f"'{' '.join(repair[1:]).removeprefix('--quiet ')}'"] = told(peer.run(repair))
    facts["save after it"] = told(peer.save("c"))
    if peer.name == "borg":
        facts["'check --repair' once more"] = told(peer.run(repair))
    return facts | {"the first one then": peer.restored("a")}


def wrong_clock(peer: Peer) -> Facts:
    """A save by a clock that is an hour behind, after one by the right one; then keep the last."""
    peer.init()
    peer.fill(2)
    peer.save("first")
    if peer.name == "restic":  # its clock is not that of the C library: the time is given
        behind = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - 3600))
        late = peer.run([*peer.saving("second"), "--time", behind])
        keep = peer.at("forget", "--keep-last", "1")
    else:
        late = peer.run(peer.saving("second"), wrap=("faketime", "-f", "-1h"))
        keep = peer.at("prune", "--keep-last", "1")
    facts = {"save an hour behind": told(late), "keep the last one": told(peer.run(keep))}
    return facts | {"what was kept": ", ".join(peer.tags())}


def synced(peer: Peer) -> Facts:
    """What is synced before a save returns; and what a sync that fails makes of it."""
    peer.init()
    peer.fill(4)
    trace = peer.place / "trace"
    tracing = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", "trace=fsync,fdatasync"]
    peer.run(peer.saving("a"), wrap=tracing)
    synced = {line.partition("<")[2].partition(">")[0] for line in trace.read_text().splitlines()}
    inside = [Path(path) for path in synced if path.startswith(str(peer.repo))]
    folders = {
        path.relative_to(peer.repo).parts[0]
        for path in inside
        if path.is_dir() and path != peer.repo
    }
    files = {
        re.split("[.-]", path.relative_to(peer.repo).parts[0])[0]
        for path in inside
        if not path.is_dir()
    }
    failing = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
               "-e", "inject=fsync,fdatasync:error=EIO"]  # fmt: skip
    peer.fill(4)
    failed = peer.run(peer.saving("b"), wrap=failing)
    return {"files that were synced": ", ".join(sorted(files)),
            "folders that were synced": ", ".join(sorted(folders)) or "none",
            "save while every sync fails": told(failed),
            "names then": ", ".join(peer.tags())}  # fmt: skip


def legal_deletion(peer: Peer) -> Facts:
    """Remove one name for good: what stays in the repository, and on this machine."""
    two_saved(peer)
    least = peer.stored_bytes()
    facts = {"removal": told(peer.remove("old")), "collection": told(peer.collect())}
    facts["bytes given back"] = share(least - peer.stored_bytes(), FILES * FILE_BYTES)
    cache = peer.place / ("cache" if peer.name == "restic" else "base")
    kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return facts | {"caches of this user, KiB": str(kept >> 10)}


CASES: dict[str, Case] = {
    "killed-saving": killed_saving,
    "interrupted-saving": interrupted_saving,
    "two-saves": two_saves,
    "full-saving": full_saving,
    "synced": synced,
    "killed-collecting": killed_collecting,
    "two-collectors": two_collectors,
    "save-beside-collection": save_beside_collection,
    "paused-writer": paused_writer,
    "broken-lock": broken_lock,
    "full-deleting": full_deleting,
    "wrong-clock": wrong_clock,
    "undone-removal": undone_removal,
    "legal-deletion": legal_deletion,
    "flipped-bit": flipped,
    "saved-over-damage": saved_over_damage,
    "lost-index": lost_index,
    "lost-config": lost_config,
    "lost-data": lost_data,
}
"""In the order of the page."""

LONG = ("paused-writer",)


def run(case: Case, parent: Path) -> dict[str, Facts]:
    """Run a case with each program, both at once."""

    def one(make: type[Peer]) -> Facts:
        place = parent / make.name
        try:
            return case(make(place))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    with ThreadPoolExecutor() as pool:
        return dict(zip([make.name for make in PEERS], pool.map(one, PEERS), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--long", action="store_true", help="the case that takes 35 minutes, too")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    chosen = given.cases or [name for name in CASES if given.long or name not in LONG]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder:
        for name in chosen:
            results[name] = run(CASES[name], Path(folder))
            show(
                name,
                ("program", "what", "came of it"),
                [
                    (program, *fact)
                    for program, facts in results[name].items()
                    for fact in facts.items()
                ],
            )
    before = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else {}
    cases = {name: (before | results)[name] for name in CASES if name in before | results}
    text = json.dumps({"versions": versions(), "cases": cases}, indent=1)
    RESULTS.write_text(text + "\n")
    console.print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
