"""What a collection leaves for the next one, and for whoever asks (SPEC.md 10.1 and 13)."""

import itertools
from typing import Annotated

import msgspec

from tierstore.format.checks import Broken
from tierstore.format.reflog import Microseconds
from tierstore.format.sealed import Body, Hex32
from tierstore.ids import DIGEST_BYTES, split_digests

Count = Annotated[int, msgspec.Meta(ge=0)]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Packs and their bytes."""

    packs: Count
    bytes: Count


class LastCollection(msgspec.Struct, frozen=True, kw_only=True):
    """What the last collection found and did.

    Attributes:
        time_us: When it ended, in microseconds since the epoch by home's clock.
        who: The user and the host.
        condemned: How many packs it condemned.
        healed: How many chunks and layouts it healed.
        stopped: The limit that ended it; ``None`` if none did.
        down: Why tiers could not be asked, by name.
        freed: The bytes that it deleted, by the tier's name.
        tiers: What is left in each tier by its name, by what becomes of it: ``live``, ``waiting`` …
    """

    time_us: Microseconds
    who: str
    condemned: Count
    healed: Count
    stopped: str | None = None
    down: dict[str, str]
    freed: dict[str, Count]
    tiers: dict[str, dict[str, Held]]


class Growth(Body, frozen=True, kw_only=True):
    """What agents on one node have written, as rebases and folds, since the last collection.

    Attributes:
        since_us: When that collection ended; 0 before the first.
        bytes: The bytes of the packs that they have written.
    """

    since_us: Microseconds
    bytes: Count


class Collected(Body, frozen=True, kw_only=True):
    """What a collection leaves for the next one. Losing it makes packs wait longer, and no more.

    Attributes:
        time_us: When it was written, in microseconds since the epoch by home's clock.
        boot: What the writer's machine calls its running since it was started; empty if unknown.
        running_us: Microseconds that the machine had been running.
        packs: The ids of packs that nothing needs and that are not condemned, 32 bytes each,
            rising.
        since_s: Since when each of them was seen so, in seconds since the epoch by home's clock.
        writers: The ids of the leases that each condemned segment waits for, by its key.
        last: What the last collection that ended did; ``None`` before the first.
        no_waste: A digest of what a repack found nothing to do in; empty if none did.
        over_us: The time until which no removal can be undone for certain, whatever window is set
            later; 0 if there is none.
        over: The entry of a model's log of removals until which none can be undone for certain, by
            the model's name: models may have windows of their own.
        over_times_us: When the latest of these entries was written by its own time, in microseconds
            since the epoch, by the model's name: what is later has the number of a lost entry.
        logs: How many entries each ref log had, by ``<model>/<name>`` as in its keys.
    """

    time_us: Microseconds
    boot: str
    running_us: Microseconds
    packs: bytes
    since_s: list[Count]
    writers: dict[Hex32, list[Hex32]]
    last: LastCollection | None = None
    no_waste: bytes = b""
    over_us: Microseconds = 0
    over: dict[str, Count] = msgspec.field(default_factory=dict)
    over_times_us: dict[str, Microseconds] = msgspec.field(default_factory=dict)
    logs: dict[str, Count] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise ``Broken`` unless the ids rise, and each has its time."""
        ids = split_digests(self.packs)
        if len(self.packs) % DIGEST_BYTES or len(ids) != len(self.since_s):
            raise Broken("its packs and their times are not as many")
        if any(low >= high for low, high in itertools.pairwise(ids)):
            raise Broken("its packs do not rise")
