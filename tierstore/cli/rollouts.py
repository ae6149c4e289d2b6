"""Commands on staged rollouts: rollout start, step, status, pause, resume, abort; report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, facts, table
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.refs import joined
from tierstore.cli.models import Message, Ref, ref_of
from tierstore.cli.schemas import rollout as schemas
from tierstore.errors import UsageError
from tierstore.shown import time_text

if TYPE_CHECKING:
    from tierstore.modelstore.names.reports import GateState
    from tierstore.modelstore.names.rollout import RolloutStatus
    from tierstore.modelstore.version import Version

AliasTarget = Annotated[
    str,
    argument(metavar="MODEL[@ALIAS]", help="Alias to move (default: prod)."),
]


ToOption = Annotated[
    str,
    option("--to", metavar="REF", help="Version to move to: a number such as 13, or a reference."),
]
StagesOption = Annotated[
    str,
    option(metavar="LIST", help="Percentage of the nodes in each stage, rising to 100."),
]
EveryOption = Annotated[
    str | None,
    option(metavar="TIME", help="Let agents step, this time apart: 30m, 2h (default: by hand)."),
]
GateOption = Annotated[
    list[str] | None,
    option(
        metavar="METRIC<=X",
        help="Bound on a metric that must hold before each step; may be repeated.",
    ),
]
LabelOption = Annotated[
    list[str] | None,
    option(
        metavar="NAME=VALUE",
        help="Only nodes with this label change before the last stage; may be repeated.",
    ),
]
WindowOption = Annotated[
    list[str] | None,
    option(
        metavar="HH:MM-HH:MM",
        help="Step only at this time of the day, in UTC; may be repeated.",
    ),
]


def start(
    cli: Cli,
    target: AliasTarget,
    to: ToOption,
    stages: StagesOption = "1,10,50,100",
    every: EveryOption = None,
    gate: GateOption = None,
    label: LabelOption = None,
    window: WindowOption = None,
    message: Message = "",
) -> None:
    """Begin to move an alias to a version, stage by stage.

    The first stage begins at once. A node's name decides in which stage it changes, so a node that
    has changed stays changed.
    """
    from tierstore.config import parse_seconds
    from tierstore.modelstore.names.reports import parse_gate, parse_stages

    model, alias = _split(target)
    with cli.open() as store:
        found = store.rollouts.start(
            model,
            alias,
            store.resolve(ref_of(model, to)),
            stages=parse_stages(stages),
            every_s=None if every is None else parse_seconds(every),
            gates=[parse_gate(text) for text in gate or ()],
            labels=_pairs(label or ()),
            windows=window or (),
            message=message,
        )
    _show(cli, found)


def step(
    cli: Cli,
    target: AliasTarget,
    force: Annotated[
        bool, option("--force", help="Step even if it is early or a gate does not hold.")
    ] = False,
    message: Message = "",
) -> None:
    """Go on to the next stage of a rollout.

    After the last stage the alias points to the new version. Exits with 6 when the step is early,
    the rollout is paused, or a gate does not hold.
    """
    model, alias = _split(target)
    with cli.open() as store:
        new = store.rollouts.status(model, alias).new
        found = store.rollouts.step(model, alias, force=force, message=message)
    if found is None:
        _show_done(cli, f"{model}@{alias}", new)
    else:
        _show(cli, found)


def status(
    cli: Cli,
    target: Annotated[
        str | None,
        argument(metavar="MODEL[@ALIAS]", help="Show only this rollout."),
    ] = None,
) -> None:
    """Show the stage, the gates and the next step of rollouts."""
    with cli.open() as store:
        if target is not None:
            found = [store.rollouts.status(*_split(target))]
        else:
            found = store.rollouts.running()
    data = schemas.RolloutsJson(rollouts=[rollout_json(one) for one in found])

    def text() -> None:
        if not found:
            print("no rollout is in progress; 'tierstore rollout start' begins one")
        for number, one in enumerate(found):
            if number:
                print()
            _print(one)

    cli.out.show(data, [one.alias for one in found], text)


def pause(cli: Cli, target: AliasTarget, message: Message = "") -> None:
    """Stop stepping until it is resumed; every node keeps its version."""
    with cli.open() as store:
        _show(cli, store.rollouts.pause(*_split(target), message=message))


def resume(cli: Cli, target: AliasTarget, message: Message = "") -> None:
    """Allow steps of a paused rollout again."""
    with cli.open() as store:
        _show(cli, store.rollouts.resume(*_split(target), message=message))


def abort(cli: Cli, target: AliasTarget, message: Message = "") -> None:
    """End a rollout and give every node the old version again.

    One small object is written; no weights are moved.
    """
    model, alias = _split(target)
    with cli.open() as store:
        old = store.rollouts.abort(model, alias, message=message)
    _show_done(cli, f"{model}@{alias}", old)


def report(
    cli: Cli,
    ref: Ref,
    values: Annotated[
        list[str],
        argument(metavar="METRIC=NUMBER...", help="Values that were measured."),
    ],
    node: Annotated[
        str | None,
        option(metavar="NAME", help="Node that measured them (default: this one)."),
    ] = None,
) -> None:
    """Report what a node measured, for the gates of a rollout.

    The values must have been measured while the node served this version.
    """
    if "=" not in values[0] and "@" not in ref:  # the second word of the reference
        (ref,) = joined([ref, values.pop(0)], 1)
    pairs = _pairs(values)
    if not pairs:
        raise UsageError("an argument is missing: give METRIC=NUMBER")
    with cli.open() as store:
        version = store.resolve(ref)
        name = node if node is not None else store.node
        store.rollouts.report(version, name, pairs)
    data = schemas.Reported(model=version.model, version=version.number, node=name, values=pairs)
    text = ", ".join(f"{metric} {value}" for metric, value in pairs.items())
    cli.out.show(data, [str(version)], lambda: print(f"{name} reports of {version}: {text}"))


def _split(target: str) -> tuple[str, str]:
    from tierstore.ids import ModelRef

    parsed = ModelRef.parse(target)
    if parsed.number is not None or parsed.prefix is not None:
        raise UsageError(f"{parsed} names one version; expected MODEL@ALIAS")
    return parsed.model, parsed.alias or "prod"


def _pairs(texts: list[str] | tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"invalid {text!r}: expected NAME=VALUE")
        found[name] = value
    return found


def rollout_json(status: RolloutStatus) -> schemas.RolloutJson:
    """Return a rollout as it is printed."""
    rollout = status.rollout
    return schemas.RolloutJson(
        alias=status.alias,
        old=status.old.number,
        new=status.new.number,
        percent=status.percent,
        stage=rollout.stage + 1,
        stages=[share / 100 for share in rollout.stages],
        paused=rollout.paused,
        since=status.since,
        due=status.due,
        gates=[_gate_json(state) for state in status.gates],
        labels=rollout.labels,
        windows=rollout.windows,
    )


def _gate_json(state: GateState) -> schemas.GateJson:
    return schemas.GateJson(
        metric=state.gate.metric,
        op=state.gate.op,
        limit=state.gate.limit,
        reports=len(state.values),
        mean=sum(map(float, state.values)) / len(state.values) if state.values else None,
        passes=state.passes,
    )


def _show(cli: Cli, status: RolloutStatus) -> None:
    cli.out.show(rollout_json(status), [status.alias], lambda: _print(status))


def _show_done(cli: Cli, alias: str, version: Version) -> None:
    data = schemas.RolloutDone(alias=alias, version=version.number, digest=str(version.digest))
    text = f"{alias} now points to {version} on every node"
    cli.out.show(data, [str(version)], lambda: print(text))


def _print(status: RolloutStatus) -> None:
    data = rollout_json(status)
    model = status.new.model
    shares = " ".join(
        f"[{share:g} %]" if number == data.stage else f"{share:g} %"
        for number, share in enumerate(data.stages, 1)
    )
    pairs = [
        ("rollout", f"{data.alias}: {model}@{data.old} -> {model}@{data.new}"),
        ("stage", f"{data.stage} of {len(data.stages)}: {shares}"),
        ("since", time_text(data.since) + (", paused" if data.paused else "")),
        ("next step", time_text(data.due) if data.due else "by hand"),
        *(("only", f"nodes with {name}={value}") for name, value in data.labels.items()),
        *(("window", f"{window} UTC") for window in data.windows),
    ]
    facts(pairs)
    if data.gates:
        words = {None: "waits for reports", True: "holds", False: "does not hold"}
        rows = [
            (
                f"{gate.metric}{gate.op}{gate.limit}",
                "-" if gate.mean is None else f"{gate.mean:g}",
                counted(gate.reports, "node"),
                words[gate.passes],
            )
            for gate in data.gates
        ]
        table([Column("GATE"), Column("MEAN", right=True), Column("FROM"), Column("STATE")], rows)
