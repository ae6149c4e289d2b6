"""Commands that make anew what was lost: index rebuild, layout rebuild."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, printable, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import REF_HELP
from tierstore.cli.schemas import rebuild as schemas
from tierstore.errors import UsageError

_SHOWN = 5


def rebuild_index(
    cli: Cli,
    source: Annotated[
        Literal["layouts", "packs"],
        option("--from", help="Where chunks are looked for: packs, if layouts are lost."),
    ] = "layouts",
) -> None:
    """Make the index of all chunks anew.

    Saves find by it what is stored already. What it has now is kept as far as it can be read.
    Exits with 3 when something could not be read, or a tier could not be asked.
    """
    cli.hold_tier_warnings()
    with cli.open() as store, cli.progress("rebuilding the index") as progress:
        done = store.reclaim.rebuild_index(source=source, progress=progress)
    data = schemas.IndexRebuilt(
        chunks=done.chunks,
        segments=done.segments,
        stored_bytes=done.stored_bytes,
        replaced=done.replaced,
        unread=done.unread,
        down=done.down,
    )

    def text() -> None:
        print(
            f"the index knows {counted(done.chunks, 'chunk')}, in "
            f"{counted(done.segments, 'segment')} of {size(done.stored_bytes)}"
        )
        _print_unread(done.unread, done.down)

    cli.out.show(data, [], text)
    cli.out.told_down(done.down)
    if done.down or done.unread:
        raise Exit(3)


def rebuild_layout(
    cli: Cli,
    refs: Annotated[list[str] | None, argument(metavar="REF...", help=REF_HELP)] = None,
    every: Annotated[bool, option("--all", help="Look at all versions of the store.")] = False,
) -> None:
    """Make layouts of versions anew that are lost or damaged.

    A layout says where the chunks of a version are; the footers of all packs are read for that.
    Exits with 4 when a version has lost chunks, and with 3 when all have theirs, but a pack could
    not be read, or a tier could not be asked.
    """
    if every == bool(refs):
        raise UsageError("name versions, or give --all for all of them")
    cli.hold_tier_warnings()
    with cli.open() as store, cli.progress("rebuilding layouts") as progress:
        versions = [store.resolve(ref) for ref in refs or ()]
        done = store.reclaim.rebuild_layouts(*versions, progress=progress)
    data = schemas.LayoutsRebuilt(
        whole=done.whole,
        written=done.written,
        lost=[
            schemas.LostVersionJson(version=one.needed_by, manifest=one.manifest.hex, why=one.why)
            for one in done.lost
        ],
        unread=done.unread,
        down=done.down,
    )

    def text() -> None:
        if done.lost:
            rows = [(one.needed_by, one.manifest.short, printable(one.why)) for one in done.lost]
            table([Column("LOST"), Column("MANIFEST"), Column("WHY")], rows)
            print()
        print(f"{counted(done.written, 'layout')} written, {done.whole} were whole")
        _print_unread(done.unread, done.down)

    cli.out.show(data, [one.needed_by for one in done.lost], text)
    cli.out.told_down(done.down)
    if done.lost:
        raise Exit(4)
    if done.down or done.unread:
        raise Exit(3)


def _print_unread(keys: Sequence[str], down: Mapping[str, str]) -> None:
    for name, why in down.items():
        print(printable(f"tier {name} could not be asked: {why}"))
    for key in keys[:_SHOWN]:
        print(f"not read: {key}")
    if len(keys) > _SHOWN:
        print(f"and {len(keys) - _SHOWN} more; 'tierstore check' says why")
