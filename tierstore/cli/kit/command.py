"""Parts that all commands share: the common options, environment variables, and ``Cli``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click

from tierstore.cli.kit.output import Output
from tierstore.cli.kit.params import Command, option, parameters_of
from tierstore.cli.kit.progress import ProgressBar
from tierstore.cli.kit.refs import as_words, joined, references
from tierstore.cli.kit.warnings import WARNINGS
from tierstore.config import expanded, is_set_by_service, unknown_messages

if TYPE_CHECKING:
    from tierstore.store import Store

_log = logging.getLogger("tierstore.cli")

StoreOption = Annotated[
    str | None, option("--store", metavar="URL", help="Store to use: a directory or a URL.")
]
JsonOption = Annotated[
    bool, option("--json", help="Print one JSON document (docs/reference/json.md).")
]
QuietOption = Annotated[bool, option("--quiet", "-q", help="Print only ids, one per line.")]

COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
}
"""Type and default of the options that every command takes, by name."""

_PLACES = ("DIR", "FILE", "URL", "SOURCE")
"""How paths and URLs are called in help."""

ACTIONS = ("help", "version")
"""Options that run instead of the command; they have no environment variable."""


class Cli:
    """One run of the program: the store that was named, how to print, and odd variables."""

    def __init__(self, store: str | None, json: bool, quiet: bool, odd: Sequence[str] = ()) -> None:
        self.url = store
        self.out = Output(json=json, quiet=quiet)
        self.odd_variables = odd

    def open(self) -> Store:
        """Open the store; leaving its ``with`` block closes it."""
        from tierstore.store import open_store  # a command serves no metrics of its own

        return open_store(self.url)

    def hold_tier_warnings(self) -> None:
        """Let the result say which tiers fail (``Output.told_down``), and no warnings besides."""
        WARNINGS.hold()

    def progress(self, what: str) -> ProgressBar:
        """Make a progress bar, which shows nothing with ``--json`` or ``-q``."""
        return ProgressBar(what, wanted=not (self.out.json or self.out.quiet))


def command(name: str, function: Callable[..., None]) -> click.Command:
    """Make a command of a function ``f(cli, …)``, which takes the common options as well.

    Options behind the command win over options before it, and both over environment variables.
    An argument that is a reference may be given in two words; ``f`` is given one.
    """

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    refs = references(own)

    def invoke(context: click.Context, /, **given: Any) -> None:
        odd = unknown_messages(context.obj)
        for line in odd:
            _log.warning("%s", line)
        chosen = dict(context.find_root().params)
        for common in COMMON:
            value = given.pop(common)
            source = context.get_parameter_source(common)
            if source is not None and source.name == "COMMANDLINE":
                chosen[common] = value
        values = {one.name: _given(one, given[one.name]) for one in own}
        values |= _expanded(context.command, values) | _references(refs, values)
        function(Cli(**{common: chosen[common] for common in COMMON}, odd=odd), **values)

    every = [
        *(as_words(each) if refs[-1:] == [each.name] else each for each in own),
        *common_parameters(),
    ]
    return Command(
        name,
        callback=click.pass_context(invoke),
        params=list(parameters_of(every)),
        help=inspect.getdoc(function),
    )


def common_parameters() -> list[inspect.Parameter]:
    """Return the options that every command takes, as parameters of a function."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default) in COMMON.items()
    ]


def _given(parameter: inspect.Parameter, value: Any) -> Any:
    """Return a value as the function takes it: several as a list, or its default without any."""
    if not isinstance(value, tuple):
        return value
    return list(value) or (None if parameter.default is None else [])


def _expanded(node: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the paths and URLs among values with ``~`` as the home directory."""
    return {
        parameter.name: expanded(values[parameter.name])
        for parameter in node.params
        if parameter.metavar in _PLACES and isinstance(values.get(parameter.name), str)
    }


def _references(names: Sequence[str], values: dict[str, Any]) -> dict[str, str | None]:
    """Return the arguments that are references; the last of them may have come in more words."""
    words = [values[name] for name in names[:-1]]
    for name in names[-1:]:
        words += values[name] or ()
    found = joined(words, len(names))
    return dict(zip(names, [*found, *[None] * (len(names) - len(found))], strict=True))


def walk(root: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command of a click tree with its path, the root first."""
    yield path, root
    for name, child in getattr(root, "commands", {}).items():
        yield from walk(child, (*path, name))


def options(node: Any) -> list[Any]:
    """Return the options of a click command that can be set by a variable."""
    found = [p for p in node.params if p.param_type_name == "option"]
    return [option for option in found if option.name not in ACTIONS]


def variable(path: tuple[str, ...], option: Any) -> str:
    """Return the environment variable of an option.

    It is ``TIERSTORE_<COMMAND>_<FLAG>``, or ``TIERSTORE_<FLAG>`` for an option that every command
    takes: the long flag in upper case, with underscores.
    """
    flag = max(option.opts, key=len).lstrip("-")
    words = ["TIERSTORE", *(() if option.name in COMMON else path), flag]
    return "_".join(words).replace("-", "_").upper()


def name_variables(root: Any) -> set[str]:
    """Give every option of the tree its environment variable, and return all variables."""
    known = set()
    for path, node in walk(root):
        for one in options(node):
            name = variable(path, one)
            known.add(name)
            # a Service may be called like an option
            one.envvar = None if is_set_by_service(name) else name
    return known
