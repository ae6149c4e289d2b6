"""Commands on a whole store: init, du, check, version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.gc import last_gc, print_last_gc
from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.objects import MANY, by_kind, short_ids, some_of
from tierstore.cli.kit.output import Column, counted, printable, shares, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.times import duration
from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas import tiers as tier_schemas
from tierstore.cli.tierargs import (
    ColdSize,
    ColdUrl,
    HotSize,
    HotUrl,
    MemcachedUrl,
    RedisUrl,
    TierOptions,
    TierPrices,
    WarmSize,
    WarmUrl,
    first_tiers,
    tier_json,
)
from tierstore.errors import Damaged, TierstoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierstore.modelstore.care.check_report import CheckReport
    from tierstore.modelstore.care.compare import Usage


UrlArgument = Annotated[
    str | None,
    argument(metavar="URL", help="Where to make the store; instead of --store."),
]
ChunkSizeOption = Annotated[
    str,
    option(metavar="SIZE", help="Size of chunks: a power of two, 1MiB to 16MiB; never changes."),
]


def init(
    cli: Cli,
    url: UrlArgument = None,
    chunk_size: ChunkSizeOption = "4MiB",
    hot: HotUrl = None,
    hot_size: HotSize = None,
    redis: RedisUrl = None,
    memcached: MemcachedUrl = None,
    warm: WarmUrl = None,
    warm_size: WarmSize = None,
    cold: ColdUrl = None,
    cold_size: ColdSize = None,
    option: TierOptions = None,
    price: TierPrices = None,
) -> None:
    """Make an empty store.

    Its metadata lie at URL, and so do its packs unless it has a warm or cold tier. Each tier is
    tried first; 'tierstore tier add' adds more later. Passwords and keys are never part of a URL:
    see 'tierstore tier example'.
    """
    import tierstore
    from tierstore.config import parse_size

    given = {
        "hot": (hot, hot_size),
        "redis": (redis, None),
        "memcached": (memcached, None),
        "warm": (warm, warm_size),
        "cold": (cold, cold_size),
    }
    tiers = first_tiers(given, option, price)
    with (
        cli.progress("trying the tiers"),
        tierstore.init(
            url if url is not None else cli.url, chunk_size=parse_size(chunk_size), tiers=tiers
        ) as store,
    ):
        config = store._parts.home.config
        data = tier_schemas.Init(
            url=store.url,
            store_id=config.store_id,
            chunk_bytes=config.chunk_size,
            tiers=[tier_json(tier) for tier in store.tiers()],
        )

    def text() -> None:
        print(f"made a store at {data.url}")
        for tier in data.tiers:
            print(printable(f"with {tier.role} tier {tier.name}: {tier.url}"))

    cli.out.show(data, [data.url], text)


def du(
    cli: Cli,
    model: Annotated[
        str | None,
        argument(metavar="MODEL", help="Show only this model."),
    ] = None,
) -> None:
    """Show stored sizes, and how much dedup, codecs and deltas save.

    A version that cannot be read is left out, and the command says so at its end.
    """
    with cli.open() as store, cli.progress("adding up"):
        usage = store.usage(model)
        last = last_gc(store) if model is None else None
    data = du_json(usage, last)
    cli.out.show(data, [str(data.stored_bytes)], lambda: print_usage(data))
    if usage.left_out:
        raise _left_out(usage.left_out)


def _left_out(errors: Mapping[str, TierstoreError]) -> TierstoreError:
    """Return an error of the gravest kind that says what could not be counted, and why."""
    gravest = min(errors.values(), key=lambda error: not isinstance(error, Damaged))
    shown = list(errors.items())[:MANY]
    more = [f"and {len(errors) - MANY} more, which --json lists"] if len(errors) > MANY else []
    why = "; ".join([*(f"{name}: {error}" for name, error in shown), *more])
    return type(gravest)(f"not counted, as it cannot be read: {why}")


def du_json(usage: Usage, last: schemas.LastGc | None = None) -> schemas.Du:
    """Return a ``Usage`` as it is printed, with what the last garbage collection left."""
    frames = usage.stored - usage.overhead
    return schemas.Du(
        models=usage.models,
        versions=usage.versions,
        chunks=usage.chunks,
        packs=usage.packs,
        logical_bytes=usage.logical,
        unique_bytes=usage.unique,
        stored_bytes=frames,
        pack_bytes=usage.stored,
        dedup_saved_bytes=usage.dedup_saved,
        codec_saved_bytes=usage.codec_saved,
        delta_saved_bytes=usage.delta_saved,
        header_bytes=usage.unique - frames - usage.codec_saved - usage.delta_saved,
        overhead_bytes=usage.overhead,
        last_gc=last,
        left_out=[
            schemas.LeftOut(name=name, why=str(error)) for name, error in usage.left_out.items()
        ],
    )


def print_usage(data: schemas.Du) -> None:
    """Print the table of ``du``: the first line, and below it the parts that it is made of."""
    parts = [
        ("saved by dedup", data.dedup_saved_bytes, f"leaves {size(data.unique_bytes)} unique"),
        ("saved by codecs", data.codec_saved_bytes, ""),
        ("saved by deltas", data.delta_saved_bytes, ""),
        ("headers", data.header_bytes, "kept in manifests"),
        ("stored", data.stored_bytes, counted(data.chunks, "chunk")),
    ]
    every = zip(parts, shares([count for _, count, _ in parts]), strict=True)
    rows = [
        ("logical", size(data.logical_bytes), "100.0 %", f"{data.versions} versions and variants"),
        *((name, size(count), share, note) for (name, count, note), share in every),
    ]
    table([Column(""), Column("SIZE", right=True), Column("SHARE", right=True), Column("")], rows)
    print(
        f"in {counted(data.packs, 'pack')} of {size(data.pack_bytes)}, with "
        f"{size(data.overhead_bytes)} of footers, proofs and others' chunks"
    )
    print_last_gc(data.last_gc)


def check(
    cli: Cli,
    read_data: Annotated[
        bool, option("--read-data", help="Also read, decode and verify every chunk.")
    ] = False,
    hot: Annotated[
        bool, option("--hot", help="Also verify every chunk in this node's hot tier.")
    ] = False,
    subset: Annotated[
        str | None,
        option(metavar="SHARE", help="Read data, but only this share of it: 5%."),
    ] = None,
    max_time: Annotated[
        str | None,
        option(metavar="TIME", help="Read data, but begin no more after this time: 2h."),
    ] = None,
) -> None:
    """Verify the store and list what is damaged or garbage.

    Data is read first where this node has not read it for longest: what is run again with --subset
    or --max-time, or after it was interrupted, goes on where it ended.

    Exits with 4 when data or history is damaged; garbage only takes space. What is damaged in the
    hot tier is removed there, and fetched again when it is read. A tier that fails meanwhile is
    left out from then on: what was found is listed, and it exits with 3 if nothing is damaged.
    """
    from tierstore.config import parse_share

    share = None if subset is None else parse_share(subset)
    limit = None if max_time is None else duration(max_time)
    with cli.open() as store, cli.progress("checking") as progress:
        report = store.check(
            read_data=read_data, hot=hot, subset=share, max_time=limit, progress=progress
        )
    read_data = read_data or share is not None or limit is not None
    damaged = [one.key for one in report.findings if one.severity == "damage"]
    cli.out.show(_json(report), damaged, lambda: _print_report(report, read_data, hot))
    cli.out.told_down(report.down)
    if report.damaged:
        raise Exit(4)
    if report.down:
        raise Exit(3)


def _json(report: CheckReport) -> schemas.CheckJson:
    return schemas.CheckJson(
        damaged=report.damaged,
        findings=[
            schemas.FindingJson(
                severity=one.severity, key=one.key, what=one.what, needed_by=list(one.needed_by)
            )
            for one in report.findings
        ],
        refs=report.refs,
        versions=report.versions,
        packs=report.packs,
        chunks=report.chunks,
        data_bytes=report.data_bytes,
        hot_bytes=report.hot_bytes,
        quarantined=report.quarantined,
        copies_read=report.data.copies,
        copies_left=report.data.copies_left,
        left_bytes=report.data.left_bytes,
        down=report.down,
    )


def _print_report(report: CheckReport, read_data: bool, hot: bool) -> None:
    for one in report.findings:
        needed = f" (needed by {some_of(one.needed_by)})" if one.needed_by else ""
        print(printable(short_ids(f"{one.severity}: {one.key}: {one.what}{needed}")))
    for key in report.quarantined:
        what = "no tier has a good copy; saves store anew what is in it"
        print(short_ids(f"quarantined: {key}: {what}"))
    looked = ", ".join(
        (
            counted(report.refs, "ref"),
            counted(report.versions, "distinct version"),
            counted(report.packs, "pack"),
            counted(report.chunks, "chunk"),
        )
    )
    data = f", {size(report.data_bytes)} of data" if read_data else " (data was not read)"
    data += f", {size(report.hot_bytes)} in the hot tier" if hot else ""
    damaged = [one.key for one in report.findings if one.severity == "damage"]
    damage, garbage = len(damaged), len(report.findings) - len(damaged)
    marked = len(report.quarantined)
    verdict = f"{damage} damaged" if damage else f"no {'new ' if marked else ''}damage"
    if marked:
        verdict += f", {counted(marked, 'pack')} quarantined"
    waste = f", {counted(garbage, 'object')} of garbage" if garbage else ""
    print(f"{verdict}{waste}; checked {looked}{data}")
    if damage > MANY:
        hit = {name for one in report.findings for name in one.needed_by}
        print(f"damaged: {by_kind(damaged)}; needed by {counted(len(hit), 'version')}")
    if damage:
        print("'tierstore repair' repairs what can be repaired, and lists what is lost")
        print("ids are cut to 12 digits here: -q and --json print keys in full")
    elif marked and (report.data.copies_left or not read_data):
        print(
            "'tierstore check --read-data' says whether anything was lost with what is quarantined"
        )
    for name, why in report.down.items():
        print(printable(f"tier {name} could not be asked: {why}; check again when it can be"))
    if report.data.copies_left:
        print(report.data.summary)


def version(cli: Cli) -> None:
    """Show the versions of tierstore and Python."""
    import platform
    from importlib.metadata import version as package_version

    data = schemas.VersionOutput(
        tierstore=package_version("tierstore"), python=platform.python_version()
    )
    cli.out.show(
        data, [data.tierstore], lambda: print(f"tierstore {data.tierstore} on Python {data.python}")
    )
