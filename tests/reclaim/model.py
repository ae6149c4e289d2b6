"""The parties of the reclaim protocol, as they act on a store; ``store.py`` has the calls.

R1: a collector deletes only what has a random name or can be rebuilt. R2: condemned is for good,
and nothing new relies on what is condemned. R3: flag, then look. Nothing here relies on a clock:
leases end at any moment, and there is no grace and no window. One thing is taken for granted: that
nobody sleeps for longer than a condemned pack stays listed; here it stays for ever.

``setup.rules`` names what is left out or changed, by the sentence that the tests use.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias

from tests.reclaim import store
from tests.reclaim.explorer import Call
from tests.reclaim.store import LOST, Layout, Setup

Steps: TypeAlias = Generator[Call, Any, Any]
OWN = "its own source"
PACKS = "packs that are there"


# What several of them do


def sure(asked: Call) -> Steps:
    """Make a put again whose answer was lost."""
    answer = yield asked
    while answer == LOST:
        answer = yield asked
    return answer


def read_condemned(setup: Setup) -> Steps:
    """Return the number of the highest condemned list, and its packs."""
    while True:
        number, segment = yield store.read_list()
        packs = yield store.read_segment(segment)
        if packs is not None:
            return number, packs
        if "a segment that is gone is empty" in setup.rules:
            return number, frozenset()
        # list and segment were deleted in between: then there is a higher one


def store_alone(owner: str, chunk: str) -> Steps:
    """Store a chunk standalone in a new pack; return that."""
    pack = yield store.new_pack(owner)
    yield from sure(store.upload(pack, frozenset({(chunk, "")})))
    return pack


def store_again(owner: str, chunk: str, source: str, condemned: frozenset[str]) -> Steps:
    """Return a pack that is not condemned and has a chunk, a new one if need be.

    ``source`` is ``OWN``, ``PACKS``, or a manifest whose content is read. ``None`` if it lacks it.
    """
    if source == OWN:
        return (yield from store_alone(owner, chunk))
    if source != PACKS:
        readable = yield store.is_readable(source)
        return (yield from store_alone(owner, chunk)) if readable else None
    pack = yield store.search(chunk, condemned)
    return (yield from store_alone(owner, chunk)) if pack == "" else pack


def replaced(layout: Layout, chunk: str, pack: str) -> Layout:
    """Return a layout with another place for one chunk."""
    return frozenset({(chunk, pack), *((one, at) for one, at in layout if one != chunk)})


def mend(setup: Setup, manifest: str, owner: str, source: str) -> Steps:
    """Look, store what is condemned or gone again, say so by moves, until a look finds nothing.

    Returns:
        The number of the condemned list of the last look; ``None`` if the source lacks something.
    """
    while True:
        number, condemned = yield from read_condemned(setup)
        layout = yield store.read_layout(manifest)
        if not layout:
            return None
        _, lost = yield store.follow(layout, setup.chunks[manifest], condemned, False)
        if not lost:
            return number
        pack = yield from store_again(owner, lost[0].chunk, source, condemned)
        if pack is None:
            return None
        if "repairs write the layout" in setup.rules:
            layout = yield store.read_layout(manifest)
            yield from sure(store.put_layout(manifest, replaced(layout, lost[0].chunk, pack), True))
        else:
            yield from sure(store.put_move(lost[0].end, lost[0].number, (pack,)))


def look_afterwards(setup: Setup, manifest: str, owner: str, source: str, number: int) -> Steps:
    """W6: once the entry is visible, what a list newer than ``number`` names is stored again.

    Returns:
        Whether the manifest may be relied on.
    """
    if "no look after the entry" in setup.rules:
        return True
    highest, _ = yield store.read_list()
    if highest == number:
        return True
    return (yield from mend(setup, manifest, owner, source)) is not None


def put_new_moves(pack: str, into: tuple[str, ...]) -> Steps:
    """Put a move of a pack, with whatever number is next."""
    put = False
    while not put:
        number = yield store.next_move(pack)
        put = yield from sure(store.put_move(pack, number, into))


# Writers


def save(setup: Setup, version: str, owner: str) -> Steps:
    """Save content that was stored before: by a stale index, as a delta on what it finds, or anew.

    Of a patch version those below are looked at afterwards as well, if they were ever removed.
    """
    manifest = setup.manifest[version]
    late = "a lease comes after the list was read" in setup.rules
    if not late:
        yield store.put_lease(owner, "")
    layout = yield from store_chunks(setup, setup.chunks[manifest][0], owner)
    number, layout = yield from confirm(setup, layout, setup.chunks[manifest][0], owner)
    if late:
        yield store.put_lease(owner, "")
    first = "the layout comes after the entry" not in setup.rules
    if first:
        number = yield from lay_out(setup, manifest, layout, owner, number)
        del layout
    yield from sure(store.publish(version))
    whole = yield from look_afterwards(setup, manifest, owner, OWN, number)
    if not first:
        yield from lay_out(setup, manifest, layout, owner, number)
        del layout
    under = setup.below.get(manifest, ())
    found = ""
    if under and "a patch looks at its own layout alone" not in setup.rules:
        found, lies_whole = yield from look_below(setup, under, owner)
        whole = whole and lies_whole
    if whole:
        if found:
            yield store.promise(f"{version} on {found}", True)
        yield store.promise(version, False)
    else:  # what it lies on is gone: nobody must rely on it, and no collector must stop at it
        yield from remove_own(setup, version, owner)
    yield store.end_lease(owner)


def look_below(setup: Setup, under: tuple[str, ...], owner: str) -> Steps:
    """Stop removals of what a patch lies on; if it ever was removed, see that it is whole.

    Returns:
        The version that it lies on, if that never was removed; and whether that is whole.
    """
    base = next(one for one, what in setup.manifest.items() if what == under[0])
    if "a patch stops no removal" not in setup.rules:
        announced = yield store.is_announced(base)
        if announced:
            yield from sure(store.stop_removal(base))
        del announced
    forgotten = yield store.read_forgotten()
    if base not in forgotten:
        return base, True
    del forgotten, base
    for below in under:
        number = yield from mend(setup, below, owner, PACKS)
        if number is None:
            return "", False
    return "", True


def store_chunks(setup: Setup, chunk: str, owner: str) -> Steps:
    """Store a chunk or not, as the index says; return the places of it and its base."""
    how = yield store.choose(*setup.choices)
    if how == "reuse":
        return frozenset(setup.index)
    if how == "alone":
        pack = yield from store_alone(owner, chunk)
        return frozenset({(chunk, pack)})
    pack = yield store.new_pack(owner)
    yield from sure(store.upload(pack, frozenset({(chunk, "b")})))
    return replaced(frozenset(setup.index), chunk, pack)


def confirm(setup: Setup, layout: Layout, chunk: str, owner: str) -> Steps:
    """W4: what is condemned or gone is stored again; return the list's number, and the places."""
    if "no look before the entry" in setup.rules:
        return 0, layout
    number, condemned = yield from read_condemned(setup)
    gone = yield store.missing(frozenset(pack for _, pack in layout))
    if gone | condemned & {pack for _, pack in layout}:
        pack = yield from store_alone(owner, chunk)
        layout = frozenset({(chunk, pack)})
    return number, layout


