"""Two nodes that share their heat against nodes that keep it to themselves: hit ratios.

Two nodes read the packs of one store; a mover on the first keeps the warm tier, of 10 % of the
footprint, by the plan of ``placement/plan.py`` every two hours. With shared heat it plans from the
reads of both, merged as the store merges them: each node's ``HeatRecorder`` hands over to Redis (a
server of its own) and to small objects in home, and the two must agree on every pack. With local
heat it knows the reads of its own node alone. A hit is a read of a pack that is warm.

Reads are the generated stream of model serving (``policies/workload.py``: 12 models, three days,
the reported seeds), divided in two ways: each read on a node by lot (both nodes serve everything),
and each run of 16 packs on a node of its own (the nodes serve different models). The first day only
fills the tier and is not counted.

Run: ``python -m benchmarks.bench_shared_heat [--seeds N]``
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import console, show, write_results
from benchmarks.policies.workload import DAY, REPORTED, Params, Stream, serving
from tests.servers.redis import redis_running
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.heat import RedisHeat
from tierstore.format.heat import PACK
from tierstore.placement.heat import HeatMap
from tierstore.placement.plan import rebalance
from tierstore.placement.scene import PackState, Scene, TierState
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.heat.home import HomeLedger
from tierstore.tiers.heat.recorder import HeatLedger, HeatRecorder, SumsLedger

EPOCH = 1.8e9
EVERY_S = 7200.0
SHARE = 0.1
PARAMS = Params(days=3, models=12)
CLOSE = 1e-3
"""Home rounds the logarithm of a node's heat each time it is written, by 5e-6 at most."""

