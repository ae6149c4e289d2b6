"""Caches of one node during a purge, small enough to be explored whole.

A chunk is in the node's hot tier. Processes fill that from queues, at any time, also long after
they were told what was purged; a shared tier is filled in the same way by any node. The purge says
in home which chunks are to go, and counts in ``sweep`` how often there were more of them; an agent
drops them and acknowledges that count. ``BEFORE`` are the rules of the design that loses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from tests.reclaim.explorer import Call, Explorer, Result, call, run_alone

Steps: TypeAlias = Generator[Call, Any, Any]

ONCE = "what was acknowledged is not dropped again"
ANYBODY = "any process acknowledges for its node"
DELETED = "the count rises with deleted packs alone"
BEFORE = frozenset({ONCE, ANYBODY, DELETED})


class World(NamedTuple):
    """The node, and what home says.

    Attributes:
        rules: What is left out or changed.
        hot: Whether the hot tier has the chunk.
        queue: Whether a process has it in its queue.
        leases: Who reads the version.
        packs: Whether the pack is there.
        named: Whether the order names the chunk: nobody needs it.
        sweep: How often what the order names grew.
        acknowledged: The highest count that was acknowledged for the node.
        done: Whether the order is done.
    """

    rules: frozenset[str] = frozenset()
    hot: bool = True
    queue: bool = False
    leases: frozenset[str] = frozenset({"r"})
    packs: bool = True
    named: bool = False
    sweep: int = 0
    acknowledged: int = 0
    done: bool = False


@call
def read_leases(world: World) -> Iterator[tuple[World, bool]]:
    """Read whether somebody holds a lease."""
    yield world, bool(world.leases)


@call
def end_lease(world: World) -> Iterator[tuple[World, None]]:
    """End the lease."""
    yield world._replace(leases=frozenset()), None


@call
def queue(world: World) -> Iterator[tuple[World, None]]:
    """Read the chunk if it is still there, and let it wait for the hot tier."""
    yield world._replace(queue=world.packs or world.hot), None


@call
def fill(world: World) -> Iterator[tuple[World, None]]:
    """Write what waits into the hot tier."""
    yield world._replace(hot=world.hot or world.queue, queue=False), None


@call
def delete_pack(world: World) -> Iterator[tuple[World, bool]]:
    """Delete the pack; tell whether it was there."""
    yield world._replace(packs=False), world.packs


@call
def conclude(world: World, named: bool, deleted: bool) -> Iterator[tuple[World, None]]:
    """Write what the order names, and its count."""
    more = deleted or not world.sweep if DELETED in world.rules else named and not world.named
    yield (
        world._replace(named=named, sweep=world.sweep + more, done=named and not world.packs),
        None,
    )


@call
def read_order(world: World) -> Iterator[tuple[World, tuple[int, bool, int]]]:
    """Read the order: its count, whether it names the chunk, and what was acknowledged."""
    yield world, (world.sweep, world.named, world.acknowledged)


@call
def drop(world: World) -> Iterator[tuple[World, None]]:
    """Drop the chunk from the hot tier."""
    yield world._replace(hot=False), None


@call
def acknowledge(world: World, sweep: int) -> Iterator[tuple[World, None]]:
    """Acknowledge."""
    yield world._replace(acknowledged=max(world.acknowledged, sweep)), None


def serve(rules: frozenset[str]) -> Steps:
    """Read the version under a lease, and fill the hot tier behind that."""
    yield queue()
    yield end_lease()
    yield fill()


def collect(rules: frozenset[str]) -> Steps:
    """Delete the pack once nobody reads it."""
    held = yield read_leases()
    if not held:
        yield delete_pack()


def purge(rules: frozenset[str]) -> Steps:
    """Go on twice with the purge."""
    for _ in ("once", "twice"):
        held = yield read_leases()
        if held:
            yield conclude(False, False)
        else:
            deleted = yield delete_pack()
            yield conclude(True, deleted)


def keep_up(rules: frozenset[str]) -> Steps:
    """Drop what the order names, as the agent of the node does each round."""
    sweep, named, acknowledged = yield read_order()
    if ONCE in rules and acknowledged >= sweep:
        return
    if named:
        yield drop()
    yield acknowledge(sweep)


def command(rules: frozenset[str]) -> Steps:
    """Drop what the order names as a process does that has another cache, or none."""
    sweep, _, _ = yield read_order()
    if ANYBODY in rules:
        yield acknowledge(sweep)


PARTIES = {
    "r": serve, "p": purge, "g": collect, "a": keep_up, "b": keep_up, "c": command,
}  # fmt: skip


def explore(*rules: str, without: str = "") -> Result:
    """Explore what all of them may do, or all but some; leases may lapse."""
    world = World(frozenset(rules))
    found = [(name, partial(party, world.rules)) for name, party in PARTIES.items()
             if name not in without]  # fmt: skip
    return Explorer(world, found, happens, lambda world: "").run()


def happens(world: World) -> Iterator[tuple[str, World]]:
    """Yield what happens by itself: the lease lapses."""
    if world.leases:
        yield "the lease lapses", world._replace(leases=frozenset())


def is_left(world: World) -> bool:
    """Return whether the node keeps a chunk that is purged, after its agent went round again."""
    world = run_alone(world, partial(keep_up, world.rules))
    return world.done and world.hot


def is_untrue(world: World) -> bool:
    """Return whether a purge counts as complete, and yet the node's hot tier has the chunk."""
    return world.done and world.acknowledged >= world.sweep and world.hot
