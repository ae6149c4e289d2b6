"""Processes that are killed or paused at random moments of what they do to a store.

Each time a child is forked from this interpreter, in which everything is imported, and works on a
copy of a store, on a disk or on a real server. After a random part of the time that its work takes
it is killed (SIGKILL), in some cases while another child collects garbage; or it is stopped
(SIGSTOP), all leases end, a whole collection is done, and it goes on. Then one more looks that all
that was promised is there.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.schedules.places import PLACES, Disk, Place
from tests.schedules.promises import CONTENTS, Content, Promises, patched
from tierstore.admin.purges import purges_of
from tierstore.errors import TierstoreError
from tierstore.format.keys import layout_key, pack_key
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

MIB = 1 << 20
_BEGUN = b"."


def opened(place: Place) -> Store:
    """Open the store of a place: a home and a warm tier."""
    home, warm = place.blobs("home"), place.blobs("warm")
    spec = TierSpec(name="warm", role="warm", url=warm.url)
    packs = DurableTiers([DurableTier(spec, warm), home_tier(home)])
    settings = Settings(
        place.notes / f"cache-{os.getpid()}", threads=2, memory_limit_bytes=64 * MIB
    )
    return Store(home, settings, packs=packs)


def make(place: Place) -> dict[tuple[str, int], Content]:
    """Make a store as ``world`` does; return the content of its versions."""
    create_config(place.blobs("home"), MIB)
    versions: dict[tuple[str, int], Content] = {}
    with opened(place) as store:
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


def _damage(place: Place) -> None:
    """Damage a pack with a good copy in home, one that has no other copy, and a layout."""
    with opened(place) as store:
        digests = [store.resolve(ref).digest for ref in ("m@2", "n@3")]
        lone, copied = (store.placement.packs_of(digest)[-1] for digest in digests)
    with place.blobs("home") as home, place.blobs("warm") as warm:
        home.put(pack_key(copied), warm.get(pack_key(copied)))
        for blobs, key, at in (
            (warm, pack_key(copied), 5000),
            (warm, pack_key(lone), -1),
            (home, layout_key(digests[1]), -1),
        ):
            data = bytearray(blobs.get(key))
            data[at] ^= 1
            blobs.put(key, data)


@dataclass(frozen=True)
class Act:
    """What a process does.

    Attributes:
        do: Does it.
        content: The content of the version that it publishes, if it does.
        is_repair: Whether it repairs what ``_damage`` does first.
    """

    do: Callable[[Store], object]
    content: Content | None = None
    is_repair: bool = False


ACTS: dict[str, Act] = {
    "save": Act(lambda store: store.save("m", CONTENTS["fresh"], base=None), CONTENTS["fresh"]),
    "save of what was removed": Act(
        lambda store: store.save("m", CONTENTS["first"], base=None), CONTENTS["first"]
    ),
    "purge": Act(lambda store: purges_of(store).begin(["m@2"], force=True, message=None)),
    "purge of a base": Act(lambda store: purges_of(store).begin(["n@1"], force=True, message=None)),
    "save of a delta": Act(
        lambda store: store.save("n", CONTENTS["tuned"], base="n@3"), CONTENTS["tuned"]
    ),
    "patch": Act(_patch, patched(CONTENTS["other"], 3)[1]),
    "fold": Act(lambda store: store.fold("n@5")),
    "rebase": Act(_rebase),
    "move": Act(_move),
    "rm": Act(lambda store: store.remove("m@2", force=True)),
    "undelete": Act(lambda store: store.undelete("m@1", message="kept")),
    "gc": Act(_collect),
    "gc and repack": Act(_repack),
    "rm and gc": Act(_remove_and_collect),
    "repair": Act(lambda store: store.repair(), is_repair=True),
}


def kill_many(seed: int, kills: int, where: str = "disk") -> dict[str, int]:
    """Kill so many processes; return how many of them did what.

    Raises:
        AssertionError: Something is lost, or garbage stays; the message names what was killed.
    """
    rng = random.Random(seed)

    def kill(name: str, place: Place, actor: int, took_s: float) -> bool:
        is_beside = rng.random() < 0.3 and "gc" not in name
        other = _forked(partial(_act, place, ACTS["gc"], None)) if is_beside else None
        time.sleep(rng.uniform(0, took_s))
        os.kill(actor, signal.SIGKILL)
        was_killed = os.WIFSIGNALED(os.waitpid(actor, 0)[1])
        if other is not None:
            _ended(other, name)
        return was_killed

    return _many(rng, kills, where, kill)


def pause_many(seed: int, pauses: int, where: str = "disk") -> dict[str, int]:
    """Pause so many processes past the end of their leases; return how many of them did what.

    Raises:
        AssertionError: Something is lost, or garbage stays; the message names what was paused.
    """
    rng = random.Random(seed)

    def pause(name: str, place: Place, actor: int, took_s: float) -> bool:
        time.sleep(rng.uniform(0, took_s))
        os.kill(actor, signal.SIGSTOP)
        was_paused = os.WIFSTOPPED(os.waitpid(actor, os.WUNTRACED)[1])
        if was_paused:
            _done(place.end_leases, name)
            _ended(_forked(partial(_act, place, ACTS["gc"], None)), name)
            os.kill(actor, signal.SIGCONT)
            _ended(actor, name)
        return was_paused

    return _many(rng, pauses, where, pause)


def _many(
    rng: random.Random,
    count: int,
    where: str,
    disturb: Callable[[str, Place, int, float], bool],
) -> dict[str, int]:
    with (
        tempfile.TemporaryDirectory(prefix="killed", dir=_shm()) as folder,
        PLACES[where](Path(folder)) as place,
    ):
        made = Disk(Path(folder) / "made")
        made.begin()
        versions = make(made)
        took_s = {name: _took_s(made, place, name) for name in ACTS}
        done = dict.fromkeys(ACTS, 0)
        while sum(done.values()) < count:
            name = rng.choice(list(ACTS))
            with _filled(place, made, name):
                promised = place.notes / "promised"
                actor = _forked(partial(_act, place, ACTS[name], promised))
                done[name] += disturb(name, place, actor, took_s[name])
                place.wait_for_sent()
                _ended(_forked(partial(_check, place, versions, ACTS[name])), name)
        return done


def _shm() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def _filled(place: Place, made: Disk, name: str) -> Iterator[None]:
    """The place holds what was made, damaged for a repair, within the block."""
    place.begin()
    _done(lambda: place.fill(made), name)
    if ACTS[name].is_repair:
        _done(lambda: _damage(place), name)
    yield
    place.clear()


def _took_s(made: Disk, place: Place, name: str) -> float:
    with _filled(place, made, name):
        child = _forked(partial(_act, place, ACTS[name], None))
        began = time.monotonic()
        _ended(child, name)
        return time.monotonic() - began


def _done(do: Callable[[], None], name: str) -> None:
    """Do something in a child: what it opens and which threads it starts end with it."""

    def all_of_it(begins: Callable[[], object]) -> None:
        begins()
        do()

    _ended(_forked(all_of_it), name)


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


def _act(place: Place, act: Act, promised: Path | None, begins: Callable[[], object]) -> None:
    """Do something; what it promises to its user is left in a file."""
    with opened(place) as store:
        begins()
        try:
            made = act.do(store)
        except TierstoreError as error:  # who comes in between may be in its way
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return
        if promised is not None:
            text = f"{made.model} {made.number}" if isinstance(made, Version) else "done"
            said = promised.with_suffix(".part")
            said.write_text(text)
            said.replace(promised)  # a promise that was killed half said is none


def _ended(child: int, name: str) -> None:
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"beside {name!r}: status {status}, see above"


def _check(
    place: Place,
    versions: dict[tuple[str, int], Content],
    act: Act,
    begins: Callable[[], object],
) -> None:
    """Raise unless all that was promised is there, and all else goes."""
    begins()
    promises = Promises(dict(versions), is_kept=False, asked={("m", 2), ("n", 1)})
    try:
        promised = (place.notes / "promised").read_text()
    except FileNotFoundError:  # it did not come so far
        pass
    else:
        promises.undeleted.add("kept")
        if act.content is not None:
            model, number = promised.split()
            promises.versions[model, int(number)] = act.content
    if act.is_repair:
        place.end_leases()
        with opened(place) as store:
            repaired = store.repair()
            assert repaired.is_whole, repaired
    promises.settle(lambda: opened(place), place.end_leases)
    with opened(place) as store:
        report = store.check()
        assert not report.damaged, report.findings
