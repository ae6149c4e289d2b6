"""The plan of moves between durable tiers: what it asks for, and what it never does."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.placement.cost import DAY_S, GB, Prices
from tierstore.placement.forecast import forecast
from tierstore.placement.heat import HALF_LIFE_S
from tierstore.placement.plan import drain, rebalance, relocate
from tierstore.placement.scene import PackState, Plan, Scene, TierState

NOW = 1e9
LONG_AGO = NOW - 100 * DAY_S
A, B, C, D = (bytes([n]) * 32 for n in range(1, 5))
WARM = TierState("warm", warm=True, min_heat=1.0)
COLD = TierState("cold", warm=False)
ICE = TierState("ice", warm=False, archive=True)
HOME = TierState("home", warm=False, takes=False)


def pack(one: bytes, heat: float, *tiers: str, size: int = 10, at: float = LONG_AGO) -> PackState:
    return PackState(one, size, heat, dict.fromkeys(tiers, at))


def scene(
    *packs: PackState, tiers: Iterable[TierState] = (WARM, COLD, HOME), **more: object
) -> Scene:
    return Scene(packs, tuple(tiers), now=NOW, **more)  # type: ignore[arg-type]


def steps(plan: Plan) -> list[tuple[str, bytes, str, str]]:
    return [(move.kind, move.pack, move.source, move.target) for move in plan.moves]


def test_hot_packs_come_and_cold_ones_go() -> None:
    plan = rebalance(scene(pack(A, 5, "cold"), pack(B, 0.1, "warm"), pack(C, 0.1, "warm", "cold")))
    assert steps(plan) == [
        ("demote", B, "warm", "cold"), ("drop", C, "warm", "cold"), ("promote", A, "cold", "warm"),
    ]  # fmt: skip
    assert [move.copies for move in plan.moves] == [True, False, True]
    assert plan.copied_bytes == 20
    assert plan.moves[2].why == "its heat of 5 is above 1.25 x 1"
    assert plan.moves[0].why == "its heat of 0.1 is below 0.8, 0.8 x the threshold of tier warm"


@pytest.mark.parametrize(
    ("heat", "where", "moves"),
    [(1.2, "cold", 0), (1.3, "cold", 1), (0.9, "warm", 0), (0.7, "warm", 1)],
)
def test_between_the_two_bars_nothing_moves(heat: float, where: str, moves: int) -> None:
    assert len(rebalance(scene(pack(A, heat, where))).moves) == moves


def test_what_was_just_written_is_held_to_have_been_read() -> None:
    assert not rebalance(scene(pack(A, 0, "warm", at=NOW - 3600))).moves
    assert rebalance(scene(pack(A, 0, "warm", at=NOW - 0.4 * DAY_S))).moves


def test_a_full_tier_lets_go_the_coldest_down_to_its_low_watermark() -> None:
    full = replace(WARM, quota_bytes=100, high_percent=90, low_percent=50)
    packs = [pack(bytes([n]) * 32, n, "warm") for n in range(2, 12)]
    plan = rebalance(scene(*packs, tiers=(full, COLD, HOME)))
    assert steps(plan) == [("demote", bytes([n]) * 32, "warm", "cold") for n in range(2, 7)]
    assert "above its high watermark of 90 % of 100 bytes" in plan.moves[0].why


def test_the_bar_is_what_would_have_to_go() -> None:
    full = replace(WARM, quota_bytes=20, high_percent=100, low_percent=100)
    now = scene(pack(A, 4, "warm"), pack(B, 6, "warm"), pack(C, 4.9, "cold"), tiers=(full, COLD))
    assert not rebalance(now).moves
    now = scene(pack(A, 4, "warm"), pack(B, 6, "warm"), pack(C, 5.1, "cold"), tiers=(full, COLD))
    plan = rebalance(now)
    assert steps(plan) == [("demote", A, "warm", "cold"), ("promote", C, "cold", "warm")]
    assert plan.moves[1].threshold == 4
    # a big one must be worth all that it drives out, per byte
    big = pack(C, 6, "cold", size=20)
    full = replace(full, quota_bytes=30)
    there = [pack(A, 4, "warm", size=15), pack(B, 6, "warm", size=15)]
    assert not rebalance(scene(*there, big, tiers=(full, COLD))).moves
    assert len(rebalance(scene(*there, replace(big, heat=10), tiers=(full, COLD))).moves) == 3


def test_a_base_comes_and_stays_with_what_needs_it() -> None:
    now = [pack(A, 0, "cold"), pack(B, 5, "cold"), pack(C, 0, "cold")]
    plan = rebalance(scene(*now, bases={B: [A]}))
    assert steps(plan) == [("promote", A, "cold", "warm"), ("promote", B, "cold", "warm")]
    now = [pack(A, 0, "warm"), pack(B, 5, "warm")]
    assert not rebalance(scene(*now, bases={B: [A]})).moves, "the base is as hot as its delta"
    now = [pack(A, 0.2, "warm"), pack(B, 0.1, "warm")]
    plan = rebalance(scene(*now, bases={B: [A]}))
    assert [move.pack for move in plan.moves] == [B, A], "the delta leaves first"


def test_a_base_makes_no_room_for_what_needs_it() -> None:
    full = replace(WARM, quota_bytes=100, high_percent=100, low_percent=100)
    now = pack(A, 9, "warm", size=75), pack(B, 2, "cold", size=25), pack(C, 0, "warm", size=1)
    assert not rebalance(scene(*now, tiers=(full, COLD), bases={B: [C]})).moves


def test_a_base_that_is_too_far_away_is_fetched_or_its_deltas_go() -> None:
    now = [pack(A, 0.1, "cold", size=50), pack(B, 1, "warm")]
    plan = rebalance(scene(*now, bases={B: [A]}))
    assert steps(plan) == [("promote", A, "cold", "warm")]
    assert plan.moves[0].why == f"pack {B.hex()[:12]} in tier warm needs it"
    small = replace(WARM, quota_bytes=40)
    plan = rebalance(scene(*now, bases={B: [A]}, tiers=(small, COLD)))
    assert steps(plan) == [("demote", B, "warm", "cold")]


def test_pinned_packs_and_their_bases_stay() -> None:
    now = [pack(A, 0, "warm", "cold"), pack(B, 0, "warm", "cold"), pack(C, 0, "warm", "cold")]
    full = replace(WARM, quota_bytes=20)
    plan = rebalance(scene(*now, bases={B: [A]}, pinned=[B], tiers=(full, COLD)))
    assert steps(plan) == [("drop", C, "warm", "cold")]
    assert "what is left is pinned" in plan.notes[0]
    assert not relocate(scene(*now, pinned=[A]), [A], COLD.name).moves


def test_only_a_copy_that_can_be_relied_on_lets_another_go() -> None:
    for unreliable in (
        replace(COLD, reachable=False), replace(COLD, draining=True), replace(COLD, archive=True),
    ):  # fmt: skip
        tiers = (WARM, unreliable)
        copies = ("warm",) if not unreliable.reachable else ("warm", "cold")
        drops = [move for move in rebalance(scene(pack(A, 0, *copies), tiers=tiers)).moves
                 if move.source == "warm"]  # fmt: skip
        assert not drops, unreliable


def test_home_takes_packs_only_when_it_is_the_cold_tier() -> None:
    assert not rebalance(scene(pack(A, 0, "warm"), tiers=(WARM, HOME))).moves
    plan = rebalance(scene(pack(A, 0, "warm"), tiers=(WARM, replace(HOME, takes=True))))
    assert steps(plan) == [("demote", A, "warm", "home")]
    plan = rebalance(scene(pack(A, 0, "warm", "home"), tiers=(WARM, HOME)))
    assert steps(plan) == [("drop", A, "warm", "home")], "but what it has can be relied on"


def test_a_time_to_live_leads_into_an_archive_and_never_loses_the_last_copy() -> None:
    aged = replace(COLD, ttl_s=30 * DAY_S)
    plan = rebalance(scene(pack(A, 0, "cold"), tiers=(WARM, aged, ICE, HOME)))
    assert steps(plan) == [("demote", A, "cold", "ice")]
    assert plan.moves[0].why == "it was not read for 30 days, as long as tier cold keeps it"
    assert not rebalance(scene(pack(A, 0, "cold"), tiers=(WARM, aged))).moves
    assert not rebalance(scene(pack(A, 0, "cold", at=NOW - DAY_S), tiers=(aged, ICE))).moves
    full = replace(COLD, quota_bytes=15, high_percent=50, low_percent=10)
    assert not rebalance(scene(pack(A, 0, "cold"), tiers=(full, ICE))).moves


def test_a_time_to_live_that_is_longer_than_heat_remembers_ends_too() -> None:
    years = replace(COLD, ttl_s=2000 * DAY_S)
    old = pack(A, 0, "cold", at=NOW - 2001 * DAY_S)
    assert steps(rebalance(scene(old, tiers=(years, ICE)))) == [("demote", A, "cold", "ice")]
    read = replace(old, heat=2.0 ** -(140 * DAY_S / HALF_LIFE_S))
    assert not rebalance(scene(read, tiers=(years, ICE))).moves, "it was read 140 days ago"


def test_the_minimum_storage_duration_is_waited_for_unless_the_tier_is_full() -> None:
    dear = replace(WARM, prices=Prices.of({"gb_month": "3", "min_days": "30"}))
    young = pack(A, 0, "warm", at=NOW - 10 * DAY_S, size=GB)
    assert not rebalance(scene(young, tiers=(dear, COLD))).moves
    full = replace(dear, quota_bytes=GB // 2)
    plan = rebalance(scene(young, tiers=(full, COLD)))
    assert plan.moves[0].cost_once == Decimal(2), "20 of 30 days are still paid for"


def test_what_it_saves() -> None:
    cheap = replace(COLD, prices=Prices.of({
        "gb_month": "0.02", "get_1000": "0.1", "retrieve_gb": "0.01", "put_1000": "5",
    }))  # fmt: skip
    dear = replace(WARM, prices=Prices.of({"gb_month": "0.30"}))
    plan = rebalance(scene(pack(A, 0, "warm", size=GB), tiers=(dear, cheap)))
    assert (plan.expected_saving, plan.cost_once) == (Decimal("0.28"), Decimal("0.005"))
    plan = rebalance(scene(pack(A, 100, "cold", size=GB), tiers=(dear, cheap)))
    reads = 100 * 0.6931471805599453 * 30 * DAY_S / HALF_LIFE_S
    assert float(plan.expected_saving) == pytest.approx(reads * (0.01 + 128 * 0.0001) - 0.30)
    assert float(plan.cost_once) == pytest.approx(0.01 + 128 * 0.0001)
    bill = scene(pack(A, 100, "cold", size=GB), tiers=(dear, cheap)).bill()["cold"]
    assert float(bill.total) == pytest.approx(0.02 + reads * (0.01 + 128 * 0.0001))


def test_a_tier_is_drained_to_its_like() -> None:
    gone = replace(WARM, draining=True)
    other = TierState("other", warm=True, quota_bytes=15, high_percent=100)
    plan = rebalance(scene(pack(A, 9, "warm"), pack(B, 8, "warm"), tiers=(gone, other, COLD)))
    assert steps(plan) == [("drain", B, "warm", "other"), ("drain", A, "warm", "cold")]
    now = scene(pack(A, 0, "cold"), pack(B, 0, "warm", "cold"), tiers=(WARM, COLD, HOME))
    plan = drain(now, "cold")
    assert steps(plan)[:1] == [("drain", A, "cold", "warm")]
    plan = drain(scene(pack(A, 0, "cold"), tiers=(COLD,)), "cold")
    assert (plan.moves, plan.notes[0][:36]) == ((), "packs that cannot leave tier cold: 1")


def test_moving_as_asked() -> None:
    now = [pack(A, 0, "cold"), pack(B, 0, "cold"), pack(C, 9, "warm")]
    assert steps(relocate(scene(*now, bases={B: [A]}), [B], WARM.name)) == [
        ("promote", A, "cold", "warm"), ("promote", B, "cold", "warm"),
    ]  # fmt: skip
    assert steps(relocate(scene(*now), [C], COLD.name)) == [("demote", C, "warm", "cold")]
    frozen = scene(*now, tiers=(WARM, COLD, ICE, HOME))
    assert steps(relocate(frozen, [C], ICE.name)) == [("demote", C, "warm", "ice")]
    assert not relocate(scene(*now), [A], COLD.name).moves
    plan = relocate(scene(*now, tiers=(replace(WARM, quota_bytes=5), COLD)), [A], WARM.name)
    assert "has no room" in plan.notes[0]


@pytest.mark.parametrize("lost", [{"reachable": False}, {"draining": True}])
def test_nothing_leaves_for_a_copy_that_cannot_be_relied_on_if_asked(lost: dict[str, bool]) -> None:
    now = scene(pack(A, 0, "warm", "cold"), tiers=(WARM, replace(COLD, **lost)))  # type: ignore[arg-type]
    plan = relocate(now, [A], COLD.name)
    assert not plan.moves
    assert "stays in tier warm" in plan.notes[0]


def test_what_would_move_a_pack_and_when() -> None:
    [there, cold] = forecast(scene(pack(A, 1.6, "warm", "cold")), A)
    assert (there.tier, there.threshold, there.demote_below) == ("warm", 1, 0.8)
    assert there.leaves_in_s == pytest.approx(HALF_LIFE_S)
    assert there.why == "it leaves when its heat is below 0.8: in 4 hours if nobody reads it"
    assert (cold.resident, cold.leaves_in_s) == (True, None)
    [warm, _] = forecast(scene(pack(A, 0.1, "cold")), A)
    assert (warm.resident, warm.threshold, warm.promote_above) == (False, 1, 1.25)
    full = replace(WARM, quota_bytes=10, high_percent=100, low_percent=100)
    [warm, _] = forecast(scene(pack(A, 0.1, "cold"), pack(B, 4, "warm"), tiers=(full, COLD)), A)
    assert warm.promote_above == 5
    [warm, _] = forecast(scene(pack(A, 0.1, "warm", "cold"), pinned=[A]), A)
    assert (warm.why, warm.leaves_in_s) == ("it is pinned", None)


def test_nothing_makes_room_for_what_an_archive_has() -> None:
    small = replace(WARM, quota_bytes=38, high_percent=95, low_percent=85)
    tiers = (small, ICE, COLD)
    frozen, warm = pack(A, 5, "ice", size=32), pack(B, 2, "warm", "cold", size=1)
    assert steps(rebalance(scene(frozen, warm, tiers=tiers))) == []


def test_no_victim_leaves_in_vain() -> None:
    warm = replace(WARM, quota_bytes=20, high_percent=100, low_percent=100)
    cold = replace(COLD, quota_bytes=6, high_percent=100, low_percent=100)
    small, large = pack(A, 2, "warm", size=1), pack(B, 3, "warm", size=19)
    hot = pack(C, 50, "cold", size=5)  # needs room of both, and cold has none for the larger one
    assert steps(rebalance(scene(small, large, hot, tiers=(warm, cold)))) == []


def test_a_base_leaves_an_archive_before_what_needs_it() -> None:
    tiers = (replace(ICE, draining=True), COLD)
    made = scene(pack(A, 0, "ice"), pack(B, 0, "ice"), tiers=tiers, bases={B: [A]})
    assert [one.pack for one in drain(made, "ice").moves] == [A, B]


# What a plan never does


@st.composite
def scenes(draw: st.DrawFn, circles: bool = False) -> dict[str, object]:
    """Any tiers, packs, bases and pins, also such as no plan would lead to."""
    quota = st.none() | st.integers(0, 300)
    percent = st.sampled_from([(95, 85), (100, 100), (60, 20)])

    def tier(name: str, warm: bool, **more: object) -> TierState:
        high, low = draw(percent)
        return TierState(
            name, warm=warm, quota_bytes=draw(quota), high_percent=high, low_percent=low,
            draining=draw(st.integers(0, 9)) == 0, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    names = [*["warm", "warmer"][: draw(st.integers(1, 2))], "cold"]
    tiers = [tier(name, name != "cold") for name in names]
    if draw(st.booleans()):
        tiers[-1] = replace(tiers[-1], ttl_s=5 * DAY_S)
        tiers.append(tier("ice", False, archive=True))
    tiers.append(TierState("home", warm=False, takes=draw(st.booleans())))
    count = draw(st.integers(1, 8))
    ids = [bytes([n]) * 32 for n in range(count)]
    packs = [
        PackState(
            one, draw(st.integers(1, 99)), draw(st.sampled_from([0, 0.1, 0.9, 1.3, 4, 50])),
            dict.fromkeys(
                draw(st.lists(st.sampled_from([t.name for t in tiers]), min_size=1, unique=True)),
                draw(st.sampled_from([LONG_AGO, NOW - 0.2 * DAY_S])),
            ),
        )
        for one in ids
    ]  # fmt: skip
    number = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(number, number), max_size=6))
    bases: dict[bytes, list[bytes]] = {}
    for user, base in edges:
        if circles or user > base:
            bases.setdefault(ids[user], []).append(ids[base])
    pinned = draw(st.lists(st.sampled_from(ids), max_size=2))
    return {"packs": packs, "tiers": tuple(tiers), "now": NOW, "bases": bases, "pinned": pinned}


def follow(made: dict[str, object], plan: Plan, *, strict: bool = True) -> dict[bytes, set[str]]:
    """Carry a plan out on sets, and check after each step what must never happen."""
    tiers = {tier.name: tier for tier in made["tiers"]}  # type: ignore[attr-defined]
    packs = {state.pack: state for state in made["packs"]}  # type: ignore[attr-defined]
    where = {one: set(state.copies) for one, state in packs.items()}
    bases: dict[bytes, list[bytes]] = made["bases"]  # type: ignore[assignment]
    pinned: set[bytes] = set(made["pinned"])  # type: ignore[call-overload]
    for _ in packs:
        pinned |= {base for one in pinned for base in bases.get(one, [])}

    def used(name: str) -> int:
        return sum(state.size for one, state in packs.items() if name in where[one])

    def depth(one: bytes) -> int:
        return min(2 if tiers[n].archive else not tiers[n].warm for n in where[one])

    def apart() -> set[tuple[bytes, bytes]]:
        return {(user, base) for user in bases for base in bases[user] if depth(base) > depth(user)}

    split = apart()
    for move in plan.moves:
        source, target = tiers[move.source], tiers[move.target]
        assert move.source in where[move.pack], move
        assert move.copies == (move.target not in where[move.pack]), move
        assert not target.draining, move
        frozen = move.copies and source.archive and move.kind == "promote"
        assert not frozen or move.why.startswith(("it was asked for", "pack")), "it is frozen"
        warm = depth(move.pack) == 0
        if move.copies:
            where[move.pack].add(move.target)
            limit = (
                target.quota_bytes * target.high_percent / 100
                if target.quota_bytes is not None
                else 1e9
            )
            assert used(move.target) <= limit, f"{move} exceeds the quota"
        if move.drops:
            where[move.pack].remove(move.source)
        assert where[move.pack], f"{move} removes the last copy"
        if move.pack in pinned and warm:
            assert depth(move.pack) == 0, f"{move} moves a pinned pack down"
        if strict:
            assert apart() <= split, f"{move} takes a base from what needs it"
            split = apart()
    return where


@given(scenes())
def test_no_plan_breaks_a_rule(made: dict[str, object]) -> None:
    follow(made, rebalance(Scene(**made)))  # type: ignore[arg-type]


@given(scenes(circles=True))
def test_packs_that_need_each_other_are_together_in_the_end(made: dict[str, object]) -> None:
    follow(made, rebalance(Scene(**made)), strict=False)  # type: ignore[arg-type]


@given(scenes(), st.data())
def test_no_move_that_is_asked_for_breaks_a_rule(
    made: dict[str, object], data: st.DataObject
) -> None:
    now = Scene(**made)  # type: ignore[arg-type]
    tier = data.draw(st.sampled_from([tier for tier in now.tiers if not tier.draining]))
    wanted = data.draw(st.lists(st.sampled_from(sorted(now.packs)), unique=True))
    follow(made, relocate(now, wanted, tier.name))


@given(scenes(), st.data())
def test_no_draining_breaks_a_rule(made: dict[str, object], data: st.DataObject) -> None:
    now = Scene(**made)  # type: ignore[arg-type]
    tier = data.draw(st.sampled_from(now.tiers))
    where = follow(made, plan := drain(now, tier.name))
    if not plan.notes:
        assert all(tier.name not in names for names in where.values())


@given(scenes(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_known_does_not_matter(
    made: dict[str, object], rng: random.Random
) -> None:
    shuffled = dict(made)
    for name in ("packs", "pinned"):
        items = list(made[name])  # type: ignore[call-overload]
        rng.shuffle(items)
        shuffled[name] = items
    assert rebalance(Scene(**made)) == rebalance(Scene(**shuffled))  # type: ignore[arg-type]


@given(scenes())
def test_it_settles(made: dict[str, object]) -> None:
    """With the heat as it is, a few plans one after the other lead to where nothing moves."""
    for _ in range(5):
        now = Scene(**made)  # type: ignore[arg-type]
        plan = rebalance(now)
        if not plan.moves:
            return
        made = {**made, "packs": [
            replace(state, copies=now.copies[one]) for one, state in now.packs.items()
        ]}  # fmt: skip
    pytest.fail(f"still moving: {steps(plan)}")


@given(scenes(), st.data())
def test_explaining_changes_nothing(made: dict[str, object], data: st.DataObject) -> None:
    now = Scene(**made)  # type: ignore[arg-type]
    one = data.draw(st.sampled_from(sorted(now.packs)))
    before = {name: dict(copies) for name, copies in now.copies.items()}
    assert all(found.why for found in forecast(now, one))
    assert now.copies == before
