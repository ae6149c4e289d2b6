"""The command for archive storage classes: restore."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import counted
from tierstore.cli.kit.params import option
from tierstore.cli.placing import PackTarget, packs_of
from tierstore.cli.schemas import placing as schemas
from tierstore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPEEDS = ("expedited", "standard", "bulk")
_POLL_S = 15.0


def restore(
    cli: Cli,
    target: PackTarget,
    days: Annotated[
        int,
        option(metavar="N", min=1, max=365, help="Days for which the restored copies are kept."),
    ] = 7,
    speed: Annotated[
        str,
        option(metavar="WORD", help="expedited (minutes), standard (hours) or bulk (half a day)."),
    ] = "standard",
    check: Annotated[
        bool, option("--check", help="Only show what can be read; restore nothing.")
    ] = False,
    wait: Annotated[bool, option("--wait", help="Wait until all packs can be read.")] = False,
) -> None:
    """Restore a version's packs from an archive such as GLACIER.

    A restored pack can be read for some days; 'tierstore mv' then brings it back for good. Exits
    with 3 while packs are left that cannot be read.
    """
    if speed not in _SPEEDS:
        raise UsageError(f"invalid --speed {speed!r}: expected {', '.join(_SPEEDS)}")
    with cli.open() as store, cli.progress("asking the tiers") as progress:
        packs, placement = packs_of(store, target), store.placement
        if check:
            found = placement.readiness(packs)
        else:
            found = placement.restore(packs, days, speed.capitalize())
        while wait and _open(found):
            progress.describe(f"waiting for {counted(_open(found), 'pack')}")
            time.sleep(_POLL_S)
            found = placement.readiness(packs)
    states = Counter(found.values())
    data = schemas.Restored(
        ref=target,
        packs=len(found),
        readable=states["readable"],
        restored=states["restored"],
        restoring=states["restoring"],
        archived=states["archived"],
        missing=states["missing"],
    )
    waiting = [pack.hex() for pack, state in found.items() if state not in ("readable", "restored")]
    cli.out.show(data, waiting, lambda: print(_told(data)))
    if waiting:
        raise Exit(3)


def _open(found: Mapping[bytes, str]) -> int:
    return sum(state in ("restoring", "archived") for state in found.values())


def _told(data: schemas.Restored) -> str:
    words = [
        (data.readable, "readable at once"),
        (data.restored, "restored for a while"),
        (data.restoring, "being restored"),
        (data.archived, "archived"),
        (data.missing, "missing"),
    ]
    told = ", ".join(f"{count} {word}" for count, word in words if count)
    return f"{counted(data.packs, 'pack')}: {told or 'nothing to restore'}"
