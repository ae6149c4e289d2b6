"""A purge, explored exhaustively: nothing is lost, nothing is left, and every rule is needed.

``purging.py`` has the parties and what must hold: ``lost``, ``named`` and ``shunned`` in every
state; ``stuck`` and ``left`` once all have stopped anywhere and agents went on. ``caching.py``
has the caches.
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.reclaim import caching
from tests.reclaim.explorer import run_alone
from tests.reclaim.purging import (
    ALONE,
    BEFORE,
    BLIND,
    CONDEMNED_FOLD,
    CONFIGURATIONS,
    FORGOTTEN,
    KEPT,
    LATE,
    OVER,
    REFUSED,
    RENAMED,
    RENUMBERED,
    SHARED,
    STAYS,
    UNASKED,
    UNDONE,
    UNLISTED,
    UNNOTICED,
    WHOLE,
    action_of,
    explore,
    goes_wrong,
    in_force,
    is_shunned,
    save,
)

NOTICED = {
    "save, purge",
    "release, purge",
    "undelete, purge",
    "patch, purge",
    "fold, purge",
    "save, purge, who ends notices",
}
"""Where notices are explored, too. What is deleted has nothing to do with them."""

UNSETTLED = "save of what is removed, patch, collector"
LARGE = {
    "save, purge, collector",
    "2 saves, purge",
    "purge of what a folded patch lies on, save",
}


def nothing(world):
    return ""


@pytest.mark.parametrize("name", sorted(set(CONFIGURATIONS) - LARGE - {UNSETTLED}))
def test_a_purge_keeps_its_promises(name):
    is_noticed = name in NOTICED
    result = explore(name, *([] if is_noticed else [BLIND]))
    assert not result.broken, "\n".join([result.broken, *result.trace])
    assert result.complete
    assert result.ends, "nobody ever comes to an end"
    assert any(world.order == "done" for world in result.worlds)
    for world in result.worlds:
        assert not goes_wrong(world), world
        assert not is_noticed or not is_shunned(world), world


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_ones_keep_them_too(name):
    result = explore(name, BLIND)
    assert not result.broken, "\n".join([result.broken, *result.trace])
    assert result.complete
    for world in result.worlds:
        assert not goes_wrong(world), world


MUTATIONS = [
    ("save, purge", "a save does not look at its name", "lost"),
    ("release, purge", "a release does not look", "lost"),
    ("save, patch, purge", ALONE, "lost"),
    ("save, alias, purge", "an alias does not look at names", "lost"),
    ("undelete, purge", "an undelete does not look at names", "lost"),
    ("save, alias, purge", UNASKED, "named"),
    ("save, alias, purge", UNDONE, "named"),
    ("fold, purge, collector", CONDEMNED_FOLD, "lost"),
]


@pytest.mark.parametrize(("name", "rule", "kind"), MUTATIONS)
def test_a_rule_that_is_left_out_loses(name, rule, kind):
    assert explore(name, rule).broken == kind


@pytest.mark.parametrize("rule", [BLIND, UNNOTICED, UNLISTED, RENUMBERED, RENAMED])
def test_without_a_rule_what_was_saved_can_be_loaded_and_not_named(rule):
    result = explore("save, purge, who ends notices", rule, broken=is_shunned)
    assert result.broken == "shunned"


LEAVING = [
    ("save, purge", "not marked again", "stuck"),
    ("save, purge", KEPT, "stuck"),
    ("patch, purge", FORGOTTEN, "stuck"),
    ("save, purge", FORGOTTEN, "stuck"),
    ("save, purge", OVER, "left"),
    ("purge, 2 collectors", LATE, "left"),
    ("purge of what a patch lies on, fold", OVER, "left"),
]


@pytest.mark.parametrize(("name", "rule", "kind"), LEAVING)
def test_a_rule_that_is_left_out_leaves_something(name, rule, kind):
    assert explore(name, rule, broken=goes_wrong).broken == kind


def test_a_purge_is_not_done_as_long_as_others_need_it_for_a_while():
    assert explore("undelete, purge", SHARED, OVER, broken=goes_wrong).broken == "left"
    assert not explore("undelete, purge", SHARED, broken=goes_wrong).broken


def test_equal_content_can_be_saved_again_at_once():
    """Whatever a purge has done by then: a save that runs on its own is never refused."""
    for world in explore("save, purge").worlds:
        after = run_alone(world, partial(save, world.rules, "again", "m", "s"))
        saved = after.promised & {"again", "again'"}
        assert saved
        assert {one for one, _ in in_force(after)} & {"again", "again'"} == saved


def test_what_is_refused_is_in_force_no_more():
    """Unless something names it; its writer was not killed, and comes back to it."""

    def left(*rules):
        ends = explore("save, purge", *rules).ends
        forced = [{one for one, _ in in_force(world)} for world in ends]
        return [world for world, names in zip(ends, forced, strict=True) if {"y", "y'"} <= names]

    assert not left()
    assert left(STAYS)
    refused = explore("save, purge", REFUSED).worlds
    assert any(
        "again" not in run_alone(world, partial(save, world.rules, "again", "m", "s")).promised
        for world in refused
    )


def test_a_patch_on_what_its_writer_never_settled_may_be_lost():
    """What no rule covers, as patches would have to read layouts below for it.

    A save reuses packs that are condemned before its entry, is paused behind that, and never comes
    to its look; meanwhile somebody patches what it published.
    """
    assert explore(UNSETTLED).broken == "lost"
    assert not explore(UNSETTLED, WHOLE).broken


# the design that took a manifest's name for one that may come back


def test_before_a_save_was_lost_to_a_late_delete():
    """Its name was condemned no more, and whoever purged it went on to delete it."""
    result = explore("save, purge", *BEFORE)
    assert result.broken == "lost"
    assert "30 days pass" in result.trace


def test_before_a_release_was_lost_that_was_made_again():
    result = explore("release, purge", *BEFORE - {FORGOTTEN}, "a release does not look")
    assert result.broken == "lost"


def test_before_a_patch_was_lost_that_lay_on_what_its_writer_took_back():
    result = explore("save, patch, purge", *BEFORE - {FORGOTTEN})
    assert result.broken == "lost"
    assert "z" in next(line for line in reversed(result.trace) if "promise" in line)


def test_before_what_was_taken_back_was_left_for_ever():
    """Its window made the purge done, and nobody looked at it again."""
    result = explore("save, purge", *BEFORE - {FORGOTTEN, LATE}, broken=nothing)
    assert any(
        goes_wrong(world) == "left" and action_of(world, "y") == "forget" for world in result.ends
    )


def test_before_a_dead_writer_stopped_all_collections():
    """What it published was borne only until its name was condemned no more."""
    worlds = explore("save, purge", *BEFORE, broken=nothing).worlds
    stuck = [world for world in worlds if goes_wrong(world) == "stuck"]
    assert any("y" not in world.promised and not world.condemned[2] for world in stuck)


# caches


def test_caches_keep_nothing_that_was_purged():
    result = caching.explore()
    assert result.ends
    for world in result.worlds:
        assert not caching.is_left(world), world
    assert any(world.done and not world.hot for world in result.ends)


@pytest.mark.parametrize("rules", [{caching.ONCE}, {caching.ONCE, caching.ANYBODY}, caching.BEFORE])
def test_caches_keep_something_under_the_rules_of_before(rules):
    assert any(caching.is_left(world) for world in caching.explore(*rules).worlds)


@pytest.mark.parametrize("rule", [caching.ANYBODY, caching.DELETED])
def test_an_acknowledgement_is_of_what_was_dropped(rule):
    """While nobody fills a cache late, a purge that is complete has nothing in one."""
    assert not any(map(caching.is_untrue, caching.explore(without="r").worlds))
    assert any(map(caching.is_untrue, caching.explore(rule, without="r").worlds))
