"""Small configurations of the reclaim protocol, what may happen to them, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.reclaim import model, store
from tests.reclaim.explorer import Explorer, Party, Result, run_alone
from tests.reclaim.store import Setup, World

# A version that was saved as a delta, "a" on "b"; "b" is the content of another version as well.
SETUP = Setup(
    chunks={"M": ("a",), "N": ("b",)},
    manifest={"v1": "M", "v2": "M", "n1": "N"},
    index=(("a", "old-a"), ("b", "old-b")),
)
BEGIN = World(
    SETUP,
    packs=frozenset({("A", "old-a"), ("A", "old-b")}),
    frames=frozenset({("old-a", "a", "b"), ("old-b", "b", "")}),
    layouts=frozenset({("M", "a", "old-a"), ("M", "b", "old-b"), ("N", "b", "old-b")}),
    versions=frozenset({"v1"}),
)
REMOVED = BEGIN._replace(removed=frozenset({"v1"}))
IN_FORCE = BEGIN._replace(promised=frozenset({"v1"}))
SHARED = REMOVED._replace(versions=frozenset({"v1", "n1"}), promised=frozenset({"n1"}))

# Nothing is stored yet.
NEW = World(Setup(chunks={"M": ("a",)}, manifest={"v1": "M"}, choices=("alone",)))

# A save was interrupted: its packs are there, and the index knows them.
LEFT = World(
    Setup(
        chunks={"M": ("a",)},
        manifest={"v1": "M"},
        index=(("a", "old-a"), ("b", "old-b")),
    ),
    packs=BEGIN.packs,
    frames=BEGIN.frames,
)

# Another one was as well, and its pack is condemned by now.
CONDEMNED = World(
    Setup(chunks={"M": ("a",)}, manifest={"v1": "M"}, index=(("a", "old"),), choices=("reuse",)),
    packs=frozenset({("A", "old")}),
    frames=frozenset({("old", "a", "")}),
    lists=frozenset({(1, "1")}),
    segments=frozenset({("1", frozenset({"old"}))}),
)

# A patch "P" of a full version "F", of which "u" stays as it is; together they make "FF".
PATCHED = Setup(
    chunks={"F": ("f", "u"), "P": ("p",), "FF": ("q", "u")},
    manifest={"f1": "F", "p1": "P", "p2": "P"},
    below={"P": ("F",)},
    full={"P": "FF"},
    index=(("p", "old-p"),),
    choices=("reuse", "alone"),
)
PATCH = World(
    PATCHED,
    packs=frozenset({("A", "old-f"), ("A", "old-p")}),
    frames=frozenset({("old-f", "f", ""), ("old-f", "u", ""), ("old-p", "p", "")}),
    layouts=frozenset({("F", "f", "old-f"), ("F", "u", "old-f"), ("P", "p", "old-p")}),
    versions=frozenset({"f1", "p1"}),
    removed=frozenset({"f1"}),
    promised=frozenset({"p1"}),
)

# A pin of a content that two versions have; and one version that gets a variant.
EQUAL = BEGIN._replace(
    setup=replace(SETUP, pins=True),
    versions=frozenset({"v1", "v2"}),
    names=frozenset({("pin", "M")}),
    promised=frozenset({"v1", "v2", "pin"}),
)
VARIED = BEGIN._replace(
    setup=replace(
        SETUP,
        pins=True,
        chunks={**SETUP.chunks, "X": ("a",)},
        manifest={"v1": "M", "v1+x": "X"},
    ),
    layouts=BEGIN.layouts | {("X", "a", "old-a"), ("X", "b", "old-b")},
    promised=frozenset({"v1"}),
)

# A pack of which a part is dead.
WASTE = Setup(chunks={"M": ("a",)}, manifest={"v1": "M", "v2": "M"}, index=(("a", "old"),))
WASTED = World(
    WASTE,
    packs=frozenset({("A", "old")}),
    frames=frozenset({("old", "a", ""), ("old", "z", "")}),
    layouts=frozenset({("M", "a", "old")}),
    versions=frozenset({"v1"}),
    promised=frozenset({"v1"}),
)

# It was repacked, and is condemned.
REPACKED = World(
    WASTE,
    packs=frozenset({("A", "old"), ("A", "new")}),
    frames=WASTED.frames | {("new", "a", "")},
    layouts=WASTED.layouts,
    moves=frozenset({("old", 1, ("new",))}),
    lists=frozenset({(1, "1")}),
    segments=frozenset({("1", frozenset({"old"}))}),
    versions=WASTED.versions,
    promised=WASTED.promised,
)

# The packs of a delta and of its base were.
REPACKED_DELTA = IN_FORCE._replace(
    packs=BEGIN.packs | {("A", "new-a"), ("A", "new-b")},
    frames=BEGIN.frames | {("new-a", "a", "b"), ("new-b", "b", "")},
    moves=frozenset({("old-a", 1, ("new-a",)), ("old-b", 1, ("new-b",))}),
    lists=frozenset({(1, "1")}),
    segments=frozenset({("1", frozenset({"old-a", "old-b"}))}),
)


# The layout of a version was lost; two packs have its chunk.
LAYOUTLESS = World(
    Setup(
        chunks={"M": ("a",)},
        manifest={"v1": "M", "v2": "M"},
        index=(("a", "old-1"),),
        choices=("reuse", "alone"),
        new_packs=2,
        loses=True,
    ),
    packs=frozenset({("A", "old-1"), ("A", "old-2")}),
    frames=frozenset({("old-1", "a", ""), ("old-2", "a", "")}),
    versions=frozenset({"v1"}),
    promised=frozenset({"v1"}),
)


def of(world: World, **changes: object) -> World:
    """Return a world with another setup."""
    return world._replace(setup=replace(world.setup, **changes))  # type: ignore[arg-type]


def in_two_tiers(world: World, **changes: object) -> World:
    """Return a world with a tier B that has a copy of each pack."""
    packs = world.packs | {("B", pack) for _, pack in world.packs}
    return of(world, tiers=("A", "B"), **changes)._replace(packs=packs)


WORLDS_AND_PARTIES: dict[str, tuple[World, dict[str, tuple[object, ...]]]] = {
    # what saves again what is removed, in what a stale index knows
    "save, 2 collectors": (
        of(REMOVED, choices=("reuse",), new_packs=2), {"w": ("save", "v2"), "g": ("collect", 2)}),
    "save beside another version, collector": (
        SHARED, {"w": ("save", "v2"), "x": ("remove", "n1"), "g": ("collect", 1)}),
    "save, mover, collector": (
        of(REMOVED, tiers=("A", "B")),
        {"w": ("save", "v2"), "m": ("move", "old-a"), "g": ("collect", 1)}),
    "save, mover, 2 collectors": (
        of(CONDEMNED, tiers=("A", "B"), new_packs=2),
        {"w": ("save", "v1"), "m": ("move", "old"), "g": ("collect", 2)}),
    "save, tier down, collector": (
        in_two_tiers(REMOVED, tier_fails=True), {"w": ("save", "v2"), "g": ("collect", 1)}),
    "save, tier down, 2 collectors": (
        in_two_tiers(LEFT, choices=("reuse",))._replace(down=frozenset({"B"})),
        {"w": ("save", "v1"), "g": ("collect", 2)}),
    "save goes on, collector": (LEFT, {"w": ("save", "v1"), "g": ("collect", 1)}),
    "save goes on, 2 collectors": (LEFT, {"w": ("save", "v1"), "g": ("collect", 2)}),
    "undelete, 2 collectors": (REMOVED, {"u": ("undelete", "v1"), "g": ("collect", 2)}),
    "save, undelete, collector": (
        REMOVED, {"w": ("save", "v2"), "u": ("undelete", "v1"), "g": ("collect", 1)}),
    "save, undelete, 2 collectors": (
        REMOVED, {"w": ("save", "v2"), "u": ("undelete", "v1"), "g": ("collect", 2)}),
    "save, removal, collector": (
        IN_FORCE, {"w": ("save", "v2"), "x": ("remove", "v1"), "g": ("collect", 1)}),
    # layouts that are written over
    "rebase, collector": (
        IN_FORCE, {"b": ("rebase", "v1"), "g": ("collect", 1)}),
    "rebase, removal, save, collector": (
        of(IN_FORCE, choices=("alone",), new_packs=2),
        {"b": ("rebase", "v1"), "x": ("remove", "v1"), "w": ("save", "v2"), "g": ("collect", 1)}),
    "rebase, removal, undelete, collector": (
        of(IN_FORCE, new_packs=2),
        {"b": ("rebase", "v1"), "x": ("remove", "v1"), "u": ("undelete", "v1"),
         "g": ("collect", 1)}),
    "2 rebases, removal, save, collector": (
        of(IN_FORCE, choices=("alone",), new_packs=1),
        {"b": ("rebase", "v1"), "c": ("rebase", "v1"), "x": ("remove", "v1"), "w": ("save", "v2"),
         "g": ("collect", 1)}),
    # what is new, and soon removed again
    "new, reader, removal, collector": (
        NEW, {"w": ("save", "v1"), "r": ("read", "v1", "r"), "x": ("remove", "v1"),
              "g": ("collect", 1)}),
    "new, alias, removal, collector": (
        of(NEW, new_packs=2),
        {"w": ("save", "v1"), "a": ("name", "alias", "v1"), "x": ("remove", "v1"),
         "g": ("collect", 1)}),
    # condemned lists
    "save, tidying, collector": (
        of(REMOVED, tidies=True, choices=("reuse",)),
        {"w": ("save", "v2"), "t": ("tidy",), "g": ("collect", 1)}),
    # names
    "alias, removal, collector": (
        IN_FORCE, {"a": ("name", "alias", "v1"), "x": ("remove", "v1"), "g": ("collect", 1)}),
    "release, undelete, collector": (
        REMOVED, {"a": ("name", "release", "v1"), "u": ("undelete", "v1"), "g": ("collect", 1)}),
    "pin, 2 removals of equal content": (
        EQUAL, {"x": ("remove", "v1"), "y": ("remove", "v2")}),
    "pin of a new variant, removal": (
        VARIED, {"p": ("pin_variant", "v1", "v1+x"), "x": ("remove", "v1")}),
    # readers
    "reader, rebase, collector": (
        IN_FORCE,
        {"r": ("read", "v1", ""), "b": ("rebase", "v1"), "g": ("collect", 1)}),
    "reader, removal, collector": (
        IN_FORCE, {"r": ("read", "v1", "r"), "x": ("remove", "v1"), "g": ("collect", 1)}),
    "reader, repack, collector": (
        WASTED, {"r": ("read", "v1", ""), "k": ("repack", "old", "a"), "g": ("collect", 1)}),
    "repack, removal, save, collector": (
        of(WASTED, choices=("reuse", "alone"), new_packs=2),
        {"k": ("repack", "old", "a"), "x": ("remove", "v1"), "w": ("save", "v2"),
         "g": ("collect", 1)}),
    # layouts of what was repacked
    "rewrite, reader, collector": (
        REPACKED, {"l": ("rewrite", "v1"), "r": ("read", "v1", ""), "g": ("collect", 1)}),
    "rewrite, removal, save, collector": (
        of(REPACKED, choices=("reuse", "alone"), new_packs=2),
        {"l": ("rewrite", "v1"), "x": ("remove", "v1"), "w": ("save", "v2"), "g": ("collect", 1)}),
    "rewrite, removal, undelete, collector": (
        of(REPACKED, new_packs=2),
        {"l": ("rewrite", "v1"), "x": ("remove", "v1"), "u": ("undelete", "v1"),
         "g": ("collect", 1)}),
    "rewrite of a delta, removal, save, collector": (
        of(REPACKED_DELTA, choices=("alone",), new_packs=2),
        {"l": ("rewrite", "v1"), "x": ("remove", "v1"), "w": ("save", "v2"), "g": ("collect", 1)}),
    "rewrite, rebase, removal, save, collector": (
        of(REPACKED_DELTA, choices=("alone",), new_packs=1),
        {"l": ("rewrite", "v1"), "b": ("rebase", "v1"), "x": ("remove", "v1"),
         "w": ("save", "v2"), "g": ("collect", 1)}),
    "2 rewrites, removal, save, collector": (
        of(REPACKED, choices=("reuse", "alone"), new_packs=1),
        {"l": ("rewrite", "v1"), "k": ("rewrite", "v1"), "x": ("remove", "v1"),
         "w": ("save", "v2"), "g": ("collect", 1)}),
    "rewrite, repack, removal, save, collector": (
        of(REPACKED, choices=("reuse",), new_packs=1),
        {"l": ("rewrite", "v1"), "k": ("repack", "new", "a"), "x": ("remove", "v1"),
         "w": ("save", "v2"), "g": ("collect", 1)}),
    # layouts that were lost
    "layout lost, 2 collectors": (
        LAYOUTLESS, {"l": ("lay_out_anew", "v1", ("old-1", "old-2")), "g": ("collect", 2)}),
    "layout lost twice, collector": (
        LAYOUTLESS,
        {"l": ("lay_out_anew", "v1", ("old-1", "old-2")),
         "k": ("lay_out_anew", "v1", ("old-1", "old-2")), "g": ("collect", 1)}),
    "layout lost, removal, save, collector": (
        LAYOUTLESS,
        {"l": ("lay_out_anew", "v1", ("old-1", "old-2")), "x": ("remove", "v1"),
         "w": ("save", "v2"), "g": ("collect", 1)}),
    "layout lost, removal, undelete, collector": (
        LAYOUTLESS,
        {"l": ("lay_out_anew", "v1", ("old-1", "old-2")), "x": ("remove", "v1"),
         "u": ("undelete", "v1"), "g": ("collect", 1)}),
    # patches
    "fold, 2 collectors": (PATCH, {"f": ("fold", "p1"), "g": ("collect", 2)}),
    "fold, reader, collector": (
        PATCH, {"f": ("fold", "p1"), "r": ("read", "p1", ""), "g": ("collect", 1)}),
    "fold of what is removed, patch, collector": (
        of(PATCH, choices=("reuse",))._replace(
            removed=frozenset({"p1"}), promised=frozenset({"f1"})),
        {"f": ("fold", "p1"), "w": ("save", "p2"), "g": ("collect", 1)}),
    "patch, removal of what is below, collector": (
        of(PATCH, choices=("alone",))._replace(
            removed=frozenset({"p1"}), promised=frozenset({"f1"})),
        {"w": ("save", "p2"), "x": ("remove", "f1"), "g": ("collect", 1)}),
}  # fmt: skip
"""By name: the world at the beginning, and the parties: who, and how many of them or on what."""

WRITES = {
    "rebase": "layouts",
    "rewrite": "layouts",
    "name": "names",
    "pin_variant": "names",
    "read": "leases",
    "fold": "folds",
}
LAYOUT_RULES = {
    "repairs write the layout",
    "healing writes the layout",
    "a layout is written over",
    "layouts of what is dead are deleted",
    "the layout comes after the entry",
    "a lost layout is written over",
}


def build(name: str, *rules: str, **changes: object) -> tuple[World, list[tuple[str, Party]]]:
    """Return a configuration's world and parties, with these mutations."""
    world, parties = WORLDS_AND_PARTIES[name]
    world = of(world, rules=frozenset(rules), **changes)
    written = {WRITES[what] for what, *_ in parties.values() if what in WRITES}
    if world.setup.leases != "none":
        written.add("leases")
    if LAYOUT_RULES & world.setup.rules:
        written.add("layouts")
    world = of(world, changes=frozenset(written))
    setup = world.setup
    every: list[tuple[str, Party]] = []
    for owner, (what, *arguments) in parties.items():
        if what == "collect":
            (count,) = arguments
            every += [(owner, partial(model.collect, setup, owner))] * count  # type: ignore[operator]
        elif what in ("move", "read", "rewrite", "tidy"):
            every.append((owner, partial(getattr(model, what), setup, *arguments)))
        else:
            every.append((owner, partial(getattr(model, what), setup, *arguments, owner)))  # type: ignore[call-overload]
    return world, every


