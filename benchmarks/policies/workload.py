"""A synthetic week of model serving, as the tier below the serving nodes sees it.

Objects are packs of 64 MiB (a model's last one is smaller) and adapters of 10 to 200 MiB. What
happens, with the parameters of ``Params`` in brackets:

* ``models`` base models, 0.5 to 30 GB each (log-uniform), loaded ``loads_per_day`` times a day with
  Zipf popularity, exponent drawn between 0.8 and 1.0 for each seed. In a public trace of a
  generative AI service the top base model takes 27 % of the requests, the second 20 %.
* A diurnal wave: the rate is 1 + ``wave`` x sin over the day, highest at 15:00.
* ``partial`` of the loads read only one run of 10 to 50 % of the packs (one stage, one shard).
* Packs of a load come in order, ``pack_s`` apart: a base model's median load then takes about
  23 s, as in the same trace; loads overlap.
* Every model gets a new version every day at an hour of its own, with ``unchanged`` of its packs
  the same as before, rolled out to 1, 10, 50 and 100 % of the loads in steps of ``ramp_step_s``.
* ``nodes`` nodes, each serving ``node_models`` models drawn by popularity, restart once a day at
  random and then read everything they serve.
* A nightly scan at 03:00 reads every pack of every current version, over ``scan_s``.
* ``swaps`` pairs of models swap their popularity every midnight.
* ``adapters`` adapters: 28 % are loaded exactly once, the others ``adapter_loads_per_day`` times a
  day in total, Zipf 1.0 (28 % once and a median adapter load of 4.4 s: the same trace).

Sources of the facts: the trace of the generative AI service above; multi-tier loading of models,
ServerlessLLM, arXiv 2401.14351; frequent versions that change a part of the weights, Monolith,
arXiv 2209.07663. The sizes, rates, and counts are chosen, not measured.

``REPORTED`` and ``DEVELOPMENT`` seeds are fixed: what is tuned is tuned on the second, what is
published comes from the first.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

REPORTED = (11, 23, 37, 53, 71)
DEVELOPMENT = (101, 103, 107, 109)

MIB = 1 << 20
DAY = 86400.0
RAMP = (0.01, 0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Params:
    """See the module's docstring."""

    days: int = 7
    models: int = 40
    smallest: float = 0.5e9
    largest: float = 30e9
    pack: int = 64 * MIB
    loads_per_day: int = 400
    wave: float = 0.6
    partial: float = 0.3
    pack_s: float = 0.4
    unchanged: float = 0.3
    ramp_step_s: float = 3600.0
    nodes: int = 8
    node_models: int = 4
    scan_s: float = 3600.0
    swaps: int = 3
    adapters: int = 1500
    once: float = 0.28
    adapter_loads_per_day: int = 600


@dataclass(slots=True)
class Stream:
    """Accesses in order: seconds, object number, and bytes of each."""

    name: str
    times: list[float] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def footprint(self) -> int:
        """Bytes of the distinct objects."""
        return sum(dict(zip(self.objects, self.sizes, strict=True)).values())


class _Model:
    """A model's packs by version; version v is published at ``first + v`` days."""

    def __init__(self, world: _World) -> None:
        rng, params = world.rng, world.params
        nbytes = params.smallest * (params.largest / params.smallest) ** rng.random()
        whole, rest = divmod(int(nbytes), params.pack)
        sizes = [params.pack] * whole + ([rest] if rest else [])
        self.hour = rng.random() * DAY
        self.versions = [[world.new(size) for size in sizes]]
        for _ in range(params.days):
            self.versions.append(
                [
                    old if rng.random() < params.unchanged else world.new(size)
                    for old, size in zip(self.versions[-1], sizes, strict=True)
                ]
            )

    def at(self, time: float, world: _World) -> list[int]:
        """The packs that a load at ``time`` gets: the ramp decides between two versions."""
        age = time - self.hour
        number = math.floor(age / DAY) + 1
        step = int((age % DAY) / world.params.ramp_step_s)
        if number > 0 and world.rng.random() >= RAMP[min(step, len(RAMP) - 1)]:
            number -= 1
        return self.versions[number]


def _zipf(count: int, exponent: float) -> list[float]:
    return list(accumulate(1.0 / rank**exponent for rank in range(1, count + 1)))


class _World:
    def __init__(self, seed: int, params: Params) -> None:
        self.rng, self.params = random.Random(seed), params
        self.sizes: list[int] = []
        self.events: list[tuple[float, int]] = []
        self.popularity = _zipf(params.models, 0.8 + 0.2 * self.rng.random())
        self.models = [_Model(self) for _ in range(params.models)]

    def new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def drawn(self, cumulative: list[float]) -> int:
        return bisect_right(cumulative, self.rng.random() * cumulative[-1])

    def moment(self, day: int) -> float:
        """A time on that day, by the diurnal wave."""
        while True:
            time = self.rng.random() * DAY
            rate = 1.0 + self.params.wave * math.sin(2 * math.pi * (time / DAY - 0.375))
            if self.rng.random() * (1.0 + self.params.wave) < rate:
                return day * DAY + time

    def read(self, packs: list[int], start: float, apart: float) -> None:
        self.events.extend((start + i * apart, pack) for i, pack in enumerate(packs))

    def load(self, model: _Model, time: float) -> None:
        packs = model.at(time, self)
        if self.rng.random() < self.params.partial:
            count = max(1, round(len(packs) * (0.1 + 0.4 * self.rng.random())))
            first = int(self.rng.random() * (len(packs) - count + 1))
            packs = packs[first : first + count]
        self.read(packs, time, self.params.pack_s)

    def day(self, day: int, serving: list[list[_Model]]) -> None:
        rng, params = self.rng, self.params
        for _ in range(params.loads_per_day):
            self.load(self.models[self.drawn(self.popularity)], self.moment(day))
        for models in serving:
            time = (day + rng.random()) * DAY
            for model in models:
                packs = model.at(time, self)
                self.read(packs, time, params.pack_s)
                time += len(packs) * params.pack_s
        current = [pack for model in self.models for pack in model.at(day * DAY, self)]
        self.read(current, (day + 0.125) * DAY, params.scan_s / len(current))

    def swap(self) -> None:
        for _ in range(self.params.swaps):
            one, other = (int(self.rng.random() * len(self.models)) for _ in range(2))
            self.models[one], self.models[other] = self.models[other], self.models[one]

    def adapters(self) -> None:
        rng, params = self.rng, self.params
        adapters = [self.new(int(MIB * 10 * 20 ** rng.random())) for _ in range(params.adapters)]
        once = round(params.once * len(adapters))
        for adapter in adapters[:once]:
            self.read([adapter], self.moment(int(rng.random() * params.days)), 0.0)
        popularity = _zipf(len(adapters) - once, 1.0)
        for day in range(params.days):
            for _ in range(params.adapter_loads_per_day):
                self.read([adapters[once + self.drawn(popularity)]], self.moment(day), 0.0)


def serving(seed: int, params: Params | None = None) -> Stream:
    """The stream of one seed: about 300,000 accesses; the same for ever."""
    params = params or Params()
    world = _World(seed, params)
    nodes = [
        [world.models[world.drawn(world.popularity)] for _ in range(params.node_models)]
        for _ in range(params.nodes)
    ]
    for day in range(params.days):
        world.day(day, nodes)
        world.swap()
    world.adapters()
    world.events.sort()
    times, objects = zip(*world.events, strict=True)
    sizes = [world.sizes[number] for number in objects]
    return Stream(f"serving-{seed}", list(times), list(objects), sizes)
