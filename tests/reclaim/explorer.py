"""Explores every interleaving of a few parties that share one store, breadth first.

A *party* is a generator: it yields calls on the store, and is sent their answers. Between any two
calls all others may do whatever they like, and it may be paused for ever, which is a crash. A
*world* is the store, an immutable value; a *call* gives for a world the worlds and answers that may
come of it, none while it has to wait.

Where a party stands is the line and the local variables of its generator, so those must be
immutable, and a ``for`` loop around a ``yield`` must go over distinct values of a variable that
does not change. Two ways that lead to the same line and the same variables are one state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

World = Any
Party = Callable[[], Generator["Call", Any, None]]
ENDED = -1


class Call(NamedTuple):
    """A call on the store: ``function(world, *arguments)`` yields pairs of world and answer.

    ``commutes`` says of a world that nothing that others do could change this call or notice it:
    then it is made at once.
    """

    function: Callable[..., Iterable[tuple[World, Hashable]]]
    arguments: tuple[Hashable, ...]
    commutes: Callable[..., bool] | None = None

    def __str__(self) -> str:
        shown = ", ".join(map(show, self.arguments))
        return f"{self.function.__name__}({shown})"


def call(function: Callable[..., Iterable[tuple[World, Hashable]]]) -> Callable[..., Call]:
    """Make a call of a function that takes a world first."""
    return lambda *arguments: Call(function, arguments)


def call_that_commutes(
    when: Callable[..., bool],
) -> Callable[[Callable[..., Iterable[tuple[World, Hashable]]]], Callable[..., Call]]:
    """Make a call that commutes with whatever others do, in worlds where ``when`` is true."""
    return lambda function: lambda *arguments: Call(function, arguments, when)


def show(value: object) -> str:
    """Return a value as a trace prints it."""
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(map(show, value))) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(show, value)) + ")"
    return str(value)


class _Program:
    """A party as an automaton: its states are numbers, found out as they are reached."""

    def __init__(self, party: Party, merge: bool) -> None:
        self._party, self._merge = party, merge
        self._states: dict[Hashable, int] = {}
        self._ways: list[tuple[Hashable, ...]] = []
        self._next: dict[tuple[int, Hashable], int] = {}
        self.calls: list[Call] = []
        self.start = self._state_after(())

    def after(self, state: int, answer: Hashable) -> int:
        at = self._next.get((state, answer))
        if at is None:
            at = self._state_after((*self._ways[state], answer))
            self._next[state, answer] = at
        return at

    def _state_after(self, answers: tuple[Hashable, ...]) -> int:
        running = self._party()
        try:
            asked = next(running)
            for answer in answers:
                asked = running.send(answer)
        except StopIteration:
            return ENDED
        key = _position(running) if self._merge else answers
        state = self._states.setdefault(key, len(self.calls))
        if state == len(self.calls):
            self.calls.append(asked)
            self._ways.append(answers)
        running.close()
        return state


def _position(running: Generator[Call, Any, None]) -> Hashable:
    """Return where a generator stands: line and variables, and those of what it delegates to."""
    frames: list[Hashable] = []
    inner: Any = running
    while inner is not None:
        frame = inner.gi_frame
        frames.append((frame.f_code, frame.f_lasti, *sorted(frame.f_locals.items())))
        inner = inner.gi_yieldfrom
    return tuple(frames)


@dataclass(frozen=True)
class Result:
    """What an exploration found.

    Attributes:
        states: Number of states that were seen.
        broken: The first promise that was found broken, with the fewest steps; empty if none is.
        trace: The steps that lead there, one line each.
        worlds: The worlds that were seen.
        ends: The worlds in which nobody has anything left to do.
        complete: Whether all states were seen; else those with the fewest steps, up to the limit.
    """

    states: int
    broken: str
    trace: tuple[str, ...]
    worlds: frozenset[World]
    ends: frozenset[World]
    complete: bool


class Explorer:
    """Explores what parties may do to a world.

    Args:
        world: The store at the beginning.
        parties: Name and generator function of each. Those of one function are exchangeable.
        happens: Gives for a world what may happen to it by itself: a lease ends, a tier goes down.
        broken: Names the promise that a world breaks, or nothing.
        merge: Whether equal positions are one state; without, only equal ways are.
        limit: The most states that are looked at.
    """

    def __init__(
        self,
        world: World,
        parties: Sequence[tuple[str, Party]],
        happens: Callable[[World], Iterable[tuple[str, World]]],
        broken: Callable[[World], str],
        *,
        merge: bool = True,
        limit: int = 8_000_000,
    ) -> None:
        self._names = [name for name, _ in parties]
        programs = {party: _Program(party, merge) for party in dict.fromkeys(p for _, p in parties)}
        self._programs = [programs[party] for _, party in parties]
        self._happens, self._broken, self._limit = happens, broken, limit
        self._worlds: list[World] = []
        self._ids: dict[World, int] = {}
        self._answers: dict[tuple[int, Call], tuple[bool, list[tuple[int, Hashable]]]] = {}
        self._events: dict[int, list[tuple[str, int]]] = {}
        self._begin = (self._id(world), *(program.start for program in self._programs))

    def run(self) -> Result:
        """Explore until a promise is broken or all has been seen."""
        before: dict[tuple[int, ...], tuple[int, ...] | None] = {self._begin: None}
        queue = deque([self._begin])
        verdicts: dict[int, str] = {}
        ends: set[int] = set()
        while queue:
            state = queue.popleft()
            world = state[0]
            if world not in verdicts:
                verdicts[world] = self._broken(self._worlds[world])
            if verdicts[world]:
                return self._result(before, verdicts[world], state, ends)
            moved = False
            for after, _ in self._steps(state):
                moved = True
                if after not in before:
                    before[after] = state
                    queue.append(after)
            if not moved or all(stands == ENDED for stands in state[1:]):
                ends.add(world)
            if len(before) > self._limit:
                return self._result(before, "", None, ends, complete=False)
        return self._result(before, "", None, ends)

    def _result(
        self,
        before: dict[tuple[int, ...], tuple[int, ...] | None],
        broken: str,
        state: tuple[int, ...] | None,
        ends: set[int],
        complete: bool = True,
    ) -> Result:
        trace: list[str] = []
        while state is not None and (earlier := before[state]) is not None:
            who, asked, answer = next(why for after, why in self._steps(earlier) if after == state)
            trace.append(f"{who}: {asked} -> {show(answer)}" if asked else who)
            state = earlier
        return Result(
            len(before),
            broken,
            tuple(reversed(trace)),
            frozenset(self._worlds),
            frozenset(self._worlds[end] for end in ends),
            complete,
        )

    def _id(self, world: World) -> int:
        number = self._ids.setdefault(world, len(self._worlds))
        if number == len(self._worlds):
            self._worlds.append(world)
        return number

    def _answers_to(self, world: int, asked: Call) -> tuple[bool, list[tuple[int, Hashable]]]:
        known = self._answers.get((world, asked))
        if known is None:
            at = self._worlds[world]
            commutes = asked.commutes is not None and asked.commutes(at, *asked.arguments)
            outcomes = asked.function(at, *asked.arguments)
            known = commutes, [(self._id(after), answer) for after, answer in outcomes]
            self._answers[world, asked] = known
        return known

    def _steps(
        self, state: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], tuple[str, Call | None, Hashable]]]:
        """Yield the states that follow, each with who did what and was told what."""
        world, steps = state[0], []
        for number, program in enumerate(self._programs, 1):
            if state[number] == ENDED:
                continue
            asked = program.calls[state[number]]
            commutes, answers = self._answers_to(world, asked)
            if commutes:
                steps = [(number, program, asked, answers)]
                break
            steps.append((number, program, asked, answers))
        else:
            if world not in self._events:
                happened = self._happens(self._worlds[world])
                self._events[world] = [(what, self._id(after)) for what, after in happened]
            for what, after in self._events[world]:
                yield (after, *state[1:]), (what, None, None)
        for number, program, asked, answers in steps:
            for after, answer in answers:
                stands = list(state)
                stands[0], stands[number] = after, program.after(state[number], answer)
                yield self._exchanged(stands), (self._names[number - 1], asked, answer)

    def _exchanged(self, state: list[int]) -> tuple[int, ...]:
        """Order the parties that are exchangeable."""
        for number in range(1, len(state) - 1):
            same = self._programs[number - 1] is self._programs[number]
            if same and state[number] > state[number + 1]:
                state[number], state[number + 1] = state[number + 1], state[number]
        return tuple(state)


def run_alone(world: World, party: Party) -> World:
    """Let one party run to its end without anybody else; return the world after it."""
    running = party()
    try:
        asked = next(running)
        while True:
            world, answer = next(iter(asked.function(world, *asked.arguments)))
            asked = running.send(answer)
    except StopIteration:
        return world