def lay_out(setup: Setup, manifest: str, layout: Layout, owner: str, number: int) -> Steps:
    """W5: put the layout, or keep the one that is there and mend what it cannot rely on.

    Returns:
        The number of the condemned list that was looked at last.
    """
    over = "a layout is written over" in setup.rules
    new = yield from sure(store.put_layout(manifest, layout, over))
    if new or "a kept layout is not looked at" in setup.rules:
        return number
    return (yield from mend(setup, manifest, owner, OWN))


def rebase(setup: Setup, version: str, owner: str) -> Steps:
    """Store the delta of a version standalone, and write its layout over."""
    manifest = setup.manifest[version]
    chunk = setup.chunks[manifest][0]
    yield store.put_lease(owner, "")
    layout = yield store.read_layout(manifest)
    readable = yield store.is_readable(manifest)
    if not readable or len(layout) == 1:  # there is no delta
        return
    pack = yield from store_alone(owner, chunk)
    old = dict(layout)[chunk]
    every = tuple(sorted(at for _, at in layout))
    if "a rebase puts no moves" not in setup.rules:
        yield from put_new_moves(old, (pack,))
    if "a rebase puts no moves back" not in setup.rules:
        yield from sure(store.put_move(pack, 1, every))
    number = 0
    if "no look before the entry" not in setup.rules:
        number, condemned = yield from read_condemned(setup)
        gone = yield store.missing(frozenset({pack}))
        if gone | condemned & {pack}:  # it starts anew, another day
            return
    yield from sure(store.put_layout(manifest, frozenset({(chunk, pack)}), True))
    yield from look_afterwards(setup, manifest, owner, PACKS, number)
    yield store.end_lease(owner)


