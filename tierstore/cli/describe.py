"""Commands that describe versions: stat, tensors, diff."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, facts, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import Ref, matching, version_fields, version_json
from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas.deltas import ChangeJson, DiffJson
from tierstore.shown import quarantine_text, time_text

if TYPE_CHECKING:
    from tierstore.modelstore.care.compare import ItemDiff
    from tierstore.modelstore.loading.model import Model
    from tierstore.modelstore.loading.tensor import Tensor


def stat(cli: Cli, ref: Ref) -> None:
    """Show the files, chunks, packs, aliases and lineage of a version."""
    with cli.open() as store:
        model = store.load(ref)
        aliases = [
            alias.name
            for alias in store.aliases(model.version.model)
            if model.version.variant is None and alias.version.number == model.version.number
        ]
        quarantined = store._parts.home.quarantine.packs()
    data = _stat_json(model, aliases, quarantined)
    cli.out.show(data, [str(model.version)], lambda: _print_stat(data))


def _stat_json(model: Model, aliases: list[str], quarantined: set[bytes]) -> schemas.Stat:
    from tierstore.modelstore.home.home import chunks_of

    opened = model._opened
    table, manifests = opened.content.table, [opened.manifest, *opened.patches]
    digests = [digest for manifest in manifests for digest in chunks_of(manifest)]
    wanted = set(digests)
    places = [place for place in table if place.digest in wanted]
    used: Counter[bytes] = Counter()
    for place in table:
        used[place.pack] += place.frame_bytes
    return schemas.Stat(
        **version_fields(model.version),
        aliases=aliases,
        files=[
            schemas.StatFile(
                path=file.path, bytes=file.size, sha256=file.sha256.hex(), tensors=len(file.tensors)
            )
            for file in opened.manifest.files
        ],
        tensors=len(model),
        logical_bytes=sum(file.size for file in opened.manifest.files),
        chunks=len(digests),
        unique_chunks=len(places),
        unique_bytes=sum(place.plain_bytes for place in places),
        stored_bytes=sum(used.values()),
        packs=[
            schemas.Pack(
                pack=pack.hex(), bytes=whole, used_bytes=used[pack], quarantined=pack in quarantined
            )
            for pack, whole in zip(table.pack_ids, table.pack_sizes, strict=True)
        ],
        patches=len(opened.patches),
        lineage=[
            schemas.Lineage(relation=entry.relation, digest=f"b3:{entry.digest.hex()}")
            for entry in opened.manifest.lineage
        ],
    )


def _print_stat(data: schemas.Stat) -> None:
    ratio = data.stored_bytes / data.unique_bytes if data.unique_bytes else 1.0
    packs = counted(len(data.packs), "pack")
    quarantined = sum(pack.quarantined for pack in data.packs)
    items = f"{counted(data.tensors, 'tensor')} in {counted(len(data.files), 'file')}"
    pairs = [
        ("version", f"{data.model}@{data.version}" + (f"+{data.variant}" if data.variant else "")),
        ("digest", data.digest),
        ("created", f"{time_text(data.created)} by {data.who}"),
        ("message", data.message),
        ("aliases", ", ".join(data.aliases)),
        ("size", f"{size(data.logical_bytes)}, {items}"),
        ("chunks", f"{data.chunks}, {data.unique_chunks} of them distinct"),
        ("stored", f"{size(data.stored_bytes)} in {packs}, ratio {ratio:.3f}"),
        ("patches", f"{data.patches}; 'tierstore fold' stores it whole" if data.patches else ""),
        ("packs", quarantine_text(quarantined) if quarantined else ""),
        *(("lineage", f"{entry.relation} {entry.digest}") for entry in data.lineage),
    ]
    facts((name, value) for name, value in pairs if value)
    print()
    columns = [
        Column("FILE"),
        Column("SIZE", True),
        Column("TENSORS", True),
        Column("SHA-256", digest=True),
    ]
    rows = [
        (file.path, size(file.bytes), str(file.tensors or "-"), file.sha256 or "-")
        for file in data.files
    ]
    table(columns, rows)
    print()
    columns = [Column("PACK", digest=True), Column("SIZE", True), Column("USED", True)]
    table(columns, [(p.pack, size(p.bytes), size(p.used_bytes)) for p in data.packs])


def tensors(
    cli: Cli,
    ref: Ref,
    filter_: Annotated[
        list[str] | None,
        option("--filter", metavar="GLOB", help="List only tensors that match; may be repeated."),
    ] = None,
) -> None:
    """List a version's tensors: dtype, shape, size, stored size, codec."""
    with cli.open() as store:
        model = store.load(ref)
        names = matching(model, filter_) if filter_ else list(model)
        found = [tensor_json(model.tensor(name)) for name in names]
    version = model.version
    data = schemas.Tensors(
        model=version.model,
        version=version.number,
        variant=version.variant,
        digest=str(version.digest),
        tensors=found,
    )

    def text() -> None:
        columns = [
            Column("TENSOR"),
            Column("DTYPE"),
            Column("SHAPE"),
            Column("SIZE", True),
            Column("STORED", True),
            Column("RATIO", True),
            Column("CODEC"),
        ]
        rows = [
            (
                one.name,
                one.dtype,
                str(one.shape).replace(" ", ""),
                size(one.bytes),
                size(one.stored_bytes),
                f"{one.ratio:.3f}",
                ",".join(one.codecs),
            )
            for one in found
        ]
        table(columns, rows)

    cli.out.show(data, names, text)


