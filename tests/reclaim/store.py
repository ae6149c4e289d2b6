"""The store of the model: a world as one immutable value, and the calls that parties make on it.

Names are those of ``format/SPEC.md``. A manifest is named by its content, so saving it again finds
the layout that is there. A version and its ref entry are one name. Each call is one request, or a
few reads of which the last one counts: logs and condemned lists are read by one call, because an
append is put-if-absent at the next number and galloping ends at the highest. What gives that up, a
``HEAD`` hint that is believed, is a mutation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from tests.reclaim.explorer import call, call_that_commutes

Layout: TypeAlias = frozenset[tuple[str, str]]
"""Pairs of a chunk and the pack where a layout places it."""

LOST = "lost"
"""The answer of a put that happened, and that its party takes for a failure."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What does not change while a configuration is explored.

    Attributes:
        chunks: The chunks of each manifest.
        manifest: The manifest of each version.
        below: The manifests that a patch manifest lies on.
        full: The full manifest that a fold of a patch manifest names.
        new_packs: The most new packs of one party; who would need more stops.
        tiers: Names of the durable tiers.
        rules: What is left out or changed: the mutations.
        tier_fails: Whether tier B may be down, from the beginning or later, and come back.
        leases: Of writers' leases: they ``hold``, ``lapse`` at any moment, or ``none`` ever holds,
            which has the fewest states. Those of readers may lapse at any moment.
        index: The chunks that an index knows, stale as it may be, and their packs.
        choices: What a save may do: ``reuse``, ``delta`` on what the index knows, or ``alone``.
        changes: What somebody writes: ``layouts`` over, ``names``, ``leases``, ``folds``.
        tidies: Whether collectors delete old lists and segments.
        loses: Whether layouts were lost: what has none is whole as long as its chunks are there.
        pins: Whether names may mean manifests, as pins do, and so every version that has them.
            Version ``v+x`` is a variant of ``v``, and goes with it.
    """

    chunks: dict[str, tuple[str, ...]]
    manifest: dict[str, str]
    below: dict[str, tuple[str, ...]] = field(default_factory=dict)
    full: dict[str, str] = field(default_factory=dict)
    new_packs: int = 3
    tiers: tuple[str, ...] = ("A",)
    rules: frozenset[str] = frozenset()
    tier_fails: bool = False
    leases: str = "none"
    index: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ("reuse", "delta", "alone")
    changes: frozenset[str] = frozenset()
    tidies: bool = False
    loses: bool = False
    pins: bool = False


class World(NamedTuple):
    """The store.

    Attributes:
        setup: What does not change.
        packs: Pairs of tier and pack.
        frames: Triples of pack, chunk, and the base that it is a delta on, or nothing.
        layouts: Triples of manifest, chunk and pack.
        moves: Triples of pack, number, and the packs it leads into.
        lists: Pairs of a condemned list's number and its segment.
        segments: Pairs of a segment and its packs.
        versions: Versions that have a ref entry.
        removed: Those whose newest entry in the log of removals is a ``forget``.
        forgotten: Those that ever were.
        announced: Pairs of a version whose removal was announced, and who did it.
        names: Pairs of an alias, release or pin and the version or manifest it names.
        leases: Pairs of a holder and the version that it reads, or nothing for a writer.
        folds: Patch manifests that have a fold.
        promised: What returned: versions, names, and patches ``p on v`` that found a version in
            force.
        leased: Versions that were leased while they were promised, by leases that never lapsed.
        earlier: ``removed`` and ``names`` without the newest entry: what a stale hint leads to.
        down: Tiers that cannot be asked.
        answers: How many answers may still get lost.
        lies: How many puts-if-absent may still write over what is there.
        wronged: Whether a reader ended with NotFound that must not.
    """

    setup: Setup
    packs: frozenset[tuple[str, str]] = frozenset()
    frames: frozenset[tuple[str, str, str]] = frozenset()
    layouts: frozenset[tuple[str, str, str]] = frozenset()
    moves: frozenset[tuple[str, int, tuple[str, ...]]] = frozenset()
    lists: frozenset[tuple[int, str]] = frozenset()
    segments: frozenset[tuple[str, frozenset[str]]] = frozenset()
    versions: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    announced: frozenset[tuple[str, str]] = frozenset()
    names: frozenset[tuple[str, str]] = frozenset()
    leases: frozenset[tuple[str, str]] = frozenset()
    folds: frozenset[str] = frozenset()
    promised: frozenset[str] = frozenset()
    leased: frozenset[str] = frozenset()
    earlier: tuple[frozenset[str], frozenset[tuple[str, str]]] = (frozenset(), frozenset())
    down: frozenset[str] = frozenset()
    answers: int = 0
    lies: int = 0
    wronged: bool = False


class Lost(NamedTuple):
    """A chunk that cannot be found: where its way ends, and the number of that pack's next move."""

    chunk: str
    end: str
    number: int


