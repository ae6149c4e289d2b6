"""The commands cp and sync."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import counted, printable, size
from tierstore.cli.kit.params import argument, option
from tierstore.cli.models import Ref
from tierstore.cli.schemas import copying as schemas

if TYPE_CHECKING:
    from tierstore.copying.report import CopiedVersion, Synced

PARTIAL = 3

History = Annotated[
    bool,
    option("--history", help="Let entries keep their times, and who wrote them."),
]

Source = Annotated[str, argument(metavar="URL", help="The store that has it.")]
Target = Annotated[str, argument(metavar="URL", help="The store that it comes to.")]
Models = Annotated[
    list[str] | None,
    option("--models", metavar="GLOB", help="Only models and releases of these names."),
]
Versions = Annotated[
    str | None,
    option("--versions", metavar="WHICH", help="Only these: 12, 5-20, 30-, last:3, with commas."),
]
Aliases = Annotated[bool, option("--aliases", help="Set aliases as they are in the source.")]
Delete = Annotated[
    bool,
    option("--delete", help="Remove versions that the source does not have, as rm does."),
]
DryRun = Annotated[bool, option("--dry-run", help="Change nothing; say what would be done.")]


def cp(
    cli: Cli,
    ref: Ref,
    to: Target,
    model: Annotated[
        str | None,
        option("--as", metavar="MODEL", help="The model's name there (default: the same)."),
    ] = None,
    history: History = False,
) -> None:
    """Copy a version to another store.

    Chunks move as they are stored, each once it was verified, and only those that the other store
    lacks. What a patch lies on comes along, variants go with their version, and a release with its
    members. It gets the next number of the model there. Where its content is there already, what
    that store has lost of it is put back. A copy that was stopped goes on where it was.
    """
    from tierstore.store import open_store

    with cli.open() as source, open_store(to) as target, cli.progress("copying") as progress:
        found = source.copy(ref, target, model=model, history=history, progress=progress)
        data = schemas.Copied(
            store=target.url,
            versions=[_version_json(one) for one in found],
            sent_bytes=sum(one.sent_bytes for one in found),
        )

    def text() -> None:
        for one in data.versions:
            _print_version(one)

    cli.out.show(data, [one.version or "" for one in data.versions], text)


def sync(
    cli: Cli,
    source: Source,
    target: Target,
    models: Models = None,
    versions: Versions = None,
    aliases: Aliases = False,
    history: History = False,
    delete: Delete = False,
    dry_run: DryRun = False,
) -> None:
    """Bring what one store has to another: a backup, or a move.

    The versions of each model come in order, as by cp; then releases, and aliases where that is
    wanted. What is there already is not sent again, what was removed in either store stays so, and
    nothing is removed without --delete. Both stores may be in use. Exits with 4 when a version
    could not be read, and with 3 when something else failed; all else was copied then.
    """
    from tierstore.store import open_store

    with (
        open_store(source) as first,
        open_store(target) as second,
        cli.progress("copying") as progress,
    ):
        report = first.sync(
            second,
            models=models or (),
            versions=versions,
            aliases=aliases,
            history=history,
            delete=delete,
            dry_run=dry_run,
            progress=progress,
        )
        data = _sync_json(report, second.url)
    done = [one.version or one.source for one in data.versions if one.outcome == "copied"]
    cli.out.show(data, done, lambda: _print(data))
    if report.is_damaged:
        raise Exit(4)
    if report.failed:
        raise Exit(PARTIAL)


def _version_json(one: CopiedVersion) -> schemas.CopiedVersionJson:
    return schemas.CopiedVersionJson(
        source=str(one.source),
        version=None if one.version is None else str(one.version),
        digest=str(one.source.digest if one.version is None else one.version.digest),
        outcome=one.outcome,
        why=one.why,
        sent_bytes=one.sent_bytes,
    )


def _sync_json(report: Synced, url: str) -> schemas.SyncJson:
    return schemas.SyncJson(
        dry_run=report.dry_run,
        store=url,
        versions=[_version_json(one) for one in report.versions],
        aliases=[
            schemas.CopiedAliasJson(
                alias=f"{one.model}@{one.name}",
                version=None if one.version is None else str(one.version),
                outcome=one.outcome,
                why=one.why,
            )
            for one in report.aliases
        ],
        deleted=[
            schemas.DeletedVersionJson(version=str(one.version), why=one.why)
            for one in report.deleted
        ],
        sent_bytes=report.sent_bytes,
    )


def _print_version(one: schemas.CopiedVersionJson, *, planned: bool = False) -> None:
    called = "" if one.version in (None, one.source) else f" as {one.version}"
    if one.outcome == "copied":
        verb = "would be copied" if planned else "copied"
        said = f"{verb}{called}, {size(one.sent_bytes)} sent"
        if planned:
            said = f"{verb}, {size(one.sent_bytes)} to send"
    elif one.outcome == "healed":
        said = f"there already{called}, and healed: {size(one.sent_bytes)} sent"
    elif one.outcome == "there":
        said = f"there already{called}"
    else:
        said = f"{one.outcome}: {one.why}"
    print(printable(f"{one.source}: {said}"))


def _print(data: schemas.SyncJson) -> None:
    there = 0
    for one in data.versions:
        if one.outcome == "there":
            there += 1
        else:
            _print_version(one, planned=data.dry_run)
    for alias in data.aliases:
        if alias.outcome == "there":
            continue
        said = {"copied": f"points to {alias.version}", "removed": "removed"}
        print(printable(f"{alias.alias}: {said.get(alias.outcome, f'failed: {alias.why}')}"))
    for gone in data.deleted:
        print(printable(f"{gone.version}: {f'stays: {gone.why}' if gone.why else 'removed'}"))
    copied = len(_of(data.versions, "copied"))
    verb, sent = ("to copy", "to send") if data.dry_run else ("copied", "sent")
    print(
        f"{counted(copied, 'version')} {verb}, {there} there already, "
        f"{len(_of(data.versions, 'left'))} left, {len(_of(data.versions, 'failed'))} failed; "
        f"{size(data.sent_bytes)} {sent}"
    )
    others = sum(one.version not in (None, one.source) for one in _of(data.versions, "copied"))
    if others:
        which = "1 version has another number" if others == 1 else f"{others} have other numbers"
        print(
            f"{which} there than here: an empty store keeps numbers where removal is allowed in it "
            "before the first sync ('tierstore gc --enable')"
        )


def _of(
    versions: Sequence[schemas.CopiedVersionJson], outcome: str
) -> list[schemas.CopiedVersionJson]:
    return [one for one in versions if one.outcome == outcome]
