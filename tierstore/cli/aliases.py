"""Commands on names of versions: log, alias set, alias rm, alias ls, rollback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.models import REF_HELP, Message, ref_of
from tierstore.cli.schemas import core as schemas

if TYPE_CHECKING:
    from tierstore.format.reflog import RefEntry
    from tierstore.modelstore.names.history import Logged
    from tierstore.modelstore.names.names import Alias

AliasTarget = Annotated[
    str,
    argument(metavar="MODEL@ALIAS", help="The alias: MODEL@ALIAS or MODEL ALIAS."),
]
OwnRef = Annotated[
    str,
    argument(metavar="REF", help=f"{REF_HELP} A number alone is a version of MODEL."),
]


def _split(target: str, then: str = "") -> tuple[str, str]:
    """Return the model and the alias of an argument that names an alias."""
    from tierstore.errors import UsageError

    model, _, alias = target.partition("@")
    if not alias:
        raise UsageError(f"{target} names no alias: give MODEL@ALIAS{then}, or MODEL ALIAS{then}")
    return model, alias


def log(
    cli: Cli,
    ref: Annotated[
        str | None,
        argument(
            metavar="MODEL[@ALIAS|@+VARIANT]",
            help="Show only its history; without it, that of the whole store.",
        ),
    ] = None,
    limit: Annotated[
        int | None, option(metavar="N", min=1, help="Show only the newest N entries.")
    ] = None,
) -> None:
    """Show who published, moved or removed what, when and why.

    Entries are listed newest first: those of the versions or releases of MODEL, of one of its
    aliases or variants, or of everything in the store.
    """
    from itertools import islice

    from tierstore.errors import UsageError
    from tierstore.ids import ModelRef
    from tierstore.modelstore.names.history import history_of, whole_history

    with cli.open() as store:
        if ref is None:
            _show_history(cli, whole_history(store._parts.home, limit))
            return
        parsed = ModelRef.parse(ref)
        if any(one is not None for one in (parsed.number, parsed.prefix, parsed.release)):
            raise UsageError(f"{parsed} names one version; expected MODEL or MODEL@ALIAS")
        if parsed.variant is None and store._parts.home.log(parsed.model).last() is None:
            store.resolve(parsed.model)  # says what does not exist
        entries = list(islice(history_of(store._parts.home, parsed), limit))
    data = schemas.Log(
        model=parsed.model,
        alias=parsed.alias,
        variant=parsed.variant,
        entries=[_entry_json(one) for one in entries],
    )
    cli.out.show(data, _ids(entries), lambda: _print_log(entries, [], []))


def _show_history(cli: Cli, entries: list[Logged]) -> None:
    data = schemas.History(
        entries=[
            schemas.HistoryEntry(
                ref=str(one.ref), **{f: getattr(_entry_json(one), f) for f in _ENTRY_FIELDS}
            )
            for one in entries
        ]
    )
    refs = [str(one.ref) for one in entries]
    cli.out.show(data, _ids(entries), lambda: _print_log(entries, ["OF"], refs))


_MOST_RUNS = 2
_ENTRY_FIELDS = schemas.LogEntry.__struct_fields__


def _entry_json(logged: Logged) -> schemas.LogEntry:
    from tierstore.modelstore.names.rollout import percent_of
    from tierstore.modelstore.version import when as time_of

    entry = logged.entry
    return schemas.LogEntry(
        seq=entry.seq,
        action=entry.action,
        version=entry.version,
        digest=f"b3:{entry.manifest}" if entry.manifest else None,
        to=entry.rollout.version if entry.rollout else None,
        percent=percent_of(entry),
        time=time_of(entry),
        who=entry.who,
        message=entry.message,
        versions=entry.versions,
    )


def _ids(entries: list[Logged]) -> list[str]:
    variants = [f"+{one.ref.variant}" if one.ref.variant else "" for one in entries]
    return [
        f"{one.ref.model}@{number}{variant}"
        for one, variant in zip(entries, variants, strict=True)
        for number in [one.entry.version, *one.entry.versions]
        if number
    ]


def _print_log(entries: list[Logged], more: list[str], refs: list[str]) -> None:
    from tierstore.ids import Digest
    from tierstore.modelstore.version import when as time_of

    titles = ("SEQ", "TIME (UTC)", "ACTION", "VERSION", "DIGEST", "WHO", "MESSAGE")
    rows = [
        (
            *refs[number : number + 1],
            "-" if entry.versions else str(entry.seq),  # removals are counted apart
            when(time_of(entry)),
            entry.action,
            _pointed_to(ref.model, entry),
            Digest.from_hex(entry.manifest).short if entry.manifest else "-",
            entry.who,
            entry.message,
        )
        for number, (ref, entry) in enumerate((one.ref, one.entry) for one in entries)
    ]
    if rows:
        table([Column(title) for title in (*more, *titles)], rows)
    else:
        print("the log is empty; 'tierstore save MODEL SOURCE' stores a model")


def _listed(model: str, numbers: Sequence[int]) -> str:
    """Return versions in a width that does not grow with them: ``m@1 to m@8, m@11 and 3 more``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [
        f"{model}@{run[0]}" if len(run) == 1 else f"{model}@{run[0]} to {model}@{run[-1]}"
        for run in runs[:_MOST_RUNS]
    ]
    left = sum(map(len, runs[_MOST_RUNS:]))
    return ", ".join(shown) + (f" and {left} more" if left else "")


