"""Commands on releases: release create, ls, show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, facts, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.models import Message, Ref, version_fields
from tierstore.cli.schemas import releases as schemas
from tierstore.shown import time_text

if TYPE_CHECKING:
    from tierstore.modelstore.names.releases import Release
    from tierstore.modelstore.store import Store


def create(
    cli: Cli,
    name: Annotated[str, argument(metavar="NAME", help="Name of the release.")],
    members: Annotated[
        list[str] | None,
        argument(metavar="REF...", help="Versions to tie together, one per model."),
    ] = None,
    based_on: Annotated[
        str | None,
        option(
            "--from", metavar="RELEASE", help="Take versions of all other models from this release."
        ),
    ] = None,
    alias: Annotated[
        str | None,
        option(metavar="A", help="Point this alias to the release, on every node at once."),
    ] = None,
    message: Message = "",
) -> None:
    """Make a release: versions of several models that belong together.

    'alias set', 'rollout start' and 'rollback' of NAME switch all of them at once.
    MODEL@release:NAME is the version of MODEL in the release that NAME@prod points to.
    """
    with cli.open() as store:
        made = store.releases.create(
            name, members or (), based_on=based_on, alias=alias, message=message
        )
        data = _release_json(store, made)
    also = f" = {name}@{alias}" if alias else ""
    cli.out.show(data, [str(made)], lambda: _print(data, also))


def ls(
    cli: Cli,
    name: Annotated[
        str | None,
        argument(metavar="NAME", help="List the releases of this name."),
    ] = None,
) -> None:
    """List the names of releases, or the releases of one.

    A name that cannot be read is skipped, and the command says so at its end.
    """
    with cli.open() as store:
        if name is None:
            _ls_names(cli, store)
        else:
            _ls_releases(cli, store, name)


def show(cli: Cli, ref: Ref) -> None:
    """Show the versions in a release, and in the one before it."""
    with cli.open() as store:
        data = _release_json(store, store.releases.get(ref))
    ids = [f"{one.model}@{one.version}" for one in data.members]
    cli.out.show(data, ids, lambda: _print(data, ""))


def _ls_names(cli: Cli, store: Store) -> None:
    found, skipped = list[schemas.ListedRelease](), Skipped()
    for name in store.models():
        with skipped.unless_done(name):
            if not store.versions(name, limit=1)[0].is_release:
                continue
            latest = _release_json(store, store.releases.get(name))
            aliases = {alias.name: alias.version.number for alias in store.aliases(name)}
            found.append(
                schemas.ListedRelease(
                    name=name,
                    releases=store._names.count(name),
                    latest=latest,
                    aliases=aliases,
                )
            )

    def text() -> None:
        columns = [
            Column("NAME"),
            Column("RELEASES", right=True),
            Column("LATEST (UTC)"),
            Column("MEMBERS"),
            Column("ALIASES"),
        ]
        rows = [
            (
                one.name,
                str(one.releases),
                when(one.latest.created),
                _members(one.latest),
                ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()),
            )
            for one in found
        ]
        if rows:
            table(columns, rows)
        else:
            print("no releases; 'tierstore release create NAME REF...' makes one")

    cli.out.show(schemas.ReleaseNames(names=found), [one.name for one in found], text)
    skipped.tell()


def _ls_releases(cli: Cli, store: Store, name: str) -> None:
    versions = store.versions(name)
    found = [_release_json(store, store.releases.get(str(version))) for version in versions]

    def text() -> None:
        titles = ("RELEASE", "CREATED (UTC)", "MEMBERS", "WHO", "MESSAGE")
        rows = [
            (f"{one.model}@{one.version}", when(one.created), _members(one), one.who, one.message)
            for one in found
        ]
        table([Column(title) for title in titles], rows)

    data = schemas.ReleaseList(name=name, releases=found)
    cli.out.show(data, [f"{one.model}@{one.version}" for one in found], text)


def _release_json(store: Store, release: Release) -> schemas.ReleaseJson:
    version = release.version
    older = store._names.before(version)
    before = dict(store.releases.get(older).members) if older else {}
    return schemas.ReleaseJson(
        **version_fields(version),
        members=[
            schemas.MemberJson(
                model=model,
                version=member.number,
                digest=str(member.digest),
                was=before[model].number if model in before else None,
            )
            for model, member in release.members.items()
        ],
    )


def _members(release: schemas.ReleaseJson) -> str:
    return " ".join(f"{one.model}@{one.version}" for one in release.members)


def _print(data: schemas.ReleaseJson, also: str) -> None:
    from tierstore.ids import Digest

    facts(
        [
            ("release", f"{data.model}@{data.version}{also}"),
            ("created", f"{time_text(data.created)} by {data.who}"),
            *([("message", data.message)] if data.message else []),
        ]
    )
    rows = [
        (
            one.model,
            str(one.version),
            "-" if one.was is None else str(one.was),
            Digest.from_hex(one.digest.removeprefix("b3:")).short,
        )
        for one in data.members
    ]
    columns = [
        Column("MODEL"),
        Column("VERSION", right=True),
        Column("WAS", right=True),
        Column("DIGEST"),
    ]
    table(columns, rows)
