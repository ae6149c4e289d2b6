"""History: who published, moved, derived or removed what, when and why, over all ref logs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import merge, nlargest
from itertools import islice

from tierstore.errors import NotFound
from tierstore.format.keys import ALIASES, VARIANTS, VERSION_LOG
from tierstore.format.reflog import RefEntry
from tierstore.ids import ModelRef
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import Removals


@dataclass(frozen=True, slots=True)
class Logged:
    """One entry of a ref log; ``ref`` names the log: ``m``, ``m@prod`` or ``m@+bf16``."""

    ref: ModelRef
    entry: RefEntry


def history_of(home: Home, ref: ModelRef) -> Iterator[Logged]:
    """Yield the entries of one log, newest first: of a model's versions, an alias or a variant.

    With those of the versions come those of their removals, by the writers' clocks, without what
    was announced only.

    Raises:
        NotFound: There is no such log, or nothing in it.
    """
    name = VERSION_LOG
    removals: list[RefEntry] = []
    if ref.alias is not None:
        name = ALIASES + ref.alias
    elif ref.variant is not None:
        name = VARIANTS + ref.variant
    else:
        removals = [one for one in Removals(home).entries(ref.model) if one.action != "announce"]
    found = False
    for entry in merge(
        home.log(ref.model, name).entries(), removals, key=lambda one: one.time_us, reverse=True
    ):
        found = True
        yield Logged(ref, entry)
    if not found:
        raise NotFound(f"there is no log of {ref}; 'tierstore log' without a name shows all")


def whole_history(home: Home, limit: int | None = None) -> list[Logged]:
    """Return the entries of all logs of a store, newest first by the writers' clocks.

    Args:
        home: The store's home.
        limit: The most entries to return; ``None`` for all.
    """
    refs = [
        ref
        for model in home.models()
        for ref in [
            ModelRef(model),
            *(ModelRef(model, alias=alias) for alias in home.aliases(model)),
            *(ModelRef(model, variant=variant) for variant in home.variants(model)),
        ]
    ]

    def newest(ref: ModelRef) -> list[Logged]:
        try:
            return list(islice(history_of(home, ref), limit))
        except NotFound:  # a folder without an entry
            return []

    with ThreadPoolExecutor(8, "tierstore-history") as pool:
        every = [logged for part in pool.map(newest, refs) for logged in part]
    return nlargest(limit or len(every), every, key=lambda one: one.entry.time_us)