def fold(setup: Setup, version: str, owner: str) -> Steps:
    """Store what a patch version makes of the one below as a full manifest, and name it."""
    manifest = setup.manifest[version]
    full = setup.full[manifest]
    yield store.put_lease(owner, "")
    readable = yield store.is_readable(manifest)
    if not readable:
        return
    pack = yield from store_alone(owner, setup.chunks[full][0])
    below = yield store.read_layout(setup.below[manifest][0])
    layout = frozenset({(setup.chunks[full][0], pack), *below})  # what is unchanged is reused
    layout = frozenset(one for one in layout if one[0] in setup.chunks[full])
    yield from sure(store.put_layout(full, layout, False))
    number = yield from mend(setup, full, owner, manifest)
    if number is None:
        return
    yield store.put_fold(manifest)
    whole = yield from look_afterwards(setup, full, owner, manifest, number)
    if whole:
        yield store.promise(version, False)
    yield store.end_lease(owner)


def repack(setup: Setup, pack: str, chunk: str, owner: str) -> Steps:
    """Copy what is live of a pack into a new one, and condemn the old one."""
    yield store.put_lease(owner, "")
    gone = yield store.missing(frozenset({pack}))
    if gone:
        return
    new = yield from store_alone(owner, chunk)
    if "a repack puts no moves" not in setup.rules:
        yield from put_new_moves(pack, (new,))
    while True:
        number, condemned = yield from read_condemned(setup)
        gone = yield store.missing(frozenset({new}))
        if gone | condemned & {pack, new}:
            return
        segment = yield store.put_segment(number + 1, condemned | {pack})
        yield from sure(store.put_list(number + 1, segment))


def rewrite(setup: Setup, version: str) -> Steps:
    """Let the layout of a version name the packs to which moves lead from those that it names.

    A collector does so with what its mark has followed, whatever becomes of the version meanwhile,
    and does not look afterwards: whatever layout of it was ever written leads to the same packs.
    """
    manifest = setup.manifest[version]
    _, condemned = yield from read_condemned(setup)
    layout = yield store.read_layout(manifest)
    new = yield store.followed(layout, setup.chunks[manifest], condemned)
    if new in (layout, frozenset()):  # it names them already, or something is lost
        return
    old = tuple(sorted({pack for _, pack in layout}))
    for pack in sorted({pack for _, pack in new - layout}):
        if "a rewrite puts no moves back" not in setup.rules:
            yield from put_new_moves(pack, old)
    yield from sure(store.put_layout(manifest, new, True))


def lay_out_anew(setup: Setup, version: str, packs: tuple[str, ...], owner: str) -> Steps:
    """Write a layout that was lost, of any of the packs that have the chunk."""
    manifest = setup.manifest[version]
    yield store.put_lease(owner, "")
    layout = yield store.read_layout(manifest)
    if layout:
        return
    pack = yield store.choose(*packs)
    _, condemned = yield from read_condemned(setup)
    gone = yield store.missing(frozenset({pack}))
    if gone | condemned & {pack}:  # a collector copies what is in it
        return
    over = "a lost layout is written over" in setup.rules
    layout = frozenset({(setup.chunks[manifest][0], pack)})
    yield from sure(store.put_layout(manifest, layout, over))
    yield store.end_lease(owner)


# Names, and taking back


def undelete(setup: Setup, version: str, owner: str) -> Steps:
    """Put a removed version in force again, if its packs can still be copied."""
    yield from sure(store.append_removal("undelete", version))
    while True:
        number: int | None = 0
        if "undelete does not look" not in setup.rules:
            number = yield from mend(setup, setup.manifest[version], owner, PACKS)
        if number is not None:
            yield store.promise(version, True)
            return
        done = yield from remove_own(setup, version, owner)  # too late
        if done:
            return


def remove_own(setup: Setup, version: str, owner: str) -> Steps:
    """Remove what its writer cannot promise to anybody, whoever reads it; return whether it is."""
    yield from sure(store.announce(version, owner))
    named = yield from is_needed(setup, version, None, readers=False)
    if named:
        yield from sure(store.end_removal(version, owner))
        return False
    return (yield store.finish_removal(version, owner))


