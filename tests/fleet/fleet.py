"""Node processes, each with a hot tier and a cache of its own, and the story they live through.

The story: a rollout of a patch, 1 → 50 → 100 % of the nodes; a rollout of a whole new version that
is taken back; and a version for all at once. Meanwhile nodes are killed and started again, and
Redis is killed in the middle of the rollout and comes back before its end. After each step every
node must serve the version that is meant for it, and its bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fleet.content import Content, sum_of
from tests.servers.process import stop
from tests.servers.redis import RedisServer
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.names.turns import takes_new
from tierstore.modelstore.store import Store
from tierstore.store import init_store

MODEL, ALIAS = "ranker", "prod"
REF = f"{MODEL}@{ALIAS}"
_ROOT = Path(__file__).parents[2]
_SETTLE_S = 120.0

Event = dict[str, Any]


@dataclass
class Node:
    """One serving process after the other under one name; their caches stay.

    Attributes:
        name: decides its turn in a rollout.
        folder: of its hot tier, its cache and its log.
        events: what its processes told, each with ``process``, which of them it was.
        kills: how often it was killed.
    """

    name: str
    folder: Path
    store: str
    poll_s: float
    hot_size: str
    events: list[Event] = field(default_factory=list)
    kills: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "node.toml").write_text(
            f'node = "{self.name}"\n'
            f'[hot]\nurl = "{self.folder / "hot"}"\nsize = "{self.hot_size}"\n'
        )
        self._told = threading.Condition()
        self._started = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start a process; it is the only one of the node."""
        env = {
            **os.environ,
            "TIERSTORE_CONFIG": str(self.folder / "node.toml"),
            "TIERSTORE_CACHE_DIR": str(self.folder / "cache"),
            "TIERSTORE_LOG": "text",
        }
        argv = [sys.executable, "-m", "tests.fleet.node", self.store, REF, str(self.poll_s)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=_ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )  # fmt: skip
        self._started += 1
        reading = threading.Thread(target=self._read, args=(self._process, self._started))
        reading.daemon = True
        reading.start()

    def _read(self, process: subprocess.Popen[str], number: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # not the half line of one that was killed
                with self._told:
                    self.events.append(json.loads(line) | {"process": number})
                    self._told.notify_all()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.kills += 1

    @property
    def served(self) -> Event | None:
        """What its present process told last of what it serves."""
        own = [e for e in self.events if e["process"] == self._started and e["event"] == "served"]
        return own[-1] if own else None

    def wait(self, number: int, deadline: float) -> bool:
        """Whether it serves a version before ``deadline`` (monotonic)."""
        with self._told:
            return self._told.wait_for(
                lambda: self.served is not None and self.served["number"] == number,
                max(0.0, deadline - time.monotonic()),
            )

    def end(self) -> Event:
        """Let it end by itself; what it told at the end."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(60)
        with self._told:
            assert self._told.wait_for(lambda: self.events[-1]["event"] == "ended", 10), (
                self.state()
            )
        assert code == 0, self.state()
        return self.events[-1]

    def abandon(self) -> None:
        """End whatever still runs."""
        if self._process is not None:
            stop(self._process)

    def state(self) -> str:
        """Where it is, for whoever wonders why it is not elsewhere."""
        log = (self.folder / "log").read_text(errors="replace")[-1500:]
        return f"{self.name}: {self.served}\n{log}"


@dataclass
class Phase:
    """A step of the story: how long it took until every node was where it belongs."""

    name: str
    seconds: float
    versions: dict[str, int]


class Fleet:
    """Nodes that follow one alias of a store.

    Args:
        nodes: not started.
        store: open, with the model's first version under the alias.
        content: of the versions.
    """

    def __init__(self, nodes: list[Node], store: Store, content: Content) -> None:
        self.nodes, self.store, self.content = nodes, store, content
        self.phases: list[Phase] = []
        self._sums: dict[int, str] = {}

    def publish(self, number: int, base: int | None = None) -> None:
        """Publish a version, as a patch of ``base`` or as a whole."""
        if base is None:
            version = self.store.save(MODEL, self.content.version(number))
        else:
            changes = self.content.changes(number)
            version = self.store.patch(f"{MODEL}@{base}", changes)
        assert version.number == number

    def meant(self, node: Node) -> int:
        """The number of the version that a node must serve now."""
        entry = self.store.history(MODEL, ALIAS, limit=1)[0]
        number = entry.version
        if entry.rollout is not None and takes_new(entry.rollout, node.name, {}):
            number = entry.rollout.version
        assert number is not None
        return number

    def settle(self, name: str, began: float) -> None:
        """Wait until every node serves what it must; its bytes are compared, too."""
        deadline = time.monotonic() + _SETTLE_S
        wanted = {node.name: self.meant(node) for node in self.nodes}
        for node in self.nodes:
            number = wanted[node.name]
            assert node.wait(number, deadline), f"{name}: {number} is meant; {node.state()}"
            assert node.served is not None
            assert node.served["sum"] == self._sum(number), f"{name}: other bytes; {node.state()}"
        self.phases.append(Phase(name, time.monotonic() - began, wanted))

    def _sum(self, number: int) -> str:
        if number not in self._sums:
            self._sums[number] = sum_of(self.content.version(number))
        return self._sums[number]


@contextmanager
def fleet(
    folder: Path, url: str, redis: RedisServer, content: Content, *, nodes: int = 8,
    poll_s: float = 1.0, hot_size: str = "1GiB", chunk_size: int = 1 << 22,
) -> Iterator[Fleet]:  # fmt: skip
    """A new store at ``url`` with its first version, and nodes that serve it.

    The environment must hold what reaches the store.
    """
    shared = TierSpec(name="redis", role="shared", url=redis.url, timeout_ms=2000)
    with init_store(url, chunk_size=chunk_size, tiers=[shared]) as store:
        store.save(MODEL, content.version(1), alias=ALIAS)
        every = [
            Node(f"node-{n}", folder / f"node-{n}", url, poll_s, hot_size) for n in range(nodes)
        ]
        try:
            yield Fleet(every, store, content)
        finally:
            for node in every:
                node.abandon()


def _killed(nodes: list[Node]) -> None:
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()


def play(fleet: Fleet, redis: RedisServer, told: Callable[[Phase], None] = lambda _: None) -> None:
    """Live through the story.

    Raises ``AssertionError`` as soon as a node does not come to serve what it must.
    """
    store, nodes, rollouts = fleet.store, fleet.nodes, fleet.store.rollouts

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        fleet.settle(name, began)
        told(fleet.phases[-1])

    with phase("version 1, all start"):
        for node in nodes:
            node.start()
    fleet.publish(2, base=1)
    with phase("patch 2 at 1 %, two killed"):
        rollouts.start(MODEL, ALIAS, store.resolve(f"{MODEL}@2"), stages=[100, 5000, 10_000])
        _killed(nodes[:2])
    with phase("at 50 %, Redis killed, two killed"):
        redis.kill()
        rollouts.step(MODEL, ALIAS)
        _killed(nodes[2:4])
    with phase("at 100 %, Redis back"):
        redis.start()
        rollouts.step(MODEL, ALIAS)
    rollouts.step(MODEL, ALIAS)  # it is over
    fleet.publish(3)
    with phase("version 3 at 50 %"):
        rollouts.start(MODEL, ALIAS, store.resolve(f"{MODEL}@3"), stages=[5000, 10_000])
    with phase("taken back"):
        store.rollback(MODEL, ALIAS)
    fleet.publish(4, base=2)
    with phase("patch 4 for all, three killed"):
        store.alias(MODEL, ALIAS, f"{MODEL}@4")
        _killed(nodes[4:7])


@dataclass
class Told:
    """What a node's processes told, summed up.

    Attributes:
        served: the versions in order, over all its processes.
        kills: how often it was killed.
        fetched: bytes by tier, beside this node's own.
        staleness: seconds from meant to served, of each version that a running process turned to.
        starts: seconds from the start of a process until it served.
        requests: answered by processes that ended by themselves.
        mixed: those that saw another version than the one that was served.
    """

    served: list[int]
    kills: int
    fetched: Mapping[str, int]
    staleness: list[float]
    starts: list[float]
    requests: int
    mixed: int


def summed_up(node: Node, last: Event) -> Told:
    """Sum up what a node told until ``last``."""
    served = [event for event in node.events if event["event"] == "served"]
    firsts = {
        id(next(e for e in served if e["process"] == n)) for n in {e["process"] for e in served}
    }
    fetched: dict[str, int] = {}
    for event in served:
        for tier, nbytes in event["fetched"].items():
            fetched[tier] = fetched.get(tier, 0) + nbytes
    return Told(
        served=[event["number"] for event in served],
        kills=node.kills,
        fetched=fetched,
        staleness=[event["staleness_s"] for event in served if id(event) not in firsts],
        starts=[event["up_s"] for event in served if id(event) in firsts],
        requests=last["requests"],
        mixed=last["mixed"],
    )
