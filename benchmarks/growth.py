"""Operations of a store whose costs are watched as it grows, and how one of them is counted.

Each operation is a generator: what it does up to its first ``yield`` is preparation, and what it
does from there to the next one, or to its end, is counted. They leave the store as they found it,
but for some more versions of the model that they are about.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast
from unittest.mock import patch

import numpy as np
from starlette.requests import Request

import tierstore
from benchmarks.counted import KINDS, Counted
from benchmarks.generated import Shape, generate
from tierstore import wiring
from tierstore.blobs.base import BlobStore
from tierstore.cli.kit.app import run
from tierstore.serving.agent import Agent
from tierstore.serving.collecting import CollectingPlan
from tierstore.serving.follower import Follower
from tierstore.serving.hub.endpoints import Call
from tierstore.serving.hub.reading import Reading
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Caller
from tierstore.store import Store

PROBE = "probe"
"""A small model of one version, beside those that make a store large; ``prod`` points to it."""

_ROWS = 64


@dataclass(slots=True)
class Place:
    """A store, and what is counted of it.

    Attributes:
        folder: Folder of the store; what this node keeps for itself lies beside it.
        model: The model that operations on a single one are about.
        requests: Requests of this process so far by kind, and bytes.
        page: So many keys are listed by one request.
    """

    folder: Path
    model: str = PROBE
    requests: Counter[str] = field(default_factory=Counter)
    page: int = 1000

    def open(self) -> Store:
        return tierstore.open(self.folder)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what stores that are opened in the block ask of their homes, commands' too."""
        plain, cache = wiring.open_home, str(self.folder) + "-cache"

        def open_home(url: str, *, create: bool = False) -> BlobStore:
            return Counted(plain(url, create=create), self.requests, self.page)

        with (
            patch.object(wiring, "open_home", open_home),
            patch.dict(os.environ, TIERSTORE_CACHE_DIR=cache, TIERSTORE_STORE=str(self.folder)),
        ):
            yield


Operation: TypeAlias = Callable[[Place], Iterator[None]]


def tensors(number: int) -> dict[str, np.ndarray[Any, Any]]:
    """A tiny model, one row of which differs from that of any other number."""
    weights = np.random.default_rng(0).standard_normal((_ROWS, 64), np.float32)
    weights[number % _ROWS] = number
    return {"w": weights, "b": np.arange(9.0)}


def make(folder: Path, shape: Shape, *, patches: int = 0, model: str = PROBE) -> Place:
    """Make a store of a shape with the probe, and collect its garbage once as an agent does.

    Args:
        folder: Its folder, which must not exist.
        shape: What makes it large; no models for none.
        patches: How many patches the probe gets, folded now and then as they are by default.
        model: The model that operations on a single one are about.
    """
    place = Place(folder, model)
    generate(folder, shape)
    with place.counted(), place.open() as store:
        store.reclaim.enable(wait_s=0)
        store.save(PROBE, tensors(0), alias="prod", base=None)
        for number in range(patches):
            store.patch(PROBE, _change(number))
        if model != PROBE:
            store.alias(model, "prod", model)
    _age(folder)
    with place.counted():
        _command("gc", "--quiet")
    return place


def _age(folder: Path) -> None:
    """Make a store a day old: collectors read again what was written just before they ran."""
    then = time.time() - 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def _change(number: int) -> dict[str, tierstore.Rows]:
    row = np.full((1, 64), number, np.float32)
    return {"w": tierstore.Rows([number % _ROWS], row)}


def _command(*words: str) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = run(words)
    if code:
        raise SystemExit(f"tierstore {' '.join(words)} exited with {code}")


def command(*words: str, of_model: bool = False) -> Operation:
    """A command of the command line."""

    def operation(place: Place) -> Iterator[None]:
        yield
        _command(*words, *([place.model] if of_model else []))

    return operation


def on_a_new_node(operation: Operation) -> Operation:
    """An operation on a node that has not seen this store before."""

    def first(place: Place) -> Iterator[None]:
        with patch.dict(os.environ, TIERSTORE_CACHE_DIR=f"{place.folder}-new-{os.getpid()}"):
            yield from operation(place)

    return first


def open_(place: Place) -> Iterator[None]:
    yield
    store = place.open()
    yield
    store.close()


def resolve(place: Place) -> Iterator[None]:
    with place.open() as store:
        yield
        store.resolve(f"{place.model}@prod")
        yield


