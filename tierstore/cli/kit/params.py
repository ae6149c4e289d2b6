"""From the signature of a function to click's parameters, and commands that show them in help.

``Annotated[int, option("--limit", metavar="N", help="…")] = 10`` declares an option. Its type, its
default, and whether it is required or may be repeated, are those of the signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click


@dataclass(frozen=True)
class Declared:
    """What an annotation says of a parameter beside its type.

    Attributes:
        is_option: Whether it is an option, and no argument.
        flags: How an option is written; without any like the parameter of the function.
        help: What it is.
        metavar: How its value is called in help.
        min: The least number that it may be.
        max: The largest one.
    """

    is_option: bool
    flags: tuple[str, ...]
    help: str
    metavar: str | None
    min: float | None = None
    max: float | None = None


def option(
    *flags: str,
    help: str,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
) -> Declared:
    """Declare an option; see ``Declared``."""
    return Declared(True, flags, help, metavar, min, max)


def argument(*, help: str, metavar: str | None = None) -> Declared:
    """Declare an argument; see ``Declared``."""
    return Declared(False, (), help, metavar)


class Command(click.Command):
    """A command whose help tells arguments and options apart."""

    allow_extra_args = True  # it is told of here

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line, which has no more words than there are arguments."""
        rest = super().parse_args(ctx, args)
        if rest:
            ctx.fail(f"Got unexpected extra argument(s) ({' '.join(map(str, rest))})")
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both, each with a heading."""
        write_parameters(self, ctx, formatter)


def write_parameters(
    node: click.Command, context: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write the arguments of a command into its help, and its options."""
    for title, kind in (("Arguments", click.Argument), ("Options", click.Option)):
        found = [one for one in node.get_params(context) if isinstance(one, kind)]
        rows = [row for one in found if (row := one.get_help_record(context))]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


class Argument(click.Argument):
    """An argument that is shown as ``NAME``, or ``[NAME]`` when it may be left out."""

    text = ""
    """What it is. For its own ``help`` a newer click has a section of its own."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return how it stands in the usage."""
        return [str(self.metavar) if self.required else f"[{self.metavar}]"]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return its name, and what it is."""
        return str(self.metavar), self.text


def parameters_of(signature: Sequence[inspect.Parameter]) -> Iterator[click.Parameter]:
    """Yield the click parameters that the parameters of a function declare."""
    for each in signature:
        kind, declared = get_args(each.annotation)
        if NoneType in get_args(kind):
            [kind] = [one for one in get_args(kind) if one is not NoneType]
        many = get_origin(kind) is list
        is_required = each.default is inspect.Parameter.empty
        how: dict[str, Any] = {"type": str if many else _type_of(kind, declared)}
        how |= {"required": True} if is_required else {"default": each.default}
        if not declared.is_option:
            how["metavar"] = declared.metavar or each.name.upper()
            made = Argument([each.name], nargs=-1 if many else 1, **how)
            made.text = declared.help
            yield made
            continue
        yield click.Option(
            [each.name, *(declared.flags or [f"--{each.name.replace('_', '-')}"])],
            is_flag=True if kind is bool else None,
            multiple=many,
            help=declared.help,
            metavar=declared.metavar,
            show_default=each.default != "",
            show_envvar=True,
            **how,
        )


def _type_of(kind: Any, declared: Declared) -> Any:
    """Return click's type of a value."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if declared.min is None and declared.max is None:
        return kind
    limited: Any = click.IntRange if kind is int else click.FloatRange
    return limited(declared.min, declared.max)
