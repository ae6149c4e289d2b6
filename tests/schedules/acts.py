"""What the processes of a schedule do, chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.schedules.promises import CONTENTS, Lost, differs, patched
from tests.schedules.scheduler import Process
from tests.schedules.world import World
from tierstore.admin.purges import purges_of
from tierstore.errors import NotFound, TierstoreError, Unreachable, UsageError
from tierstore.format.keys import LEASES, REMOVED_LOG
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.store import Store


class Chooser(random.Random):
    """Chooses by a seed; of references mostly those of one model, so that parties meet."""

    focus = ""

    def ref(self, refs: Sequence[str]) -> str:
        """Choose a reference."""
        near = [ref for ref in refs if ref.startswith(self.focus)]
        return self.choice(near if near and self.random() < 0.7 else refs)


@dataclass(eq=False)
class Party:
    """One process of a schedule and what it does, in order.

    Attributes:
        process: The process.
        acts: What it does.
        collects: Whether it is a collector, which opens no store.
        done: What became of each act, as text.
    """

    process: Process
    acts: list[tuple[str, Act]]
    done: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Scene:
    """What an act works with."""

    world: World
    party: Party
    store: Store
    note: str


Act = Callable[[Scene], None]


def play(world: World, party: Party) -> None:
    """Do everything that a party does; errors that a user may get end one act alone."""
    try:
        opened = world.open(party.process)
    except TierstoreError as error:
        party.done.append(f"open: {type(error).__name__}: {error}")
        return
    with opened as store:
        for number, (name, act) in enumerate(party.acts):
            scene = Scene(world, party, store, f"{party.process.name}.{number}")
            try:
                act(scene)
            except TierstoreError as error:
                party.done.append(f"{name}: {type(error).__name__}: {error}")
            else:
                party.done.append(f"{name}: done")


def _save(model: str, name: str, base: str | None = None) -> Act:
    content = CONTENTS[name]

    def act(scene: Scene) -> None:
        version = scene.store.save(model, content, base=base)
        scene.world.promises.versions[model, version.number] = content

    return act


def _patch(ref: str, rows: int) -> Act:
    def act(scene: Scene) -> None:
        below = scene.store.resolve(ref)
        content = scene.world.promises.versions.get((below.model, below.number))
        if content is None:  # whoever saves it has not returned yet
            return
        changes, made = patched(content, rows)
        version = scene.store.patch(str(below), changes)
        scene.world.promises.versions[version.model, version.number] = made

    return act


def _fold(ref: str) -> Act:
    return lambda scene: _ignore(scene.store.fold(ref))


def _rebase(ref: str) -> Act:
    def act(scene: Scene) -> None:
        if ref == "n@2":
            with suppress(UsageError):  # it was not removed, or somebody else brought it back
                _bring_back(scene, ref)
        scene.store.rebase(ref, above=1)

    return act


def _remove(ref: str) -> Act:
    return lambda scene: _ignore(scene.store.remove(ref, force=True, message=scene.note))


def _purge(ref: str, times: int = 1) -> Act:
    """Purge a version, and ask again: it is removed by then, or somebody else has begun."""

    def act(scene: Scene) -> None:
        promises = scene.world.promises
        version = scene.store.resolve(ref)
        own = scene.store._parts.home.manifest_chunks(version.digest).digests
        promises.asked.add((version.model, version.number))
        for _ in range(times):
            purges_of(scene.store).begin([str(version)], force=True, message=scene.note)
            promises.purged[version.model, version.number] = frozenset(own)

    return act


def _undelete(ref: str, *, removes: bool = False) -> Act:
    def act(scene: Scene) -> None:
        if removes:
            with suppress(NotFound):  # it is removed
                scene.store.remove(ref, force=True)
        _bring_back(scene, ref)

    return act


def _bring_back(scene: Scene, ref: str) -> None:
    scene.store.undelete(ref, message=scene.note)
    scene.world.promises.undeleted.add(scene.note)


def _alias(ref: str, name: str) -> Act:
    def act(scene: Scene) -> None:
        version = scene.store.resolve(ref)
        scene.store.alias(version.model, name, version)
        scene.world.promises.aliases.add((version.model, name, version.number))

    return act


def _release(*refs: str) -> Act:
    def act(scene: Scene) -> None:
        release = scene.store.releases.create("both", refs)
        members = [(model, one.number) for model, one in release.members.items()]
        if all(member in scene.world.promises.versions for member in members):
            scene.world.promises.released[scene.note] = members

    return act


def _pin(ref: str) -> Act:
    def act(scene: Scene) -> None:
        version = scene.store.resolve(ref)
        scene.store.pins.add(version.digest, str(version), ["warm"])
        if (version.model, version.number) in scene.world.promises.versions:
            scene.world.promises.pinned.append((version.model, version.number))

    return act


def _collect(
    window_s: float | None = 0, grace_s: float = 0, times: int = 1, *, repack: bool = False
) -> Act:
    """Collect some times; every second one repacks if ``repack`` is set."""

    def act(scene: Scene) -> None:
        world, collector = scene.world, Collector(scene.store._parts.home)
        if window_s == 0:
            world.promises.is_kept = False
        for at in range(times):
            with world.collects(scene.party.process):
                collector.run(grace_s=grace_s, window_s=window_s, repack=repack and at % 2 == 0)

    return act


def _move(ref: str, tier: str) -> Act:
    def act(scene: Scene) -> None:
        placement = scene.store.placement
        placement.move(placement.packs_of(scene.store.resolve(ref).digest), tier)

    return act


def _read(ref: str, times: int) -> Act:
    def act(scene: Scene) -> None:
        world = scene.world
        version = scene.store.resolve(ref)
        content = world.promises.versions.get((version.model, version.number))
        model = scene.store.load(version)
        is_safe = False
        for _ in range(times):
            try:
                got = model.load()
            except NotFound as error:
                was_removed = _was_removed(world, version.model)
                if scene.party.process.had_faults or (was_removed and not is_safe):
                    raise
                raise Lost(f"{version} is lost for its reader: {error}") from error
            if content is not None and differs(got, content):
                raise Lost(f"{version} was read with other bytes")
            held = _lease_of(scene, version.digest.hex)
            # of two that begin at once, reader and collector, the collector may miss the lease
            is_safe = (
                held is not None and held not in world.lapsed and (is_safe or not world.collecting)
            )

    return act


def _was_removed(world: World, model: str) -> bool:
    """Return whether any version of a model was removed since the start."""
    made = sum(1 for _ in world.stores["home"].list(f"refs/{model}/{REMOVED_LOG}/"))
    return made > world.removals[model]


def _lease_of(scene: Scene, digest: str) -> str | None:
    """Return the key of the lease in which this process holds a version now."""
    home = scene.world.stores["home"]
    for info in home.list(LEASES):
        lease = unseal_body(Kind.LEASE, home.get(info.key), Lease, info.key)
        if lease.pid == scene.party.process.pid and digest in lease.versions:
            return info.key
    return None


def _ignore(result: object) -> None: ...


def _undelete_any(rng: Chooser) -> Act:
    ref = rng.ref(("n@2", "n@2", "m@1", "n@1", "m@2", "n@4"))
    return _undelete(ref, removes=rng.random() < 0.3 or ref in ("m@2", "n@4"))


MAKERS: Mapping[str, Callable[[Chooser], Act]] = {
    "save": lambda rng: _save(
        rng.ref(("m", "n", "new")),
        rng.choice(list(CONTENTS)),
        rng.choice((None, None, "auto", "n@3")),
    ),
    "patch": lambda rng: _patch(rng.ref(("n", "n@3", "n@4", "m@2", "m")), rng.randrange(4)),
    "fold": lambda rng: _fold(rng.ref(("n", "n@4", "m"))),
    "rebase": lambda rng: _rebase(rng.ref(("n@2", "n@2", "n@2", "n", "m", "new"))),
    "rm": lambda rng: _remove(rng.ref(("m@2", "m@2", "n@3", "n@4", "m", "n", "n@2"))),
    "purge": lambda rng: _purge(rng.ref(("m@2", "n@3", "n@4", "m", "n")), rng.choice((1, 2))),
    "undelete": _undelete_any,
    "alias": lambda rng: _alias(
        rng.ref(("m@2", "n@3", "n@4", "m", "n")), rng.choice(("prod", "next"))
    ),
    "release": lambda rng: _release(*rng.choice((("m@2", "n@4"), ("n@3",), ("m", "n"), ("n@4",)))),
    "pin": lambda rng: _pin(rng.ref(("m@2", "n@3", "n@4", "n"))),
    "gc": lambda rng: _collect(
        rng.choice((0, 0, 0, None)),
        rng.choice((0, 0, 0, 3600)),
        rng.choice((1, 1, 2)),
        repack=rng.random() < 0.5,
    ),
    "move": lambda rng: _move(rng.ref(("m@2", "n@3", "n@4", "n")), rng.choice(("home", "warm"))),
    "read": lambda rng: _read(rng.ref(("m@2", "n@3", "n@4", "m", "n")), rng.choice((1, 2, 3))),
}
_OFTEN = {
    "save": 5, "patch": 3, "rm": 5, "undelete": 3, "read": 3, "rebase": 2, "fold": 2, "purge": 2,
}  # fmt: skip

_GC = ("gc", _collect(times=2))
_GC3 = ("gc", _collect(times=3, repack=True))
CASTS: Sequence[Sequence[Sequence[tuple[str, Act]]]] = (
    # two that publish the same, while what it was is removed and collected
    (
        [("rebase", _rebase("n@2"))],
        [("rm", _remove("n@2")), ("save", _save("n", "tuned", "n@3"))],
        [_GC3],
    ),
    (
        [("rebase", _rebase("n@2"))],
        [("rebase", _rebase("n@2")), ("rm", _remove("n@2")), ("save", _save("new", "tuned"))],
        [_GC3],
    ),
    (
        [("save", _save("new", "first"))],
        [("save", _save("m", "first")), ("rm", _remove("m"))],
        [_GC3],
    ),
    # names of what is removed and brought back
    (
        [("alias", _alias("m@2", "prod"))],
        [("rm", _remove("m@2")), ("undelete", _undelete("m@2"))],
        [_GC3],
    ),
    (
        [("pin", _pin("n@4")), ("release", _release("m@2", "n@4"))],
        [
            ("undelete", _undelete("n@4", removes=True)),
            ("undelete", _undelete("m@2", removes=True)),
        ],
        [_GC3],
    ),
    # patches on what goes, and their folds
    (
        [("patch", _patch("n@4", 2)), ("patch", _patch("n", 3))],
        [("rm", _remove("n@4")), ("rm", _remove("n@3"))],
        [_GC3],
    ),
    (
        [("read", _read("n@4", 3))],
        [("fold", _fold("n@4")), ("rm", _remove("n@3"))],
        [_GC3],
    ),
    ([("fold", _fold("n@4"))], [("fold", _fold("n@4")), ("rm", _remove("n@3"))], [_GC3], [_GC]),
    # what a collector heals while another one deletes
    ([_GC3], [_GC3], [("save", _save("m", "third")), ("read", _read("m@2", 3))]),
    ([("undelete", _undelete("n@2"))], [("save", _save("n", "tuned", "n@3"))], [_GC3], [_GC]),
    # what is purged while others share it, save it again, read beside it or name it
    ([("purge", _purge("m@2", 2))], [("save", _save("new", "third"))], [_GC]),
    ([("purge", _purge("m@2"))], [("save", _save("new", "third")), ("rm", _remove("new"))], [_GC3]),
    ([("purge", _purge("n@3", 2))], [("patch", _patch("n@3", 2)), ("fold", _fold("n@4"))], [_GC3]),
    ([("purge", _purge("n", 2))], [("fold", _fold("n"))], [("patch", _patch("n@4", 2))]),
    ([("purge", _purge("m@2"))], [("purge", _purge("m@2"))], [("alias", _alias("m@2", "prod"))]),
    ([("purge", _purge("n@3", 2))], [("rebase", _rebase("n@2"))], [("undelete", _undelete("n@2"))]),
    ([("purge", _purge("n@4", 2))], [("read", _read("n@3", 3))], [("purge", _purge("m@2", 2))]),
)
"""Who may meet in ways that the model of ``tests/reclaim`` found to be the dangerous ones."""


def parties(rng: Chooser, start: str) -> list[Party]:
    """Choose who does what: a collector at least, and something that it may hurt."""
    cast = rng.choice(CASTS) if rng.random() < 0.4 else _any(rng, start)
    found = []
    for at, acts in enumerate(cast):
        names = dict.fromkeys(name for name, _ in acts)
        process = Process(f"{'-'.join(names)}{at}", pid=100 + at)
        _spoil(process, rng)
        found.append(Party(process, list(acts)))
    return found


def _any(rng: Chooser, start: str) -> Sequence[Sequence[tuple[str, Act]]]:
    rng.focus = rng.choice(("", "m", "n"))
    names = [name for name in MAKERS if name != "move" or start == "tiers"]
    weights = [_OFTEN.get(name, 1) for name in names]
    found = []
    for at in range(rng.choice((2, 3, 3, 4))):
        if at == 0 or rng.random() < 0.15:
            chosen = ["gc"] * rng.choice((1, 2, 2, 3))
        else:
            chosen = rng.choices(names, weights, k=rng.choice((1, 1, 2)))
        found.append([(name, MAKERS[name](rng)) for name in chosen])
    return found


def _spoil(process: Process, rng: Chooser) -> None:
    """Let something go wrong in some processes."""
    kind = rng.random()
    at = rng.choice((rng.randint(1, 25), rng.randint(1, 120)))
    if kind < 0.12:
        process.crash_at = at
    elif kind < 0.20:
        process.lost_at = at
    elif kind < 0.25:
        process.fault = lambda call, op: Unreachable("it is lost") if call == at else None
    process.drops_hints = rng.random() < 0.1
    if rng.random() < 0.3:
        process.skew_s = rng.choice((-3600.0, 3600.0, rng.uniform(-3600, 3600)))