def remove(setup: Setup, version: str, owner: str) -> Steps:
    """Remove a version, unless something names it by then."""
    in_force = yield store.read_versions()
    if version not in in_force:
        return
    if "removal is not announced" in setup.rules:
        yield from sure(store.append_removal("forget", version))
        named = yield from is_named(setup, version)
        if named:
            yield from undelete(setup, version, owner)
        return
    meant: frozenset[str] | None = None
    if "what pins mean is read before the announcement" in setup.rules:
        meant = yield from meant_by_pins(setup, version)
    yield from sure(store.announce(version, owner))
    named = False
    if "removal does not look" not in setup.rules:
        named = yield from is_needed(setup, version, meant)
    while named and setup.pins and meant is None:  # what is announced to go as well may stay
        equal = yield store.read_equal(version)
        if not equal:
            break
        yield from sure(store.stop_removal(min(equal)))
        del equal
        named = yield from is_needed(setup, version, meant)
    if named:
        yield from sure(store.end_removal(version, owner))
    else:
        yield store.finish_removal(version, owner)


def is_needed(
    setup: Setup, version: str, meant: frozenset[str] | None, readers: bool = True
) -> Steps:
    """Return whether anything names a version, or a patch lies on it."""
    named = yield from is_named(setup, version, meant, readers)
    if setup.below and not named and "removal does not look at patches" not in setup.rules:
        named = yield store.is_below_a_patch(version)
    return named


def meant_by_pins(setup: Setup, version: str) -> Steps:
    """Return the manifests of a version and its variants that nothing keeps but itself."""
    if not setup.pins:
        return frozenset()
    staying = yield store.read_staying(version)
    contents = yield store.read_contents(version)
    return contents - staying


def is_named(
    setup: Setup, version: str, meant: frozenset[str] | None = None, readers: bool = True
) -> Steps:
    """Return whether an alias, a release, a pin or a reader's lease names a version."""
    if meant is None:
        meant = yield from meant_by_pins(setup, version)
    named = yield store.read_names()
    leases = frozenset[tuple[str, str]]()
    if readers:
        leases = yield store.read_leases()
    return bool((named | {one for _, one in leases}) & (meant | {version}))


def name(setup: Setup, title: str, version: str, owner: str) -> Steps:
    """Let an alias or a release name a version."""
    in_force = yield store.read_versions()
    if version not in in_force:
        return
    yield from sure(store.append_name(title, version))
    if "a name does not look" not in setup.rules:
        if "a name stops no removal" not in setup.rules:
            announced = yield store.is_announced(version)
            if announced:
                yield from sure(store.stop_removal(version))
        in_force = yield store.read_versions()
        if version not in in_force:
            yield from sure(store.append_name(title, ""))
            return
        if "a name looks at removals alone" not in setup.rules:
            number = yield from mend(setup, setup.manifest[version], owner, PACKS)
            if number is None:
                yield from sure(store.append_name(title, ""))
                return
    yield store.promise(title, True)


def pin_variant(setup: Setup, version: str, variant: str, owner: str) -> Steps:
    """Publish a variant of a version, and pin that."""
    in_force = yield store.read_versions()
    if version not in in_force:
        return
    del in_force
    yield from sure(store.publish(variant))
    yield from sure(store.append_name("pin", setup.manifest[variant]))
    announced = yield store.is_announced(version)
    if announced:
        yield from sure(store.stop_removal(version))
    in_force = yield store.read_versions()
    if version not in in_force:
        yield from sure(store.append_name("pin", ""))
        return
    yield store.promise("pin", True)


# Readers and movers


def read(setup: Setup, version: str, holder: str) -> Steps:
    """Read a version; with a holder under a lease, which a child that reads on takes over."""
    manifest = setup.manifest[version]
    in_force = yield store.read_versions()
    if version not in in_force:
        return
    late = "a reader's lease comes after the layout" in setup.rules
    if holder and not late:
        yield store.put_lease(holder, version)
        if "a child has no lease" not in setup.rules:
            yield store.put_lease(holder + "'s child", version)
        yield store.end_lease(holder)
    before: tuple[object, ...] = ()
    while True:
        folds = yield store.read_folds()
        ways: tuple[tuple[str, ...], ...] = ((manifest, *setup.below.get(manifest, ())),)
        if manifest in folds:
            ways = ((setup.full[manifest],), *ways)
        seen: tuple[object, ...] = ()
        for way in ways:
            layouts: tuple[Layout, ...] = ()
            for one in way:
                layout = yield store.read_layout(one)
                layouts = (*layouts, layout)
            if holder and late:
                yield store.put_lease(holder, version)
            seen = (*seen, layouts)
            again = "a reader looks once" not in setup.rules and seen != before
            last = way == ways[-1] and not again
            packs = yield store.look_as_reader(version, way, layouts, last)
            if packs is not None:
                gone = yield store.missing(packs)
                if not gone:
                    return
                seen = (*seen, packs)
            elif last:
                return
        before = seen


