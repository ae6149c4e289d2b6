"""Commands on the tiers of a store: tier ls, add, set, drain, rm, example."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, facts, printable, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import Message
from tierstore.cli.placing import BudgetOption, DryRun, ShareOption, budget_of
from tierstore.cli.schemas import tiers as schemas
from tierstore.cli.tierargs import (
    BackendOptions,
    High,
    Low,
    PricesOption,
    fields_of,
    pairs,
    priced,
    sized,
    tier_json,
    updated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierstore.tiers.durable.census import Holding
    from tierstore.tiers.durable.mover import Moved

Name = Annotated[str, argument(metavar="NAME", help="Name of the tier.")]
Timeout = Annotated[
    str | None,
    option(metavar="TIME", help="Time that one request may take, such as 500ms (default: 5s)."),
]


def ls(
    cli: Cli,
    name: Annotated[str | None, argument(metavar="NAME", help="Show only this tier.")] = None,
) -> None:
    """List the tiers in the order in which they are read.

    With NAME it also shows the options and prices of that tier.
    """
    from tierstore.modelstore.home.tierlist import find

    with cli.open() as store:
        found = store.tiers()
        home = store.url
    chosen = found if name is None else [find(found, name)]
    data = schemas.TiersJson(home=home, tiers=[tier_json(spec) for spec in chosen])

    def text() -> None:
        if name is not None:
            _print_tier(data.tiers[0])
        else:
            _print_tiers(data)

    cli.out.show(data, [tier.name for tier in data.tiers], text)


UrlArgument = Annotated[
    str,
    argument(
        metavar="URL",
        help="Where it is: a directory, redis://, memcached://, s3:// ...",
    ),
]
RoleOption = Annotated[
    str | None,
    option(
        metavar="ROLE",
        help="hot, shared, warm or cold (default: that of a NAME hot, warm or cold, else what "
        "the URL suggests).",
    ),
]
QuotaOption = Annotated[
    str | None,
    option("--size", metavar="SIZE", help="Quota, such as 50GB (default: none)."),
]


def add(
    cli: Cli,
    name: Name,
    url: UrlArgument,
    role: RoleOption = None,
    quota: QuotaOption = None,
    high: High = None,
    low: Low = None,
    timeout: Timeout = None,
    option: BackendOptions = None,
    price: PricesOption = None,
    message: Message = "",
) -> None:
    """Try a tier and add it to the list.

    To try it, one object is written, read back and removed. Passwords and keys go into each node's
    tierstore.toml or environment, never into the URL.
    """
    from tierstore.config import parse_ms
    from tierstore.errors import UsageError
    from tierstore.format.tiers import TierSpec
    from tierstore.modelstore.home.tierlist import ROLES
    from tierstore.wiring.backends import role_of

    chosen = role if role is not None else role_of(url, name)
    if chosen not in ROLES:
        raise UsageError(f"invalid role {chosen!r}: expected {', '.join(ROLES)}")
    spec = TierSpec(
        name=name,
        role=chosen,
        url=url,
        options=pairs(option),
        prices=priced(pairs(price)),
        **fields_of(
            size=sized(quota),
            high=high,
            low=low,
            timeout_ms=None if timeout is None else parse_ms(timeout),
        ),
    )
    with cli.open() as store, cli.progress("trying the tier"):
        data = tier_json(store.admin.tiers.add(spec, message=message))
    text = f"added {data.role} tier {data.name}: {data.url}"
    cli.out.show(data, [data.name], lambda: print(text))


def change(
    cli: Cli,
    name: Name,
    url: Annotated[
        str | None,
        option(metavar="URL", help="New place, to which its packs have been copied."),
    ] = None,
    quota: Annotated[
        str | None, option("--size", metavar="SIZE", help="New quota, such as 50GB, or none.")
    ] = None,
    high: High = None,
    low: Low = None,
    timeout: Timeout = None,
    option: BackendOptions = None,
    price: PricesOption = None,
    force: Annotated[
        bool, option("--force", help="Set a quota even if the tier holds more.")
    ] = False,
    message: Message = "",
) -> None:
    """Change the place, quota, options or prices of a tier.

    What is not named stays. An empty value (NAME=) removes an option or a price. Where a tier is
    mounted on this node, or its password, is set in the node's tierstore.toml instead.
    """
    from tierstore.config import parse_ms
    from tierstore.modelstore.home.tierlist import find

    fields = fields_of(
        url=url, high=high, low=low, timeout_ms=None if timeout is None else parse_ms(timeout)
    )
    if quota is not None:
        fields["size"] = sized(quota)
    with cli.open() as store, cli.progress("trying the tier"):
        old = find(store.tiers(), name)
        if option:
            fields["options"] = updated(old.options, pairs(option))
        if price:
            fields["prices"] = updated(old.prices, priced(pairs(price)))
        data = tier_json(store.admin.tiers.set(name, message=message, force=force, **fields))
    cli.out.show(data, [data.name], lambda: _print_tier(data))


def drain(
    cli: Cli,
    name: Name,
    undo: Annotated[bool, option("--undo", help="Let the tier take new packs again.")] = False,
    dry_run: DryRun = False,
    budget: BudgetOption = None,
    share: ShareOption = 1.0,
    message: Message = "",
) -> None:
    """Move all packs out of a tier, and put no new ones into it.

    The tier can be removed then. It may be stopped at any time; run it again to go on. Exits with 3
    while packs are left in it, and with --dry-run when another tier could not be asked.
    """
    from tierstore.errors import UsageError

    if undo and dry_run:
        raise UsageError("--undo and --dry-run cannot be combined")
    looked_at, limit = count(1), budget_of(budget, share)

    def moved(_: Moved) -> None:
        progress.describe(f"draining tier {name}: {counted(next(looked_at), 'pack')} done")

    with cli.open() as store, cli.progress(f"draining tier {name}") as progress:
        if undo:
            found = store.admin.tiers.undrain(name, message=message)
        else:
            found = store.admin.tiers.drain(
                name, message=message, dry_run=dry_run, budget=limit, progress=moved
            )
    plan, left = found.plan, found.left
    data = schemas.TierDrained(
        name=name,
        state=found.spec.state,
        dry_run=dry_run,
        moved_packs=len(plan.moves) if dry_run else sum(m.status == "done" for m in found.moved),
        moved_bytes=plan.copied_bytes if dry_run else sum(one.copied_bytes for one in found.moved),
        problems=[*plan.notes]
        + [f"{one.move.pack.hex()}: {one.why}" for one in found.moved if one.status == "failed"],
        packs=len(left.packs),
        bytes=left.used_bytes,
        only_packs=len(left.only),
        only_bytes=left.only_bytes,
    )
    cli.out.show(data, sorted(left.only), lambda: _print_drained(data))
    cli.out.warn_quiet(data.problems)
    if plan.notes if dry_run else left.packs and not undo:
        raise Exit(3)


def _print_drained(data: schemas.TierDrained) -> None:
    moved = ""
    if data.moved_packs:
        did = "would move" if data.dry_run else "moved"
        packs = (
            f"{counted(data.moved_packs, 'pack')} out of it, {size(data.moved_bytes)} by copying"
        )
        moved = f"; {did} {packs}"
    takes = "takes new packs" if data.state == "active" else "takes no new packs"
    print(f"tier {data.name} {takes}{moved}")
    for problem in data.problems:
        print(printable(f"problem: {problem}"))
    if data.packs:
        only = f"{data.only_packs} of them ({size(data.only_bytes)}) in no other tier"
        elsewhere = only if data.only_packs else "each of them in another tier, too"
        print(f"it holds {counted(data.packs, 'pack')} of {size(data.bytes)}, {elsewhere}")
    else:
        print("it is empty")
    if data.state == "draining" and not data.packs:
        print(f"'tierstore tier rm {data.name}' removes it from the list")


def remove(
    cli: Cli,
    name: Name,
    force: Annotated[
        bool,
        option("--force", help="Remove it even if it cannot be reached and packs are lost."),
    ] = False,
    message: Message = "",
) -> None:
    """Remove a tier from the list; nothing in it is deleted.

    This is refused while the tier takes new packs (drain it first), or holds a pack that no other
    tier has or that is pinned.
    """

    def waiting(who: Sequence[str]) -> None:
        progress.describe(f"waiting for saves by {', '.join(who)}")

    with cli.open() as store, cli.progress(f"asking tier {name}") as progress:
        done = store.admin.tiers.remove(name, message=message, force=force, waiting=waiting)
    left = done.left
    data = schemas.TierRemoved(
        name=name,
        url=done.spec.url,
        left_packs=None if left is None else len(left.packs),
        left_bytes=None if left is None else left.used_bytes,
    )
    cli.out.show(data, [name], lambda: print(_removed(data, done.spec.role, left)))


def _removed(data: schemas.TierRemoved, role: str, left: Holding | None) -> str:
    gone = f"removed tier {data.name}"
    if role == "hot":
        return f"{gone}; its files are left in {data.url} on each node"
    if role == "shared":
        return f"{gone}; what it holds expires by itself"
    if left is None:
        return f"{gone}, which could not be asked; 'tierstore check' finds what is lost with it"
    if left.packs:
        return (
            f"{gone}; {counted(len(left.packs), 'pack')} of {size(left.used_bytes)}, which other "
            f"tiers have too, are left in {data.url}"
        )
    return f"{gone}; nothing is left in {data.url}"


def example(cli: Cli) -> None:
    """Print an example of tierstore.toml, a node's own file."""
    from importlib.resources import files

    text = (files("tierstore.cli") / "tierstore.example.toml").read_text("utf-8")
    data = schemas.TierExample(text=text)
    cli.out.show(data, text.splitlines(), lambda: print(text, end=""))