DIVISIONS: dict[str, Callable[[int, random.Random], int]] = {
    "by lot": lambda number, rng: rng.randrange(2),
    "apart": lambda number, rng: random.Random(number // 16).randrange(2),
}


class Clock:
    """The time of the simulation, which all nodes and servers agree on."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


class Home(MemoryStore):
    """A home that stamps objects with the simulation's time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("home")
        self._clock = clock

    def info(self, key: str) -> BlobInfo:
        found = super().info(key)
        return BlobInfo(found.key, found.size, self._clock())


class Sums(RedisHeat):
    """Sums in a real Redis, at the simulation's time."""

    def __init__(self, endpoint: RedisEndpoint, clock: Clock, prefix: str) -> None:
        super().__init__(endpoint, prefix=prefix)
        self._clock = clock

    def time(self) -> float:
        return self._clock()


class Both:
    """Two ledgers that must tell the same."""

    def __init__(self, home: HeatLedger, sums: HeatLedger) -> None:
        self._home, self._sums = home, sums
        self.worst = 0.0
        self.compared = 0

    def now(self) -> float:
        return self._home.now()

    def add(self, heat: HeatMap) -> None:
        self._home.add(heat)
        self._sums.add(heat)

    def load(self) -> HeatMap:
        one, other, now = self._home.load(), self._sums.load(), self.now()
        for key, value in one.items(now):
            if key[0] != PACK:
                continue  # home keeps the hottest chunks only
            twin = other.value(key, now)
            self.worst = max(self.worst, abs(math.log(twin / value)) if twin else math.inf)
            self.compared += 1
        if self.worst > CLOSE:
            raise SystemExit(f"heat by home's objects and by Redis differ by {self.worst:.2g}")
        return other


@dataclass(slots=True)
class Count:
    """Reads and read bytes of one node, and those that were warm."""

    reads: int = 0
    hits: int = 0
    nbytes: int = 0
    hit_bytes: int = 0


@dataclass(slots=True)
class Outcome:
    """What one simulation saw."""

    nodes: list[Count] = field(default_factory=lambda: [Count(), Count()])
    moved: int = 0
    worst: float = 0.0
    compared: int = 0

    def ratio(self, *numbers: int) -> float:
        """Byte hit ratio of these nodes together."""
        chosen = [self.nodes[number] for number in numbers]
        return sum(one.hit_bytes for one in chosen) / sum(one.nbytes for one in chosen)


class Placed:
    """The packs of the store and where they are; moved by the real plan."""

    def __init__(self, stream: Stream) -> None:
        self._tiers = (
            TierState("warm", warm=True, quota_bytes=int(stream.footprint * SHARE)),
            TierState("cold", warm=False),
        )
        self._sizes: dict[bytes, int] = {}
        self.copies: dict[bytes, dict[str, float]] = {}
        self.moved = 0

    def seen(self, pack: bytes, size: int, now: float) -> bool:
        """Whether a pack is warm; a pack that is read for the first time was saved just before."""
        if pack not in self._sizes:
            self._sizes[pack] = size
            self.copies[pack] = {"cold": now}
        return "warm" in self.copies[pack]

    def plan(self, recorder: HeatRecorder, now: float) -> None:
        """Plan and carry out."""
        heat = recorder.view().packs()
        packs = [
            PackState(pack, size, heat.get(pack, 0.0) / size, self.copies[pack])
            for pack, size in self._sizes.items()
        ]
        scene = Scene(packs, self._tiers, now=now)
        plan = rebalance(scene)
        self.copies = {pack: dict(copies) for pack, copies in scene.copies.items()}
        self.moved += plan.copied_bytes
        if scene.used_bytes["warm"] > self._tiers[0].high_bytes:
            raise SystemExit("the plan overfilled the warm tier")


def simulate(
    stream: Stream, division: str, ledgers: Callable[[Clock], list[HeatLedger]]
) -> Outcome:
    """Replay the stream; ``ledgers`` gives each node the one that it hands its heat to."""
    clock, rng, outcome = Clock(), random.Random(1), Outcome()
    given = ledgers(clock)
    recorders = [HeatRecorder(ledger, clock=clock) for ledger in given]
    placed, due = Placed(stream), EPOCH + EVERY_S
    for time, number, size in zip(stream.times, stream.objects, stream.sizes, strict=True):
        while EPOCH + time >= due:
            clock.now = due
            for recorder in recorders:
                if not recorder.flush():
                    raise SystemExit("heat could not be handed over")
            placed.plan(recorders[0], due)
            due += EVERY_S
        clock.now = max(clock.now, EPOCH + time)
        node, pack = DIVISIONS[division](number, rng), number.to_bytes(32, "big")
        warm = placed.seen(pack, size, clock.now)
        recorders[node].record([ChunkRead(pack, pack, size, size)])
        if time >= DAY:
            count = outcome.nodes[node]
            count.reads += 1
            count.hits += warm
            count.nbytes += size
            count.hit_bytes += size * warm
    outcome.moved = placed.moved
    for ledger in given:
        if isinstance(ledger, Both):
            outcome.worst = max(outcome.worst, ledger.worst)
            outcome.compared += ledger.compared
    return outcome


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="how many of the reported ones")
    options = parser.parse_args()
    rows, results = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(redis_running(folder))
        for seed in REPORTED[: options.seeds]:
            stream = serving(seed, PARAMS)
            for division in DIVISIONS:
                name = f"{seed}-{division.replace(' ', '')}"

                def shared(clock: Clock, name: str = name) -> list[HeatLedger]:
                    home = Home(clock)
                    endpoint = RedisEndpoint(server.url)
                    return [
                        Both(
                            HomeLedger(home, f"node{node}", folder / f"{node}.lock", clock=clock),
                            SumsLedger(Sums(endpoint, clock, f"{name}:")),
                        )
                        for node in range(2)
                    ]

                def local(clock: Clock) -> list[HeatLedger]:
                    return [
                        HomeLedger(Home(clock), "node", folder / f"own{node}.lock", clock=clock)
                        for node in range(2)
                    ]

                for kind, ledgers in (("shared", shared), ("local", local)):
                    found = simulate(stream, division, ledgers)
                    ratios = [found.ratio(0), found.ratio(1), found.ratio(0, 1)]
                    rows.append([
                        f"seed {seed}, {division}, {kind}", *(f"{one:.1%}" for one in ratios),
                        f"{found.moved / 1e12:.2f} TB",
                        f"{found.worst:.1e} of {found.compared}" if found.compared else "",
                    ])  # fmt: skip
                    results.append({
                        "seed": seed, "division": division, "heat": kind, "outcome": found,
                        "byte_hit_ratios": ratios,
                    })  # fmt: skip
                    console.print(f"seed {seed}, {division}, {kind}: done")
    show(
        "Bytes read from the warm tier (10 % of the footprint), planned on the first node",
        ["who", "first node", "second node", "both", "moved", "home and Redis differ by"],
        rows,
    )
    write_results("shared_heat", {"share": SHARE, "every_s": EVERY_S, "runs": results})


if __name__ == "__main__":
    main()
