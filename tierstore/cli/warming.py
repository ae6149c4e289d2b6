"""Commands that load versions ahead and keep them near: warmup, evict, pin, unpin, pins."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, cast

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, size, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import Ref
from tierstore.cli.schemas import warming as schemas
from tierstore.shown import time_text

if TYPE_CHECKING:
    from tierstore.cli.kit.progress import ProgressBar
    from tierstore.format.tiers import Role
    from tierstore.modelstore.home.pins import PinnedVersion
    from tierstore.modelstore.placing.warming import Warmth
    from tierstore.modelstore.store import Store
    from tierstore.modelstore.version import Version

NOT_RESIDENT = 3
WARM = "warm"
_AGAIN_S = 1.0


def warmup(
    cli: Cli,
    ref: Ref,
    tier: Annotated[
        str,
        option(
            metavar="TIER", help="hot (this node's), warm, or the name of a hot or shared tier."
        ),
    ] = "hot",
    check: Annotated[
        bool, option("--check", help="Only show whether it is resident; fetch nothing.")
    ] = False,
    wait: Annotated[
        bool, option("--wait", help="Try again until the version is resident.")
    ] = False,
    timeout: Annotated[
        str, option(metavar="TIME", help="Time after which --wait gives up: 90s, 30m, 2h.")
    ] = "1h",
) -> None:
    """Load a version into a tier before it is asked for.

    Only what is missing there is fetched. Exits with 3 unless the whole version is resident.
    """
    from tierstore.config import parse_seconds

    until = time.monotonic() + (parse_seconds(timeout) if wait else 0.0)
    with cli.open() as store, cli.progress(f"warming {ref}") as progress:
        once = _in_warm_tiers if tier == WARM else _in_hot_tier
        data = _repeated(lambda: once(store, ref, tier, check, progress), until)
    cli.out.show(data, [data.digest] if data.resident else [], lambda: _print_warmup(data))
    if not data.resident:
        raise Exit(NOT_RESIDENT)


def _repeated(once: Callable[[], schemas.Warmup], until: float) -> schemas.Warmup:
    """Repeat ``once`` until the version is resident or the time is over."""
    from tierstore.errors import BackendError, PermissionDenied

    while True:
        try:
            data = once()
        except PermissionDenied:
            raise  # it stays so
        except BackendError:
            if time.monotonic() + _AGAIN_S > until:
                raise
        else:
            if data.resident or time.monotonic() + _AGAIN_S > until:
                return data
        time.sleep(_AGAIN_S)


def _in_hot_tier(
    store: Store, ref: str, tier: str, check: bool, progress: ProgressBar
) -> schemas.Warmup:
    if check:
        return _warmth(ref, store.warming.look(store.choose(ref), tier))
    return _warmth(ref, store.warmup(ref, tier=tier, progress=progress))


def _warmth(ref: str, warm: Warmth) -> schemas.Warmup:
    stats = warm.stats
    delta, full = (stats.bytes_delta, stats.bytes_full) if stats else (0, 0)
    return schemas.Warmup(
        ref=ref,
        version=str(warm.version),
        digest=str(warm.version.digest),
        tier=warm.tier,
        resident=warm.resident,
        objects=warm.chunks,
        missing_objects=warm.missing_chunks,
        fetched_bytes=stats.bytes_fetched if stats else 0,
        reused_bytes=warm.plain_bytes - delta - full if stats else 0,
        delta_bytes=delta,
        full_bytes=full,
        seconds=round(warm.seconds, 3),
    )


def _in_warm_tiers(
    store: Store, ref: str, tier: str, check: bool, progress: ProgressBar
) -> schemas.Warmup:
    version: Version = store.choose(ref)
    placement, started, copied = store.placement, time.monotonic(), 0
    if not check:
        report = placement.warm(version.digest)
        copied = sum(one.copied_bytes for one in report.moved)
    missing = placement.not_warm(version.digest)
    return schemas.Warmup(
        ref=ref,
        version=str(version),
        digest=str(version.digest),
        tier=tier,
        resident=not missing,
        objects=len(placement.packs_of(version.digest)),
        missing_objects=len(missing),
        fetched_bytes=copied,
        reused_bytes=0,
        delta_bytes=0,
        full_bytes=0,
        seconds=round(time.monotonic() - started, 3),
    )


def _print_warmup(data: schemas.Warmup) -> None:
    noun = "pack" if data.tier == WARM else "chunk"
    have = data.objects - data.missing_objects
    state = "resident" if data.resident else "not resident"
    print(f"{data.version}: {state} in {data.tier}, {have} of {counted(data.objects, noun)}")
    if data.reused_bytes or data.delta_bytes or data.full_bytes:
        print(
            f"fetched {size(data.fetched_bytes)} in {data.seconds:.1f} s; reused "
            f"{size(data.reused_bytes)}, decoded {size(data.delta_bytes)} from deltas, "
            f"{size(data.full_bytes)} from full chunks"
        )


def evict(
    cli: Cli,
    ref: Annotated[
        str | None,
        argument(metavar="REF", help="Evict only this version."),
    ] = None,
    tier: Annotated[
        str,
        option(metavar="TIER", help="hot (this node's), or the name of a hot or shared tier."),
    ] = "hot",
    everything: Annotated[
        bool, option("--all", help="Evict every version that is not pinned.")
    ] = False,
) -> None:
    """Drop a version, or all of them, from a hot tier.

    Nothing is lost: hot tiers only hold copies. Chunks that it shares with other versions are
    dropped too; what is pinned stays.
    """
    from tierstore.errors import UsageError

    if (ref is None) != everything:
        raise UsageError("give either REF, or --all to evict every version")
    with cli.open() as store, cli.progress("evicting"):
        freed = store.evict(ref, tier=tier)
    data = schemas.Evicted(ref=ref, tier=tier, freed_bytes=freed)
    cli.out.show(data, [str(freed)], lambda: print(f"{size(freed)} freed in {tier}"))


def pin(
    cli: Cli,
    ref: Ref,
    tier: Annotated[
        list[str] | None,
        option(
            metavar="ROLE",
            help="Pin it only in hot or in warm tiers (default: in both); may be repeated.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        option(
            metavar="TIME",
            help="End of the pin: 2027-01-31, 2027-01-31T12:00Z or 12h (default: none).",
        ),
    ] = None,
) -> None:
    """Keep a version in hot and warm tiers once it is there.

    Nothing is fetched: 'tierstore warmup' does that. Pinning a version again replaces its pin.
    """
    from tierstore.modelstore.names.members import refuse_release

    roles = cast("list[Role]", tier or ["hot", "warm"])
    with cli.open() as store:
        version = refuse_release(store.resolve(ref))
        pinned = store.pins.add(version.digest, ref, roles, _time(until))
    data = _pin_json(pinned)
    end = f"until {time_text(data.until)}" if data.until else "until it is unpinned"
    cli.out.show(
        data, [data.digest], lambda: print(f"{ref} is pinned in {' and '.join(data.tiers)} {end}")
    )


def unpin(cli: Cli, ref: Ref) -> None:
    """End the pin of a version."""
    with cli.open() as store:
        version = store.resolve(ref)
        store.pins.remove(version.digest)
    data = schemas.Unpinned(ref=ref, digest=str(version.digest))
    cli.out.show(data, [data.digest], lambda: print(f"{ref} is no longer pinned"))


def pins(cli: Cli) -> None:
    """List the pins that have not ended."""
    with cli.open() as store:
        data = schemas.PinsJson(pins=[_pin_json(one) for one in store.pins.active()])
    rows = [
        (one.ref, ", ".join(one.tiers), when(one.until) if one.until else "-", one.who, one.digest)
        for one in data.pins
    ]
    columns = [
        Column("REF"),
        Column("IN"),
        Column("UNTIL (UTC)"),
        Column("WHO"),
        Column("DIGEST", digest=True),
    ]
    cli.out.show(data, [one.digest for one in data.pins], lambda: table(columns, rows))


def _pin_json(pinned: PinnedVersion) -> schemas.PinJson:
    return schemas.PinJson(
        ref=pinned.ref,
        digest=str(pinned.version),
        until=pinned.until,
        who=pinned.who,
        tiers=["hot" if role == "hot" else "warm" for role in pinned.roles],
    )


def _time(text: str | None) -> datetime | None:
    """Parse a date, a time or a span from now; a time without a zone is in UTC."""
    from tierstore.config import parse_seconds
    from tierstore.errors import ConfigError, UsageError

    if text is None:
        return None
    try:
        return datetime.now(UTC) + timedelta(seconds=parse_seconds(text))
    except ConfigError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"invalid time {text!r}: expected 2027-01-31, 2027-01-31T12:00Z, or 12h for 12 hours "
            "from now"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
