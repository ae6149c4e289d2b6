"""The command that runs in the background of a cluster: agent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import counted, size
from tierstore.cli.kit.params import option
from tierstore.cli.kit.times import duration
from tierstore.cli.placing import BudgetOption, ShareOption, budget_of
from tierstore.cli.schemas import placing as schemas

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store
    from tierstore.serving.agent import Agent
    from tierstore.serving.collecting import CollectingPlan
    from tierstore.serving.node import Following


EveryOption = Annotated[
    str,
    option(metavar="TIME", help="Time from the end of a round to the start of the next: 30s, 5m."),
]
MetricsOption = Annotated[
    str | None,
    option(
        metavar="[HOST:]PORT",
        help="Serve /metrics for Prometheus here (default: not); port 0 takes a free one.",
    ),
]
LogOption = Annotated[
    str,
    option(metavar="FORM", help="Form of the log: text, or json for one object per line."),
]
RebaseOption = Annotated[
    bool,
    option(
        "--rebase/--no-rebase", help="Replace deltas that cost too much to read, or leave them."
    ),
]
FoldOption = Annotated[
    bool,
    option("--fold/--no-fold", help="Fold versions on many patches, or leave them."),
]
RewriteOption = Annotated[
    str,
    option(metavar="SIZE", help="Most bytes that a round writes to rebase and to fold."),
]
GrowthOption = Annotated[
    float,
    option(
        metavar="PERCENT",
        min=0,
        help="Most that rebases and folds add to what is stored, until garbage is collected.",
    ),
]
FollowOption = Annotated[
    list[str] | None,
    option("--follow", metavar="REF", help="Keep this version hot on this node; may be repeated."),
]
ResumeOption = Annotated[
    bool,
    option("--resume", help="Follow the references that were followed on this node last."),
]
GcEvery = Annotated[
    str,
    option(metavar="TIME", help="Collect garbage once in this time, if allowed; 0: never."),
]
ScrubEvery = Annotated[
    str,
    option(metavar="TIME", help="Verify every copy of every pack once in this time; 0: never."),
]
GcMaxBytes = Annotated[
    str | None,
    option(metavar="SIZE", help="Most to delete by one collection, counted in all tiers."),
]
GcMaxTime = Annotated[
    str,
    option(metavar="TIME", help="Begin no deletions after this time in a collection."),
]


def agent(
    cli: Cli,
    every: EveryOption = "60s",
    budget: BudgetOption = None,
    share: ShareOption = 1.0,
    gc_every: GcEvery = "1d",
    gc_max_bytes: GcMaxBytes = None,
    gc_max_time: GcMaxTime = "10m",
    scrub_every: ScrubEvery = "90d",
    metrics: MetricsOption = None,
    log: LogOption = "text",
    rebase: RebaseOption = True,
    fold: FoldOption = True,
    rewrite: RewriteOption = "1GiB",
    growth: GrowthOption = 5.0,
    follow: FollowOption = None,
    resume: ResumeOption = False,
) -> None:
    """Move packs and step rollouts in rounds until it is stopped.

    It runs in the foreground. Any number of agents may run for a store; one at a time moves packs.
    SIGTERM and SIGINT end it after the piece of work at hand. Its log goes to stderr.

    Where 'gc --enable' was given it also removes what the rules of 'retention' do not keep,
    collects garbage, goes on with purges, and drops from this node's caches what was purged.

    One agent of a store reads what all durable tiers hold, a little at a time, and puts good bytes
    over damaged copies.

    With --follow it also loads each new version that REF comes to point to into this node's hot
    tier, the first REF first, before the processes that serve it ask for it.
    """
    from tierstore.config import parse_seconds, parse_size
    from tierstore.errors import UsageError
    from tierstore.modelstore.reclaim.growth import Growth
    from tierstore.serving.agent import Agent, ended_by_signals

    if log not in ("text", "json"):
        raise UsageError(f"invalid --log {log!r}: expected text or json")
    pause, limit = parse_seconds(every), budget_of(budget, share)
    plan, most = _collecting(gc_every, gc_max_bytes, gc_max_time), parse_size(rewrite)
    period = duration(scrub_every).total_seconds() or None
    with ExitStack() as stack:
        stack.enter_context(_logging("json" if log == "json" else "text"))
        store = stack.enter_context(cli.open())
        room = Growth(store._parts.home, store.node, percent=growth, round_bytes=most)
        runs = Agent(
            store,
            every_s=pause,
            budget=limit,
            collecting=plan,
            rebase=rebase,
            fold=fold,
            growth=room,
            scrub_s=period,
        )
        stack.enter_context(ended_by_signals(runs.stop))
        following = stack.enter_context(_following(store, follow or [], resume))
        if metrics is not None:
            stack.enter_context(_metrics(metrics, store, runs, following))
        runs.run()
        data = _done(runs)
    cli.out.show(data, [], lambda: print(_ended(data)))


def _collecting(every: str, max_bytes: str | None, max_time: str) -> CollectingPlan:
    from tierstore.config import parse_size
    from tierstore.serving.collecting import CollectingPlan

    return CollectingPlan(
        duration(every) or None,
        None if max_bytes is None else parse_size(max_bytes),
        duration(max_time),
    )


def _done(runs: Agent) -> schemas.AgentEnded:
    own, collected, scrubbed = runs.stats, runs.collected, runs.scrubbed
    return schemas.AgentEnded(
        rounds=own.rounds,
        failed_rounds=own.failed_rounds,
        moves=runs.moves.moves,
        failed=runs.moves.failed,
        moved_bytes=runs.moves.moved_bytes,
        rollout_steps=own.rollout_steps,
        rebased=own.rebased,
        folded=own.folded,
        rewritten_bytes=own.rewritten_bytes,
        removed_versions=own.removed,
        deleted_packs=collected.deleted_packs,
        freed_bytes=collected.freed_bytes,
        verified_bytes=scrubbed.bytes,
        damaged_copies=scrubbed.damaged,
    )


def _ended(data: schemas.AgentEnded) -> str:
    failed = f", {data.failed} failed" if data.failed else ""
    rewritten = f"{data.rebased} rebased and {data.folded} folded, {size(data.rewritten_bytes)}"
    deleted = f"{counted(data.deleted_packs, 'pack')} of {size(data.freed_bytes)} deleted"
    done = {
        f"{counted(data.failed_rounds, 'round')} failed": data.failed_rounds,
        f"{counted(data.moves, 'move')} of {size(data.moved_bytes)}{failed}": data.moves or failed,
        f"{counted(data.rollout_steps, 'step')} of rollouts": data.rollout_steps,
        rewritten: data.rebased or data.folded,
        f"{counted(data.removed_versions, 'version')} removed": data.removed_versions,
        deleted: data.deleted_packs,
        f"{size(data.verified_bytes)} verified": data.verified_bytes,
        f"{counted(data.damaged_copies, 'damaged copy')} found": data.damaged_copies,
    }
    said = [text for text, count in done.items() if count] or ["nothing was to be done"]
    return f"ended after {counted(data.rounds, 'round')}: {', '.join(said)}"


@contextmanager
def _logging(form: Literal["text", "json"]) -> Iterator[None]:
    from tierstore.serving.agent import JsonLines, TextLines

    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(message)s")
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
    path = settings_from().cache_dir / store._parts.home.config.store_id / "served.json"
    served = Served(path)
    wanted = refs or (list(served.refs()) if resume else [])
    if wanted and store._parts.hot.local is None:
        raise UsageError(
            f"this node has no hot tier to keep {wanted[0]} in; 'tierstore tier example' shows one"
        )
    return Following(store, wanted, served)


@contextmanager
def _metrics(address: str, store: Store, runs: Agent, following: Following) -> Iterator[None]:
    from tierstore.errors import UsageError
    from tierstore.serving.metrics import Gauge, TierCollector, samples, serve
    from tierstore.serving.observe import heat_counters

    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"invalid address for metrics {address!r}: expected PORT or HOST:PORT")
    collector = TierCollector(
        lambda: samples(store),
        lambda: {**runs.counters(), **following.counters(), **heat_counters([store])},
        lambda: [Gauge(*values) for values in (*following.values(), *runs.gauges())],
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
