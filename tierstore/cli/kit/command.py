"""What every command shares: the common options, its environment variables, and ``Cli``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierstore.cli.kit.output import Output
from tierstore.cli.kit.progress import ProgressBar
from tierstore.config import check_known

if TYPE_CHECKING:
    from tierstore.store import Store

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store: a directory or a URL.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, as tierstore/cli/SCHEMAS.md says.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")]

COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
}
"""The options that the program and every command take: by name their type and default."""

ACTIONS = ("help", "version")
"""Options that do something instead of the command: these are no settings."""


class Cli:
    """One run of the program: the store that was named, and how to print."""

    def __init__(self, store: str | None, json: bool, quiet: bool) -> None:
        self.url = store
        self.out = Output(json=json, quiet=quiet)

    def open(self) -> Store:
        """Open the store; a context manager that closes it."""
        from tierstore.store import open_store  # a command serves no metrics of its own

        return open_store(self.url)

    def progress(self, what: str) -> ProgressBar:
        """A progress bar, unless ``--json`` or ``-q`` was given."""
        return ProgressBar(what, wanted=not (self.out.json or self.out.quiet))


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function ``f(cli, …)`` as a command that takes the common options as well.

    What is given behind the command wins over what is given before it, and both over environment
    variables.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def invoke(context: typer.Context, **values: Any) -> None:
            check_known(context.obj)
            chosen = dict(context.find_root().params)
            for common in COMMON:
                value = values.pop(common)
                source = context.get_parameter_source(common)
                if source is not None and source.name == "COMMANDLINE":
                    chosen[common] = value
            function(Cli(**{common: chosen[common] for common in COMMON}), **values)

        parameter, kind = inspect.Parameter, inspect.Parameter.KEYWORD_ONLY
        parameters = [
            parameter("context", parameter.POSITIONAL_ONLY, annotation=typer.Context),
            *(each.replace(kind=kind) for each in own),
            *(
                parameter(common, kind, annotation=annotation, default=default)
                for common, (annotation, default) in COMMON.items()
            ),
        ]  # fmt: skip
        invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        invoke.__annotations__ = {each.name: each.annotation for each in parameters}
        invoke.__doc__ = function.__doc__
        app.command(name, **settings)(invoke)
        return function

    return register


def walk(root: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of a click tree with its path, the root first."""
    yield path, root
    for name, child in getattr(root, "commands", {}).items():
        yield from walk(child, (*path, name))


def options(node: Any) -> list[Any]:
    """The options of a click command that are settings."""
    found = [p for p in node.params if p.param_type_name == "option"]
    return [option for option in found if option.name not in ACTIONS]


def variable(path: tuple[str, ...], option: Any) -> str:
    """The environment variable of an option, by the one rule.

    ``TIERSTORE_<COMMAND>_<FLAG>``, for the options that every command takes ``TIERSTORE_<FLAG>``;
    of the long flag, in upper case, with underscores.
    """
    flag = max(option.opts, key=len).lstrip("-")
    words = ["TIERSTORE", *(() if option.name in COMMON else path), flag]
    return "_".join(words).replace("-", "_").upper()


def name_variables(root: Any) -> set[str]:
    """Give every option of the tree its environment variable; returns all of them."""
    known = set()
    for path, node in walk(root):
        for option in options(node):
            option.envvar = variable(path, option)
            known.add(option.envvar)
    return known
