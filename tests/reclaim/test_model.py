"""The reclaim protocol, explored exhaustively: nothing is lost, and every rule is needed.

``model.py`` has the parties, ``configurations.py`` who meets whom. In each configuration every
interleaving is tried, any party may stop anywhere for ever, and answers, leases and a tier may fail
where it says so. These hold in every state:

* strict: once a save, an undelete, a fold, an alias or a release returned, layouts with moves lead
  to packs that are there, for every chunk and its base;
* weak: some pack has each of these chunks still;
* reader: who reads a version that is not removed, or was leased before, never gets NotFound;
* list: the highest condemned list can be read;
* named: what an alias, a release or a pin names, once it returned, is not removed, nor what a
  patch lies on that found it in force.

And at the end, when nobody stopped halfway, two more collectors leave no garbage.

What the model cannot show is left to tests of the code: that a put is durable once it returned
(fsync), and that what is read is what was stored (digests). A chunk has no content here. Nor are
there windows, alias histories, leases by content, or removals of several models at once.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.reclaim.configurations import (
    WORLDS_AND_PARTIES,
    explore,
    left_over,
)
from tests.reclaim.store import is_stored, needed_by

LARGE = {
    "2 rebases, removal, save, collector",
    "2 rewrites, removal, save, collector",
    "rewrite, rebase, removal, save, collector",
    "rewrite, repack, removal, save, collector",
    "save, mover, 2 collectors",
    "save, tier down, 2 collectors",
    "save, undelete, 2 collectors",
    "save goes on, 2 collectors",
}
"""More than half a million states, of which eight million are looked at."""


def holds(name: str, *rules: str, whole: bool = True, **changes: Any) -> None:
    """See that a configuration keeps all promises; in all its states, if they are to be seen."""
    result = explore(name, *rules, **changes)
    assert not result.broken, "\n".join([result.broken, *result.trace])
    assert result.complete or not whole
    assert result.ends or not result.complete, "nobody ever comes to an end"
    for world in result.ends:
        assert not left_over(world)


@pytest.mark.parametrize("name", sorted(set(WORLDS_AND_PARTIES) - LARGE))
def test_protocol_keeps_its_promises(name):
    holds(name)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_ones_keep_them_too(name):
    holds(name, whole=False)


@pytest.mark.parametrize("name", ["save, removal, collector", "alias, removal, collector"])
def test_a_lost_answer_breaks_nothing(name):
    holds(name, lost_answers=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "name",
    [
        "rebase, removal, save, collector",
        "save beside another version, collector",
        "save, undelete, collector",
        "fold of what is removed, patch, collector",
        "repack, removal, save, collector",
        "rewrite, removal, save, collector",
    ],
)
@pytest.mark.parametrize(
    "changes", [{"lost_answers": 1}, {"leases": "lapse"}, {"leases": "hold"}], ids=str
)
def test_nor_do_two_misfortunes(name, changes):
    holds(name, whole=False, **changes)


MUTATIONS = [
    # the writer
    ("save, removal, collector", ["no look after the entry"], "weak"),
    ("save goes on, collector", ["no look after the entry"], "weak"),
    ("rebase, removal, save, collector", ["no look after the entry"], "weak"),
    ("fold of what is removed, patch, collector", ["no look after the entry"], "weak"),
    ("repack, removal, save, collector", ["no look after the entry"], "weak"),
    ("save, undelete, collector", ["a layout is written over"], "strict"),
    ("save, removal, collector", ["a kept layout is not looked at"], "strict"),
    ("new, reader, removal, collector", ["the layout comes after the entry"], "reader"),
    (
        "patch, removal of what is below, collector",
        ["a patch looks at its own layout alone"],
        "weak",
    ),
    # rebase
    ("rebase, collector", ["a rebase puts no moves back"], "strict"),
    (
        "rebase, removal, save, collector",
        ["a rebase puts no moves back", "what moves lead to is live"],
        "strict",
    ),
    # layouts of what was repacked
    ("rewrite, removal, save, collector", ["a rewrite puts no moves back"], "strict"),
    ("rewrite of a delta, removal, save, collector", ["a rewrite puts no moves back"], "strict"),
    # layouts that were lost
    ("layout lost, 2 collectors", ["a lost layout is written over"], "strict"),
    # the collector
    ("undelete, 2 collectors", ["not marked again"], "weak"),
    ("undelete, 2 collectors", ["marked again before the list"], "weak"),
    ("undelete, 2 collectors", ["lists are not cumulative"], "weak"),
    ("undelete, 2 collectors", ["what is condemned counts as good"], "weak"),
    ("undelete, 2 collectors", ["nothing is healed"], "weak"),
    ("undelete, 2 collectors", ["healing writes the layout"], "strict"),
    ("save, undelete, collector", ["layouts of what is dead are deleted"], "strict"),
    ("new, reader, removal, collector", ["leases are read before removals"], "reader"),
    ("fold, 2 collectors", ["a fold counts whatever it leads to"], "weak"),
    ("save, mover, 2 collectors", ["lists are retired"], "weak"),
    ("save, tier down, 2 collectors", ["deleted in one tier and forgotten"], "weak"),
    ("save, tidying, collector", ["it deletes what it condemned itself"], "weak"),
    ("save, tidying, collector", ["a segment that is gone is empty"], "weak"),
    ("save, tidying, collector", ["segments that no list names are deleted"], "list"),
    # names
    (
        "pin, 2 removals of equal content",
        ["what pins mean is read before the announcement"],
        "named",
    ),
    ("pin of a new variant, removal", ["what pins mean is read before the announcement"], "named"),
    ("patch, removal of what is below, collector", ["a patch stops no removal"], "named"),
    ("patch, removal of what is below, collector", ["removal does not look at patches"], "named"),
    ("undelete, 2 collectors", ["undelete does not look"], "weak"),
    ("alias, removal, collector", ["a name does not look"], "named"),
    ("alias, removal, collector", ["a stale hint is believed"], "named"),
    ("release, undelete, collector", ["a name looks at removals alone"], "weak"),
    # readers
    ("fold, reader, collector", ["a reader looks once"], "reader"),
    ("reader, rebase, collector", ["a reader looks once", "a rebase puts no moves"], "reader"),
    ("reader, removal, collector", ["a child has no lease"], "reader"),
]


@pytest.mark.parametrize(
    ("name", "rules", "kind"), MUTATIONS, ids=[f"{', '.join(r)} ({n})" for n, r, _ in MUTATIONS]
)
def test_a_rule_that_is_left_out_loses(name, rules, kind):
    result = explore(name, *rules)
    assert result.broken == kind
    print(
        f"{name}; {', '.join(rules)}: {kind} after {len(result.trace)} calls",
        *result.trace,
        sep="\n  ",
    )


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_rebase_needs_moves_both_ways():
    """One rebase stops before it writes the layout over, another one is done."""
    result = explore("2 rebases, removal, save, collector", "a rebase puts no moves")
    assert result.broken == "strict"


def test_a_fold_that_is_not_healed_stops_collectors():
    """One collector took the chain for the fold's sake; the other one condemned the fold's pack."""
    result = explore("fold, 2 collectors", "folds are not healed")
    assert not result.broken
    assert any(map(left_over, result.ends))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("save, removal, collector", "strict"), ("save goes on, 2 collectors", "weak")],
)
def test_a_put_if_absent_that_lies_once_loses(name, kind):
    """It writes over a layout or a condemned list, and says that there was none."""
    assert explore(name, lies=1).broken == kind


def test_removal_that_does_not_look_leaves_an_alias_of_what_is_removed():
    assert explore("alias, removal, collector", "removal does not look").broken == "named"


def test_removal_that_is_not_announced_may_stop_halfway():
    """An alias came before it; it dies between its entry and its look, and the alias is lost."""
    assert explore("alias, removal, collector", "removal is not announced").broken == "named"


def test_a_name_that_stops_no_removal_is_lost():
    assert explore("alias, removal, collector", "a name stops no removal").broken == "named"


TODAY = "no look after the entry"


@pytest.mark.parametrize(
    ("leases", "rules", "kind"),
    [
        ("hold", [], ""),
        ("lapse", [], "weak"),
        ("lapse", ["grace is 0"], "weak"),
        ("hold", ["does not wait for leases"], "weak"),
        ("hold", ["a lease comes after the list was read"], "weak"),
        ("hold", ["no look before the entry"], "weak"),
    ],
)
def test_without_the_look_afterwards_all_rests_on_leases(leases, rules, kind):
    """With it all of this is safe, and only saves work."""
    assert explore("save goes on, collector", TODAY, *rules, leases=leases).broken == kind
    holds("save goes on, collector", *rules, leases=leases)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("save, mover, collector", "a mover does not look"),
        ("reader, removal, collector", "a reader's lease comes after the layout"),
        ("fold, reader, collector", "a reader's lease comes after the layout"),
        ("reader, repack, collector", "a repack puts no moves"),
    ],
)
def test_what_only_saves_work(name, rule):
    """The second look of a reader makes the order of lease and layout indifferent, and so on."""
    holds(name, rule)


def _may_be_healed(world):
    """Return whether a collector can go on: it stops at what is in force and lost."""
    return all(
        any(
            all(is_stored(world, c) for one in way for c in world.setup.chunks[one]) for way in ways
        )
        for version in world.versions - world.removed
        for ways in [list(needed_by(world, world.setup.manifest[version]))]
    )


@pytest.mark.parametrize(
    "name",
    [
        "save goes on, collector",
        "rebase, collector",
        "fold, 2 collectors",
        "save, removal, collector",
    ],
)
def test_a_crash_leaves_no_garbage(name):
    """Wherever all parties stop for ever: two collectors that come later free it."""
    result = explore(name)
    for world in filter(_may_be_healed, result.worlds):
        assert not left_over(world)


def test_a_version_that_is_rebased_is_read_as_deltas_no_more():
    """Its old pack becomes garbage, though a move leads back to it."""
    result = explore("rebase, collector")
    assert any(("A", "old-a") not in world.packs for world in result.ends)


@pytest.mark.parametrize("name", ["save goes on, collector", "rebase, collector"])
def test_merging_equal_positions_hides_nothing(name):
    """Line and variables of a party are all that its future depends on."""
    merged, every = explore(name), explore(name, merge=False)
    assert _without_setup(merged.worlds) == _without_setup(every.worlds)
    assert _without_setup(merged.ends) == _without_setup(every.ends)
    assert merged.states < every.states


def _without_setup(worlds):
    return {world._replace(setup=None) for world in worlds}
