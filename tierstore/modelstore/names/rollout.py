"""Staged rollout: an alias moves from one version to another, share by share of the nodes.

Every step is an entry of the alias's log: start, step, pause, resume, abort and finish each create
one object, move no bytes, and are listed by ``history``. Each node works out by itself which
version it gets (see ``turns``). A client of an older format sees the version that the rollout comes
from. When two administrators act at once, one of them gets ``Conflict``.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from tierstore.arguments import as_list, as_message, as_table
from tierstore.errors import (
    Conflict,
    GateClosed,
    NotDurable,
    NotFound,
    TierstoreError,
    UsageError,
)
from tierstore.format import keys
from tierstore.format.checks import Broken
from tierstore.format.readback import in_words
from tierstore.format.reflog import FULL_SHARE, Action, Gate, RefEntry, Rollout
from tierstore.ids import Digest, check_alias, check_name
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import RefLog, RefTarget
from tierstore.modelstore.home.settling import appended
from tierstore.modelstore.names.members import contents_of
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.reports import GateState, gate_states, parse_gate, write_report
from tierstore.modelstore.names.turns import next_window
from tierstore.modelstore.version import Version, version_of, when
from tierstore.prepared import prepared
from tierstore.shown import counted

HOLDER = "rollout of "

_log = logging.getLogger("tierstore.rollout")


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """The state of a rollout.

    Attributes:
        alias: The alias, as ``model@alias``.
        old: The version that the rollout comes from.
        new: The version that the rollout goes to.
        rollout: The rollout's stages, gates and other rules.
        since: When the present stage began, by the clock of whoever began it.
        due: The earliest time of the next step; ``None`` for steps by hand.
        gates: The state of each gate.
        seq: Number of the alias's log entry that this state is from.
    """

    alias: str
    old: Version
    new: Version
    rollout: Rollout
    since: datetime
    due: datetime | None
    gates: tuple[GateState, ...]
    seq: int

    @property
    def percent(self) -> float:
        """Percentage of the nodes that get the new version now."""
        return self.rollout.stages[self.rollout.stage] * 100 / FULL_SHARE


def percent_of(entry: RefEntry) -> float | None:
    """Return the percentage of nodes that get the new version; ``None`` outside a rollout."""
    if entry.rollout is None:
        return None
    return entry.rollout.stages[entry.rollout.stage] * 100 / FULL_SHARE


class Rollouts:
    """The rollouts of a store.

    Args:
        names: Names of the store.
        clock: Returns the time of day, in seconds since the epoch.
    """

    def __init__(self, names: Names, clock: Callable[[], float] = time.time) -> None:
        self._names, self._home, self._clock = names, names.home, clock

    def __repr__(self) -> str:
        return f"<Rollouts of {self._home.blobs.url}>"

    def start(
        self,
        model: str,
        alias: str,
        to: str | Version,
        *,
        stages: Sequence[int] = (100, 1000, 5000, FULL_SHARE),
        every_s: int | None = None,
        gates: Sequence[Gate | str] = (),
        labels: Mapping[str, str] | None = None,
        windows: Sequence[str] = (),
        message: str | None = None,
    ) -> RolloutStatus:
        """Begin to move an alias to ``to``; the first stage begins at once.

        The version that the alias points to now is pinned in hot and warm tiers until the rollout
        is over, with its variants, or with the members if it is a release.

        Args:
            model: Name of the model.
            alias: Name of the alias, which exists and points to another version.
            to: A version of the model, or a reference to it.
            stages: Shares of the nodes in hundredths of a percent, rising to 10,000.
            every_s: Seconds between automatic steps, at least; ``None`` for steps by hand.
            gates: Bounds on reported metrics, such as ``p99_ms<=12.5``, checked before each step.
            labels: Labels that nodes must have to take part before the last stage.
            windows: Times of day, as ``HH:MM-HH:MM`` (UTC), in which steps must lie.
            message: Note for the log: why this is done; ``None`` for no note.

        Raises:
            Conflict: A rollout of the alias is under way, or somebody changed it just now.
            NotFound: The alias does not exist, or ``to`` is removed.
            UsageError: The alias points to ``to`` already, or a rule is invalid.
        """
        as_message(message)  # before anything is pinned
        to = self._names.resolve(to)
        fields = {
            "version": to.number,
            "manifest": to.digest.hex,
            "salt": uuid.uuid4().hex,
            "stages": as_list("stages", stages, f"[100, {FULL_SHARE}]"),
            "every_s": every_s,
            "gates": [
                parse_gate(gate) if isinstance(gate, str) else gate
                for gate in as_list("gates", gates, "['p99_ms<=12.5']")
            ],
            "labels": dict(as_table("labels", labels or {}, "{'region': 'eu'}")),
            "windows": as_list("windows", windows, "['22:00-06:00']"),
        }
        rollout = _checked(fields)
        log = self._log(model, alias)
        if to.model != check_name("model", model) or to.variant is not None:
            raise UsageError(f"{to} is not a version of {model!r}; {log.title} moves only to those")
        self._names.refuse_removed(to.model, to.number)
        last = self._current(log, model, alias)
        if last.rollout is not None:
            raise Conflict(f"{log.title} is in a rollout already; finish or abort that one first")
        if last.version == to.number:
            raise UsageError(f"{log.title} already points to {to}; nothing to roll out")
        # before any node turns to the new version
        self._hold(log, contents_of(self._home, self._version(model, last)))
        try:
            entry, flaw = self._append(log, "start", last, self._same(last, rollout), message)
            self._look_again(log, to, entry, last)
            if flaw is not None:
                raise flaw
        except BaseException:
            self.settle(model, alias)
            raise
        return self._status(model, log, entry)

    def _look_again(self, log: RefLog, to: Version, new: RefEntry, before: RefEntry) -> None:
        """End a rollout by an entry that leads back, where its target cannot be named."""

        def aborted(note: str) -> str:
            action: Action = "abort" if new.rollout is not None else "rollback"
            back = self._same(before, None)
            where = self._names.named.put_back(to.model, log, new, back, action, note)
            return f"The rollout of {log.title} is over: {where}"

        self._names.named.look([to], aborted)

    def step(
        self, model: str, alias: str, *, force: bool = False, message: str | None = None
    ) -> RolloutStatus | None:
        """Go on to the next stage; after the last, point the alias to the new version.

        Returns ``None`` when that ended the rollout.

        Args:
            model: Name of the model.
            alias: Name of an alias that is in a rollout.
            force: Step even before it is due, outside its windows and with closed gates.
            message: Note for the log: why this is done; ``None`` for no note.

        Raises:
            GateClosed: A gate does not hold, nothing was reported for it, or it is too early.
            Conflict: The rollout is paused, or somebody else changed it just now.
            NotFound: Packs of the new version are gone: the rollout is over.
        """
        status = self.status(model, alias)
        if status.rollout.paused:
            raise Conflict(f"{status.alias} is paused; 'tierstore rollout resume' goes on")
        if not force:
            _check_gates(status, datetime.fromtimestamp(self._clock(), UTC))
        log = self._log(model, alias)
        last = log.entry(status.seq)
        rollout = msgspec.structs.replace(status.rollout, stage=status.rollout.stage + 1)
        is_over = rollout.stage == len(rollout.stages)
        target = self._same(last, rollout)
        if is_over:
            target = RefTarget(rollout.version, rollout.manifest, last.seq)
        entry, flaw = self._append(log, "finish" if is_over else "step", last, target, message)
        try:
            self._look_again(log, status.new, entry, last)
            if flaw is not None:
                raise flaw
        except BaseException:
            self.settle(model, alias)
            raise
        if is_over:
            self.settle(model, alias)
            return None
        return self._status(model, log, entry)

    def pause(self, model: str, alias: str, *, message: str | None = None) -> RolloutStatus:
        """Refuse steps until ``resume``; nodes keep the version they have."""
        return self._set_paused(model, alias, True, message)

    def resume(self, model: str, alias: str, *, message: str | None = None) -> RolloutStatus:
        """Allow steps again; the present stage starts over."""
        return self._set_paused(model, alias, False, message)

    def _set_paused(
        self, model: str, alias: str, paused: bool, message: str | None
    ) -> RolloutStatus:
        log = self._log(model, alias)
        last = self._current(log, model, alias)
        rollout = self._running(log, last)
        if rollout.paused == paused:
            raise Conflict(f"{log.title} is {'paused' if paused else 'not paused'} already")
        target = self._same(last, msgspec.structs.replace(rollout, paused=paused))
        entry, flaw = self._append(log, "pause" if paused else "resume", last, target, message)
        if flaw is not None:
            raise flaw
        return self._status(model, log, entry)

    def abort(self, model: str, alias: str, *, message: str | None = None) -> Version:
        """Give every node the version back that the rollout came from, and return that version."""
        log = self._log(model, alias)
        last = self._current(log, model, alias)
        self._running(log, last)
        old = self._version(model, last)
        _, flaw = self._append(log, "abort", last, self._same(last, None), message)
        self.settle(model, alias)
        if flaw is not None:
            raise flaw
        return old

    def settle(self, model: str, alias: str) -> None:
        """Pin what the rollout of an alias comes from, or without a rollout remove such pins.

        Every change does this; calling it cleans up after a process that died.
        """
        log = self._log(model, alias)
        last = log.last()
        try:
            held = []
            if last is not None and last.rollout is not None:
                held = contents_of(self._home, self._version(model, last))
            self._hold(log, held)
        except TierstoreError as error:  # the log has changed all the same, and that is what counts
            _log.warning(
                "the pins of the rollout of %s are not as they should be: %s", log.title, error
            )

    def settle_all(self) -> None:
        """Settle every alias for whose rollout something is pinned; see ``settle``."""
        titles = {pin.ref for pin in Pins(self._home.blobs).active()}
        for title in sorted(titles):
            model, at, alias = title.removeprefix(HOLDER).partition("@")
            if title.startswith(HOLDER) and at:
                self.settle(model, alias)

    def _hold(self, log: RefLog, versions: list[Digest]) -> None:
        Pins(self._home.blobs).hold(f"{HOLDER}{log.title}", versions)

    def status(self, model: str, alias: str) -> RolloutStatus:
        """Return the state of an alias's rollout; ``NotFound`` when there is none."""
        log = self._log(model, alias)
        last = self._current(log, model, alias)
        self._running(log, last)
        return self._status(model, log, last)

    def running(self) -> list[RolloutStatus]:
        """Return all rollouts under way, by model and alias."""
        found = []
        for model in self._home.models():
            for alias in self._home.aliases(model):
                log = self._log(model, alias)
                last = log.last()
                if last is not None and last.rollout is not None:
                    found.append(self._status(model, log, last))
        return found

    def report(self, version: str | Version, node: str, values: Mapping[str, str]) -> None:
        """Record what a node measured while it served ``version``; replaces its last report.

        Args:
            version: The version that was served, or a reference to it.
            node: The node's name.
            values: Measured values by metric, decimal numbers as text.

        Raises:
            UsageError: A value is not a plain decimal number.
        """
        write_report(self._home.blobs, self._names.resolve(version), node, values)

    def _status(self, model: str, log: RefLog, entry: RefEntry) -> RolloutStatus:
        rollout = entry.rollout
        assert rollout is not None
        new = version_of(model, self._home.log(model).entry(rollout.version))
        since = when(entry)
        due = rollout.every_s and datetime.fromtimestamp(since.timestamp() + rollout.every_s, UTC)
        return RolloutStatus(
            log.title,
            self._version(model, entry),
            new,
            rollout,
            since,
            due or None,
            gate_states(self._home.blobs, rollout.gates, new, log.key_of(entry.seq)),
            entry.seq,
        )

    def _log(self, model: str, alias: str) -> RefLog:
        return self._home.log(check_name("model", model), keys.ALIASES + check_alias(alias))

    def _current(self, log: RefLog, model: str, alias: str) -> RefEntry:
        last = log.last()
        if last is None or last.version is None:
            raise NotFound(
                f"{log.title} does not exist; 'tierstore alias set {model} {alias} REF' makes it"
            )
        return last

    def _running(self, log: RefLog, last: RefEntry) -> Rollout:
        if last.rollout is None:
            raise NotFound(f"{log.title} has no rollout; 'tierstore rollout start' begins one")
        return last.rollout

    def _version(self, model: str, entry: RefEntry) -> Version:
        assert entry.version is not None
        return version_of(model, self._home.log(model).entry(entry.version))

    @staticmethod
    def _same(last: RefEntry, rollout: Rollout | None) -> RefTarget:
        return RefTarget(last.version, last.manifest, last.seq, rollout)

    @staticmethod
    def _append(
        log: RefLog, action: Action, seen: RefEntry, target: RefTarget, message: str | None
    ) -> tuple[RefEntry, NotDurable | None]:
        def only_after_what_was_seen(last: RefEntry | None) -> RefTarget:
            if last is None or last.seq != seen.seq:
                raise Conflict(f"somebody else changed {log.title} just now; look at it and retry")
            return target

        return appended(lambda: log.append(action, only_after_what_was_seen, message), log.own)