def _print_tiers(data: schemas.TiersJson) -> None:
    rows = [
        (tier.name, tier.role, _quota(tier), _watermarks(tier), _state(tier), tier.url)
        for tier in data.tiers
    ]
    rows.append(("home", "cold", "-", "-", "", data.home))
    columns = [
        Column("TIER"),
        Column("ROLE"),
        Column("QUOTA", right=True),
        Column("WATERMARKS", right=True),
        Column("STATE"),
        Column("URL"),
    ]
    table(columns, rows)


def _quota_bytes(tier: schemas.TierJson) -> int | None:
    """Return the quota that holds on this node."""
    return tier.size_bytes if tier.node_size_bytes is None else tier.node_size_bytes


def _quota(tier: schemas.TierJson) -> str:
    quota = _quota_bytes(tier)
    return "-" if quota is None else size(quota)


def _watermarks(tier: schemas.TierJson) -> str:
    return "-" if _quota_bytes(tier) is None else f"{tier.low_percent}-{tier.high_percent} %"


def _state(tier: schemas.TierJson) -> str:
    if not tier.enabled:
        return "off here"
    own = [("URL", tier.node_url), ("quota", tier.node_size_bytes)]
    named = " and ".join(name for name, value in own if value is not None)
    return tier.state + (f", own {named} here" if named else "")


def _print_tier(tier: schemas.TierJson) -> None:
    facts(
        [
            ("tier", f"{tier.name}, {tier.role}, {tier.state}"),
            ("url", tier.url),
            (
                "quota",
                "none"
                if tier.size_bytes is None
                else f"{size(tier.size_bytes)}: emptied above {tier.high_percent} %, down to "
                f"{tier.low_percent} %",
            ),
            ("timeout", f"{tier.timeout_ms / 1000:g} s"),
            *(("option", f"{name}={value}") for name, value in tier.options.items()),
            *(("price", f"{name}={value}") for name, value in tier.prices.items()),
            *([("this node", f"has it at {tier.node_url}")] if tier.node_url else []),
            *(
                []
                if tier.node_size_bytes is None
                else [("this node", f"gives it a quota of {size(tier.node_size_bytes)}")]
            ),
            *([] if tier.enabled else [("this node", "does not use it: enabled = false")]),
        ]
    )
