"""Makes SCHEMAS.md, the description of all ``--json`` output, from the structs."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from typing import Any, Literal

import msgspec

from tierstore.cli.commands import COMMANDS
from tierstore.cli.schemas import core as schemas


def outputs() -> dict[str, tuple[type[schemas.Schema], ...]]:
    """Return the structs that each command prints with ``--json``, by the command's name."""
    return {each.name: tuple(map(_struct, each.prints)) for each in COMMANDS}


def _struct(name: str) -> type[schemas.Schema]:
    module, _, struct = name.partition(".")
    found: type[schemas.Schema] = getattr(import_module(f"tierstore.cli.schemas.{module}"), struct)
    return found


def type_name(hint: object) -> str:
    """Return the name of a type: ``int``, ``string``, ``[File]``, ``{name: int}``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"[{type_name(args[0])}]"
    if origin is dict:
        return f"{{name: {type_name(args[1])}}}"
    if origin is Literal:
        return " | ".join(f'"{value}"' for value in args)
    if args:
        return " | ".join(map(type_name, args))
    names = {str: "string", datetime: "time", type(None): "null", float: "number"}
    assert isinstance(hint, type)
    return names.get(hint, hint.__name__.removesuffix("Json"))


def _parts(schema: Any, above: tuple[Any, ...] = ()) -> Iterator[type[schemas.Schema]]:
    """Yield the structs that ``schema`` is made of, itself first; one may hold itself."""
    if schema in above:
        return
    yield schema
    for field in msgspec.structs.fields(schema):
        hints: tuple[Any, ...] = (field.type, *typing.get_args(field.type))
        for hint in hints:
            if isinstance(hint, type) and issubclass(hint, schemas.Schema):
                yield from _parts(hint, (*above, schema))


def as_markdown() -> str:
    """Return the text of SCHEMAS.md."""
    about = (schemas.__doc__ or "").split("\n\n")[1]
    lines = ["# What `--json` prints", "", *about.replace("``", "`").strip().splitlines(), ""]
    lines += [
        "Made from `schemas/` by `python -m tierstore.cli.schemas.markdown`; do not edit.",
        "",
    ]
    for command, printed in [*outputs().items(), ("errors", (schemas.ErrorJson,))]:
        lines += [f"## {command}", ""]
        for schema in printed:
            for part in dict.fromkeys(_parts(schema)):
                lines += _described(part)
    return "\n".join(lines)


def _described(schema: type[schemas.Schema]) -> list[str]:
    text = [line.strip() for line in (schema.__doc__ or "").strip().splitlines()]
    name = type_name(schema)
    lines = [f"**{name}**: {' '.join(filter(None, text)).replace('``', '`')}", ""]
    fields = sorted(msgspec.structs.fields(schema), key=lambda field: field.name)
    return [*lines, *(f"* `{f.name}`: {type_name(f.type)}" for f in fields), ""]


if __name__ == "__main__":
    print(as_markdown(), end="")
