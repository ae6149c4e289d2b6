"""What ``--json`` prints of rollouts; the rules are those of ``core``."""

from __future__ import annotations

from datetime import datetime

from tierstore.cli.schemas.core import Schema


class GateJson(Schema):
    """A gate: ``passes`` is null until a node that serves the new version reports the metric."""

    metric: str
    op: str
    limit: str
    reports: int
    mean: float | None
    passes: bool | None


class RolloutJson(Schema):
    """Where a rollout is: ``percent`` of the nodes get version ``new``, the others ``old``.

    ``stage`` counts from 1; ``stages`` are percentages; ``due`` is when the next step may happen,
    null for steps by hand.
    """

    alias: str
    old: int
    new: int
    percent: float
    stage: int
    stages: list[float]
    paused: bool
    since: datetime
    due: datetime | None
    gates: list[GateJson]
    labels: dict[str, str]
    windows: list[str]


class Rollouts(Schema):
    """All rollouts that are under way."""

    rollouts: list[RolloutJson]


class RolloutDone(Schema):
    """The alias means ``version`` on every node now."""

    alias: str
    version: int
    digest: str


class Reported(Schema):
    """What was reported, decimal numbers by metric, of which node and version."""

    model: str
    version: int
    node: str
    values: dict[str, str]