def move(setup: Setup, pack: str) -> Steps:
    """Move a pack from tier A to tier B, one that nobody had condemned when this was planned."""
    gone = yield store.missing(frozenset({pack}))
    if gone:
        return
    yield store.copy(pack, "B")
    _, condemned = yield from read_condemned(setup)
    if pack in condemned and "a mover does not look" not in setup.rules:
        return
    yield store.delete("A", frozenset({pack}))
    gone = yield store.missing(frozenset({pack}))
    if gone:  # the copy is gone: it has the bytes still
        yield store.copy(pack, "A")


# Collectors


def mark(setup: Setup, owner: str) -> Steps:
    """Find what is live, and heal what is not whole before that is relied on.

    Returns:
        The number of the condemned list, its packs, and the live packs; for those ``None`` if
        something cannot be healed.
    """
    while True:
        number, condemned = yield from read_condemned(setup)
        unfit = frozenset() if "what is condemned counts as good" in setup.rules else condemned
        if "leases are read before removals" in setup.rules:
            leases = yield store.read_leases()
            in_force = yield store.read_versions()
            named = yield store.read_names()
        elif "names are read before removals" in setup.rules:
            named = yield store.read_names()
            in_force = yield store.read_versions()
            leases = yield store.read_leases()
        else:  # what protects is read after what it protects from
            in_force = yield store.read_versions()
            named = yield store.read_names()
            leases = yield store.read_leases()
        roots = in_force | named | {version for _, version in leases if version}
        del in_force, named, leases
        manifests = tuple(sorted({setup.manifest.get(root, root) for root in roots}))
        del roots
        live: frozenset[str] | None = frozenset()
        healed = False
        for manifest in manifests:
            packs, healed = yield from mark_one(setup, owner, manifest, condemned, unfit)
            live = None if packs is None or live is None else live | packs
            if healed or live is None:
                break
        if not healed:
            return number, condemned, live


def mark_one(
    setup: Setup, owner: str, manifest: str, condemned: frozenset[str], unfit: frozenset[str]
) -> Steps:
    """Return the packs that a live manifest needs, and whether something had to be healed.

    For a patch manifest the fold counts if it is whole, else the chain if that is; if neither is,
    either of them is healed.
    """
    full = ""
    if manifest in setup.full:
        folds = yield store.read_folds()
        full = setup.full[manifest] if manifest in folds else ""
        del folds
    if full:
        packs, _, lost = yield from leads(setup, full, unfit)
        if not lost or "a fold counts whatever it leads to" in setup.rules:
            return packs, False
    live: frozenset[str] = frozenset()
    for one in (manifest, *setup.below.get(manifest, ())):
        packs, layout, lost = yield from leads(setup, one, unfit)
        if not lost or (layout and "nothing is healed" in setup.rules):
            live |= packs
            if "what moves lead to is live" in setup.rules:
                every = yield store.follow_all(layout)
                live |= every
            continue
        if full and "folds are not healed" not in setup.rules:
            _, folded, unfolded = yield from leads(setup, full, unfit)
            healed = True
            if unfolded:
                healed = yield from heal(setup, owner, full, folded, unfolded, condemned)
            if healed:
                return live, True
        healed = yield from heal(setup, owner, one, layout, lost, condemned)
        return (live, True) if healed else (None, False)
    return live, False


def leads(setup: Setup, manifest: str, unfit: frozenset[str]) -> Steps:
    """Return the packs that a layout leads to, the layout, and what is lost; all if it is gone."""
    layout = yield store.read_layout(manifest)
    if not layout:
        return frozenset(), layout, tuple(store.Lost(c, "", 0) for c in setup.chunks[manifest])
    packs, lost = yield store.follow(layout, setup.chunks[manifest], unfit, True)
    return packs, layout, lost


