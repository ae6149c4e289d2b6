"""The command that lists models and versions: ls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, size, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.models import VersionFields, version_fields
from tierstore.cli.removal import show_deleted
from tierstore.cli.schemas import core as schemas
from tierstore.ids import check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierstore.modelstore.names.listed import ListedModel
    from tierstore.modelstore.store import Store
    from tierstore.modelstore.version import Version


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

    found: list[ListedModel] = []
    skipped = Skipped()
    listed = list_names(store._names, store._parts.settings.cache_dir)
    listed.read_ends()
    for name in listed.models():
        with skipped.unless_done(name):
            one = listed.model(name)
            if not one.newest.is_release:
                found.append(one)
    newest = _sized(store, [one.newest for one in found])
    models = [
        schemas.ListedModel(
            model=version.model,
            versions=one.count,
            latest=schemas.SizedVersion(**_fields(version)),
            aliases=dict(one.aliases),
        )
        for one, version in zip(found, newest, strict=True)
    ]

    def text() -> None:
        if models:
            _print_models(models)
        else:
            print(f"no models in {store.url}; 'tierstore save MODEL SOURCE' stores one")

    cli.out.show(schemas.Models(models=models), [one.model for one in models], text)
    skipped.tell()


def _print_models(models: list[schemas.ListedModel]) -> None:
    columns = [
        Column("MODEL"),
        Column("VERSIONS", right=True),
        Column("LATEST (UTC)"),
        Column("SIZE", right=True),
        Column("ALIASES"),
    ]
    rows = [
        (
            one.model,
            str(one.versions),
            when(one.latest.created),
            _size(one.latest),
            ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()),
        )
        for one in models
    ]
    table(columns, rows)


def _sized(store: Store, versions: Sequence[Version]) -> Sequence[Version]:
    """Return versions with their sizes, which early entries do not say."""
    if all(one.size is not None or one.is_release for one in versions):
        return versions
    from tierstore.modelstore.names.sizes import with_sizes

    home = store._parts.home
    return with_sizes(home, versions, home.read_cache_path(store._parts.settings.cache_dir))


class _SizedFields(VersionFields):
    bytes: int | None
    files: int | None
    tensors: int | None


def _fields(version: Version) -> _SizedFields:
    return {
        **version_fields(version),
        "bytes": version.size,
        "files": version.file_count,
        "tensors": version.tensor_count,
    }


def _size(version: schemas.SizedVersion) -> str:
    return "-" if version.bytes is None else size(version.bytes)


def _ls_versions(cli: Cli, store: Store, model: str) -> None:
    from tierstore.modelstore.names.listed import list_names

    model = check_name("model", model)
    listed = list_names(store._names, store._parts.settings.cache_dir, model)
    if model not in listed.models():
        store.versions(model)  # it says why there are none
    versions = _sized(store, listed.versions(model))
    pointing: dict[int, list[str]] = {}
    for alias, number in listed.model(model).aliases.items():
        pointing.setdefault(number, []).append(alias)
    data = schemas.Versions(
        model=versions[0].model,
        versions=[
            schemas.ListedVersion(
                **_fields(version),
                aliases=pointing.get(version.number, []),
            )
            for version in versions
        ],
    )

    def text() -> None:
        titles = ("VERSION", "DIGEST", "CREATED (UTC)", "SIZE", "WHO", "ALIASES", "MESSAGE")
        rows = [
            (
                str(version),
                version.digest.short,
                when(one.created),
                _size(one),
                one.who,
                ", ".join(one.aliases),
                one.message,
            )
            for version, one in zip(versions, data.versions, strict=True)
        ]
        table([Column(title, right=title == "SIZE") for title in titles], rows)

    cli.out.show(data, [str(version) for version in versions], text)