def _checked(fields: Mapping[str, Any]) -> Rollout:
    """Return a rollout that readers accept; ``UsageError`` for any other, before it is written."""
    try:
        rollout = msgspec.convert(msgspec.to_builtins(fields), prepared(Rollout))
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(f"invalid rollout: {in_words(str(error))}") from None
    try:
        rollout.check()
    except Broken:
        stages = rollout.stages
        raise UsageError(
            f"stages {stages} do not rise to all nodes: give hundredths of a percent that end with "
            f"{FULL_SHARE}, such as [100, 1000, 5000, {FULL_SHARE}]"
        ) from None
    return rollout


def _check_gates(status: RolloutStatus, now: datetime) -> None:
    """Raise ``GateClosed`` unless a step is due, inside a window, and every gate holds."""
    force = "; force=True (--force) steps anyway"
    if status.due is not None and now < status.due:
        raise GateClosed(f"the next step of {status.alias} is due at {status.due:%H:%M} UTC{force}")
    inside, window = next_window(list(status.rollout.windows), now)
    if not inside:
        raise GateClosed(f"{status.alias} steps again in its window {window} UTC{force}")
    for state in status.gates:
        name = f"{state.gate.metric}{state.gate.op}{state.gate.limit}"
        if state.passes is None:
            raise GateClosed(
                f"no node that serves {status.new} has reported {state.gate.metric} since the "
                f"stage began: the gate {name} waits for 'tierstore report'{force}"
            )
        if not state.passes:
            mean = sum(map(float, state.values)) / len(state.values)
            raise GateClosed(
                f"the gate {name} of {status.alias} is closed: its mean is {mean:g}, from "
                f"{counted(len(state.values), 'node')}; 'tierstore rollout abort' goes back{force}"
            )


Verdict = Literal["stepped", "finished", "waiting", "closed"]


def advance(rollouts: Rollouts, status: RolloutStatus) -> Verdict:
    """Step a rollout that is due and allowed to, as an agent does; return what happened.

    A closed gate stops it until somebody looks; nothing is aborted automatically.
    """
    if status.due is None or status.rollout.paused:
        return "waiting"
    model, _, alias = status.alias.partition("@")
    try:
        after = rollouts.step(model, alias)
    except GateClosed:
        return "closed" if any(g.passes is False for g in status.gates) else "waiting"
    except Conflict:
        return "waiting"  # somebody was faster
    except NotFound as error:  # it is over: somebody ended it, or packs of the new version are gone
        _log.warning("the rollout of %s was not stepped: %s", status.alias, error)
        return "waiting"
    return "finished" if after is None else "stepped"
