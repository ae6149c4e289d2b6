"""Commands on where packs lie: rebalance, mv, explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, facts, printable, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.schemas import placing as schemas
from tierstore.errors import NotFound

if TYPE_CHECKING:
    from tierstore.modelstore.placing.placing import Explanation, MoveReport, Placement
    from tierstore.modelstore.store import Store
    from tierstore.placement.scene import Plan, PlannedMove
    from tierstore.tiers.durable.budget import Budget
    from tierstore.tiers.durable.mover import Moved

DryRun = Annotated[bool, option("--dry-run", help="Show the plan and move nothing.")]
BudgetOption = Annotated[
    str | None,
    option(
        "--budget",
        metavar="SIZE",
        help="Most bytes per second to read and write, such as 100MB (default: no limit).",
    ),
]
ShareOption = Annotated[
    float,
    option(
        metavar="X",
        min=0.01,
        max=1.0,
        help="Share of the time to spend on moves, and so of the bandwidth.",
    ),
]
PackTarget = Annotated[str, argument(metavar="REF|PACK", help="Version, or id of a pack.")]


def budget_of(size: str | None, share: float) -> Budget:
    """Return the bandwidth that moves may use, from the options."""
    from tierstore.config import parse_size
    from tierstore.errors import UsageError
    from tierstore.tiers.durable.budget import Budget

    if size is not None and size.strip().isdecimal():  # 50 would be a pack in two weeks
        raise UsageError(f"invalid --budget {size!r}: the unit is missing; expected 100MB or 50MiB")
    return Budget(None if size is None else max(1, parse_size(size)), share)


def rebalance(
    cli: Cli, dry_run: DryRun = False, budget: BudgetOption = None, share: ShareOption = 1.0
) -> None:
    """Move packs to the tiers that their recent reads call for, once.

    'tierstore agent' does so in every round. Exits with 3 when a move could not be done, or a tier
    could not be asked.
    """
    limit = budget_of(budget, share)
    _carry_out(
        cli,
        dry_run,
        lambda _, placement: placement.plan(),
        lambda _, placement, progress: placement.rebalance(budget=limit, progress=progress),
    )


def move(
    cli: Cli,
    target: PackTarget,
    to: Annotated[str, option("--to", metavar="TIER", help="Name of the tier, or home.")],
    dry_run: DryRun = False,
    budget: BudgetOption = None,
    share: ShareOption = 1.0,
) -> None:
    """Move a version's packs to a tier and drop them from faster ones.

    Packs that their deltas need are moved along. Versions share packs, so parts of other versions
    may move too. 'tierstore pin' keeps them there. Exits with 3 when a move could not be done, or a
    tier could not be asked.
    """
    limit = budget_of(budget, share)
    _carry_out(
        cli,
        dry_run,
        lambda store, placement: placement.plan_move(packs_of(store, target), to),
        lambda store, placement, progress: placement.move(
            packs_of(store, target), to, budget=limit, progress=progress
        ),
    )


def packs_of(store: Store, target: str) -> list[bytes]:
    """Return the packs of a version, or the one pack whose id begins with these digits."""
    try:
        version = store.resolve(target)
    except NotFound:
        pack = store.placement.find(target)
        if pack is None:
            raise
        return [pack]
    return store.placement.packs_of(version.digest)


def _carry_out(
    cli: Cli,
    dry_run: bool,
    plan: Callable[[Store, Placement], Plan],
    run: Callable[[Store, Placement, Callable[[Moved], None]], MoveReport],
) -> None:
    with cli.open() as store, cli.progress("moving packs") as progress:
        if dry_run:
            made = plan(store, store.placement)
            data = _planned(made)
        else:
            done = 0

            def moved(one: Moved) -> None:
                nonlocal done
                done += 1
                progress.describe(f"{counted(done, 'pack')} moved")

            data = _done(run(store, store.placement, moved))
    cli.out.show(data, [one.pack for one in data.moves], lambda: print_moves(data))
    cli.out.warn_quiet(data.notes)
    if not data.complete:
        raise Exit(3)


def _planned(plan: Plan) -> schemas.Moves:
    moves = [_move_json(move, move.bytes if move.copies else 0) for move in plan.moves]
    return _moves(plan, moves, dry_run=True, complete=not plan.notes)


def _done(report: MoveReport) -> schemas.Moves:
    moves = []
    for one in report.moved:
        shown = _move_json(one.move, one.copied_bytes)
        shown.status, shown.problem = one.status, one.why
        moves.append(shown)
    return _moves(report.plan, moves, dry_run=False, complete=report.complete)


def _moves(
    plan: Plan, moves: list[schemas.MoveJson], *, dry_run: bool, complete: bool
) -> schemas.Moves:
    return schemas.Moves(
        dry_run=dry_run,
        complete=complete,
        moves=moves,
        notes=list(plan.notes),
        copied_bytes=sum(move.copied_bytes for move in moves),
        saving_month=f"{plan.expected_saving:f}",
        cost_once=f"{plan.cost_once:f}",
    )


def _move_json(move: PlannedMove, copied: int) -> schemas.MoveJson:
    return schemas.MoveJson(
        kind=move.kind,
        pack=move.pack.hex(),
        source=move.source,
        target=move.target,
        bytes=move.bytes,
        copied_bytes=copied,
        why=move.why,
        heat=move.heat,
        bar=move.threshold,
        saving_month=f"{move.expected_saving:f}",
        cost_once=f"{move.cost_once:f}",
        status="planned",
        problem="",
    )


def print_moves(data: schemas.Moves) -> None:
    """Print the table of a plan, or of what was done."""
    from decimal import Decimal

    from tierstore.placement.cost import shown

    columns = [
        Column("MOVE"),
        Column("PACK", digest=True),
        Column("FROM"),
        Column("TO"),
        Column("SIZE", right=True),
        Column("SAVES/MONTH", right=True),
        Column("WHY"),
    ]
    rows = [
        (
            one.kind if one.status in {"planned", "done"} else f"{one.kind}: {one.status}",
            one.pack,
            one.source,
            one.target,
            size(one.bytes),
            shown(Decimal(one.saving_month)),
            one.problem or one.why,
        )
        for one in data.moves
    ]
    if rows:
        table(columns, rows)
    for note in data.notes:
        print(printable(f"note: {note}"))
    verb = "would move" if data.dry_run else "moved"
    if not rows:
        print("nothing to move")
    else:
        price = _price(data.saving_month, data.cost_once)
        print(f"{verb} {counted(len(rows), 'pack')}, {size(data.copied_bytes)} copied{price}")


def _price(saving_month: str, cost_once: str) -> str:
    """Return what moves save and cost, in words; nothing where no tier that they touch has prices.

    Prices carry no currency; it is the one that they were given in.
    """
    from decimal import Decimal

    from tierstore.placement.cost import shown

    saves, costs = Decimal(saving_month), Decimal(cost_once)
    if not (saves or costs):
        return ""
    saving = f"saves {shown(saves)} a month" if saves >= 0 else f"adds {shown(-saves)} a month"
    return f"; {saving}, costs {shown(costs)} once, in the currency of the prices"


def explain(cli: Cli, target: PackTarget) -> None:
    """Show where each pack of a version is, and why.

    For each pack it shows the heat (how often it was read recently), the threshold of each tier,
    and what would move the pack, and when. Where tiers have prices it shows what a move that is due
    saves and costs. Exits with 3 when a pack is in none of the tiers that could be asked.
    """
    with cli.open() as store, cli.progress("listing the tiers"):
        packs = packs_of(store, target)
        found = store.placement.explain(packs)
    known = {one.pack for one in found}
    data = schemas.Explained(
        ref=target,
        packs=[_explained(one) for one in found],
        missing=[pack.hex() for pack in packs if pack not in known],
    )
    cli.out.show(data, [one.pack for one in data.packs], lambda: _print_explained(data))
    if data.missing:
        raise Exit(3)


def _explained(one: Explanation) -> schemas.PackExplained:
    return schemas.PackExplained(
        pack=one.pack.hex(),
        bytes=one.size_bytes,
        tiers=list(one.copies),
        heat=one.heat,
        counted_heat=one.counted,
        pinned=one.pinned,
        bases=[pack.hex() for pack in one.bases],
        needed_by=[pack.hex() for pack in one.needed_by],
        outlooks=[
            schemas.OutlookJson(
                tier=each.tier,
                resident=each.resident,
                bar=each.threshold,
                promote_above=each.promote_above,
                demote_below=each.demote_below,
                leaves_in_s=each.leaves_in_s,
                why=each.why,
            )
            for each in one.forecasts
        ],
        now=[f"{move.kind} from {move.source} to {move.target}: {move.why}" for move in one.moves],
        moves=[_move_json(move, move.bytes if move.copies else 0) for move in one.moves],
    )


def _print_explained(data: schemas.Explained) -> None:
    for number, one in enumerate(data.packs):
        if number:
            print()
        needs = f"{counted(len(one.bases), 'pack')} for its deltas" if one.bases else ""
        pairs = [
            ("pack", f"{one.pack}, {size(one.bytes)}, in {', '.join(one.tiers)}"),
            ("heat", f"{one.heat:.2g} (recent reads)" + _treated_as(one)),
            *([("pinned", "stays in the warm tiers")] if one.pinned else []),
            *([("needs", needs)] if needs else []),
            *([("needed by", counted(len(one.needed_by), "pack"))] if one.needed_by else []),
            *(
                (each.tier, ("" if each.resident else "not there: ") + each.why)
                for each in one.outlooks
            ),
            *(
                ("now", text + _price(move.saving_month, move.cost_once))
                for text, move in zip(one.now, one.moves, strict=True)
            ),
        ]
        facts(pairs)
    for pack in data.missing:
        print(f"pack {pack} is in none of the tiers that could be asked")


def _treated_as(one: schemas.PackExplained) -> str:
    if one.counted_heat <= one.heat:
        return ""
    why = "a pack that needs it is hotter" if one.needed_by else "it is new"
    return f"; treated as {one.counted_heat:.2g} because {why}"
