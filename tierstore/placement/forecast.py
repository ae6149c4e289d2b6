"""Forecasts: what would move a pack, and when, by the rules of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2

from tierstore.placement.plan import Planner
from tierstore.placement.scene import Scene, TierState
from tierstore.placement.texts import age


@dataclass(frozen=True, slots=True)
class Forecast:
    """The conditions under which one pack enters or leaves one tier.

    Attributes:
        tier: The name of the tier.
        resident: Whether the tier has it.
        threshold: The heat that the tier asks for; ``None`` when it takes nothing or asks for none.
        promote_above: Heat above which it is copied there; ``None`` when it is there, or when no
            heat would do.
        demote_below: Heat below which it leaves; ``None`` when it is not there, or stays anyway.
        leaves_in_s: Seconds until it is that cold if nobody reads it; 0 when it leaves now.
        why: The reason, one sentence for people.
    """

    tier: str
    resident: bool
    threshold: float | None
    promote_above: float | None
    demote_below: float | None
    leaves_in_s: float | None
    why: str


def forecast(scene: Scene, pack: bytes) -> list[Forecast]:
    """Return what would move a pack into or out of each tier that it is or could be in."""
    return [
        _leaving(scene, pack, tier) if scene.has(pack, tier) else _entering(scene, pack, tier)
        for tier in scene.tiers
        if scene.has(pack, tier) or tier.warm
    ]


def _entering(scene: Scene, pack: bytes, tier: TierState) -> Forecast:
    planner = Planner(scene)
    unit = planner.entering(pack, tier)
    threshold, _ = planner.threshold(unit, tier, inf)
    why = ""
    if not tier.keeps:
        why = "the tier is drained" if tier.draining else "the tier cannot be reached"
    elif any(scene.fastest(one).archive for one in unit):
        why = "it must be restored from the archive first"
    elif threshold == inf:
        why = "the tier has no room for it"
    if why:
        why = f"it cannot be copied there: {why}"
        return Forecast(tier.name, False, None, None, None, None, why)
    above = threshold * scene.rules.promote
    why = f"it is copied there when its heat is above {above:.2g}"
    return Forecast(tier.name, False, threshold, above, None, None, why)


def _leaving(scene: Scene, pack: bytes, tier: TierState) -> Forecast:
    def stays(why: str) -> Forecast:
        threshold = tier.min_heat if tier.warm else None
        return Forecast(tier.name, True, threshold, None, None, None, why)

    if tier.draining:
        return Forecast(tier.name, True, None, None, None, 0.0, "it leaves: the tier is drained")
    if tier.warm and pack in scene.pinned:
        return stays("it is pinned")
    half_life, score, wait = scene.rules.half_life_s, scene.score[pack], 0.0
    if tier.warm:
        threshold, below = tier.min_heat, tier.min_heat * scene.rules.demote
    elif tier.ttl_s is not None:
        threshold = below = scene.unread(tier.ttl_s)
        wait = tier.ttl_s - scene.age(pack, tier)
    else:
        return stays("it stays: nothing but a tier that is too full moves it down from here")
    if below <= 0:
        return stays("it stays until the tier is too full")
    left = max(0.0, wait, log2(score / below) * half_life if score > 0 else 0.0)
    why = f"it leaves when its heat is below {below:.2g}: in {age(left)} if nobody reads it"
    return Forecast(tier.name, True, threshold, None, below, left, why)
