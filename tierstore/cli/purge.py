"""Commands for what is removed for good: rm --purge, purge ls, purge show, purge run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import click
from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, printable, size, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.schemas import purge as schemas
from tierstore.errors import UsageError

if TYPE_CHECKING:
    from tierstore.modelstore.reclaim.purge.receipt import PurgedTier, PurgeReceipt, Sharing
    from tierstore.modelstore.store import Store

_SHOWN = 20
ReceiptId = Annotated[
    str,
    argument(metavar="ID", help="The receipt: how its id begins, or a version."),
]


def purge(
    cli: Cli, refs: Sequence[str], *, every: bool, force: bool, yes: bool, message: str
) -> None:
    """Purge versions, and print their receipts; what ``rm --purge`` does."""
    asks = not (yes or cli.out.json or cli.out.quiet) and sys.stdin is not None
    if not yes and not (asks and sys.stdin.isatty()):
        raise UsageError(
            "--purge cannot be undone, so it asks, and nobody can answer here: give --yes"
        )
    with cli.open() as store:
        named = [str(one) for ref in refs for one in _versions(store, ref)] if every else [*refs]
        versions = store.purges.versions(*named)  # what was agreed to is what goes
        if not yes:
            click.confirm(f"Delete {', '.join(map(str, versions))} for good?", abort=True)
        with cli.progress("purging"):
            found = store.purge(*versions, force=force or every, message=message)
    _show_each(cli, found)


def plan(cli: Cli, refs: Sequence[str], *, every: bool, force: bool) -> None:
    """Say what ``purge`` would do; what ``rm --purge --dry-run`` does."""
    with cli.open() as store:
        named = [str(one) for ref in refs for one in _versions(store, ref)] if every else [*refs]
        found = store.purges.plan(*named, force=force or every)
    data = schemas.Plan(
        digests={ref: _digests(digests) for ref, digests in found.digests.items()},
        refused=found.refused,
        chunks=found.chunks,
        plain_bytes=found.plain_bytes,
        shared_chunks=found.shared_chunks,
        shared_plain_bytes=found.shared_plain_bytes,
        shared=_sharing_json(found.shared),
        tiers=[
            schemas.PlannedTierJson(tier=t.name, packs=t.packs, bytes=t.bytes) for t in found.tiers
        ],
        down=dict(found.down),
        nodes=list(found.nodes),
    )
    cli.out.show(data, list(found.digests), lambda: _print_plan(data))


def _print_plan(data: schemas.Plan) -> None:
    for ref, digests in data.digests.items():
        print(printable(f"{ref} would go: {', '.join(digests)}"))
    print(
        f"{counted(data.chunks, 'chunk')} of {size(data.plain_bytes)}, of which "
        f"{data.shared_chunks} of {size(data.shared_plain_bytes)} would stay, as others need them"
    )
    _print_sharing(data.shared)
    for tier in data.tiers:
        print(
            f"{tier.tier} has {counted(tier.packs, 'pack')} of {size(tier.bytes)} with some of them"
        )
    for name, why in data.down.items():
        print(printable(f"tier {name} cannot be asked: {why}"))
    nodes = ", ".join(data.nodes) or "none that the store knows"
    print(printable(f"nodes that would have to acknowledge it: {nodes}"))
    if data.refused:
        print(printable(f"it would be REFUSED: {data.refused}"))
    print("nothing was changed")


def _versions(store: Store, model: str) -> list[str]:
    """Return all versions of a model, those that are removed but not purged among them."""
    removed = [one for one in store.deleted(model) if not one.is_purged]
    present = store.versions(model) if store._names.has(model) else []
    return [str(one) for one in [*present, *(one.version for one in removed)]]


def ls(cli: Cli) -> None:
    """List the receipts of purges."""
    with cli.open() as store:
        found = store.purges.all()
    data = schemas.Receipts(receipts=[_json(one) for one in found])
    cli.out.show(data, [one.id for one in found], lambda: _print_all(found, "nothing was purged"))


def show(cli: Cli, name: ReceiptId) -> None:
    """Show a receipt as it is now.

    It says what is left and why, and which nodes have acknowledged.
    """
    with cli.open() as store:
        receipt = store.purges.receipt(name)
    data = _json(receipt)

    def text() -> None:
        _print(data)
        print()
        _print_stays(data)

    cli.out.show(data, [receipt.id], text)


def run(cli: Cli) -> None:
    """Go on with all purges.

    It also drops what they name from this node's caches, as an agent does, and lists those that
    were not complete. Exits with 3 while one of them is not.
    """
    with cli.open() as store, cli.progress("purging"):
        found = store.purges.run()
    data = schemas.Receipts(receipts=[_json(one) for one in found])
    ids = [one.id for one in found]

    def text() -> None:
        _print_all(found, "every purge is complete")
        for why in dict.fromkeys(why for one in found for why in one.waits):
            print(printable(f"waits: {why}"))

    cli.out.show(data, ids, text)
    if not all(one.is_complete for one in found):
        raise Exit(3)


def gone(
    cli: Cli,
    nodes: Annotated[list[str], argument(metavar="NODE...", help="Nodes, as receipts have them.")],
    reason: Annotated[
        str,
        option(
            "--reason",
            "-m",
            help="How it is known; receipts tell it, with who says so and when.",
        ),
    ],
) -> None:
    """Say that nodes will never come back.

    No purge waits for them then. One that is seen again counts again.
    """
    with cli.open() as store:
        store.purges.say_gone(*nodes, reason=reason)
    data = schemas.GoneNodes(nodes=nodes)
    cli.out.show(data, nodes, lambda: print(f"not waited for any more: {', '.join(nodes)}"))


def _show_each(cli: Cli, found: Sequence[PurgeReceipt]) -> None:
    data = schemas.Receipts(receipts=[_json(one) for one in found])

    def text() -> None:
        for one in data.receipts:
            _print(one)
            print()
        _print_stays(data.receipts[0])

    cli.out.show(data, [one.id for one in found], text)
    if not all(one.is_complete for one in found):
        raise Exit(3)


def _json(one: PurgeReceipt) -> schemas.Receipt:
    return schemas.Receipt(
        id=one.id,
        time=one.time,
        who=one.who,
        message=one.message,
        version=one.version,
        variants=list(one.variants),
        digests={ref: _digests(digests) for ref, digests in one.digests.items()},
        done=one.is_done,
        complete=one.is_complete,
        updated=one.updated,
        chunks=one.chunks,
        plain_bytes=one.plain_bytes,
        shared_chunks=one.shared_chunks,
        shared_plain_bytes=one.shared_plain_bytes,
        shared=_sharing_json(one.shared),
        shared_digests=None if one.shared_digests is None else _digests(one.shared_digests),
        tiers=[_tier_json(tier) for tier in one.tiers],
        left=[
            schemas.LeftPackJson(pack=pack.pack, tier=pack.tier, bytes=pack.bytes, why=pack.why)
            for pack in one.left
        ],
        rewritten_bytes=one.rewritten_bytes,
        deleted_objects=list(one.deleted_objects),
        manifests_left=dict(one.manifests_left),
        unread_packs=one.unread_packs,
        waits=list(one.waits),
        nodes=[
            schemas.PurgeNode(
                node=node.node,
                place=node.place,
                acknowledged=node.acknowledged,
                dropped=dict(node.dropped),
                failed=dict(node.failed),
                seen=node.seen,
                gone=node.gone,
                gone_by=node.gone_by,
                gone_reason=node.gone_reason,
            )
            for node in one.nodes
        ],
        outstanding=one.outstanding,
        stays=[schemas.Stays(what=what, where=where) for what, where in one.stays],
    )


def _digests(found: Sequence[str]) -> list[str]:
    return [f"b3:{digest}" for digest in found]


def _sharing_json(shared: Sequence[Sharing]) -> list[schemas.SharingJson]:
    return [
        schemas.SharingJson(why=by.why, chunks=by.chunks, plain_bytes=by.plain_bytes)
        for by in shared
    ]


def _tier_json(tier: PurgedTier) -> schemas.PurgedTierJson:
    return schemas.PurgedTierJson(
        tier=tier.name,
        deleted_packs=tier.packs,
        deleted_bytes=tier.bytes,
        left_packs=tier.left_packs,
        left_bytes=tier.left_bytes,
        kept_bytes=tier.kept_bytes,
        error=tier.error,
    )


def _print_all(found: Sequence[PurgeReceipt], none: str) -> None:
    rows = [
        (
            one.id,
            when(one.time),
            "done" if one.is_done else "NOT DONE",
            ", ".join(one.outstanding) or "-",
            one.version,
            one.message,
        )
        for one in found
    ]
    if rows:
        titles = ("ID", "ASKED FOR (UTC)", "TIERS", "NODES OUTSTANDING", "VERSION", "REASON")
        table([Column(title) for title in titles], rows)
    else:
        print(none)


def _print(data: schemas.Receipt) -> None:
    note = f": {data.message}" if data.message else ""
    print(printable(f"purge {data.id} of {', '.join([data.version, *data.variants])}{note}"))
    print(printable(f"asked for by {data.who} on {when(data.time)} UTC"))
    for ref, digests in data.digests.items():
        print(printable(f"{ref} is {', '.join(digests)}"))
    done = "done: what nothing else needs is in no durable tier any more"
    print(done if data.done else "NOT DONE: see what is left, and what it waits for")
    if data.tiers:
        print()
        rows = [
            (one.tier, str(one.deleted_packs), size(one.deleted_bytes), str(one.left_packs),
             size(one.left_bytes), _said_of(one))
            for one in data.tiers
        ]  # fmt: skip
        titles = ("PACKS DELETED", "SIZE", "LEFT", "SIZE")
        table([Column("TIER"), *(Column(one, right=True) for one in titles), Column("")], rows)
    _print_rest(data)
    _print_nodes(data)


def _said_of(tier: schemas.PurgedTierJson) -> str:
    if tier.error:
        return f"DOWN: {tier.error}"
    if tier.kept_bytes:
        return f"KEEPS {size(tier.kept_bytes)} as older versions of objects: delete these there"
    return ""


def _print_stays(data: schemas.Receipt) -> None:
    print("stays for good:")
    for one in data.stays:
        print(f"  {one.what}: {one.where}")


def _print_rest(data: schemas.Receipt) -> None:
    print(
        f"\n{counted(data.chunks, 'chunk')} of {size(data.plain_bytes)}, of which "
        f"{data.shared_chunks} of {size(data.shared_plain_bytes)} stay, as others need them"
    )
    _print_sharing(data.shared)
    for digest in (data.shared_digests or ())[:_SHOWN]:
        print(f"  {digest} stays")
    if (more := len(data.shared_digests or ()) - _SHOWN) > 0:
        print(f"  {more} more stay: --json has their digests")
    print(f"{counted(len(data.deleted_objects), 'object')} of metadata deleted, such as manifests")
    if data.rewritten_bytes:
        print(f"{size(data.rewritten_bytes)} that others need were written anew")
    for manifest, why in data.manifests_left.items():
        needed = f"{why} needs it" if why else "it is deleted when this goes on"
        print(printable(f"the manifest b3:{manifest} stays: {needed}"))
    if data.unread_packs:
        print(f"{counted(data.unread_packs, 'pack')} in archives, or damaged, not looked into")
    for one in data.left[:_SHOWN]:
        why = one.why or "it was not deleted yet"
        print(printable(f"left in {one.tier}: pack {one.pack[:12]} of {size(one.bytes)}: {why}"))
    for why in data.waits:
        print(printable(f"waits: {why}"))


def _print_sharing(shared: Sequence[schemas.SharingJson]) -> None:
    for by in shared[:_SHOWN]:
        amount = f"{counted(by.chunks, 'chunk')} of {size(by.plain_bytes)}"
        print(printable(f"  {by.why} needs {amount}"))
    if (more := len(shared) - _SHOWN) > 0:
        print(f"  and {more} more need some of them: --json has them all")


def _answer(node: schemas.PurgeNode) -> str:
    if node.acknowledged is not None:
        return when(node.acknowledged)
    return "OUTSTANDING" if node.gone is None else f"gone, by {when(node.gone)}"


def _counts(dropped: Mapping[str, int]) -> str:
    counts = [f"{count} from {cache}" for cache, count in sorted(dropped.items()) if count]
    return ", ".join(counts) or "-"


def _print_nodes(data: schemas.Receipt) -> None:
    print()
    rows = [
        (
            one.node,
            "-" if one.place is None else one.place[:8],
            _answer(one),
            _counts(one.dropped),
            "; ".join(f"{cache}: {why}" for cache, why in sorted(one.failed.items())) or "-",
            when(one.seen) if one.seen else "-",
        )
        for one in data.nodes
    ]
    titles = ("NODE", "CACHE", "ACKNOWLEDGED (UTC)", "DROPPED", "COULD NOT BE ASKED", "SEEN (UTC)")
    table([Column(title) for title in titles], rows)
    for node in data.nodes:
        if node.gone is not None:
            who, why = node.gone_by or "somebody", node.gone_reason or "no reason was given"
            said = f"{who} said on {when(node.gone)} UTC that it will not come back: {why}"
            print(printable(f"{node.node} is not waited for: {said}"))
