"""The offline reference: Belady's rule with bypass.

On a miss it keeps, of the residents and the object that was just read, those whose next use is
nearest, as far as they fit; the object itself goes first when its own next use is the farthest.
For objects of one size that misses the fewest bytes of all policies. For mixed sizes it is a strong
reference and no bound: the exact optimum is NP-hard (Chrobak, Woeginger, Makino, Xu, "Caching is
hard, even in the fault model", ESA 2010).
"""

from __future__ import annotations

from heapq import heappop, heappush

from benchmarks.policies.workload import Stream


def next_uses(objects: list[int]) -> list[int]:
    """For each access the index of the object's next one; the length of the stream for none."""
    never = len(objects)
    following, seen = [never] * never, dict[int, int]()
    for index in range(never - 1, -1, -1):
        following[index] = seen.get(objects[index], never)
        seen[objects[index]] = index
    return following


def belady(stream: Stream, capacity: int, following: list[int]) -> tuple[int, int]:
    """Missed bytes and filled bytes."""
    never = len(following)
    resident = dict[int, tuple[int, int]]()
    farthest = list[tuple[int, int]]()
    used = missed = filled = 0
    for obj, size, after in zip(stream.objects, stream.sizes, following, strict=True):
        hit = obj in resident
        if not hit:
            missed += size
        if after == never:
            if hit:
                used -= resident.pop(obj)[1]
            continue
        if not hit and size > capacity:
            continue
        resident[obj] = (after, size)
        used += 0 if hit else size
        filled += 0 if hit else size
        heappush(farthest, (-after, obj))
        while used > capacity:
            use, victim = heappop(farthest)
            if victim in resident and resident[victim][0] == -use:
                used -= resident.pop(victim)[1]
                filled -= size if victim == obj else 0
    return missed, filled