def explore(
    name: str,
    *rules: str,
    lost_answers: int = 0,
    lies: int = 0,
    merge: bool = True,
    **changes: object,
) -> Result:
    """Explore a configuration with these mutations until something is lost."""
    world, parties = build(name, *rules, **changes)
    world = world._replace(answers=lost_answers, lies=lies)
    return Explorer(world, parties, happens, broken, merge=merge).run()


def happens(world: World) -> Iterator[tuple[str, World]]:
    """Yield what may happen by itself: a lease lapses, tier B goes down or comes back."""
    for holder, version in sorted(world.leases):
        if version or world.setup.leases == "lapse":
            yield f"the lease of {holder} lapses", store.lapse(world, holder)
    if world.setup.tier_fails and not world.down:
        yield "tier B goes down", world._replace(down=frozenset({"B"}))
    if world.down:
        yield "tier B comes back", world._replace(down=frozenset())


def broken(world: World) -> str:
    """Return which promise a world breaks, or nothing.

    ``strict``: layouts, with moves, lead to packs that are there, for every chunk and base of what
    returned. ``weak``: some pack has each of those chunks still. ``list``: the highest condemned
    list can be read. ``named``: what an alias, a release or a pin names, once that was promised,
    is not removed, nor what a patch lies on. ``reader``: who reads what is promised or leased never
    gets NotFound.
    """
    up = world._replace(down=frozenset())
    names = dict(world.names)
    for promised in world.promised:
        version = names.get(promised, promised)
        if version not in world.setup.manifest:
            continue
        manifest = world.setup.manifest[version]
        if store.is_whole(up, manifest):
            continue
        chunks = world.setup.chunks
        ways = store.needed_by(up, manifest)
        kept = any(all(store.is_stored(up, c) for one in way for c in chunks[one]) for way in ways)
        if kept and world.setup.loses and not store.layout_of(up, manifest):
            continue  # a reader looks into the packs
        return "strict" if kept else "weak"
    _, segment = store.newest_list(world)
    if segment and segment not in dict(world.segments):
        return "list"
    if {version for name, version in world.names if name in world.promised} & world.removed:
        return "named"
    if any(name in world.promised and _is_gone(world, what) for name, what in world.names):
        return "named"
    for patch, on, below in (one.partition(" on ") for one in world.promised):
        if on and below in world.removed and patch not in world.removed:
            return "named"
    return "reader" if world.wronged else ""


