"""Commands on storage that is no store yet: store validate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import facts, size
from tierstore.cli.kit.params import argument, option
from tierstore.cli.schemas import tiers as schemas
from tierstore.cli.tierargs import BackendOptions, pairs

if TYPE_CHECKING:
    from tierstore.blobs.base import Capabilities

_WORDS = {True: "yes", False: "FAILED", None: "no"}


def validate(
    cli: Cli,
    url: Annotated[
        str,
        argument(
            metavar="URL",
            help="Storage to try: a directory, s3://, hdfs://, redis:// ...",
        ),
    ],
    tier: Annotated[
        str | None,
        option(
            "--as",
            metavar="NAME",
            help="Use the login and options of this tier in this node's file.",
        ),
    ] = None,
    option: BackendOptions = None,
) -> None:
    """Try storage: write, read, list, delete, create in a race.

    Nothing that was written is left there. Exits with 1 when the storage does not do what it
    claims.
    """
    from tierstore.admin.validate import validate as trying
    from tierstore.wiring.backends import role_of

    with cli.progress("trying it"):
        tried = trying(
            url, role_of(url), name=tier if tier is not None else "tried", options=pairs(option)
        )
    can, found = tried.capabilities, tried.examination
    can_be: list[schemas.Use] = ["home"] if found.home else []
    if found.durable:
        can_be += ["warm", "cold"]
    elif found.shared:
        can_be.append("shared")
    data = schemas.Validation(
        url=tried.url,
        checks=[
            schemas.ValidationCheck(what=one.what, ok=one.ok, detail=one.detail)
            for one in found.checks
        ],
        can_be=can_be,
        put_if_absent=can.put_if_absent,
        durable=can.durable,
        local=tried.local,
        atomic_put=can.atomic_put,
        listable=can.listable,
        max_object_bytes=can.max_blob_bytes,
    )
    cli.out.show(data, can_be, lambda: _print(data, can))
    if found.broken:
        raise Exit(1)


def _print(data: schemas.Validation, can: Capabilities) -> None:
    limit = "none" if can.max_blob_bytes is None else size(can.max_blob_bytes)
    uses = {
        "home": "a store's home",
        "warm": "a warm tier",
        "cold": "a cold tier",
        "shared": "a shared hot tier",
    }
    can_be = ", ".join(uses[one] for one in data.can_be) or "nothing that tierstore can use"
    print(data.url)
    facts(
        [
            *((one.what, f"{_WORDS[one.ok]}: {one.detail}") for one in data.checks),
            ("largest object", limit),
            ("near", "on this machine" if data.local else "over the network"),
            ("it can be", can_be),
        ]
    )
