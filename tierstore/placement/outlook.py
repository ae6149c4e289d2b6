"""What would move a pack, and when: the plan's rules, explained for one pack."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2

from tierstore.placement.plan import Planner
from tierstore.placement.scene import Scene, TierState
from tierstore.placement.texts import age


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one pack is held against in one tier.

    Attributes:
        tier: name.
        resident: whether the tier has it.
        bar: heat that the tier asks for; ``None`` when it takes none or asks for none.
        promote_above: heat above which it is copied there; ``None`` when it is there, or when no
            heat would do.
        demote_below: heat below which it leaves; ``None`` when it is not there, or stays anyway.
        leaves_in_s: seconds until it is as cold as that if nobody reads it; 0 for now.
        why: one sentence for people.
    """

    tier: str
    resident: bool
    bar: float | None
    promote_above: float | None
    demote_below: float | None
    leaves_in_s: float | None
    why: str


def outlook(scene: Scene, pack: bytes) -> list[Outlook]:
    """What would move a pack into or out of each tier that it is or could be in."""
    return [
        _leaving(scene, pack, tier) if scene.has(pack, tier) else _entering(scene, pack, tier)
        for tier in scene.tiers
        if scene.has(pack, tier) or tier.warm
    ]


def _entering(scene: Scene, pack: bytes, tier: TierState) -> Outlook:
    planner = Planner(scene)
    unit = planner.entering(pack, tier)
    bar, _ = planner.bar(unit, tier, inf)
    if not tier.keeps or bar == inf or any(scene.fastest(one).archive for one in unit):
        why = "it cannot be copied there: the tier has no room for it, or it must be restored first"
        return Outlook(tier.name, False, None, None, None, None, why)
    above = bar * scene.rules.promote
    why = f"it is copied there when its heat is above {above:.2g}"
    return Outlook(tier.name, False, bar, above, None, None, why)


def _leaving(scene: Scene, pack: bytes, tier: TierState) -> Outlook:
    def stays(why: str) -> Outlook:
        bar = tier.min_heat if tier.warm else None
        return Outlook(tier.name, True, bar, None, None, None, why)

    if tier.draining:
        return Outlook(tier.name, True, None, None, None, 0.0, "it leaves: the tier is drained")
    if tier.warm and pack in scene.pinned:
        return stays("it is pinned")
    half_life, worth, wait = scene.rules.half_life_s, scene.worth[pack], 0.0
    if tier.warm:
        bar, below = tier.min_heat, tier.min_heat * scene.rules.demote
    elif tier.ttl_s is not None:
        bar = below = scene.unread(tier.ttl_s)
        wait = tier.ttl_s - scene.age(pack, tier)
    else:
        return stays("it stays: nothing but a tier that is too full moves it down from here")
    if below <= 0:
        return stays("it stays until the tier is too full")
    left = max(0.0, wait, log2(worth / below) * half_life if worth > 0 else 0.0)
    why = f"it leaves when its heat is below {below:.2g}: in {age(left)} if nobody reads it"
    return Outlook(tier.name, True, bar, None, below, left, why)