def _is_gone(world: World, manifest: str) -> bool:
    """Return whether what a pin means is a manifest of which every version is removed."""
    have = {one for one in world.versions if world.setup.manifest[one] == manifest}
    return bool(have) and {one.partition("+")[0] for one in have} <= world.removed


def left_over(world: World) -> frozenset[str]:
    """Return the packs that are garbage once two collectors have run, one after the other."""
    for holder, _ in world.leases:
        world = store.lapse(world, holder)
    world = of(world, new_packs=9)._replace(down=frozenset(), answers=0, lies=0)
    for _ in range(2):
        world = run_alone(world, partial(model.collect, world.setup, "z"))
    _, segment = store.newest_list(world)
    unfit = dict(world.segments).get(segment, frozenset())
    named = {version for _, version in world.names}
    needed: set[str] = set()
    for version in world.versions - world.removed | named:
        for manifests in store.needed_by(world, world.setup.manifest.get(version, version)):
            layouts = {one: store.layout_of(world, one) for one in manifests}
            leads = [
                store.follow_layout(world, layout, world.setup.chunks[one], unfit)
                for one, layout in layouts.items()
            ]
            if not any(lost for _, lost in leads):
                needed.update(*(packs for packs, _ in leads))
                break
    return frozenset(pack for _, pack in world.packs) - needed