def tensor_json(tensor: Tensor) -> schemas.TensorJson:
    """Return a tensor as it is printed; a chunk that occurs twice in it counts once."""
    from tierstore.codecs import CODECS

    places = {place.digest: place for place in tensor._places()}
    stored = sum(place.frame_bytes for place in places.values())
    return schemas.TensorJson(
        name=tensor.name,
        file=tensor.file,
        dtype=tensor.dtype,
        shape=list(tensor.shape),
        bytes=tensor.nbytes,
        stored_bytes=stored,
        ratio=round(stored / tensor.nbytes, 4) if tensor.nbytes else 1.0,
        codecs=dict(Counter(CODECS[place.codec].name for place in places.values())),
    )


OldArgument = Annotated[str, argument(metavar="OLD", help="The older version.")]
NewArgument = Annotated[str, argument(metavar="NEW", help="The newer version.")]


def diff(
    cli: Cli,
    old: OldArgument,
    new: NewArgument,
) -> None:
    """Show what changed between two versions.

    Changes are listed tensor by tensor and file by file. Only metadata is read.
    """
    with cli.open() as store:
        found = store.diff(old, new)
    data = DiffJson(
        old=version_json(found.old),
        new=version_json(found.new),
        tensors=[_change(item) for item in found.tensors],
        files=[_change(item) for item in found.files],
        shared_bytes=found.shared_bytes,
        new_bytes=found.new_bytes,
        stored_bytes=found.stored_bytes,
        delta_saved_bytes=found.delta_saved,
    )
    changed = [_change(item) for item in found.changed]

    def text() -> None:
        columns = [
            Column("NAME"),
            Column("CHANGE"),
            Column("OLD", True),
            Column("NEW", True),
            Column("NEW CHUNKS", True),
            Column("STORED", True),
        ]
        rows = [
            (
                item.name,
                item.change,
                size(item.old_bytes),
                size(item.new_bytes),
                size(item.new_chunk_bytes),
                size(item.stored_bytes),
            )
            for item in changed
        ]
        if rows:
            table(columns, rows)
            print()
        print(
            f"{found.counts}; {found.new} shares "
            f"{size(found.shared_bytes)} with {found.old}, {size(found.new_bytes)} are new and "
            f"take {size(found.stored_bytes)}; deltas save {size(found.delta_saved)}"
        )

    cli.out.show(data, [item.name for item in changed], text)


def _change(item: ItemDiff) -> ChangeJson:
    return ChangeJson(
        name=item.name,
        change=item.change,
        old_bytes=item.old_bytes,
        new_bytes=item.new_bytes,
        new_chunk_bytes=item.new_chunk_bytes,
        stored_bytes=item.stored_bytes,
    )
