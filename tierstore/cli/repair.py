"""The command repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.objects import MANY, by_kind, short_ids
from tierstore.cli.kit.output import counted, printable, size
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import REF_HELP
from tierstore.cli.schemas import repair as schemas
from tierstore.errors import OutOfSpace, UsageError

if TYPE_CHECKING:
    from tierstore.modelstore.reclaim.repair.report import RepairReport


def repair(
    cli: Cli,
    refs: Annotated[
        list[str] | None,
        argument(metavar="[REF]...", help=REF_HELP),
    ] = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Change nothing; say what would be done.")
    ] = False,
    home: Annotated[
        bool,
        option("--home", help="First make what the store cannot be opened without anew."),
    ] = False,
    store_id: Annotated[
        str | None,
        option(
            "--store-id", metavar="ID", help="With --home: the store's id, as tier.json has it."
        ),
    ] = None,
) -> None:
    """Repair what is damaged from what is left, and list what is lost.

    Reads every copy of every pack, or of those that each REF needs. Exits with 4 when something is
    lost, or could not be repaired now, with 7 when there was no room, and with 3 when all else is
    whole and a tier could not be asked. What is whole is not touched. --home begins with
    config.json and the list of tiers, without which no other command works.
    """
    if store_id is not None and not home:
        raise UsageError("--store-id goes with --home")
    cli.hold_tier_warnings()
    start = None
    if home:
        from tierstore.admin.repair import repair_home

        start = repair_home(cli.url, store_id=store_id, dry_run=dry_run)
    if start is not None and start.objects and dry_run:  # it cannot be opened as it is
        report = start
    else:
        with cli.open() as store, cli.progress("repairing") as progress:
            report = store.repair(*refs or (), dry_run=dry_run, progress=progress)
        report.objects[:0] = start.objects if start is not None else []
    data = repair_json(report)
    cli.out.show(data, [one.key for one in report.objects], lambda: _print(report))
    cli.out.told_down(report.down)
    if report.full:
        raise OutOfSpace(
            f"{report.full}; there is no room for what is repaired. 'tierstore rm' and 'tierstore "
            "gc' make some: repair again then, what was repaired until now stays so"
        )
    if not report.is_whole:
        raise Exit(4)
    if report.down:
        raise Exit(3)


def repair_json(report: RepairReport) -> schemas.Repair:
    """Return a report as it is printed."""
    return schemas.Repair(
        dry_run=report.dry_run,
        whole=report.is_whole,
        objects=[
            schemas.RepairedJson(
                outcome=one.outcome, key=one.key, tier=one.tier, what=one.what, done=one.done
            )
            for one in report.objects
        ],
        hit=[
            schemas.HitVersionJson(
                version=hit.version,
                manifest=hit.manifest,
                lost_bytes=hit.lost_bytes,
                parts=[
                    schemas.HitPartJson(
                        name=part.name, lost_bytes=part.lost_bytes, plain_bytes=part.plain_bytes
                    )
                    for part in hit.parts
                ],
            )
            for hit in report.hit
        ],
        packs=report.packs,
        read_bytes=report.read_bytes,
        hot_bytes=report.hot_bytes,
        down=dict(report.down),
        full=report.full,
    )


def _print(report: RepairReport) -> None:
    words = {"repaired": "to repair"} if report.dry_run else {}
    for one in report.objects:
        where = f"{one.key} in tier {one.tier}" if one.tier else one.key
        said = words.get(one.outcome, one.outcome)
        print(printable(short_ids(f"{said}: {where}: {one.what}: {one.done}")))
    for hit in report.hit:
        for part in hit.parts:
            lost = f"{size(part.lost_bytes)} of {size(part.plain_bytes)}"
            print(printable(f"{hit.version}: {part.name}: {lost} lost"))
    for name, why in report.down.items():
        print(printable(f"tier {name} could not be asked: {why}; repair again when it can be"))
    repaired = len(report.of("repaired"))
    hot = f" and {size(report.hot_bytes)} of hot tiers" if report.hot_bytes else ""
    looked = f"{counted(report.packs, 'pack')}, {size(report.read_bytes)}{hot}"
    verdict = "nothing is lost" if report.is_whole else "not everything could be repaired"
    done = "to repair" if report.dry_run else "repaired"
    for outcome in ("lost", "left"):
        if len(keys := [one.key for one in report.of(outcome)]) > MANY:
            print(f"{outcome}: {by_kind(keys)}")
    print(f"{counted(repaired, 'object')} {done}, {verdict}; read {looked}")