def heal(
    setup: Setup,
    owner: str,
    manifest: str,
    layout: Layout,
    lost: tuple[store.Lost, ...],
    condemned: frozenset[str],
) -> Steps:
    """Let a move, or a layout where there is none, lead to what is lost; tell whether it could."""
    if not layout:
        for chunk in setup.chunks[manifest]:
            pack = yield from store_again(owner, chunk, PACKS, condemned)
            if pack is None:
                return False
            layout |= {(chunk, pack)}
        yield from sure(store.put_layout(manifest, layout, False))
        return True
    pack = yield from store_again(owner, lost[0].chunk, PACKS, condemned)
    if pack is None:
        return False
    if "healing writes the layout" in setup.rules:
        yield from sure(store.put_layout(manifest, replaced(layout, lost[0].chunk, pack), True))
    else:
        yield from sure(store.put_move(lost[0].end, lost[0].number, (pack,)))
    return True


def collect(setup: Setup, owner: str) -> Steps:
    """Condemn what is not live, look again, and delete what still is not."""
    rules = setup.rules
    candidates, number, condemned = yield from seek(setup, owner)
    if candidates is None:
        return
    if "marked again before the list" in rules:
        _, _, live = yield from mark(setup, owner)
        yield from condemn(setup, candidates, number, condemned)
        yield from sweep(setup, candidates - live)
        return
    yield from condemn(setup, candidates, number, condemned)
    del number, condemned
    if "does not wait for leases" not in rules:
        leases = yield store.read_leases()
        writers = frozenset(holder for holder, version in leases if not version)
        yield store.wait_for(writers)
        del leases, writers
    if "not marked again" in rules:
        yield from sweep(setup, candidates)
        return
    _, condemned, live = yield from mark(setup, owner)
    if live is None:
        return
    # what the highest list does not name is left to another run, whatever this one has written
    if "it deletes what it condemned itself" in rules:
        condemned = candidates
    del candidates
    doomed = condemned - live
    del condemned, live
    yield from sweep(setup, doomed)


def seek(setup: Setup, owner: str) -> Steps:
    """Mark for the first time.

    Returns:
        What to condemn, ``None`` if there is nothing to do; and the condemned list.
    """
    number, condemned, live = yield from mark(setup, owner)
    if live is None:
        return None, 0, ()
    packs = yield store.list_packs()
    leases = yield store.read_leases()
    writing = {holder for holder, version in leases if not version}
    young = frozenset(pack for pack in packs if pack.rstrip("0123456789") in writing)
    del writing
    if "grace is 0" in setup.rules:
        young = frozenset()
    if not packs - live - young:
        return None, 0, ()
    return frozenset(packs - live - condemned - young), number, condemned


def condemn(
    setup: Setup, candidates: frozenset[str], number: int, condemned: frozenset[str]
) -> Steps:
    """Put a condemned list that has these packs and all that was condemned before."""
    while not candidates <= condemned:
        kept = frozenset() if "lists are not cumulative" in setup.rules else condemned
        segment = yield store.put_segment(number + 1, candidates | kept)
        if (yield from sure(store.put_list(number + 1, segment))):
            return
        number, condemned = yield from read_condemned(setup)  # it builds on the other one's


def sweep(setup: Setup, doomed: frozenset[str]) -> Steps:
    """Delete packs in every tier, and tidy up."""
    if "layouts of what is dead are deleted" in setup.rules:
        in_force = yield store.read_versions()
        for version, manifest in sorted(setup.manifest.items()):
            if version not in in_force:
                yield store.delete_layout(manifest)
        del in_force
    gone = True
    for tier in setup.tiers:
        said = yield store.delete(tier, doomed)
        gone = gone and said
    retires = gone and "lists are retired" in setup.rules
    if "deleted in one tier and forgotten" in setup.rules or retires:
        number, condemned = yield from read_condemned(setup)
        segment = yield store.put_segment(number + 1, condemned - doomed)
        yield from sure(store.put_list(number + 1, segment))
    elif setup.tidies:
        number, _ = yield from read_condemned(setup)
        yield store.delete_old_lists(number)


def tidy(setup: Setup) -> Steps:
    """Put two more lists of the same packs, as runs do that condemn nothing, and tidy up."""
    for _ in ("once", "twice"):
        number, condemned = yield from read_condemned(setup)
        segment = yield store.put_segment(number + 1, condemned)
        yield from sure(store.put_list(number + 1, segment))
        del number, condemned, segment
    number, _ = yield from read_condemned(setup)
    yield store.delete_old_lists(number)
