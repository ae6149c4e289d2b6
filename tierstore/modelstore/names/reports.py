"""Reports of serving nodes on a version, and the rollout gates that read them (SPEC.md 14.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tierstore.arguments import as_table, as_text
from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat, UsageError
from tierstore.format import keys
from tierstore.format.reflog import FULL_SHARE, Gate, Report, is_decimal
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.names.turns import holds
from tierstore.modelstore.version import Version
from tierstore.prepared import prepared

_GATE = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=)\s*(\S+)\s*\Z")


@dataclass(frozen=True, slots=True)
class GateState:
    """A gate and the values that nodes reported for it since the stage began."""

    gate: Gate
    values: tuple[str, ...]

    @property
    def passes(self) -> bool | None:
        """Whether the mean of the values is within the bound; ``None`` without values."""
        return holds(self.gate, list(self.values)) if self.values else None


def parse_gate(text: str) -> Gate:
    """Return the gate written as ``METRIC<=NUMBER`` or ``METRIC>=NUMBER``.

    Raises ``UsageError`` for any other text.
    """
    match = _GATE.match(text)
    try:
        if match:
            return msgspec.convert(
                dict(zip(("metric", "op", "limit"), match.groups(), strict=True)), prepared(Gate)
            )
    except msgspec.ValidationError:
        pass
    raise UsageError(
        f"invalid gate {text[:80]!r}: expected METRIC<=NUMBER or METRIC>=NUMBER, such as "
        "p99_ms<=12.5"
    )


def parse_stages(text: str) -> list[int]:
    """Return the stages, in hundredths of a percent, of percentages such as ``1,10,50,100``.

    Raises:
        UsageError: The percentages are not numbers, do not rise, or do not end with 100.
    """
    try:
        parts = text.split(",") if text.isascii() else []
        stages = [round(float(part) * 100) for part in parts]
    except (ValueError, OverflowError):
        stages = []
    if not stages or stages != sorted(set(stages)) or stages[0] < 1 or stages[-1] != FULL_SHARE:
        raise UsageError(
            f"invalid stages {text[:80]!r}: expected rising percentages that end with 100, such as "
            "1,10,50,100"
        )
    return stages


def write_report(
    home_blobs: BlobStore, version: Version, node: str, values: Mapping[str, str]
) -> None:
    """Record what a node measured while it served ``version``; see ``Rollouts.report``."""
    key = _folder(version) + keys.segment(as_text("node", node, "the name of a node as text"))
    for metric, value in as_table("values", values, "{'p99_ms': '12.5'}").items():
        if not isinstance(value, str) or not is_decimal(value):
            said = f"{metric}={value}".encode(errors="backslashreplace").decode()
            raise UsageError(f"{said}: write a decimal number as text, such as p99_ms=12.5")
    data = seal_body(
        Kind.REPORT, Report(version=version.digest.hex, node=node, values=dict(values))
    )
    home_blobs.put(key, data)


def gate_states(
    home_blobs: BlobStore, gates: list[Gate], version: Version, since: str
) -> tuple[GateState, ...]:
    """Return the state of each gate, from reports on ``version`` since an object was written.

    Args:
        home_blobs: The store's home.
        gates: The gates of the rollout.
        version: The version that the rollout goes to.
        since: Key of that object. Its time and the reports' are the storage's, so no node's clock
            matters.
    """
    if not gates:
        return ()
    began = home_blobs.info(since).mtime
    values: dict[str, list[str]] = {}
    for info in home_blobs.list(_folder(version)):
        if info.mtime < began:
            continue
        try:
            report = unseal_body(Kind.REPORT, home_blobs.get(info.key), Report, info.key)
        except (NotFound, Damaged, UnsupportedFormat):
            continue  # as if the node had not reported
        for metric, value in report.values.items():
            values.setdefault(metric, []).append(value)
    return tuple(GateState(gate, tuple(values.get(gate.metric, ()))) for gate in gates)


def _folder(version: Version) -> str:
    return f"{keys.REPORTS}{keys.segment(version.model)}/{version.digest.hex}/"
