"""The command that lists models and versions: ls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.models import version_fields, version_json
from tierstore.cli.removal import show_deleted
from tierstore.cli.schemas import core as schemas

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store


def ls(
    cli: Cli,
    model: Annotated[
        str | None,
        argument(metavar="MODEL", help="List the versions of this model."),
    ] = None,
    deleted: Annotated[
        bool, option("--deleted", help="List versions that were removed instead.")
    ] = False,
) -> None:
    """List models, or the versions of one.

    A model that cannot be read is skipped, and the command says so at its end.
    """
    with cli.open() as store:
        if deleted:
            show_deleted(cli, store, model)
        elif model is None:
            _ls_models(cli, store)
        else:
            _ls_versions(cli, store, model)


def _ls_models(cli: Cli, store: Store) -> None:
    from tierstore.modelstore.names.listed import list_names

    found: list[schemas.ListedModel] = []
    skipped = Skipped()
    listed = list_names(store._names, store._parts.settings.cache_dir)
    listed.read_ends()
    for name in listed.models():
        with skipped.unless_done(name):
            one = listed.model(name)
            if one.newest.is_release:
                continue
            found.append(
                schemas.ListedModel(
                    model=name,
                    versions=one.count,
                    latest=version_json(one.newest),
                    aliases=dict(one.aliases),
                )
            )

    def text() -> None:
        columns = [
            Column("MODEL"),
            Column("VERSIONS", right=True),
            Column("LATEST (UTC)"),
            Column("ALIASES"),
        ]
        rows = [
            (
                one.model,
                str(one.versions),
                when(one.latest.created),
                ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()),
            )
            for one in found
        ]
        if rows:
            table(columns, rows)
        else:
            print(f"no models in {store.url}; 'tierstore save MODEL SOURCE' stores one")

    cli.out.show(schemas.Models(models=found), [one.model for one in found], text)
    skipped.tell()


def _ls_versions(cli: Cli, store: Store, model: str) -> None:
    versions = store.versions(model)
    pointing: dict[int, list[str]] = {}
    for alias in store.aliases(model):
        pointing.setdefault(alias.version.number, []).append(alias.name)
    data = schemas.Versions(
        model=versions[0].model,
        versions=[
            schemas.ListedVersion(
                **version_fields(version),
                aliases=pointing.get(version.number, []),
            )
            for version in versions
        ],
    )

    def text() -> None:
        titles = ("VERSION", "DIGEST", "CREATED (UTC)", "WHO", "ALIASES", "MESSAGE")
        rows = [
            (
                str(version),
                version.digest.short,
                when(version.created),
                version.who,
                ", ".join(pointing.get(version.number, [])),
                version.message,
            )
            for version in versions
        ]
        table([Column(title) for title in titles], rows)

    cli.out.show(data, [str(version) for version in versions], text)
