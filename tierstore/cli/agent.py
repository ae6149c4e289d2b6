"""The command that runs until it is told to end: agent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import counted, size
from tierstore.cli.placing import BudgetOption, Share, budget_of
from tierstore.cli.schemas import placing as schemas

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store
    from tierstore.serving.agent import Agent
    from tierstore.serving.node import Following


def agent(
    cli: Cli,
    every: Annotated[
        str, typer.Option(metavar="TIME", help="From the end of one round to the next.")
    ] = "60s",
    budget: BudgetOption = None,
    share: Share = 1.0,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve /metrics for Prometheus; port 0 is free."),
    ] = None,
    log: Annotated[
        str, typer.Option(metavar="FORM", help="text, or json for one object a line.")
    ] = "text",
    follow: Annotated[
        list[str] | None,
        typer.Option("--follow", metavar="REF", help="Keep it hot on this node; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Follow what was followed on this node last.")
    ] = False,
) -> None:
    """Move packs and step rollouts until it is stopped.

    In the foreground. Any number may run; one at a time moves packs. SIGTERM or SIGINT end it
    between two pieces of work. Logs go to stderr.

    With --follow it brings each version that REF comes to mean into this node's hot tier, the first
    REF first, before the processes that serve it ask.
    """
    from tierstore.config import parse_seconds
    from tierstore.errors import UsageError
    from tierstore.serving.agent import Agent, ended_by_signals

    if log not in ("text", "json"):
        raise UsageError(f"{log!r} is no form of a log: text or json")
    pause, limit = parse_seconds(every), budget_of(budget, share)
    with ExitStack() as stack:
        stack.enter_context(_logging("json" if log == "json" else "text"))
        store = stack.enter_context(cli.open())
        runs = Agent(store, every_s=pause, budget=limit)
        stack.enter_context(ended_by_signals(runs.stop))
        following = stack.enter_context(_following(store, follow or [], resume))
        if metrics is not None:
            stack.enter_context(_metrics(metrics, store, runs, following))
        runs.run()
        data = schemas.AgentEnded(
            rounds=runs.stats.rounds, moves=runs.moves.moves, failed=runs.moves.failed,
            moved_bytes=runs.moves.moved_bytes, rollout_steps=runs.stats.rollout_steps,
        )  # fmt: skip
    cli.out.show(data, [], lambda: print(_ended(data)))


def _ended(data: schemas.AgentEnded) -> str:
    failed = f", {data.failed} failed" if data.failed else ""
    return (
        f"ended after {counted(data.rounds, 'round')}: {counted(data.moves, 'move')} of "
        f"{size(data.moved_bytes)}{failed}"
    )


@contextmanager
def _logging(form: Literal["text", "json"]) -> Iterator[None]:
    from tierstore.serving.agent import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logger = logging.getLogger("tierstore")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def _following(store: Store, refs: list[str], resume: bool) -> Following:
    from tierstore.config import settings_from
    from tierstore.errors import UsageError
    from tierstore.ids import ModelRef
    from tierstore.serving.node import Following, Served

    for ref in refs:
        ModelRef.parse(ref)
    if (refs or resume) and store._parts.hot.local is None:
        raise UsageError(
            "this node has no hot tier to keep anything in: see 'tierstore tier example'"
        )
    path = settings_from().cache_dir / store._parts.home.config.store_id / "served.json"
    served = Served(path)
    return Following(store, refs or (list(served.refs()) if resume else []), served)


@contextmanager
def _metrics(address: str, store: Store, runs: Agent, following: Following) -> Iterator[None]:
    from tierstore.errors import UsageError
    from tierstore.serving.metrics import Gauge, TierCollector, samples, serve
    from tierstore.serving.observe import heat_counters

    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"{address!r} is no address for metrics: give PORT or HOST:PORT")
    collector = TierCollector(
        lambda: samples(store),
        lambda: {**runs.counters(), **following.counters(), **heat_counters([store])},
        lambda: [Gauge(*values) for values in following.values()],
    )
    server, thread = serve(collector, host.strip("[]") or "127.0.0.1", int(port))
    logging.getLogger("tierstore.agent").info(
        "metrics at http://%s:%d/metrics", host or "127.0.0.1", server.server_port
    )
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
