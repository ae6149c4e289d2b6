"""Whose turn it is in a rollout: shares are right, and nobody flips back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.format.reflog import FULL_SHARE, Gate, Rollout
from tierstore.modelstore.names.turns import holds, next_window, place_of, takes_new

NODES = [f"node-{number}.example" for number in range(10_000)]


def rollout(stage: int, salt: str = "0" * 32, labels: dict[str, str] | None = None) -> Rollout:
    return Rollout(
        version=2, manifest="ab" * 32, salt=salt, stages=[100, 1000, 5000, FULL_SHARE],
        stage=stage, labels=labels or {},
    )  # fmt: skip


@pytest.mark.parametrize("salt", [f"{number:032x}" for number in range(8)])
def test_the_share_is_right_and_only_grows(salt: str) -> None:
    before: set[str] = set()
    for stage, percent in enumerate((1, 10, 50, 100)):
        now = {node for node in NODES if takes_new(rollout(stage, salt), node, {})}
        assert abs(100 * len(now) / len(NODES) - percent) < 1.5
        assert before <= now, "a node went back to the old version"
        before = now


def test_another_rollout_begins_with_other_nodes() -> None:
    first, second = (
        {node for node in NODES if takes_new(rollout(1, salt), node, {})}
        for salt in ("1" * 32, "2" * 32)
    )
    assert len(first & second) < 200, "a tenth of a tenth is expected"


@given(st.text(max_size=20), st.text(max_size=40))
def test_places_are_in_range_and_the_same_everywhere(salt: str, node: str) -> None:
    assert 0 <= place_of(salt, node) < FULL_SHARE
    assert place_of(salt, node) == place_of(salt, node)


def test_a_place_that_was_worked_out_by_hand() -> None:
    # b3sum of "salt\0node" begins with 8 bytes that are .2513 of 2**64
    assert place_of("salt", "node") == 2512


def test_nodes_without_the_labels_wait_for_the_last_stage() -> None:
    rule = {"region": "eu", "gpu": "h100"}
    chosen = next(node for node in NODES if takes_new(rollout(0), node, {}))
    assert takes_new(rollout(0, labels=rule), chosen, rule | {"rack": "7"})
    for labels in ({}, {"region": "eu"}, {"region": "us", "gpu": "h100"}):
        assert not takes_new(rollout(2, labels=rule), chosen, labels)
        assert takes_new(rollout(3, labels=rule), chosen, labels)


@pytest.mark.parametrize(
    ("windows", "clock", "inside", "named"),
    [
        ([], "12:00", True, ""),
        (["02:00-06:00"], "01:59", False, "02:00-06:00"),
        (["02:00-06:00"], "02:00", True, "02:00-06:00"),
        (["02:00-06:00"], "06:00", False, "02:00-06:00"),
        (["22:00-06:00"], "23:30", True, "22:00-06:00"),
        (["22:00-06:00"], "05:59", True, "22:00-06:00"),
        (["22:00-06:00"], "06:00", False, "22:00-06:00"),
        (["02:00-03:00", "12:00-13:00"], "10:00", False, "12:00-13:00"),
        (["02:00-03:00", "12:00-13:00"], "14:00", False, "02:00-03:00"),
    ],
)
def test_windows(windows: list[str], clock: str, inside: bool, named: str) -> None:
    hour, minute = map(int, clock.split(":"))
    now = datetime(2026, 3, 1, hour, minute, tzinfo=UTC)
    assert next_window(windows, now) == (inside, named)


def test_gates_compare_the_exact_mean() -> None:
    at_most = Gate(metric="p99", op="<=", limit="0.3")
    assert holds(at_most, ["0.1", "0.2", "0.6"]), "floats would say .30000000000000004"
    assert not holds(at_most, ["0.1", "0.2", "0.6000000001"])
    at_least = Gate(metric="auc", op=">=", limit="-1.5")
    assert holds(at_least, ["-1.5"])
    assert not holds(at_least, ["-1.4", "-1.7"])
