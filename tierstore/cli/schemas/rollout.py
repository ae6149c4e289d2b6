"""Output of commands on rollouts with ``--json``; the rules are those of ``core``."""

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
    """A rollout in progress: ``percent`` of the nodes get version ``new``, the others ``old``.

    ``stage`` counts from 1, and ``stages`` are percentages. ``due`` is the time from which on the
    next step may happen, or null if steps are made by hand.
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


class RolloutsJson(Schema):
    """All rollouts in progress."""

    rollouts: list[RolloutJson]


class RolloutDone(Schema):
    """A rollout that has ended: the alias points to ``version`` on every node."""

    alias: str
    version: int
    digest: str


class Reported(Schema):
    """The values that were reported for a node and a version: decimal numbers by metric."""

    model: str
    version: int
    node: str
    values: dict[str, str]
