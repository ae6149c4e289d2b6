"""Checks this node's hot tier: every chunk file is compared with its digest."""

from __future__ import annotations

from collections.abc import Callable

from tierstore.errors import Unreachable
from tierstore.modelstore.care.check_findings import Finding
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.tiers.node.local import LocalHot


def check_hot(
    local: LocalHot, report: CheckReport, progress: Callable[[int, int], None] | None
) -> None:
    """Compare what a hot tier holds with its digests, and add what is wrong to the findings.

    A wrong file is removed: the chunk is fetched again when it is read.

    Args:
        local: The hot tier.
        report: Gets the findings.
        progress: Called with bytes done and in all.

    Raises:
        Unreachable: The directory failed.
    """
    try:
        done = local.compare_all(progress)
    except OSError as error:
        raise Unreachable(f"the hot tier {local.name!r} in {local.root}: {error}") from error
    report.hot_bytes += done.plain_bytes
    report.findings += [
        Finding(
            "damage",
            f"{local.name}/{digest.hex()}",
            "this node's disk changed this chunk; its file was removed, and it will be fetched "
            "again when it is read",
        )
        for digest in done.damaged
    ]
