"""Processes that are killed or paused at random moments of what they do to a store on a disk.

Each time a child is forked from this interpreter, in which everything is imported, and works on a
copy of a store. After a random part of the time that its work takes it is killed (SIGKILL), in some
cases while another child collects garbage; or it is stopped (SIGSTOP), all leases end, a whole
collection is done, and it goes on. Then one more looks that all that was promised is there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.schedules.promises import CONTENTS, Content, Promises, patched
from tierstore.blobs.local.store import LocalStore
from tierstore.errors import TierstoreError
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.home.leases import TTL_S
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

MIB = 1 << 20
_BEGUN = b"."
_LEASES = ("leases", "movers", "sweeps")


def opened(root: Path) -> Store:
    """Open the store below a folder: a home and a warm tier."""
    home = LocalStore(root / "home")
    spec = TierSpec(name="warm", role="warm", url=str(root / "warm"))
    packs = DurableTiers([DurableTier(spec, LocalStore(root / "warm")), home_tier(home)])
    settings = Settings(root / f"cache-{os.getpid()}", threads=2, memory_limit_bytes=64 * MIB)
    return Store(home, settings, packs=packs)


def make(root: Path) -> dict[tuple[str, int], Content]:
    """Make a store as ``world`` does; return the content of its versions."""
    create_config(LocalStore(root / "home", create=True), MIB)
    LocalStore(root / "warm", create=True)
    versions: dict[tuple[str, int], Content] = {}
    with opened(root) as store:
        enable(store._parts.home, wait_s=0)
        for model, name, base in (
            ("m", "first", None), ("m", "third", None), ("n", "first", None),
            ("n", "tuned", "n@1"), ("n", "other", None),
        ):  # fmt: skip
            versions[model, store.save(model, CONTENTS[name], base=base).number] = CONTENTS[name]
        content = CONTENTS["other"]
        for rows in (1, 2):
            changes, content = patched(content, rows)
            versions["n", store.patch("n", changes).number] = content
        store.remove("m@1", "n@1", "n@2")
    return versions


def _collect(store: Store) -> None:
    Collector(store._parts.home).run(grace_s=0, window_s=0)


def _repack(store: Store) -> None:
    for _ in range(2):
        Collector(store._parts.home).run(grace_s=0, window_s=0, repack=True)


def _move(store: Store) -> None:
    packs = store.placement.packs_of(store.resolve("n@3").digest)
    store.placement.move(packs, "home")


def _rebase(store: Store) -> None:
    store.undelete("n@2", message="kept")
    store.rebase("n@2", above=1)


def _remove_and_collect(store: Store) -> None:
    store.remove("n@5", force=True)
    _collect(store)


def _patch(store: Store) -> Version:
    changes, _ = patched(CONTENTS["other"], 3)
    return store.patch("n@3", changes)


ACTS: dict[str, tuple[Callable[[Store], object], Content | None]] = {
    "save": (lambda store: store.save("m", CONTENTS["fresh"], base=None), CONTENTS["fresh"]),
    "save of what was removed": (
        lambda store: store.save("m", CONTENTS["first"], base=None), CONTENTS["first"],
    ),
    "save of a delta": (
        lambda store: store.save("n", CONTENTS["tuned"], base="n@3"), CONTENTS["tuned"],
    ),
    "patch": (_patch, patched(CONTENTS["other"], 3)[1]),
    "fold": (lambda store: store.fold("n@5"), None),
    "rebase": (_rebase, None),
    "move": (_move, None),
    "rm": (lambda store: store.remove("m@2", force=True), None),
    "undelete": (lambda store: store.undelete("m@1", message="kept"), None),
    "gc": (_collect, None),
    "gc and repack": (_repack, None),
    "rm and gc": (_remove_and_collect, None),
}  # fmt: skip
"""What is done, and the content of the version that it publishes."""


def kill_many(seed: int, kills: int) -> dict[str, int]:
    """Kill so many processes; return how many of them did what.

    Raises:
        AssertionError: Something is lost, or garbage stays; the message names what was killed.
    """
    rng = random.Random(seed)

    def kill(name: str, root: Path, actor: int, took_s: float) -> bool:
        is_beside = rng.random() < 0.3 and "gc" not in name
        other = _forked(partial(_act, root, _collect, None)) if is_beside else None
        time.sleep(rng.uniform(0, took_s))
        os.kill(actor, signal.SIGKILL)
        was_killed = os.WIFSIGNALED(os.waitpid(actor, 0)[1])
        if other is not None:
            _ended(other, name)
        return was_killed

    return _many(rng, kills, kill)


def pause_many(seed: int, pauses: int) -> dict[str, int]:
    """Pause so many processes past the end of their leases; return how many of them did what.

    Raises:
        AssertionError: Something is lost, or garbage stays; the message names what was paused.
    """
    rng = random.Random(seed)

    def pause(name: str, root: Path, actor: int, took_s: float) -> bool:
        time.sleep(rng.uniform(0, took_s))
        os.kill(actor, signal.SIGSTOP)
        was_paused = os.WIFSTOPPED(os.waitpid(actor, os.WUNTRACED)[1])
        if was_paused:
            end_leases(root)
            _ended(_forked(partial(_act, root, _collect, None)), name)
            os.kill(actor, signal.SIGCONT)
            _ended(actor, name)
        return was_paused

    return _many(rng, pauses, pause)


def _many(
    rng: random.Random, count: int, disturb: Callable[[str, Path, int, float], bool]
) -> dict[str, int]:
    folder = Path(tempfile.mkdtemp(prefix="killed", dir=_shm()))
    try:
        made, root = folder / "made", folder / "store"
        versions = make(made)
        took_s = {name: _took_s(made, folder, act) for name, (act, _) in ACTS.items()}
        done = dict.fromkeys(ACTS, 0)
        while sum(done.values()) < count:
            name = rng.choice(list(ACTS))
            shutil.copytree(made, root)
            act, content = ACTS[name]
            actor = _forked(partial(_act, root, act, root / "promised"))
            done[name] += disturb(name, root, actor, took_s[name])
            _ended(_forked(partial(_check, root, versions, content)), name)
            shutil.rmtree(root)
        return done
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shm() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _took_s(made: Path, folder: Path, act: Callable[[Store], object]) -> float:
    root = folder / "timed"
    shutil.copytree(made, root)
    child = _forked(partial(_act, root, act, None))
    began = time.monotonic()
    _ended(child, "nothing")
    shutil.rmtree(root)
    return time.monotonic() - began


def _forked(do: Callable[[Callable[[], object]], None]) -> int:
    """Fork a child that does something; return its pid once it has said that it begins."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        os.read(read, 1)
        os.close(read)
        return child
    code = 1
    try:
        do(lambda: os.write(write, _BEGUN))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _act(
    root: Path,
    act: Callable[[Store], object],
    promised: Path | None,
    begins: Callable[[], object],
) -> None:
    """Do something; what it promises to its user is left in a file."""
    with opened(root) as store:
        begins()
        try:
            made = act(store)
        except TierstoreError as error:  # who comes in between may be in its way
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return
        if promised is not None:
            text = f"{made.model} {made.number}" if isinstance(made, Version) else "done"
            promised.write_text(text)


def _ended(child: int, name: str) -> None:
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"beside {name!r}: status {status}, see above"


def end_leases(root: Path) -> None:
    """Write the leases back in time."""
    for prefix in _LEASES:
        for path in (root / "home" / prefix).glob("*"):
            past_s = path.stat().st_mtime - 3 * TTL_S
            os.utime(path, (past_s, past_s))


def _check(
    root: Path,
    versions: dict[tuple[str, int], Content],
    content: Content | None,
    begins: Callable[[], object],
) -> None:
    """Raise unless all that was promised is there, and all else goes."""
    begins()
    promises = Promises(dict(versions), is_kept=False)
    try:
        promised = (root / "promised").read_text()
    except FileNotFoundError:  # it did not come so far
        pass
    else:
        promises.undeleted.add("kept")
        if content is not None:
            model, number = promised.split()
            promises.versions[model, int(number)] = content
    promises.settle(lambda: opened(root), lambda: end_leases(root))
    with opened(root) as store:
        report = store.check()
        assert not report.damaged, report.findings
