"""Commands on patches: patch, patches, fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, size, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import Message, Ref, version_fields
from tierstore.cli.schemas import patches as schemas
from tierstore.format.patch import PATCH_FORMS

if TYPE_CHECKING:
    from tierstore.modelstore.patches.patches import Patch


def patch(
    cli: Cli,
    ref: Ref,
    file: Annotated[
        str,
        argument(metavar="FILE", help="Patch file that was made for this version."),
    ],
    alias: Annotated[
        str | None, option(metavar="A", help="Point this alias to the new version.")
    ] = None,
    message: Message = "",
    no_fold: Annotated[
        bool,
        option("--no-fold", help="Never fold now; fails on a version that lies on 16 patches."),
    ] = False,
) -> None:
    """Publish a version that differs from another by a patch file.

    Only what changed is written, however large the model is.
    """
    from tierstore.modelstore.patches.patches import Patch

    with cli.open() as store:
        base = store.resolve(ref)
        given = Patch.open(file)
        version = store.patch(ref, given, alias=alias, message=message, fold=not no_fold)
        folded = not store.load(version)._opened.patches
    assert version.stats is not None
    data = schemas.Patched(
        **version_fields(version),
        base=str(base),
        alias=alias,
        tensors=len(given.parts),
        bytes=given.nbytes,
        stored_bytes=version.stats.stored_bytes,
        folded=folded,
        seconds=round(version.stats.seconds, 3),
    )

    def text() -> None:
        also = f" = {data.model}@{alias}" if alias else ""
        then = ", folded" if folded else ""
        print(
            f"{version}{also}: {base} with {counted(data.tensors, 'tensor')} patched, "
            f"{size(data.bytes)}, stored {size(data.stored_bytes)}{then}, {data.seconds:.2f} s"
        )

    cli.out.show(data, [str(version)], text)


SinceArgument = Annotated[
    str,
    argument(
        metavar="SINCE",
        help="Version to start from: MODEL@12, MODEL@ALIAS ...",
    ),
]
UntilOption = Annotated[
    str | None,
    option(metavar="REF", help="Version to end with (default: the newest of the model)."),
]
ToOption = Annotated[
    str | None,
    option("--to", metavar="DIR", help="Write each patch to a file in this directory."),
]


def patches(
    cli: Cli,
    since: SinceArgument,
    until: UntilOption = None,
    to: ToOption = None,
) -> None:
    """List the patches that lead from one version to a newer one."""
    with cli.open() as store:
        if to is not None:
            store._parts.places.check(to)
        first = store.resolve(since)
        last = store.resolve(first.model if until is None else until)
        found = []
        for number, one in enumerate(store.patches(str(first), str(last)), 1):
            where = None if to is None else _write(one, Path(to), number)
            found.append(_patch_json(one, where))
    data = schemas.Patches(since=str(first), until=str(last), patches=found)

    def text() -> None:
        columns = [
            Column("VERSION"),
            Column("TENSORS", True),
            *(Column(kind.upper(), True) for kind in PATCH_FORMS),
            Column("SIZE", True),
            Column("STORED", True),
        ]
        rows = [
            (
                one.version or "-",
                str(len(one.tensors)),
                *(str(_count(one, kind)) for kind in PATCH_FORMS),
                size(one.bytes),
                size(one.stored_bytes),
            )
            for one in found
        ]
        if rows:
            table(columns, rows)
        else:
            print(f"{first} and {last} have the same content")

    cli.out.show(data, [one.file or one.version or one.base for one in found], text)


def _write(patch: Patch, folder: Path, number: int) -> str:
    from tierstore.modelstore.loading.export import explained

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    name = f"{patch.version.number:09d}" if patch.version else f"{number}-{patch.base.hex[:12]}"
    path = folder / f"{name}.safetensors"
    patch.save(path)
    return str(path)


def _count(one: schemas.PatchJson, kind: str) -> int:
    return sum(tensor.count for tensor in one.tensors if tensor.kind == kind)


def _patch_json(patch: Patch, where: str | None) -> schemas.PatchJson:
    return schemas.PatchJson(
        version=str(patch.version) if patch.version else None,
        base=str(patch.base),
        bytes=patch.nbytes,
        stored_bytes=patch.stored_bytes or 0,
        tensors=[
            schemas.PatchedTensorJson(
                name=name,
                kind=part.kind,
                dtype=part.dtype,
                shape=list(part.shape),
                count=part.count,
            )
            for name, part in patch.parts.items()
        ],
        file=where,
    )


def fold(
    cli: Cli,
    ref: Ref,
    at_least: Annotated[
        int,
        option(metavar="N", min=1, help="Fold only if the version lies on N patches or more."),
    ] = 1,
) -> None:
    """Store a version that lies on patches as full chunks.

    Its digest and content stay as they are. It can run at any time, as from cron; a version that is
    folded already is left alone.
    """
    with cli.open() as store, cli.progress(f"folding {ref}") as progress:
        done = store.fold(ref, at_least=at_least, progress=progress)
    version, stats = done.version, done.stats
    data = schemas.FoldJson(
        model=version.model,
        version=version.number,
        digest=str(version.digest),
        patches=done.patches,
        full=str(done.full),
        new_bytes=stats.new_bytes if stats else 0,
        stored_bytes=stats.stored_bytes if stats else 0,
        seconds=round(stats.seconds, 3) if stats else 0.0,
    )

    def text() -> None:
        if stats is None:
            print(f"{version}: nothing to fold")
            return
        print(
            f"{version}: {counted(done.patches, 'patch')} folded, {size(data.new_bytes)} of new "
            f"chunks stored as {size(data.stored_bytes)}, {data.seconds:.1f} s"
        )

    cli.out.show(data, [str(version)], text)