def _pointed_to(model: str, entry: RefEntry) -> str:
    from tierstore.modelstore.names.rollout import percent_of

    if entry.versions:
        return _listed(model, entry.versions)
    if not entry.version:
        return "-"
    if entry.rollout:
        on = f"{percent_of(entry):g} % {model}@{entry.rollout.version}"
        return f"{model}@{entry.version}, {on}"
    return f"{model}@{entry.version}"


def set_alias(cli: Cli, target: AliasTarget, ref: OwnRef, message: Message = "") -> None:
    """Point an alias to a version, on every node at once."""
    model, alias = _split(target, " REF")
    with cli.open() as store:
        _show_pointed(cli, store.alias(model, alias, ref_of(model, ref), message=message))


def rollback(cli: Cli, target: AliasTarget, message: Message = "") -> None:
    """Point an alias back to the version that it pointed to before.

    No bytes are moved. Run twice, it goes back two steps.
    """
    model, alias = _split(target)
    with cli.open() as store:
        _show_pointed(cli, store.rollback(model, alias, message=message))


def alias_json(alias: Alias) -> schemas.AliasJson:
    """Return an alias as it is printed."""
    return schemas.AliasJson(
        model=alias.model,
        alias=alias.name,
        version=alias.version.number,
        digest=str(alias.version.digest),
    )


def _show_pointed(cli: Cli, alias: Alias) -> None:
    name = f"{alias.model}@{alias.name}"
    cli.out.show(
        alias_json(alias),
        [str(alias.version)],
        lambda: print(f"{name} is now {alias.version} ({alias.version.digest.short})"),
    )


def remove(cli: Cli, target: AliasTarget, message: Message = "") -> None:
    """Remove an alias; its log and the versions stay."""
    model, alias = _split(target)
    with cli.open() as store:
        store.remove_alias(model, alias, message=message)
    name = f"{model}@{alias}"
    data = schemas.AliasRemoved(model=model, alias=alias)
    cli.out.show(data, [name], lambda: print(f"removed {name}"))


def ls(
    cli: Cli,
    model: Annotated[
        str | None,
        argument(metavar="MODEL", help="List those of this model."),
    ] = None,
) -> None:
    """List the aliases of a model, or of all models and releases.

    Of all, those that cannot be read are skipped, and the command says so at its end.
    """
    found: list[Alias] = []
    skipped = Skipped()
    with cli.open() as store:
        if model is not None:
            store.versions(model, limit=1)  # a model that does not exist is an error
        for name in store.models() if model is None else [model]:
            with skipped.unless_done(name):
                found += store.aliases(name)

    def text() -> None:
        rows = [
            (
                one.name if model is not None else f"{one.model}@{one.name}",
                str(one.version),
                one.version.digest.short,
                when(one.version.created),
            )
            for one in found
        ]
        if rows:
            table([Column(t) for t in ("ALIAS", "VERSION", "DIGEST", "CREATED (UTC)")], rows)
        else:
            named = model if model is not None else "MODEL"
            has = f"{model} has" if model is not None else "there are"
            print(f"{has} no aliases; 'tierstore alias set {named} ALIAS REF' makes one")

    listed = [alias_json(one) for one in found]
    data: schemas.Schema = schemas.AllAliases(aliases=listed)
    if model is not None:
        data = schemas.Aliases(model=model, aliases=listed)
    cli.out.show(data, [f"{one.model}@{one.name}" for one in found], text)
    skipped.tell()
