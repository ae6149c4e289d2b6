"""The agent of a store: what is done again and again to keep it in shape, until it ends."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

from tierstore.admin.purges import purges_of
from tierstore.errors import (
    OF_ONE,
    Conflict,
    NotFound,
    OutOfSpace,
    TierstoreError,
)
from tierstore.format.keys import ALIASES
from tierstore.format.storeconfig import reclaims
from tierstore.modelstore.home.chain import find_chain
from tierstore.modelstore.home.heads import End, Heads
from tierstore.modelstore.names.rollout import advance
from tierstore.modelstore.patches.fold import Folded
from tierstore.modelstore.patches.patching import look_below
from tierstore.modelstore.reclaim.growth import Growth
from tierstore.modelstore.reclaim.repair.scrub import Scrub, ScrubStats
from tierstore.modelstore.reclaim.retention import Outlook
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of
from tierstore.serving.collecting import Collecting, CollectingPlan, CollectingStats
from tierstore.shown import size, time_text
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.mover import MoverStats

_log = logging.getLogger("tierstore.agent")
_FOLD_FROM = 8
"""Number of patches from which on a version is folded: half of a full chain."""
SCRUB_S = 90 * 24 * 3600.0
"""Seconds in which every copy is read once: a terabyte is 0.13 MB/s."""
_RULES_EVERY_S = 3600.0
"""Seconds between two looks at what rules of retention remove: they count in hours and more."""

_WARN_EVERY_S = 3600.0
_BLOCKED = "nothing of %s is removed by its rules: %s"


@dataclass(slots=True)
class AgentStats:
    """Counts of the work that an agent has done so far.

    Attributes:
        rounds: Rounds that were begun.
        refused: Rounds in which another mover was at work.
        failed_rounds: Rounds that an error ended early.
        rollout_steps: Steps of rollouts that were made.
        rebased: Versions whose costly deltas were stored as standalone chunks.
        folded: Versions on many patches that were stored as full chunks.
        rewritten_bytes: Bytes that were stored for both.
        removed: Versions that rules of retention removed.
    """

    rounds: int = 0
    refused: int = 0
    failed_rounds: int = 0
    rollout_steps: int = 0
    rebased: int = 0
    folded: int = 0
    rewritten_bytes: int = 0
    removed: int = 0


class Agent:
    """Runs the upkeep of a store in rounds. For one thread; any thread may set ``stop``.

    Args:
        store: Open store; the agent does not close it.
        every_s: Seconds from the end of one round to the start of the next.
        budget: Bandwidth that moves and the scrub may use; ``None`` for no limit of moves.
        collecting: When garbage is collected, if the store allows it; ``None``: once a day.
        rebase: Whether deltas that cost too much to read are replaced.
        fold: Whether versions on many patches are folded.
        growth: How much both may write; by default ``Growth`` of this node, without a limit a
            round.
        scrub_s: Seconds in which every durable copy of every pack is to be read and verified once,
            by one of the store's agents; ``None`` for no scrub.
    """

    def __init__(
        self,
        store: Store,
        *,
        every_s: float = 60.0,
        budget: Budget | None = None,
        collecting: CollectingPlan | None = None,
        rebase: bool = True,
        fold: bool = True,
        growth: Growth | None = None,
        scrub_s: float | None = SCRUB_S,
    ) -> None:
        self._store, self._every_s, self._budget = store, every_s, budget
        self._rebases, self._folds = rebase, fold
        self._growth = growth or Growth(store._parts.home, store.node)
        self.stop = threading.Event()
        """Ends the agent once it is set."""
        self.stats = AgentStats()
        self._placement, self._rebasing = store.placement, store._parts.rebasing
        self._collecting = Collecting(store, collecting or CollectingPlan(), self.stop)
        self._purges = purges_of(store)
        self._folded: dict[str, tuple[End, End]] = {}
        """The ends of the logs of models whose newest version was looked at."""
        self._at_rest: dict[tuple[str, str], End] = {}
        """The ends of the logs of aliases that are in no rollout."""
        self._rules_looked_at = -_RULES_EVERY_S
        self._reported: set[tuple[str, str]] = set()
        self._blocked_models: int | None = None
        self._warned: dict[str, tuple[type[TierstoreError], float]] = {}
        self._waiting: dict[Version, int] = {}
        """What folds that wait until there is room for them may take, in bytes."""
        home = store._parts.home
        path = store._parts.settings.cache_dir / home.config.store_id / "checked.sqlite"
        self._scrub: Scrub | None = None
        if scrub_s is not None:
            self._scrub = Scrub(home, path, scrub_s, budget=budget, stop=self.stop)

    @property
    def moves(self) -> MoverStats:
        """Counts of the moves so far."""
        return self._placement.stats

    @property
    def collected(self) -> CollectingStats:
        """Counts of the collections of garbage so far."""
        return self._collecting.stats

    @property
    def scrubbed(self) -> ScrubStats:
        """Counts of the scrub so far."""
        return ScrubStats() if self._scrub is None else self._scrub.stats

    def run(self) -> None:
        """Run rounds until ``stop`` is set; an error is logged, and the next round tries again."""
        _log.info("agent of %s starts", self._store.url)
        self._store._parts.upkeep.start()  # it verifies this node's hot tier, for one
        try:
            while not self.stop.is_set():
                self.round()
                self.stop.wait(self._every_s)
        finally:
            if self._scrub is not None:
                self._scrub.close()
        _log.info("agent of %s stops", self._store.url)

    def round(self) -> None:
        """Run one round of upkeep, and read what is due of the scrub."""
        self._keep_up()
        if self._scrub is not None:
            try:
                self._scrub.run()
            except TierstoreError as error:
                self._warn("nothing is verified now: %s", error)
            else:
                self._warned.pop("nothing is verified now: %s", None)

    def _keep_up(self) -> None:
        """Run one round: rollouts, rebases, folds, removals, garbage collection, and moves."""
        began = time.monotonic()
        self.stats.rounds += 1
        try:
            heads = Heads(self._store._parts.home.blobs)
            self._advance(heads)
            self._growth.begin_round()
            if self._rebases:
                self._rebase(heads)
            if self._folds:
                self._fold(heads)
            self._keep_rules()
            self._collecting.round()
            self._purges.keep_up(self.stop)
            report = self._placement.rebalance(budget=self._budget, stop=self.stop)
        except Conflict as error:
            self.stats.refused += 1
            _log.info("%s", error)
            return
        except TierstoreError as error:
            self.stats.failed_rounds += 1
            self._warn("round failed: %s", error)
            return
        self._warned.pop("round failed: %s", None)
        for note in report.plan.notes:
            _log.warning("%s", note)
        fields = {
            "event": "round",
            "planned": len(report.plan.moves),
            "done": sum(one.status == "done" for one in report.moved),
            "copied_bytes": sum(one.copied_bytes for one in report.moved),
            "seconds": round(time.monotonic() - began, 3),
        }
        _log.log(
            logging.INFO if report.moved else logging.DEBUG,
            "%d of %d moves done",
            fields["done"],
            fields["planned"],
            extra={"fields": fields},
        )

    def _warn(self, message: str, error: TierstoreError) -> None:
        """Log what fails in each round alike once an hour; in between at level DEBUG."""
        now, kind = time.monotonic(), type(error)
        before = self._warned.get(message)
        is_new = before is None or before[0] is not kind or now - before[1] >= _WARN_EVERY_S
        if is_new:
            self._warned[message] = kind, now
        _log.log(logging.WARNING if is_new else logging.DEBUG, message, error)

    def _advance(self, heads: Heads) -> None:
        """Step the rollouts that are due, and clean up after those that died."""
        self._store.rollouts.settle_all()
        for model, alias, end in heads.aliases():
            if self._at_rest.get((model, alias)) == end:
                continue
            last = self._store._parts.home.log(model, ALIASES + alias).last()
            if last is None or last.rollout is None:
                self._at_rest[model, alias] = end
            else:
                self._advance_one(model, alias)

    def _advance_one(self, model: str, alias: str) -> None:
        rollouts = self._store.rollouts
        verdict = advance(rollouts, rollouts.status(model, alias))
        if verdict in ("stepped", "finished"):
            self.stats.rollout_steps += 1
            _log.info("the rollout of %s@%s: %s", model, alias, verdict)
        elif verdict == "closed":
            _log.warning("the rollout of %s@%s waits: a gate does not hold", model, alias)

    def _rebase(self, heads: Heads) -> None:
        for name, done in self._rebasing.sweep(heads, self.stop.is_set, self._growth).items():
            self.stats.rebased += 1
            self.stats.rewritten_bytes += done.stored_bytes
            _log.info(
                "%s was rebased: a read cost %.2f times one without deltas, now %.2f",
                name,
                done.cost_before,
                done.cost_after,
            )

    def _fold(self, heads: Heads) -> None:
        """Fold the newest version of each model while its chain of patches still has room."""
        for model, ends in heads.versions():
            if self.stop.is_set():
                return
            if self._folded.get(model) == ends:
                continue
            try:
                newest = self._newest(model, ends[0])
            except NotFound as error:  # every version of it is removed
                _log.debug("%s is not folded: %s", model, error)
            except OF_ONE as error:  # 'check' tells more
                _log.warning("%s was not looked at: %s", model, error)
            else:
                if not newest.is_release and not self._fold_newest(newest):
                    continue
            self._folded[model] = ends

    def _newest(self, model: str, end: End) -> Version:
        """Return the newest version of a model whose log ended so when it was listed."""
        last = self._store._parts.home.log(model).entry(end.seq)
        entry = self._store._names.newest(model, last)
        assert entry is not None
        return version_of(model, entry)

    def _fold_newest(self, newest: Version) -> bool:
        """Fold a version if it lies on many patches; return ``False`` if that waits for room."""
        try:
            done = self._fold_one(newest)
        except (*OF_ONE, OutOfSpace) as error:
            # 'check' tells more
            _log.warning("%s was not folded: %s", newest, error)
            return True
        if done is not None and done.stats is not None:
            self.stats.folded += 1
            _log.info("%s was folded: it lay on %d patches", newest, done.patches)
        return done is not None

    def _fold_one(self, version: Version) -> Folded | None:
        """Fold a version that lies on many patches; ``None`` if that takes more than it may."""
        home = self._store._parts.home
        if version in self._waiting and self._waiting[version] > self._growth.left_bytes():
            return None
        chain = find_chain(home, version.digest)
        if len(chain.patches) < _FOLD_FROM:
            return Folded(version, 0, chain.full, None)
        left = self._growth.left_bytes()
        takes = look_below(home, version.digest).patch_bytes
        if takes > left:
            if version not in self._waiting:
                self._waiting[version] = takes
                _log.info(
                    "%s lies on %d patches and is not folded now: that may take %s, and %s may be "
                    "written (--growth, --rewrite)",
                    version,
                    len(chain.patches),
                    size(takes),
                    size(left),
                )
            return None
        try:
            done = self._store._parts.patching.fold(version, _FOLD_FROM, None, left)
        except OutOfSpace:
            self._growth.add(left)  # as good as all of it: what it has stored is garbage
            raise
        if done.stats is not None:
            self._growth.add(done.stats.stored_bytes)
            self.stats.rewritten_bytes += done.stats.stored_bytes
        return done

    def _keep_rules(self) -> None:
        """Remove what rules of retention do not keep; in their first window only say what."""
        now = time.monotonic()
        if (
            not reclaims(self._store._parts.home.config)
            or now - self._rules_looked_at < _RULES_EVERY_S
        ):
            return
        self._rules_looked_at = now
        blocked = 0
        for found in self._store.retention.each_outlook():
            if self.stop.is_set():
                return
            if found.blocked is not None:
                _log.warning(_BLOCKED, found.model, found.blocked)
                blocked += 1
            elif found.going:
                blocked += not self._apply_rules(found)
        self._blocked_models = blocked

    def _apply_rules(self, found: Outlook) -> bool:
        """Remove what the rules of a model do not keep; return whether they could."""
        try:
            done = self._store.retention.apply(found.model)
        except OF_ONE as error:
            _log.warning(_BLOCKED, found.model, error)
            return False
        if done is None or not done.removed:  # others were at it meanwhile
            return True
        refs = " ".join(map(str, done.removed))
        if not done.dry_run:
            self.stats.removed += len(done.removed)
            _log.info("removed by the rules of %s: %s", found.model, refs)
        elif (found.model, refs) not in self._reported:
            self._reported.add((found.model, refs))
            due = time_text(found.due)
            _log.warning("the rules of %s will remove from %s on: %s", found.model, due, refs)
        return True

    def gauges(self) -> list[tuple[str, str, Mapping[str, str], float]]:
        """Return values for the page of metrics: name, text, labels and value."""
        if self._blocked_models is None:  # not looked yet, or not allowed
            return []
        text = "Models of which rules of retention could remove nothing at the last look."
        return [("retention_blocked_models", text, {}, self._blocked_models)]

    def counters(self) -> Mapping[str, float]:
        """Return totals for the page of metrics, by name."""
        moves, own, collected = self.moves, self.stats, self._collecting.stats
        scrub = self.scrubbed
        return {
            "moves": moves.moves,
            "moves_failed": moves.failed,
            "moves_skipped": moves.skipped,
            "moved_bytes": moves.moved_bytes,
            "dropped_bytes": moves.dropped_bytes,
            "damaged_copies": moves.damaged,
            "agent_rounds": own.rounds,
            "agent_rounds_failed": own.failed_rounds,
            "agent_rounds_refused": own.refused,
            "rollout_steps": own.rollout_steps,
            "rebased": own.rebased,
            "folded": own.folded,
            "rewritten_bytes": own.rewritten_bytes,
            "removed_versions": own.removed,
            "gc_runs": collected.runs,
            "gc_runs_failed": collected.failed,
            "gc_deleted_packs": collected.deleted_packs,
            "gc_freed_bytes": collected.freed_bytes,
            "scrubbed_copies": scrub.copies,
            "scrubbed_bytes": scrub.bytes,
            "scrub_damaged": scrub.damaged,
            "scrub_healed": scrub.healed,
            "scrub_quarantined": scrub.quarantined,
        }


@contextmanager
def ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at SIGTERM or SIGINT while the block runs; a second signal acts as usual.

    For the main thread only.
    """
    chosen = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in chosen}

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each in chosen:
            signal.signal(each, before[each])

    for number in chosen:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in chosen:
            signal.signal(number, before[number])


class TextLines(logging.Formatter):
    """Formats records as text, with times in UTC."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time_text(datetime.fromtimestamp(record.created, UTC))


class JsonLines(logging.Formatter):
    """Formats records as JSON, one object per line: time, level, logger, message, own fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def _rfc3339(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
