"""Commands on models: save, load, rebase."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypedDict

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import counted, size
from tierstore.cli.kit.params import argument, option
from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas.deltas import Rebase
from tierstore.errors import UsageError

if TYPE_CHECKING:
    from tierstore.modelstore.loading.exportdir import Others
    from tierstore.modelstore.loading.model import Model
    from tierstore.modelstore.version import FileInfo, SaveStats, Version

REF_HELP = "Version: MODEL, MODEL@ALIAS or MODEL ALIAS, MODEL@12 or MODEL@b3:DIGEST."
Ref = Annotated[str, argument(metavar="REF", help=REF_HELP)]
Message = Annotated[
    str, option("--message", "-m", metavar="MSG", help="Note for the log: why this is done.")
]


def ref_of(model: str, text: str) -> str:
    """Return a reference from an option that may be the number of a version of ``model``."""
    return f"{model}@{text}" if text.isascii() and text.isdigit() else text


class VersionFields(TypedDict):
    """The fields that every schema of a version begins with."""

    model: str
    version: int
    variant: str | None
    digest: str
    created: datetime
    who: str
    message: str


def version_fields(version: Version) -> VersionFields:
    """Return the fields of ``schemas.VersionJson`` for a version."""
    return {
        "model": version.model,
        "version": version.number,
        "variant": version.variant,
        "digest": str(version.digest),
        "created": version.created,
        "who": version.who,
        "message": version.message,
    }


def version_json(version: Version) -> schemas.VersionJson:
    """Return a version as it is printed."""
    return schemas.VersionJson(**version_fields(version))


Source = Annotated[
    str,
    argument(
        metavar="SOURCE",
        help="A directory, or one file. Tensors are taken from safetensors files, other files are "
        "stored as bytes; pickles are refused.",
    ),
]


def save(
    cli: Cli,
    model: Annotated[
        str,
        argument(
            metavar="MODEL",
            help="Name of the model, such as ranker or org/ranker.",
        ),
    ],
    source: Source,
    alias: Annotated[
        str | None, option(metavar="A", help="Point this alias to the new version.")
    ] = None,
    message: Message = "",
    exclude: Annotated[
        list[str] | None,
        option(metavar="GLOB", help="Leave out paths that match; may be repeated."),
    ] = None,
    allow_no_tensors: Annotated[
        bool,
        option("--allow-no-tensors", help="Save a directory that holds no tensors, too."),
    ] = False,
    base: Annotated[
        str,
        option(
            metavar="REF|auto|none",
            help="Store new chunks as deltas against a version; auto takes the nearest one.",
        ),
    ] = "auto",
    distilled_from: Annotated[
        str | None,
        option(metavar="REF", help="Teacher of this version, recorded in its lineage."),
    ] = None,
) -> None:
    """Store a model as a new version.

    Only chunks that the store does not hold yet are written.
    """
    with cli.open() as store, cli.progress(f"saving {model}") as progress:
        version = store.save(
            model,
            source,
            alias=alias,
            message=message,
            exclude=exclude or (),
            allow_no_tensors=allow_no_tensors,
            base=None if base == "none" else base,
            distilled_from=distilled_from,
            progress=progress,
        )
    assert version.stats is not None
    data = _saved_json(version, version.stats, alias)
    cli.out.show(data, [str(version)], lambda: _print_saved(data))


def _saved_json(version: Version, stats: SaveStats, alias: str | None) -> schemas.Save:
    return schemas.Save(
        **version_fields(version),
        alias=alias,
        logical_bytes=stats.logical_bytes,
        new_bytes=stats.new_bytes,
        delta_bytes=stats.delta_bytes,
        delta_stored_bytes=stats.delta_stored_bytes,
        base=stats.base,
        reused_bytes=stats.reused_bytes,
        stored_bytes=stats.stored_bytes,
        chunks=stats.chunks,
        new_chunks=stats.new_chunks,
        objects=stats.objects,
        seconds=round(stats.seconds, 3),
    )


def _print_saved(data: schemas.Save) -> None:
    also = f" = {data.model}@{data.alias}" if data.alias else ""
    print(
        f"{data.model}@{data.version}{also}: {size(data.logical_bytes)}, new "
        f"{size(data.new_bytes)}, stored {size(data.stored_bytes)}, {data.seconds:.1f} s"
    )
    if data.base:
        print(
            f"{size(data.delta_bytes)} as deltas against {data.base}, which take "
            f"{size(data.delta_stored_bytes)}"
        )


ToOption = Annotated[str, option("--to", metavar="DIR", help="Directory to write to.")]
TensorsOption = Annotated[
    list[str] | None,
    option(
        metavar="GLOB",
        help="Write only these tensors, to DIR/subset.safetensors; may be repeated.",
    ),
]
DeleteOption = Annotated[bool, option("--delete", help="Remove files in DIR that no export wrote.")]
MergeOption = Annotated[
    bool,
    option(
        "--merge", help="Keep files in DIR that no export wrote, unless the version has them too."
    ),
]
ProfileOption = Annotated[
    str | None,
    option(
        metavar="NAMES",
        help="Variants to prefer, best first, or the name of a profile; full: the original.",
    ),
]


def load(
    cli: Cli,
    ref: Ref,
    to: ToOption,
    tensors: TensorsOption = None,
    profile: ProfileOption = None,
    delete: DeleteOption = False,
    merge: MergeOption = False,
) -> None:
    """Export a version, or some of its tensors, to a directory.

    The files are byte-identical to those that were saved; their SHA-256 is verified. Files of an
    earlier export are removed or replaced. Others are refused unless you say what to do with them.
    """
    if delete and merge:
        raise UsageError("--delete and --merge say the opposite: give one of them")
    if tensors and (delete or merge):
        raise UsageError("--tensors writes one file and leaves all others: no --delete, no --merge")
    others: Others = "delete" if delete else "merge" if merge else "refuse"
    with cli.open() as store, cli.progress(f"loading {ref}") as progress:
        opened = store.load(ref, profile=profile)
        if tensors:
            names = matching(opened, tensors)
            target = f"{to}/subset.safetensors"
            files = [opened.export_tensors(names, target, progress=progress)]
        else:
            files = opened.export(to, others=others, progress=progress)
        cost = opened.stats
    version = opened.version
    data = schemas.Load(
        model=version.model,
        version=version.number,
        variant=version.variant,
        digest=str(version.digest),
        directory=to,
        files=[file_json(file) for file in files],
        bytes_fetched=cost.bytes_fetched,
        reused_bytes=cost.bytes_reused,
        delta_bytes=cost.bytes_delta,
        full_bytes=cost.bytes_full,
    )
    total = size(sum(file.size for file in files))
    count = counted(len(files), "file")
    cli.out.show(
        data,
        [f"{to}/{file.path}" for file in files],
        lambda: print(
            f"{version}: {count}, {total} in {to}; {size(cost.bytes_fetched)} read from durable "
            f"tiers, {size(cost.bytes_reused)} found in hot ones"
        ),
    )


def file_json(file: FileInfo) -> schemas.File:
    """Return a file as it is printed."""
    return schemas.File(path=file.path, bytes=file.size, sha256=file.sha256)


def matching(model: Model, globs: list[str]) -> list[str]:
    """Return the names of tensors that any glob is or matches; ``NotFound`` if one is none."""
    from fnmatch import fnmatchcase

    from tierstore.errors import NotFound

    chosen: dict[str, None] = {}
    for glob in globs:
        found = [name for name in model if name == glob or fnmatchcase(name, glob)]
        if not found:
            raise NotFound(
                f"no tensor of {model.version} matches {glob!r}; "
                f"'tierstore tensors {model.version}' lists them"
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def rebase(
    cli: Cli,
    ref: Ref,
    above: Annotated[
        float,
        option(
            metavar="N",
            help="Replace deltas that fetch over N times the bytes of a full chunk; 1 for all.",
        ),
    ] = 1.5,
) -> None:
    """Replace deltas that cost too much to read by standalone chunks.

    Other versions, and reads of this one that are in progress, are not affected.
    """
    with cli.open() as store:
        version = store.resolve(ref)
        done = store.rebase(str(version), above=above)
    data = Rebase(
        model=version.model,
        version=version.number,
        variant=version.variant,
        digest=str(version.digest),
        deltas=done.deltas,
        chunks=done.chunks,
        plain_bytes=done.plain_bytes,
        stored_bytes=done.stored_bytes,
        cost_before=round(done.cost_before, 3),
        cost_after=round(done.cost_after, 3),
    )

    def text() -> None:
        print(
            f"{version}: {done.chunks} of {counted(done.deltas, 'delta')} stored in full, "
            f"{size(done.stored_bytes)} written; a read fetches {done.cost_after:.2f} times what "
            f"one without deltas would, {done.cost_before:.2f} before"
        )

    cli.out.show(data, [str(version)], text)