def load(place: Place) -> Iterator[None]:
    with place.open() as store:
        yield
        dict(store.load(place.model))
        yield


def save(place: Place) -> Iterator[None]:
    """Another version, on a node that has saved before."""
    with place.open() as store:
        store.save(place.model, tensors(1))
        yield
        store.save(place.model, tensors(2))
        yield


def first_save(place: Place) -> Iterator[None]:
    with place.open() as store:
        yield
        store.save(place.model, tensors(os.getpid()))
        yield


def save_new_model(place: Place) -> Iterator[None]:
    with place.open() as store:
        store.save(place.model, tensors(1))
        yield
        store.save(f"new-{os.getpid()}", tensors(3))
        yield


def patch_(place: Place) -> Iterator[None]:
    with place.open() as store:
        before = store.save(place.model, tensors(4))
        yield
        store.patch(before, _change(1))
        yield


def poll(place: Place) -> Iterator[None]:
    """A follower's look at a reference that has not moved."""
    with (
        place.open() as store,
        Follower(store, f"{place.model}@prod", lambda update: None, poll_s=3600) as follower,
    ):
        follower.settle(60)
        yield
        follower._round()
        yield


def _agent(store: Store) -> Agent:
    # what a scrub reads of the data depends on the time, and collections are counted as such
    return Agent(store, scrub_s=None, collecting=CollectingPlan(every=timedelta(days=1)))


def first_round(place: Place) -> Iterator[None]:
    with place.open() as store:
        agent = _agent(store)
        yield
        agent.round()
        yield


def later_round(place: Place) -> Iterator[None]:
    with place.open() as store:
        agent = _agent(store)
        agent.round()
        yield
        agent.round()
        yield


def gateway_models(place: Place, before: int = 0) -> Iterator[None]:
    """The list of models as the gateway gives it: one page."""
    with place.open() as store:
        reading = Reading(Repos(store), cast(Any, None), cast(Any, None))
        scope = {
            "type": "http", "query_string": b"", "headers": [], "scheme": "http",
            "path": "/api/models", "raw_path": b"/api/models", "server": ("hub", 80),
        }  # fmt: skip
        for _ in range(before):
            reading.models(Call(Request(scope), Caller(None, ("*",))))
        yield
        reading.models(Call(Request(scope), Caller(None, ("*",))))
        yield


OPERATIONS: dict[str, Operation] = {
    "open": open_,
    "resolve": resolve,
    "load": load,
    "follower's poll": poll,
    "first ls": on_a_new_node(command("ls")),
    "ls": command("ls"),
    "ls MODEL": command("ls", of_model=True),
    "du": command("du"),
    "df": command("df"),
    "check": command("check"),
    "gc, nothing new": command("gc"),
    "forget --dry-run": command("forget", "--keep-last", "1", "--dry-run", of_model=True),
    "gateway's models": gateway_models,
    "gateway's models, again": partial(gateway_models, before=1),
    "agent, first round": first_round,
    "agent, later round": later_round,
    "first save": on_a_new_node(first_save),
    "save": save,
    "save, new model": save_new_model,
    "patch": patch_,
}


@dataclass(slots=True)
class Cost:
    """What an operation took: seconds of CPU, requests together and by kind, bytes, peak memory."""

    cpu_s: float
    requests: int
    by_kind: dict[str, int]
    read_bytes: int
    written_bytes: int
    peak_bytes: int = 0


def cost_of(operation: Operation, place: Place) -> Cost:
    """Run an operation in this process."""
    with place.counted():
        steps = operation(place)
        next(steps)
        before, began = Counter(place.requests), _cpu_s()
        next(steps, None)
        cpu_s, found = _cpu_s() - began, Counter(place.requests) - before
        for _ in steps:
            pass
    by_kind = {kind: found[kind] for kind in KINDS}
    return Cost(cpu_s, sum(by_kind.values()), by_kind, found["read"], found["written"])


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def exponent(costs: Mapping[int, float]) -> float:
    """Return the exponent of growth of a cost: the slope of a line through its logarithms.

    Args:
        costs: The cost by the size of the store, of two sizes at least.
    """
    known = {size: cost for size, cost in costs.items() if cost > 0}
    if len(known) < 2:
        return 0.0
    x: Sequence[float] = [math.log(size) for size in known]
    return statistics.linear_regression(x, [math.log(cost) for cost in known.values()]).slope
