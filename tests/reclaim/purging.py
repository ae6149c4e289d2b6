"""The parties of a purge (SPEC.md 10.3) and a store for them, small enough to be explored whole.

``model.py`` deletes only what has a random name. A manifest is named by its content, so it could
come back under a name that somebody is about to delete. Here it is seen that this is safe as long
as a name that was condemned is condemned for ever, and whoever writes such content again gives it
another name, which is the same for all who do.

There is one content: the file "x", whose manifest is ``m`` at first. ``m'`` is that content, sealed
once more, and ``y'`` what a party publishes once ``y`` was refused. ``P/m`` is a
patch on ``m``; ``P/b`` and ``Q/b`` are patches that make "x" of ``b``, and ``F`` is the full
manifest that a fold of either names. Packs are random names; each begins with its chunk. Moves are
no objects here: ``ways`` are all packs to which a layout or a move ever led, and layouts come and
go. Parties may be paused for ever; no lease is waited for.

``rules`` names what is left out or changed, by the sentence that the tests use. ``BEFORE`` are the
rules of a purge that was designed first, and loses: it took the names of manifests for ids that may
be given again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from tests.reclaim.explorer import (
    Call,
    Explorer,
    Party,
    Result,
    call,
    call_that_commutes,
    run_alone,
)

Steps: TypeAlias = Generator[Call, Any, Any]
Manifests: TypeAlias = frozenset[str]

FORGOTTEN = "condemned names are forgotten after 30 days"
REFUSED = "equal content is refused"
UNDONE = "what is taken back has a window"
ALONE = "a patch looks at names below only of what was ever removed"
WHOLE = "a patch looks at packs below of whatever it lies on"
UNASKED = "what is there is taken back without asking who names it"
STAYS = "what is there is not taken back"
KEPT = "a collector leaves what its dead writer did not take back"
LATE = "the order comes after the entry"
CONDEMNED_FOLD = "a fold counts although its manifest is condemned"
SHARED = "a purge is done although others need it for a while only"
OVER = "an order that is done is looked at no more"
BLIND = "what came since the mark is not looked for"
UNNOTICED = "nobody is told what is about to be condemned"
UNLISTED = "notices are deleted without a list"
RENUMBERED = "the number of the list is read behind the look"
RENAMED = "who looks again puts its notice under the name of before"
BEFORE = frozenset({FORGOTTEN, REFUSED, UNDONE, ALONE, KEPT, LATE, SHARED, OVER, BLIND})


class World(NamedTuple):
    """The store.

    Attributes:
        rules: What is left out or changed.
        packs: The packs that are there.
        manifests: The manifests that are there.
        layouts: The manifests whose layout is there.
        ways: Pairs of a manifest and a pack to which its layout or moves lead.
        entries: Pairs of a version and its manifest.
        log: The newest entry about each version in the log of removals, and its writer.
        been: Versions that are or were removed.
        windows: Removed versions that can be brought back.
        condemned: The highest list: its number, and the packs and names of manifests in it.
        notices: Pairs of a notice and a name that is about to be condemned.
        aliases: Pairs of an alias and its version.
        folds: Pairs of a patch manifest and the full one of its fold.
        order: The purge order: none, ``given`` or ``done``.
        promised: What returned: versions and aliases.
    """

    rules: frozenset[str] = frozenset()
    packs: frozenset[str] = frozenset({"x"})
    manifests: Manifests = frozenset({"m"})
    layouts: Manifests = frozenset({"m"})
    ways: frozenset[tuple[str, str]] = frozenset({("m", "x")})
    entries: frozenset[tuple[str, str]] = frozenset({("v", "m")})
    log: frozenset[tuple[str, str, str]] = frozenset()
    been: frozenset[str] = frozenset()
    windows: frozenset[str] = frozenset()
    condemned: tuple[int, frozenset[str], Manifests] = (0, frozenset(), frozenset())
    notices: frozenset[tuple[str, str]] = frozenset()
    aliases: frozenset[tuple[str, str]] = frozenset()
    folds: frozenset[tuple[str, str]] = frozenset()
    order: str = ""
    promised: frozenset[str] = frozenset({"v"})


class Found(NamedTuple):
    """What roots need.

    Attributes:
        manifests: They, and those that they lie on.
        packs: One fit pack of each, or the packs of all where there is none.
        gone: Roots that need a manifest which is not there, with that.
        bare: A manifest without a layout, or nothing.
        unfit: A manifest all of whose packs are condemned or gone, or nothing.
        folds: The full manifests of their folds.
    """

    manifests: Manifests
    packs: frozenset[str]
    gone: frozenset[tuple[str, str]]
    bare: str
    unfit: str
    folds: Manifests


def chain(manifest: str) -> tuple[str, ...]:
    """Return a manifest, and the one that it lies on."""
    return (manifest, manifest.partition("/")[2]) if "/" in manifest else (manifest,)


def action_of(world: World, version: str) -> str:
    """Return the action of the newest entry about a version."""
    return {one: action for one, action, _ in world.log}.get(version, "")


def is_removed(world: World, version: str) -> bool:
    """Return whether a version is removed."""
    return action_of(world, version) in ("forget", "purge")


def in_force(world: World) -> frozenset[tuple[str, str]]:
    """Return the versions in force, with their manifests."""
    return frozenset(one for one in world.entries if not is_removed(world, one[0]))


def named_by_aliases(world: World) -> frozenset[tuple[str, str]]:
    """Return the versions that aliases name, with their manifests; but those that were purged."""
    named = {version for _, version in world.aliases if action_of(world, version) != "purge"}
    return frozenset(one for one in world.entries if one[0] in named)


def fit_packs(world: World, manifest: str, unfit: Collection[str]) -> list[str]:
    """Return the packs that have the chunk of a manifest and can be relied on."""
    ways = sorted(pack for one, pack in world.ways if one == manifest)
    return [pack for pack in ways if pack in world.packs and pack not in unfit]


def is_fit(world: World, manifest: str, unfit: Collection[str]) -> bool:
    """Return whether a manifest is there, with a layout and a pack that can be relied on."""
    is_there = manifest in world.manifests & world.layouts
    return is_there and bool(fit_packs(world, manifest, unfit))


def way(world: World, manifest: str, unfit: Collection[str], names: Collection[str]) -> list[str]:
    """Return the manifests whose packs a version needs: its fold, or itself and what lies below.

    What is whole counts, else what can be healed, and each time the fold first. A fold whose
    manifest is condemned counts at last, and if that is there.
    """
    full = dict(world.folds).get(manifest, "")
    below = [*chain(manifest)]
    condemned = full in names and CONDEMNED_FOLD not in world.rules
    for holds in (partial(is_fit, world, unfit=unfit), partial(can_be_healed, world)):
        if full and not condemned and holds(full):
            return [full]
        if not full or all(map(holds, below)):
            return below
    return [full] if full in world.manifests else below


def can_be_healed(world: World, manifest: str) -> bool:
    """Return whether a manifest is there, and some pack with its chunk."""
    has_chunk = any(pack[0] == chunk_of(manifest) for pack in world.packs)
    return manifest in world.manifests and has_chunk


def is_whole(world: World, manifest: str) -> bool:
    """Return whether a reader gets all of a version."""
    return manifest in world.manifests and all(
        is_fit(world, one, ()) for one in way(world, manifest, (), ())
    )


def folds_of(world: World, manifests: Manifests) -> Manifests:
    """Return the full manifests of the folds of some."""
    return frozenset(full for patch, full in world.folds if patch in manifests)


def chunk_of(manifest: str) -> str:
    """Return the chunk of a manifest, with which the names of its packs begin."""
    return "p" if "/" in manifest else manifest[0].replace("m", "x").replace("F", "x")


# Calls


@call
def read_list(world: World) -> Iterator[tuple[World, tuple[int, frozenset[str], Manifests]]]:
    """Read the highest condemned list: its number, packs and names."""
    yield world, world.condemned


@call
def read_list_and_notices(
    world: World,
) -> Iterator[tuple[World, tuple[int, frozenset[str], Manifests]]]:
    """Read the highest list as who publishes does: the names of notices are in it."""
    number, packs, names = world.condemned
    yield world, (number, packs, names | {name for _, name in world.notices})


@call
def put_notice(world: World, notice: str, names: Manifests) -> Iterator[tuple[World, None]]:
    """Tell who publishes from now on that these names are about to be condemned."""
    yield world._replace(notices=world.notices | {(notice, name) for name in names}), None


@call
def read_notices(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """Return which notices are there."""
    yield world, frozenset(notice for notice, _ in world.notices)


@call
def delete_notices(world: World, notices: frozenset[str]) -> Iterator[tuple[World, None]]:
    """Delete notices."""
    left = frozenset(one for one in world.notices if one[0] not in notices)
    yield world._replace(notices=left), None


@call
def read_needed(
    world: World, marked: Manifests, folds: Manifests
) -> Iterator[tuple[World, Manifests]]:
    """Return what versions, aliases and folds need that were not there at a mark."""
    roots = {manifest for _, manifest in in_force(world) | named_by_aliases(world)} - marked
    new = frozenset(one for root in roots for one in chain(root)) - marked
    yield world, new | (folds_of(world, marked | new) - folds)


@call
def condemn(
    world: World, number: int, packs: frozenset[str], names: Manifests
) -> Iterator[tuple[World, bool]]:
    """Put the list behind that number, with all that was condemned before; tell whether it was."""
    highest, before, named = world.condemned
    if number != highest:
        yield world, False
    else:
        yield world._replace(condemned=(number + 1, before | packs, named | names)), True


@call
def read_logs(world: World) -> Iterator[tuple[World, frozenset[tuple[str, str, bool]]]]:
    """Read logs of removals and versions: what stays, its manifest, and if for its window alone."""
    kept = {(*one, True) for one in world.entries if one[0] in world.windows}
    yield world, frozenset({(*one, False) for one in in_force(world)} | kept)


@call
def read_versions(world: World) -> Iterator[tuple[World, frozenset[tuple[str, str]]]]:
    """Read the versions in force, with their manifests."""
    yield world, in_force(world)


@call
def read_aliases(world: World) -> Iterator[tuple[World, frozenset[tuple[str, str]]]]:
    """Read aliases: the versions that they name and that are not purged, with their manifests."""
    yield world, named_by_aliases(world)


@call
def look(
    world: World, roots: Manifests, unfit: frozenset[str], names: Manifests
) -> Iterator[tuple[World, Found]]:
    """Look what roots need."""
    ways = {root: way(world, root, unfit, names) for root in roots}
    every = frozenset(one for root in roots for one in (root, *ways[root]))
    needed = frozenset(one for root in roots for one in ways[root])
    gone = frozenset(
        (root, one) for root in roots for one in (root, *ways[root]) if one not in world.manifests
    )
    bare = sorted(needed & world.manifests - world.layouts)
    packs, lost = set[str](), []
    for one in sorted(needed & world.manifests):
        fit = fit_packs(world, one, unfit)
        packs.update(fit[:1] or fit_packs(world, one, ()))
        lost += [] if fit else [one]
    yield (
        world,
        Found(
            every, frozenset(packs), gone, "".join(bare[:1]), "".join(lost[:1]),
            folds_of(world, every),
        ),
    )  # fmt: skip


@call
def is_stored(world: World, chunk: str) -> Iterator[tuple[World, bool]]:
    """Return whether any pack has a chunk, condemned or not."""
    yield world, any(pack[0] == chunk for pack in world.packs)


@call
def list_packs(world: World) -> Iterator[tuple[World, frozenset[str]]]:
    """List the packs."""
    yield world, world.packs


@call_that_commutes(lambda world, *options: True)
def choose(world: World, *options: str) -> Iterator[tuple[World, str]]:
    """Do any of these."""
    for option in options:
        yield world, option


def _free(world: World, name: str) -> str:
    used = {pack for _, pack in world.ways} | world.packs
    return next(one for one in map(f"{name}{{}}".format, range(1, 99)) if one not in used)


@call
def store_again(world: World, manifest: str, owner: str) -> Iterator[tuple[World, None]]:
    """Store the chunk of a manifest in a new pack, and lead there by a move."""
    pack = _free(world, f"{chunk_of(manifest)}-{owner}")
    if int(pack[-1]) <= 2:  # who would need more stops
        ways = world.ways | {(manifest, pack)}
        yield world._replace(packs=world.packs | {pack}, ways=ways), None


@call
def put_manifest(world: World, manifest: str) -> Iterator[tuple[World, None]]:
    """Put a manifest."""
    yield world._replace(manifests=world.manifests | {manifest}), None


@call
def put_layout(world: World, manifest: str, pack: str) -> Iterator[tuple[World, None]]:
    """Put a layout, or keep the one that is there; with a pack, it or a move leads to that."""
    ways = world.ways | {(manifest, pack)} if pack else world.ways
    yield world._replace(layouts=world.layouts | {manifest}, ways=ways), None


@call
def put_fold(world: World, manifest: str, full: str) -> Iterator[tuple[World, None]]:
    """Put a fold if there is none, or if the one that is there has a condemned manifest."""
    there = dict(world.folds).get(manifest)
    if there in world.condemned[2]:
        yield world._replace(folds=world.folds - {(manifest, there)} | {(manifest, full)}), None
    elif there is not None:
        yield world, None
    else:
        yield world._replace(folds=world.folds | {(manifest, full)}), None


@call
def is_readable(world: World, manifest: str) -> Iterator[tuple[World, bool]]:
    """Return whether a version can be read."""
    yield world, is_whole(world, manifest)


@call
def publish(world: World, version: str, manifest: str) -> Iterator[tuple[World, None]]:
    """Append the ref entry of a version."""
    yield world._replace(entries=world.entries | {(version, manifest)}), None


def _with_entry(world: World, action: str, version: str, owner: str) -> World:
    others = frozenset(one for one in world.log if one[0] != version)
    world = world._replace(
        log=others | {(version, action, owner)}, windows=world.windows - {version}
    )
    if action == "forget":
        world = world._replace(windows=world.windows | {version})
    if action in ("forget", "purge"):
        world = world._replace(been=world.been | {version}, promised=world.promised - {version})
    return world


@call
def append(
    world: World, action: str, version: str, owner: str, behind: str
) -> Iterator[tuple[World, bool]]:
    """Append to the log of removals if the newest entry about a version is as it must be.

    ``behind`` is ``any``; ``announce`` by whomever, or ``mine`` by the owner; or ``removed``. What
    was purged stays so.
    """
    newest = action_of(world, version)
    fits = {
        "any": newest != "purge",
        "announce": newest == "announce",
        "mine": (version, "announce", owner) in world.log,
        "forget": newest == "forget",
    }[behind]
    yield (_with_entry(world, action, version, owner) if fits else world), fits


@call
def read_removal(world: World, version: str) -> Iterator[tuple[World, tuple[str, bool]]]:
    """Read the newest action about a version, and whether it was ever removed."""
    yield world, (action_of(world, version), version in world.been)


@call
def append_alias(world: World, title: str, version: str) -> Iterator[tuple[World, None]]:
    """Let an alias mean a version, or nothing."""
    others = frozenset(one for one in world.aliases if one[0] != title)
    yield world._replace(aliases=others | ({(title, version)} if version else set())), None


@call
def is_below(world: World, version: str) -> Iterator[tuple[World, bool]]:
    """Return whether a patch in force lies on a version, and has no fold."""
    manifest = dict(world.entries)[version]
    patches = {one for _, one in in_force(world) if one != manifest}
    yield world, any(manifest in chain(one) and one not in dict(world.folds) for one in patches)


@call
def put_order(world: World, state: str) -> Iterator[tuple[World, None]]:
    """Write the purge order, or delete it."""
    yield world._replace(order=state), None


@call
def read_order(world: World) -> Iterator[tuple[World, Manifests]]:
    """Return the manifests of what is purged by the order, also once that is done."""
    purged = {one for one, manifest in world.entries if action_of(world, one) == "purge"}
    own = {manifest for one, manifest in world.entries if one == "v" and one in purged}
    names = frozenset(own | {full for patch, full in world.folds if patch in own})
    is_over = not world.order or (world.order == "done" and OVER in world.rules)
    yield world, frozenset() if is_over else names


@call
def delete_packs(world: World, packs: frozenset[str]) -> Iterator[tuple[World, None]]:
    """Delete packs."""
    yield world._replace(packs=world.packs - packs), None


@call
def delete_layouts(world: World, names: Manifests) -> Iterator[tuple[World, None]]:
    """Delete layouts."""
    yield world._replace(layouts=world.layouts - names), None


@call
def delete_manifests(world: World, names: Manifests) -> Iterator[tuple[World, None]]:
    """Delete manifests."""
    yield world._replace(manifests=world.manifests - names), None


@call
def conclude(world: World, names: Manifests, needed: Manifests) -> Iterator[tuple[World, bool]]:
    """Look what is left of what was purged; if nothing is, the order is done."""
    left = names & (world.manifests | world.layouts) - needed
    if not {"x", "b"} & set(map(chunk_of, needed)):
        left |= {pack for pack in world.packs if pack[0] in "xb"}
    yield (world if left else world._replace(order="done")), not left


@call
def promise(world: World, name: str) -> Iterator[tuple[World, None]]:
    """Return to the caller; who saved what somebody else removed meanwhile is owed nothing."""
    if is_removed(world, name):
        yield world, None
    else:
        yield world._replace(promised=world.promised | {name}), None


# Writers


def save(
    rules: frozenset[str],
    version: str,
    equal: str,
    owner: str,
    release: bool = False,
    again: bool = False,
) -> Steps:
    """Save content that is equal to a manifest's, or with ``release`` make a release like it.

    It knows nothing of what is condemned. Where its name turns out to be, it takes the version
    back, and goes on once under another name.
    """
    manifest = f"{equal}'" if again else equal
    if REFUSED in rules:
        _, _, names = yield read_list()
        if equal in names:
            return
        del names
    how = "store" if again else (yield choose("reuse", "store"))
    yield put_manifest(manifest)
    _, condemned, names = yield read_list()
    packs = yield list_packs()
    fit = packs - condemned
    del condemned, names, packs
    if how == "reuse" and chunk_of(equal) in fit:
        del fit
        yield put_layout(manifest, chunk_of(equal))
    else:
        del fit
        yield store_again(manifest, owner)
        yield put_layout(manifest, "")
    yield publish(version, manifest)
    while True:
        _, condemned, names = yield read_list_and_notices()
        refused = manifest in names and not (release and "a release does not look" in rules)
        found = yield look(frozenset({manifest}), condemned, names)
        del condemned, names
        if REFUSED in rules and not release:  # it looks for the manifest as well
            refused = refused or bool(found.gone)
        if refused and "a save does not look at its name" not in rules:
            del found, refused
            yield from take_back(rules, version, manifest, owner)
            if not again and REFUSED not in rules:
                yield from save(rules, f"{version}'", equal, owner, release, again=True)
            return
        if not found.unfit and not found.bare:
            break
        if found.unfit:
            yield store_again(manifest, owner)
        if found.bare:
            yield put_layout(manifest, "")
    yield promise(version)


def take_back(rules: frozenset[str], version: str, manifest: str, owner: str) -> Steps:
    """Remove for good what was published, and what nobody was promised by its writer.

    Where its manifest is there it may be that a collector saw it, and keeps it, and that somebody
    names it: so it is removed as by anybody else, and stays if it is needed.
    """
    if UNDONE in rules:
        yield append("forget", version, owner, "any")
        return
    found = yield look(frozenset({manifest}), frozenset(), frozenset())
    if found.gone or UNASKED in rules:
        yield append("purge", version, owner, "any")
        return
    if STAYS in rules:
        return
    yield append("announce", version, owner, "any")
    named = yield read_aliases()
    needed = yield is_below(version)
    if needed or version in {one for one, _ in named}:
        yield append("undelete", version, owner, "mine")
        return
    del named
    yield append("purge", version, owner, "mine")


def patch(rules: frozenset[str], version: str, base: str, owner: str) -> Steps:
    """Patch a version that is in force, settled or not."""
    versions = yield read_versions()
    if base not in dict(versions):
        return
    below = dict(versions)[base]
    del versions
    manifest = f"P/{below}"
    yield put_manifest(manifest)
    yield store_again(manifest, owner)
    yield put_layout(manifest, "")
    yield publish(version, manifest)
    _, ever = yield read_removal(base)
    names, packs = ever or ALONE not in rules, ever or WHOLE in rules
    del ever
    whole = yield from mend(manifest, owner, names, own="" if packs else manifest)
    if whole:
        yield promise(version)
    else:
        yield from take_back(rules, version, manifest, owner)


def mend(manifest: str, owner: str, names: bool, own: str = "") -> Steps:
    """Look, copy what is condemned, until a look finds nothing; ``False`` if something is lost.

    With ``names`` those of manifests are looked at, and with ``own`` the packs of that one alone,
    of which the source is there.
    """
    while True:
        _, condemned, named = yield read_list()
        if names and not named.isdisjoint(chain(manifest)):
            return False
        found = yield look(frozenset({manifest}), condemned, named)
        del condemned, named
        if found.gone and names:
            return False
        wanted = (found.unfit, found.bare) if not own else (own,)
        if found.unfit not in wanted and found.bare not in wanted:
            return True
        if not found.unfit and not found.bare:
            return True
        if found.unfit in wanted and found.unfit:
            if found.unfit != own:
                stored = yield is_stored(chunk_of(found.unfit))
                if not stored:
                    return False
            yield store_again(found.unfit, owner)
        if found.bare in wanted and found.bare:
            yield put_layout(found.bare, "")


def name(rules: frozenset[str], title: str, version: str, owner: str) -> Steps:
    """Let an alias name a version that is in force, settled or not."""
    versions = yield read_versions()
    if version not in dict(versions):
        return
    manifest = dict(versions)[version]
    del versions
    yield append_alias(title, version)
    yield append("undelete", version, owner, "announce")
    action, _ = yield read_removal(version)
    kept = action not in ("forget", "purge")
    del action
    if kept:
        looks = "an alias does not look at names" not in rules
        kept = yield from mend(manifest, owner, names=looks, own="" if looks else manifest)
    if kept:
        yield promise(title)
    else:
        yield append_alias(title, "")


def fold(rules: frozenset[str], manifest: str, owner: str, again: bool = False) -> Steps:
    """Fold a patch of a version that is in force; once more where its name is condemned."""
    full = "F'" if again else "F"
    yield put_manifest(full)
    yield store_again(full, owner)
    yield put_layout(full, "")
    yield put_fold(manifest, full)
    while True:
        _, condemned, names = yield read_list_and_notices()
        found = yield look(frozenset({full}), condemned, names)
        del condemned
        refused = full in names
        del names
        if refused and not again:
            del found, refused
            yield from fold(rules, manifest, owner, again=True)
            return
        if refused or (not found.unfit and not found.bare):
            return
        if found.unfit:
            readable = yield is_readable(manifest)
            if not readable:
                return
            yield store_again(full, owner)
        if found.bare:
            yield put_layout(full, "")


def undelete(rules: frozenset[str], version: str, owner: str) -> Steps:
    """Bring a removed version back that has the same manifest as what is purged."""
    done = yield append("undelete", version, owner, "forget")
    if not done:
        return
    looks = "an undelete does not look at names" not in rules
    whole = yield from mend("m", owner, names=looks, own="" if looks else "m")
    if whole:
        yield promise(version)
        return
    yield append("announce", version, owner, "any")
    named = yield read_aliases()
    if version not in {one for one, _ in named}:
        yield append("forget", version, owner, "mine")


# Collectors, and who purges


def mark(rules: frozenset[str], owner: str) -> Steps:
    """Find what is needed, and heal it; see to what nobody was promised.

    A root whose manifest is condemned and gone needs nothing, and if it is a version, is purged.

    Returns:
        Number, packs and names of the condemned list; what roots need, and the manifests of those
        that stay for more than a window. ``None`` if something cannot be healed.
    """
    while True:
        number, packs, names = yield read_list()
        versions = yield read_logs()
        aliases = yield read_aliases()
        roots = frozenset(one[1] for one in versions | aliases)
        firm = frozenset(one[1] for one in versions | aliases if not one[2:] or not one[2])
        del aliases
        found = yield look(roots, packs, names)
        dead = frozenset(root for root, one in found.gone if one in names)
        if any(root not in dead or (KEPT in rules and root != one) for root, one in found.gone):
            return None
        ended = () if KEPT in rules else tuple(sorted(v for v, m, _ in versions if m in dead))
        del versions
        if dead:  # who published or named it ended before the look, and was promised nothing
            found = yield look(roots - dead, packs, names)
        del roots
        for one in ended:
            yield append("purge", one, owner, "any")
        needed = frozenset(one for root in firm - dead for one in chain(root))
        del ended, dead, firm
        if not found.bare and not found.unfit:
            return number, packs, names, found, found.manifests if SHARED in rules else needed
        del needed
        if found.unfit:
            stored = yield is_stored(chunk_of(found.unfit))
            if not stored:
                return None
            yield store_again(found.unfit, owner)
        if found.bare:
            yield put_layout(found.bare, "")


def collect(rules: frozenset[str], owner: str) -> Steps:
    """Condemn what is not needed, look again, delete; of an order that is given, its manifests."""
    purged = yield read_order()
    marked = yield from mark(rules, owner)
    if marked is None:
        return
    number, packs, names, found, _ = marked
    there = yield list_packs()
    new, old = there - found.packs - packs, purged - found.manifests - names
    before, folds = found.manifests, found.folds
    del marked, there, found
    while new - packs or old - names:
        going = old - names
        if going and not {UNNOTICED, BLIND} & rules:
            yield put_notice(owner if RENAMED in rules else f"{owner}{number}", going)
        if going and BLIND not in rules:
            needed = yield read_needed(before, folds)
            going -= needed
            del needed
        if RENUMBERED in rules:
            number, packs, names = yield read_list()
        done = yield condemn(number, new, going)
        del going
        if done:
            break
        number, packs, names = yield read_list()
    del number, packs, names, new, old, before, folds
    again = yield from mark(rules, owner)
    if again is None:
        return
    _, packs, names, found, needed = again
    del again
    doomed = packs - found.packs
    yield delete_packs(doomed)
    going = names & purged - found.manifests
    if "not marked again" in rules:
        going = purged
    del packs, names, found, doomed
    if going:
        yield delete_layouts(going)
        yield delete_manifests(going)
    del going
    if not {UNNOTICED, BLIND} & rules:
        yield from end_notices(rules)
    if purged:
        yield conclude(purged, needed)


def end_notices(rules: frozenset[str], owner: str = "") -> Steps:
    """Delete the notices that are there, behind a list that is put for that."""
    seen = yield read_notices()
    if not seen:
        return
    if UNLISTED not in rules:
        number, _, _ = yield read_list()
        done = yield condemn(number, frozenset(), frozenset())
        del number
        if not done:
            return
    yield delete_notices(seen)


def purge(rules: frozenset[str], owner: str) -> Steps:
    """Purge version v: the order first, then the entry, then what a collector does for it."""
    if LATE not in rules:
        yield put_order("given")
    yield append("announce", "v", owner, "any")
    named = yield read_aliases()
    needed = yield is_below("v")
    if needed or "v" in {one for one, _ in named}:
        if LATE not in rules:
            yield put_order("")
        return
    del named
    done = yield append("purge", "v", owner, "mine")
    if not done:
        return
    if LATE in rules:
        yield put_order("given")
    yield from collect(rules, owner)


PARTIES: dict[str, Callable[..., Steps]] = {
    "save": save, "release": partial(save, release=True), "patch": patch, "alias": name,
    "undelete": undelete, "purge": purge, "collect": collect, "fold": fold, "end": end_notices,
}  # fmt: skip

EQUAL = World(
    entries=frozenset({("v", "m"), ("u", "m")}),
    log=frozenset({("u", "forget", "")}),
    been=frozenset({"u"}),
    windows=frozenset({"u"}),
)
"""Another version has the same manifest, and was removed."""

GONE = World(log=frozenset({("v", "forget", "")}), been=frozenset({"v"}), promised=frozenset())
"""The version was removed, and its window is over."""

FOLDED = World(
    packs=frozenset({"x", "b", "p", "p1"}),
    manifests=frozenset({"b", "P/b", "Q/b", "F"}),
    layouts=frozenset({"b", "P/b", "Q/b", "F"}),
    ways=frozenset({("b", "b"), ("P/b", "p"), ("Q/b", "p1"), ("F", "x")}),
    entries=frozenset({("v", "Q/b"), ("z", "P/b")}),
    folds=frozenset({("Q/b", "F")}),
    promised=frozenset({"v", "z"}),
)
"""Two patches make the same content, and one of them is folded."""

BELOW = World(
    packs=frozenset({"b", "p", "x"}),
    manifests=frozenset({"b", "P/b", "F"}),
    layouts=frozenset({"b", "P/b", "F"}),
    ways=frozenset({("b", "b"), ("P/b", "p"), ("F", "x")}),
    entries=frozenset({("v", "b"), ("z", "P/b")}),
    folds=frozenset({("P/b", "F")}),
    promised=frozenset({"v", "z"}),
)
"""A patch is folded, and what it lay on is purged."""

CONFIGURATIONS: dict[str, tuple[World, dict[str, tuple[str, ...]]]] = {
    "fold, purge, collector": (
        FOLDED, {"f": ("fold", "P/b"), "p": ("purge",), "g": ("collect",)}),
    "purge of what a folded patch lies on, save": (
        BELOW, {"w": ("save", "y", "b"), "p": ("purge",), "g": ("collect",)}),
    "purge of what a patch lies on, fold": (
        BELOW._replace(folds=frozenset()),
        {"f": ("fold", "P/b"), "p": ("purge",), "g": ("collect",)}),
    "fold, purge": (FOLDED, {"f": ("fold", "P/b"), "p": ("purge",)}),
    "save, purge": (World(), {"w": ("save", "y", "m"), "p": ("purge",)}),
    "release, purge": (World(), {"w": ("release", "y", "m"), "p": ("purge",)}),
    "save, patch, purge": (
        World(), {"w": ("save", "y", "m"), "q": ("patch", "z", "y"), "p": ("purge",)}),
    "patch, purge": (World(), {"q": ("patch", "z", "v"), "p": ("purge",)}),
    "save, alias, purge": (
        World(), {"w": ("save", "y", "m"), "n": ("alias", "a", "y"), "p": ("purge",)}),
    "alias, purge": (World(), {"n": ("alias", "a", "v"), "p": ("purge",)}),
    "undelete, purge": (EQUAL, {"n": ("undelete", "u"), "p": ("purge",)}),
    "save, purge, collector": (
        World(), {"w": ("save", "y", "m"), "p": ("purge",), "g": ("collect",)}),
    "save, purge, who ends notices": (
        World(), {"w": ("save", "y", "m"), "p": ("purge",), "e": ("end",)}),
    "2 saves, purge": (
        World(), {"w": ("save", "y", "m"), "x": ("save", "z", "m"), "p": ("purge",)}),
    "save of what is removed, patch, collector": (
        GONE, {"w": ("save", "y", "m"), "q": ("patch", "z", "y"), "g": ("collect",)}),
    "purge, 2 collectors": (World(), {"p": ("purge",), "g": ("collect",), "h": ("collect",)}),
}  # fmt: skip


def explore(name: str, *rules: str, broken: Any = None, limit: int = 3_000_000) -> Result:
    """Explore a configuration with these rules left out or changed."""
    world, parties = CONFIGURATIONS[name]
    world = world._replace(rules=frozenset(rules))
    found: list[tuple[str, Party]] = [
        (owner, partial(PARTIES[kind], world.rules, *arguments, owner))
        for owner, (kind, *arguments) in parties.items()
    ]
    return Explorer(world, found, happens, broken or is_broken, limit=limit).run()


def happens(world: World) -> Iterator[tuple[str, World]]:
    """Yield what happens by itself: a window ends, or a list forgets what is no more."""
    for version in sorted(world.windows):
        yield f"the window of {version} ends", world._replace(windows=world.windows - {version})
    number, packs, names = world.condemned
    if FORGOTTEN in world.rules and names and packs.isdisjoint(world.packs):
        yield "30 days pass", world._replace(condemned=(number + 1, frozenset(), frozenset()))


def is_broken(world: World) -> str:
    """Return which promise a world breaks, or nothing.

    ``lost``: what returned is not whole. ``named``: what an alias names that returned is removed.
    """
    for name in sorted(world.promised):
        version = dict(world.aliases).get(name, name)
        if is_removed(world, version):
            return "named"
        if not is_whole(world, dict(world.entries)[version]):
            return "lost"
    return ""


def is_shunned(world: World) -> str:
    """Return ``shunned`` where nobody may name a version though its writer has returned."""
    published = world.promised - world.been - {title for title, _ in world.aliases}
    manifests = {dict(world.entries)[version] for version in published}
    return "shunned" if manifests & world.condemned[2] else ""


def goes_wrong(world: World) -> str:
    """Return what is wrong once all have stopped, windows ended, and agents went on.

    ``stuck``: collectors end at something that nobody was promised, and that cannot be removed, as
    its manifest is gone. ``left``: what was purged, or its manifest, is there and nothing needs it.
    """
    if action_of(world, "v") != "purge":
        return ""
    for _ in range(3):
        world = world._replace(windows=frozenset())
        for event, after in happens(world):
            world = after if event == "30 days pass" else world
        world = run_alone(world, partial(collect, world.rules, "z"))
        for version, manifest in sorted(in_force(world)):
            if not {manifest, *way(world, manifest, (), ())} <= world.manifests:
                return "stuck"
            if not is_whole(world, manifest):  # who died left it, and anybody may remove it
                world = _with_entry(world, "purge", version, "z")
    roots = [manifest for _, manifest in in_force(world) | named_by_aliases(world)]
    needed = {one for root in roots for one in (root, *way(world, root, (), ()))}
    packs = {pack for one in needed for pack in fit_packs(world, one, ())}
    purged = {manifest for version, manifest in world.entries if version == "v"}
    purged |= {full for patch, full in world.folds if patch in purged}
    if (world.manifests | world.layouts) & purged - needed:
        return "left"
    return "left" if {pack for pack in world.packs if pack[0] == "x"} - packs else ""
