"""One act, or one beside a collection, with a fault at every call of the storage it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.schedules.acts import Act, Party, Scene, play
from tests.schedules.promises import CONTENTS, patched
from tests.schedules.scheduler import Process, Scheduler
from tests.schedules.world import World, world
from tierstore.errors import BackendError, OutOfSpace
from tierstore.modelstore.reclaim.collector import Collector

_PUTS = ("put", "put_if_absent")


def _save(scene: Scene) -> None:
    version = scene.store.save("m", CONTENTS["first"])
    scene.world.promises.versions["m", version.number] = CONTENTS["first"]


def _patch(scene: Scene) -> None:
    changes, content = patched(scene.world.promises.versions["n", 4], 3)
    version = scene.store.patch("n@4", changes)
    scene.world.promises.versions["n", version.number] = content


def _undelete(scene: Scene) -> None:
    scene.store.undelete("n@2", message=scene.note)
    scene.world.promises.undeleted.add(scene.note)


def _rebase(scene: Scene) -> None:
    _undelete(scene)
    scene.store.rebase("n@2", above=1)


def _collect(scene: Scene) -> None:
    Collector(scene.store._parts.home).run(grace_s=0, window_s=0)


def _repack(scene: Scene) -> None:
    Collector(scene.store._parts.home).run(grace_s=0, window_s=0, repack=True)


def _remove(scene: Scene) -> None:
    scene.store.remove("m@2", force=True)


def _move(scene: Scene) -> None:
    placement = scene.store.placement
    placement.move(placement.packs_of(scene.store.resolve("m@2").digest), "home")


@dataclass(frozen=True)
class Case:
    """An act of one process.

    Attributes:
        start: How the store begins.
        act: What is done.
        beside: What another process does in the middle of it.
    """

    start: str
    act: Act
    beside: Act | None = None


CASES = {
    "gc": Case("plain", _collect),
    "gc that deletes": Case("listed", _collect),
    "gc that heals": Case("broken", _collect),
    "gc of two tiers": Case("tiers", _collect),
    "gc that repacks": Case("plain", _repack),
    "gc that repacks beside a save": Case("plain", _repack, _save),
    "gc beside a save": Case("plain", _collect, _save),
    "rm": Case("plain", _remove),
    "rm beside gc": Case("plain", _remove, _collect),
    "undelete": Case("plain", _undelete),
    "undelete beside gc": Case("listed", _undelete, _collect),
    "save": Case("listed", _save),
    "save beside gc": Case("plain", _save, _collect),
    "patch beside gc": Case("chain", _patch, _collect),
    "rebase beside gc": Case("plain", _rebase, _collect),
    "move": Case("tiers", _move),
    "move beside gc": Case("tiers", _move, _collect),
}

Fault = Callable[[int, str], Exception | None]


def _broken(at: int) -> Fault:
    def fault(call: int, op: str) -> Exception | None:
        return BackendError("the disk has an error (EIO)") if call == at else None

    return fault


def _full(at: int) -> Fault:
    def fault(call: int, op: str) -> Exception | None:
        is_full = call >= at and op in _PUTS
        return OutOfSpace("the disk is full (ENOSPC)") if is_full else None

    return fault


def _faults(calls: list[str]) -> Iterator[tuple[str, Fault]]:
    """Every call with an error of the disk, and a disk that is full from every write on."""
    for at in range(1, len(calls) + 1):
        yield f"EIO at call {at}", _broken(at)
    for at, name in enumerate(calls, 1):
        if name in _PUTS:
            yield f"ENOSPC from call {at} on", _full(at)


def check(name: str) -> int:
    """Run a case with every fault, and return how many there were.

    Raises:
        AssertionError: Something is lost, or no later collection goes on.
    """
    case = CASES[name]
    calls: list[str] = []

    def note(call: int, op: str) -> None:
        calls.append(op)

    _run(case, note, stop=0)
    tried = 0
    for what, fault in _faults(list(calls)):
        tried += 1
        try:
            _run(case, fault, stop=len(calls) // 2)
        except Exception as error:
            raise AssertionError(f"{name}, {what}: {error}") from error
    return tried


def _run(case: Case, fault: Fault, stop: int) -> None:
    scheduler = Scheduler(1)
    if case.beside is not None and stop:
        scheduler.changes = {stop}
    with world(case.start, scheduler) as one:
        one.promises.is_kept = False
        process, other = Process("first", 100, fault=fault), Process("other", 101)
        tasks = [scheduler.start(process, lambda: _play(one, process, case.act), 2)]
        if case.beside is not None:
            beside = case.beside
            tasks.append(scheduler.start(other, lambda: _play(one, other, beside), 1))
        scheduler.run()
        last = Process("last", 99)
        tasks.append(scheduler.start(last, lambda: one.settle(last)))
        scheduler.run()
        for task in tasks:
            if task.error is not None:
                raise task.error


def _play(one: World, process: Process, act: Act) -> None:
    play(one, Party(process, [("act", act)]))
