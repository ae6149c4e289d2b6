"""S3-FIFO against its paper, written down in the plainest way."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tierstore.placement.base import Access
from tierstore.placement.s3fifo import S3Fifo


class Paper:
    """Algorithm 1 of the paper for objects of size 1, with lists; the oldest come first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghost: list[int] = []
        self.freq: dict[int, int] = {}

    def read(self, key: int) -> bool:
        if key in self.freq:
            self.freq[key] = min(self.freq[key] + 1, 3)
            return True
        target = self.small
        if key in self.ghost:
            self.ghost.remove(key)
            target = self.main
        if len(self.freq) == self.capacity:
            self.evict()
        target.append(key)
        self.freq[key] = 0
        return False

    def evict(self) -> None:
        while True:
            if self.small and (len(self.small) >= 0.1 * self.capacity or not self.main):
                key = self.small.pop(0)
                if self.freq[key] > 1:
                    self.freq[key] = 0
                    self.main.append(key)
                    continue
                self.ghost.append(key)
                while len(self.ghost) > 0.9 * self.capacity:
                    self.ghost.pop(0)
            else:
                key = self.main.pop(0)
                if self.freq[key] > 0:
                    self.freq[key] -= 1
                    self.main.append(key)
                    continue
            del self.freq[key]
            return


def hits(capacity: int, keys: list[int]) -> list[bool]:
    policy, held, found = S3Fifo(capacity), set[bytes](), []
    for number, key in enumerate(keys):
        access = Access(b"%d" % key, 1, float(number))
        policy.record(access)
        found.append(access.key in held)
        if access.key not in held:
            admission = policy.admit(access)
            assert admission.admitted
            held -= set(admission.victims)
            held.add(access.key)
    return found


def by_paper(capacity: int, keys: list[int]) -> list[bool]:
    paper = Paper(capacity)
    return [paper.read(key) for key in keys]


@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=120))
def test_hits_what_the_paper_hits(capacity: int, keys: list[int]) -> None:
    assert hits(capacity, keys) == by_paper(capacity, keys)


def test_hits_what_the_paper_hits_over_long_runs() -> None:
    rng = random.Random(9)
    for capacity in (10, 50, 200):
        keys = [int(rng.paretovariate(0.5)) % 1000 for _ in range(8000)]
        assert hits(capacity, keys) == by_paper(capacity, keys)
