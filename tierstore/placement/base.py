"""The contract of a placement policy: which chunks a cache of limited size holds.

A policy is pure: no I/O, no threads, no clock. Time comes with the access, in seconds, and never
runs backwards by more than a policy tolerates. The same sequence of calls gives the same answers,
so a policy can be replayed from a trace. One lock around it makes it usable from threads.

The caller drives it::

    policy.record(access)                # every read, hit or miss: updates heat, nothing else
    admission = policy.admit(access)     # on a miss, when the bytes are at hand
    if admission.admitted:
        remove each of admission.victims from the cache
        store the object                 # the policy counts it as resident from now on

``forget`` says that an object left the cache for another reason (a lost file, ``evict``, a failed
write); ``seed`` tells a new policy what the cache holds already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """One read of one object.

    Attributes:
        key: The identity of the object: a chunk's digest or a pack's id.
        size_bytes: Bytes that it takes in the cache.
        time_s: Seconds since any origin, the same for all accesses of a policy.
        cost: What a hit saves, per byte, relative to the other objects of the cache.
    """

    key: bytes
    size_bytes: int
    time_s: float
    cost: float = 1.0


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to ``admit``: whether to store the object, and what to remove first."""

    admitted: bool
    victims: tuple[bytes, ...] = ()


class PlacementPolicy(ABC):
    """Decides what one cache of ``capacity_bytes`` holds; see the module's docstring."""

    name: str
    """The name of the policy in settings and benchmarks."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes

    @abstractmethod
    def record(self, access: Access) -> None:
        """Count a read, whether the object is resident or not. Never evicts."""

    @abstractmethod
    def admit(self, access: Access) -> Admission:
        """Decide about an object that is not resident, after its read was recorded.

        A pinned object is never a victim, and an object above the capacity is not admitted. When
        the object is admitted, the policy counts the victims as gone and the object as resident.
        """

    @abstractmethod
    def victims(self, nbytes: int, time: float) -> tuple[bytes, ...]:
        """Return residents to remove, worst first: ``nbytes`` of them, or all that are not pinned.

        The policy counts them as gone. This is for a watermark, a smaller quota or a full disk.
        """

    @abstractmethod
    def seed(self, objects: Iterable[tuple[bytes, int, float]], time: float) -> None:
        """Take in what the cache holds already: key, size in bytes and heat (decayed reads)."""

    @abstractmethod
    def forget(self, key: bytes) -> None:
        """Count an object as no longer resident; unknown keys are ignored."""

    @abstractmethod
    def pin(self, key: bytes) -> None:
        """Never name this key as a victim until ``unpin``; it need not be resident yet."""

    @abstractmethod
    def unpin(self, key: bytes) -> None:
        """Undo ``pin``; unknown keys are ignored."""

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Bytes of the residents; never above the capacity but for pins and ``seed``."""

    @abstractmethod
    def explain(self, key: bytes, time: float) -> dict[str, float | str]:
        """Return why an object is or is not resident: its heat and the threshold for it."""