# What is where


def is_there(world: World, pack: str) -> bool:
    """Return whether a tier that can be asked has a pack."""
    return any(name == pack and tier not in world.down for tier, name in world.packs)


def moves_of(world: World, pack: str) -> list[tuple[str, ...]]:
    """Return what the moves of a pack name, in order."""
    return [into for name, _, into in sorted(world.moves) if name == pack]


def moved(world: World, pack: str, chunk: str, behind: tuple[str, ...] = ()) -> str:
    """Return the last pack that is there, has the chunk, and the moves of ``pack`` lead to."""
    found = ""
    for into in moves_of(world, pack):
        for target in into:
            if target == pack or target in behind:
                continue
            if is_there(world, target):
                held = any(name == target and one == chunk for name, one, _ in world.frames)
                found = target if held else found
            else:
                found = moved(world, target, chunk, (*behind, pack)) or found
    return found


def find(
    world: World, start: str, chunk: str, unfit: Collection[str], places: dict[str, str]
) -> tuple[tuple[str, ...], str]:
    """Follow a chunk from a pack by moves.

    Returns:
        The packs with its frame and with its base's, none if it cannot be found; and where the way
        ends.
    """
    at, seen = start, [start]
    while True:
        if is_there(world, at) and at not in unfit:
            for name, one, base in world.frames:
                if name == at and one == chunk:
                    if not base:
                        return (at,), at
                    below = places.get(base) or moved(world, start, base)
                    under = find(world, below, base, unfit, places)[0] if below else ()
                    if under:
                        return (at, *under), at
        target = moved(world, at, chunk)
        if not target or target in seen:
            return (), at
        at = target
        seen.append(at)


def follow_layout(
    world: World, layout: Layout, chunks: Collection[str], unfit: Collection[str]
) -> tuple[frozenset[str], tuple[Lost, ...]]:
    """Return the packs that a layout leads to for these chunks, and what cannot be found."""
    places = dict(layout)
    packs: set[str] = set()
    lost = []
    for chunk in sorted(chunks):
        found, end = find(world, places[chunk], chunk, unfit, places)
        packs.update(found)
        if not found:
            lost.append(Lost(chunk, end, len(moves_of(world, end)) + 1))
    return frozenset(packs), tuple(lost)


def layout_of(world: World, manifest: str) -> frozenset[tuple[str, str]]:
    """Return the places of a manifest's layout, none if it has no layout."""
    return frozenset((chunk, pack) for name, chunk, pack in world.layouts if name == manifest)


def newest_list(world: World) -> tuple[int, str]:
    """Return number and segment of the highest condemned list; number 0 if there is none."""
    return max(world.lists, default=(0, ""))


def needed_by(world: World, manifest: str) -> Iterator[tuple[str, ...]]:
    """Yield the sets of manifests any of which serves a reader, in the order it tries them."""
    if manifest in world.folds:
        yield (world.setup.full[manifest],)
    yield (manifest, *world.setup.below.get(manifest, ()))


def is_whole(world: World, manifest: str, unfit: Collection[str] = ()) -> bool:
    """Return whether a reader finds every chunk of a version."""
    chunks = world.setup.chunks
    for manifests in needed_by(world, manifest):
        layouts = [(one, layout_of(world, one)) for one in manifests]
        if all(
            layout and not follow_layout(world, layout, chunks[one], unfit)[1]
            for one, layout in layouts
        ):
            return True
    return False


