"""SCHEMAS.md: what ``--json`` prints, from the structs that print it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import msgspec

from tierstore.cli.schemas import core as schemas
from tierstore.cli.schemas import (
    deltas,
    health,
    patches,
    placing,
    releases,
    rollout,
    serve,
    tiers,
    variants,
    warming,
)

OUTPUTS: dict[str, tuple[type[schemas.Schema], ...]] = {
    "init": (tiers.Init,),
    "save": (schemas.Save,),
    "load": (schemas.Load,),
    "ls": (schemas.Models, schemas.Versions),
    "stat": (schemas.Stat,),
    "tensors": (schemas.Tensors,),
    "diff": (deltas.DiffJson,),
    "patch": (patches.Patched,),
    "patches": (patches.Patches,),
    "fold": (patches.Fold,),
    "rebase": (deltas.Rebase,),
    "log": (schemas.History, schemas.Log),
    "alias set": (schemas.AliasJson,),
    "alias rm": (schemas.AliasRemoved,),
    "alias ls": (schemas.Aliases,),
    "rollback": (schemas.AliasJson,),
    "rollout start": (rollout.RolloutJson,),
    "rollout step": (rollout.RolloutJson, rollout.RolloutDone),
    "rollout status": (rollout.Rollouts,),
    "rollout pause": (rollout.RolloutJson,),
    "rollout resume": (rollout.RolloutJson,),
    "rollout abort": (rollout.RolloutDone,),
    "report": (rollout.Reported,),
    "release create": (releases.ReleaseJson,),
    "release ls": (releases.ReleaseNames, releases.ReleaseList),
    "release show": (releases.ReleaseJson,),
    "derive": (variants.Derived,),
    "variants": (variants.Variants,),
    "lineage": (variants.LineageTree,),
    "tier ls": (tiers.Tiers,),
    "tier add": (tiers.TierJson,),
    "tier set": (tiers.TierJson,),
    "tier drain": (tiers.TierDrained,),
    "tier rm": (tiers.TierRemoved,),
    "store validate": (tiers.Validation,),
    "tier example": (tiers.TierExample,),
    "warmup": (warming.Warmup,),
    "evict": (warming.Evicted,),
    "pin": (warming.PinJson,),
    "unpin": (warming.Unpinned,),
    "pins": (warming.Pins,),
    "explain": (placing.Explained,),
    "rebalance": (placing.Moves,),
    "mv": (placing.Moves,),
    "restore": (placing.Restored,),
    "agent": (placing.AgentEnded,),
    "df": (tiers.Df,),
    "serve hub": (serve.Serving,),
    "top": (tiers.Top,),
    "du": (schemas.Du,),
    "check": (schemas.Check,),
    "doctor": (health.Doctor,),
    "demo": (schemas.Demo,),
    "version": (schemas.VersionOutput,),
}
"""What each command prints; ``ls``, ``log`` and ``release ls`` the second when given a name."""


def type_name(hint: object) -> str:
    """A type as JSON people write it: ``int``, ``string``, ``[File]``, ``{name: int}``."""
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
    """The structs that ``schema`` is made of, itself first; one may hold itself."""
    if schema in above:
        return
    yield schema
    for field in msgspec.structs.fields(schema):
        hints: tuple[Any, ...] = (field.type, *typing.get_args(field.type))
        for hint in hints:
            if isinstance(hint, type) and issubclass(hint, schemas.Schema):
                yield from _parts(hint, (*above, schema))


def as_markdown() -> str:
    """The text of SCHEMAS.md."""
    about = (schemas.__doc__ or "").split("\n\n")[1]
    lines = ["# What `--json` prints", "", *about.replace("``", "`").strip().splitlines(), ""]
    lines += [
        "Made from `schemas/` by `python -m tierstore.cli.schemas.markdown`; do not edit.",
        "",
    ]
    for command, printed in [*OUTPUTS.items(), ("errors", (schemas.ErrorJson,))]:
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