def is_stored(world: World, chunk: str, unfit: Collection[str] = ()) -> bool:
    """Return whether any pack still has a chunk, and its base."""
    return any(
        one == chunk
        and name not in unfit
        and is_there(world, name)
        and (not base or is_stored(world, base, unfit))
        for name, one, base in world.frames
    )


# Reading


@call
def read_list(world: World) -> Iterator[tuple[World, tuple[int, str]]]:
    """Read the highest condemned list."""
    yield world, newest_list(world)


def _segments_stay(world: World, _: str) -> bool:
    return not world.setup.tidies


@call_that_commutes(_segments_stay)
def read_segment(world: World, segment: str) -> Iterator[tuple[World, frozenset[str] | None]]:
    """Read the packs of a segment; ``None`` if it is gone."""
    yield world, dict(world.segments).get(segment) if segment else frozenset()


@call
def list_packs(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """List the packs of all tiers that can be asked."""
    yield world, frozenset(pack for tier, pack in world.packs if tier not in world.down)


@call
def missing(world: World, packs: frozenset[str]) -> Iterator[tuple[World, frozenset[str]]]:
    """Return those packs that no tier that can be asked has."""
    yield world, frozenset(pack for pack in packs if not is_there(world, pack))


@call
def next_move(world: World, pack: str) -> Iterator[tuple[World, int]]:
    """Read the moves of a pack: return the number of the next one."""
    yield world, len(moves_of(world, pack)) + 1


def _layout_stays(world: World, manifest: str) -> bool:
    return "layouts" not in world.setup.changes and bool(layout_of(world, manifest))


@call_that_commutes(_layout_stays)
def read_layout(world: World, manifest: str) -> Iterator[tuple[World, Layout]]:
    """Read a layout."""
    yield world, layout_of(world, manifest)


@call
def follow(
    world: World,
    layout: Layout,
    chunks: tuple[str, ...],
    unfit: frozenset[str],
    doubt: bool,
) -> Iterator[tuple[World, tuple[frozenset[str], tuple[Lost, ...]]]]:
    """Follow a layout by moves; with ``doubt`` a tier that is down is taken to have every pack."""
    if doubt and world.down:
        world_up = world._replace(down=frozenset())
        yield world, follow_layout(world_up, layout, chunks, unfit)
    else:
        yield world, follow_layout(world, layout, chunks, unfit)


@call
def followed(
    world: World, layout: Layout, chunks: tuple[str, ...], unfit: frozenset[str]
) -> Iterator[tuple[World, Layout]]:
    """Return a layout of the packs to which one leads by moves; nothing where a chunk is lost."""
    places, found = dict(layout), dict[str, str]()
    for chunk in chunks if layout else ():
        packs, _ = find(world, places[chunk], chunk, unfit, places)
        bases = [base for name, one, base in world.frames if packs[:1] == (name,) and one == chunk]
        found.update(zip([chunk, *bases], packs, strict=False))
    yield world, frozenset(found.items() if all(one in found for one in chunks) else ())


@call
def follow_all(world: World, layout: Layout) -> Iterator[tuple[World, frozenset[str]]]:
    """Return all packs that moves lead to from those of a layout, whether or not they must."""
    reached = {pack for _, pack in layout}
    while more := {
        target
        for pack, _, into in world.moves
        for target in into
        if pack in reached and target not in reached
    }:
        reached |= more
    yield world, frozenset(reached)


@call
def search(world: World, chunk: str, unfit: frozenset[str]) -> Iterator[tuple[World, str | None]]:
    """Find a pack that can serve for a chunk by the packs' footers.

    Returns:
        A fit pack that holds it standalone; nothing if it can only be copied; ``None`` if no pack
        has it.
    """
    alone = [
        name
        for name, one, base in sorted(world.frames)
        if one == chunk and not base and name not in unfit and is_there(world, name)
    ]
    yield world, alone[0] if alone else "" if is_stored(world, chunk) else None


@call
def is_readable(world: World, manifest: str) -> Iterator[tuple[World, bool]]:
    """Return whether the content of a version can be read as a source."""
    yield world, is_whole(world, manifest)


@call
def read_versions(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the ref logs and the logs of removals: the versions in force."""
    removed = [world.removed]
    if "a stale hint is believed" in world.setup.rules:
        removed.append(world.earlier[0])
    for seen in removed:
        yield world, world.versions - seen


@call
def read_forgotten(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the logs of removals: the versions that are or were removed."""
    yield world, world.forgotten | world.removed


@call_that_commutes(lambda world: "names" not in world.setup.changes)
def read_names(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the logs of aliases and releases: the versions that they name."""
    named = [world.names]
    if "a stale hint is believed" in world.setup.rules:
        named.append(world.earlier[1])
    for seen in named:
        yield world, frozenset(version for _, version in seen)


@call_that_commutes(lambda world: "leases" not in world.setup.changes)
def read_leases(world: World) -> Iterator[tuple[World, frozenset[tuple[str, str]]]]:
    """List the leases that hold."""
    yield world, world.leases


@call_that_commutes(lambda world: "folds" not in world.setup.changes)
def read_folds(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """List the folds."""
    yield world, world.folds


@call_that_commutes(lambda world, leases: not leases)
def wait_for(world: World, leases: frozenset[str]) -> Iterator[tuple[World, None]]:
    """Wait until these leases have ended."""
    if not leases & {holder for holder, _ in world.leases}:
        yield world, None


@call_that_commutes(lambda world, *options: True)
def choose(world: World, *options: str) -> Iterator[tuple[World, str]]:
    """Do any of these."""
    for option in options:
        yield world, option


# Writing


def _told(world: World, answer: object) -> Iterator[tuple[World, object]]:
    yield world, answer
    if world.answers:
        yield world._replace(answers=world.answers - 1), LOST


@call
def upload(
    world: World, pack: str, frames: frozenset[tuple[str, str]]
) -> Iterator[tuple[World, object]]:
    """Put a pack of these chunks, with the base of each or nothing; into the fastest tier."""
    packs = world.packs | {(world.setup.tiers[0], pack)}
    held = world.frames | {(pack, chunk, base) for chunk, base in frames}
    yield from _told(world._replace(packs=packs, frames=held), pack)


@call_that_commutes(lambda world, owner: True)
def new_pack(world: World, owner: str) -> Iterator[tuple[World, str]]:
    """Make up a name for a pack; nothing comes back once its owner has had all it may have."""
    used = {name for name, _, _ in world.frames if name.rstrip("0123456789") == owner}
    if len(used) < world.setup.new_packs:
        yield world, f"{owner}{len(used) + 1}"


@call
def put_layout(
    world: World, manifest: str, layout: Layout, over: bool
) -> Iterator[tuple[World, object]]:
    """Put a layout if there is none, or over the one that is there; tell whether it was put."""
    before = layout_of(world, manifest)
    if before and not over and not world.lies:
        yield from _told(world, False)
        return
    others = frozenset(one for one in world.layouts if one[0] != manifest)
    put = others | {(manifest, chunk, pack) for chunk, pack in layout}
    lies = world.lies - (1 if before and not over else 0)
    if lies < world.lies:
        yield world, False
    yield from _told(world._replace(layouts=put, lies=lies), True)


@call
def put_move(
    world: World, pack: str, number: int, into: tuple[str, ...]
) -> Iterator[tuple[World, object]]:
    """Put a move if its number is free."""
    taken = {one for one in world.moves if one[:2] == (pack, number)}
    if taken:
        yield from _told(world, False)
    if taken and world.lies:
        moves = world.moves - taken | {(pack, number, into)}
        yield world._replace(moves=moves, lies=world.lies - 1), True
    if not taken:
        yield from _told(world._replace(moves=world.moves | {(pack, number, into)}), True)


@call_that_commutes(lambda world, number, packs: True)
def put_segment(world: World, number: int, packs: frozenset[str]) -> Iterator[tuple[World, str]]:
    """Put a segment for that list: nobody sees it before the list names it."""
    name = f"{number}: {' '.join(sorted(packs))}"
    yield world._replace(segments=world.segments | {(name, packs)}), name


@call
def put_list(world: World, number: int, segment: str) -> Iterator[tuple[World, object]]:
    """Put a condemned list if its number is free."""
    taken = {one for one in world.lists if one[0] == number}
    if taken:
        yield from _told(world, False)
    if taken and world.lies:
        lists = world.lists - taken | {(number, segment)}
        yield world._replace(lists=lists, lies=world.lies - 1), True
    if not taken:
        yield from _told(world._replace(lists=world.lists | {(number, segment)}), True)


@call
def delete_old_lists(world: World, number: int) -> Iterator[tuple[World, None]]:
    """Delete the lists below this one, and the segments that they alone name."""
    lists = frozenset(one for one in world.lists if one[0] >= number)
    named = {segment for _, segment in lists}
    old = {segment for _, segment in world.lists - lists} - named
    if "segments that no list names are deleted" in world.setup.rules:
        old = {segment for segment, _ in world.segments} - named
    segments = frozenset(one for one in world.segments if one[0] not in old)
    yield world._replace(lists=lists, segments=segments), None


@call
def delete(world: World, tier: str, packs: frozenset[str]) -> Iterator[tuple[World, bool]]:
    """Delete packs in a tier; tell whether it did."""
    if tier in world.down:
        yield world, False
    else:
        yield world._replace(packs=world.packs - {(tier, pack) for pack in packs}), True


@call
def delete_layout(world: World, manifest: str) -> Iterator[tuple[World, None]]:
    """Delete a layout."""
    yield world._replace(layouts=frozenset(p for p in world.layouts if p[0] != manifest)), None


@call
def copy(world: World, pack: str, tier: str) -> Iterator[tuple[World, None]]:
    """Put a pack that was read before into a tier."""
    yield world._replace(packs=world.packs | {(tier, pack)}), None


@call
def publish(world: World, version: str) -> Iterator[tuple[World, object]]:
    """Append the ref entry of a version."""
    yield from _told(world._replace(versions=world.versions | {version}), None)


@call
def put_fold(world: World, manifest: str) -> Iterator[tuple[World, None]]:
    """Put the fold of a patch manifest if there is none."""
    yield world._replace(folds=world.folds | {manifest}), None


def _hinted(world: World, state: frozenset[Any]) -> frozenset[Any]:
    """Return what a stale hint leads to, if anybody believes it."""
    return state if "a stale hint is believed" in world.setup.rules else frozenset()


@call
def read_staying(world: World, version: str) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the logs of removals: manifests that other versions keep, which nobody removes."""
    going = world.removed | set(dict(world.announced)) | {version}
    yield (
        world,
        frozenset(
            world.setup.manifest[one]
            for one in world.versions
            if one.partition("+")[0] not in going
        ),
    )


@call
def read_contents(world: World, version: str) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the ref logs: the manifests of a version and of its variants."""
    every = frozenset(one for one in world.versions if one.partition("+")[0] == version)
    yield world, frozenset(world.setup.manifest[one] for one in every)


@call
def is_below_a_patch(world: World, version: str) -> Iterator[tuple[World, bool]]:
    """Read the ref logs and the folds: whether a patch that is not removed lies on a version."""
    setup = world.setup
    patches = {setup.manifest[one] for one in world.versions - world.removed} - world.folds
    yield world, any(setup.manifest[version] in setup.below.get(one, ()) for one in patches)


@call
def append_removal(world: World, action: str, version: str) -> Iterator[tuple[World, object]]:
    """Append ``forget`` or ``undelete``; what is forgotten is promised to nobody any more."""
    yield from _told(_with_entry(world, action, version), None)


@call
def announce(world: World, version: str, owner: str) -> Iterator[tuple[World, object]]:
    """Append that a version is to be removed."""
    others = frozenset(one for one in world.announced if one[0] != version)
    yield from _told(world._replace(announced=others | {(version, owner)}), None)


@call
def is_announced(world: World, version: str) -> Iterator[tuple[World, bool]]:
    """Read whether the removal of a version is announced."""
    yield world, version in dict(world.announced)


@call
def finish_removal(world: World, version: str, owner: str) -> Iterator[tuple[World, bool]]:
    """Append ``forget`` if the newest entry about a version is the owner's announcement."""
    mine = (version, owner) in world.announced
    yield _with_entry(world, "forget", version) if mine else world, mine


@call
def end_removal(world: World, version: str, owner: str) -> Iterator[tuple[World, object]]:
    """Append ``undelete`` if the newest entry about a version is the owner's announcement."""
    if (version, owner) in world.announced:
        world = _with_entry(world, "undelete", version)
    yield from _told(world, None)


@call
def read_equal(world: World, version: str) -> Iterator[tuple[World, frozenset[str]]]:
    """Read the logs: versions of the same content whose removal is announced."""
    manifest = world.setup.manifest
    others = dict(world.announced).keys() - {version}
    yield world, frozenset(one for one in others if manifest[one] == manifest[version])


@call
def stop_removal(world: World, version: str) -> Iterator[tuple[World, object]]:
    """Append ``undelete`` if the newest entry about a version announces its removal."""
    if version in dict(world.announced):
        world = _with_entry(world, "undelete", version)
    yield from _told(world, None)


def _with_entry(world: World, action: str, version: str) -> World:
    if action == "forget":
        removed, promised = world.removed | {version}, world.promised - {version}
        forgotten = world.forgotten | {version}
    else:
        removed, promised = world.removed - {version}, world.promised
        forgotten = world.forgotten
    return world._replace(
        removed=removed,
        promised=promised,
        forgotten=forgotten,
        announced=frozenset(one for one in world.announced if one[0] != version),
        earlier=(_hinted(world, world.removed), world.earlier[1]),
    )


@call
def append_name(world: World, name: str, version: str) -> Iterator[tuple[World, object]]:
    """Append an entry that lets a name mean a version, or nothing."""
    others = frozenset(one for one in world.names if one[0] != name)
    names = others | {(name, version)} if version else others
    promised = world.promised if version else world.promised - {name}
    earlier = (world.earlier[0], _hinted(world, world.names))
    yield from _told(world._replace(names=names, promised=promised, earlier=earlier), None)


@call_that_commutes(lambda world, holder, version: not version and world.setup.leases == "none")
def put_lease(world: World, holder: str, version: str) -> Iterator[tuple[World, None]]:
    """Put a lease, of a reader of that version or of a writer."""
    if not version and world.setup.leases == "none":
        yield world, None
        return
    leased = world.leased
    if version in world.promised:
        leased |= {version}
    yield world._replace(leases=world.leases | {(holder, version)}, leased=leased), None


@call_that_commutes(lambda world, holder: holder not in dict(world.leases))
def end_lease(world: World, holder: str) -> Iterator[tuple[World, None]]:
    """End a lease, of a writer that is done or of a reader that others go on for."""
    yield world._replace(leases=_leases_without(world, holder)), None


def lapse(world: World, holder: str) -> World:
    """Return the world once a lease has lapsed: nobody owes its reader anything any more."""
    owed = world.leased - {version for one, version in world.leases if one == holder}
    return world._replace(leases=_leases_without(world, holder), leased=owed)


def _leases_without(world: World, holder: str) -> frozenset[tuple[str, str]]:
    return frozenset(lease for lease in world.leases if lease[0] != holder)


# What somebody outside may rely on


@call
def promise(world: World, name: str, whatever_was: bool) -> Iterator[tuple[World, None]]:
    """Return to the caller: a version that is in force, an alias or a release.

    Who saved what somebody else has removed meanwhile is owed nothing, unless ``whatever_was``.
    """
    if name in world.removed or (name in world.forgotten and not whatever_was):
        yield world, None
    else:
        yield world._replace(promised=world.promised | {name}), None


@call
def look_as_reader(
    world: World, version: str, manifests: tuple[str, ...], layouts: tuple[Layout, ...], last: bool
) -> Iterator[tuple[World, frozenset[str] | None]]:
    """Follow the layouts of a version; a last look that fails ends with NotFound."""
    packs: frozenset[str] = frozenset()
    found = True
    for manifest, layout in zip(manifests, layouts, strict=True):
        chunks = world.setup.chunks[manifest]
        leads, lost = follow_layout(world, layout, chunks, ()) if layout else (frozenset(), True)
        packs |= leads
        found = found and not lost
    if found:
        yield world, packs
    else:
        owed = version in world.promised or version in world.leased
        yield world._replace(wronged=world.wronged or (last and owed and not world.down)), None
