"""Purge orders, their chunks and what nodes say to them, as home keeps them (SPEC.md 10.3)."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat, UsageError
from tierstore.forks import begin
from tierstore.format.keys import (
    ACKS,
    GROWTH,
    NODES,
    PURGE_PARTS,
    PURGED,
    PURGES,
    REPORTS,
    purge_part_key,
    purge_part_of,
    segment,
    unsegment,
)
from tierstore.format.purge import (
    Acknowledgement,
    NodeNote,
    PurgedContent,
    PurgeOrder,
    PurgePart,
)
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import HEAT
from tierstore.modelstore.home.leases import in_force
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.readable import read_readable

_BY_NODE = ((HEAT, 0, 0), (GROWTH, 0, 0), (NODES, 0, 1), (REPORTS, 2, 0))
"""Prefixes of objects that a node writes, with how many segments are before and behind its name."""

_GONE = "gone"
"""The end of the key of a note that says that a node is gone; a place is 32 hex digits."""

_NOT_RENEWED = timedelta(hours=2)
"""How old the note of a place is that no agent writes any more: they do once an hour."""

_CHUNKS_AT_ONCE = 1 << 20
_log = logging.getLogger("tierstore.purge")


def together(orders: Iterable[PurgeOrder]) -> Iterator[list[PurgeOrder]]:
    """Yield orders in groups that are gone on with together, in the order that they have.

    What many orders have to do with packs and caches is done once for a group, with all its chunks
    in memory. So a group has 10^6 of them at most, or is one order.
    """
    group: list[PurgeOrder] = []
    chunks = 0
    for order in orders:
        if group and chunks + order.chunks > _CHUNKS_AT_ONCE:
            yield group
            group, chunks = [], 0
        group.append(order)
        chunks += order.chunks
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class SaidGone:
    """What was said of a node that will not come back.

    Attributes:
        since: When, by home's clock.
        who: The user and the host; empty where the note cannot be read.
        reason: Why; empty where nothing was said.
    """

    since: datetime
    who: str = ""
    reason: str = ""


@dataclass(slots=True)
class Nodes:
    """The nodes of a store.

    Attributes:
        places: The nodes of all places that have an agent, by the place.
        seen: When each node was seen last, by home's clock; ``None`` for a host that a reader's
            lease alone names.
        gone: Who said that a node is gone, of those that were not seen since.
        given_up: Who said it of a place, of those that no agent used then: the node of one may use
            other caches now.
    """

    places: dict[str, str] = field(default_factory=dict)
    seen: dict[str, datetime | None] = field(default_factory=dict)
    gone: dict[str, SaidGone] = field(default_factory=dict)
    given_up: dict[str, SaidGone] = field(default_factory=dict)


class Orders:
    """The purge orders of one store.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._blobs = home_blobs
        self._done: dict[str, tuple[tuple[int, float], PurgeOrder]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def create(self, order: PurgeOrder, content: PurgedContent) -> None:
        """Write a new order; its content comes first, as nobody finds that without the order.

        Whoever sees the order may carry it out: from then on it is not written over from here, or
        what they found would be lost to who slept meanwhile.
        """
        create_once(self._blobs, PURGED + order.id, seal_body(Kind.PURGED, content))
        create_once(self._blobs, PURGES + order.id, seal_body(Kind.PURGE, order))

    def restore(self, order: PurgeOrder) -> None:
        """Write an order anew that was lost; one that can be read by now stays."""
        if not create_once(self._blobs, PURGES + order.id, seal_body(Kind.PURGE, order)):
            try:
                self.get(order.id)
            except Damaged:
                self.put(order)

    def put(self, order: PurgeOrder) -> None:
        """Write an order, over what it was before, by who has read it with the right to collect."""
        self._blobs.put(PURGES + order.id, seal_body(Kind.PURGE, order))

    def get(self, name: str) -> PurgeOrder:
        """Return an order by its id."""
        key = PURGES + name
        return unseal_body(Kind.PURGE, self._blobs.get(key), PurgeOrder, key)

    def find(self, name: str) -> PurgeOrder:
        """Return the order whose id begins so, or the newest one that names a version.

        Args:
            name: The beginning of an id, or a version such as ``ranker@3``.

        Raises:
            NotFound: There is none.
            UsageError: There are several.
        """
        if "@" in name:
            for order in self.all():
                if name == f"{order.model}@{order.version}":
                    return order
            raise NotFound(f"{name} was not purged; 'tierstore purge ls' lists what was")
        found = [one for one in self.names() if one.startswith(name)]
        if not found or not name:
            raise NotFound(f"there is no receipt {name!r}; 'tierstore purge ls' lists them")
        if len(found) > 1:
            raise UsageError(f"{len(found)} receipts begin with {name!r}: give more of the id")
        return self.get(found[0])

    def names(self) -> list[str]:
        """Return the ids of all orders."""
        return [info.key.removeprefix(PURGES) for info in self._blobs.list(PURGES)]

    def all(self) -> list[PurgeOrder]:
        """Return all orders that can be read, the newest first.

        Those that are done are read again when they were written again.
        """
        there = {info.key: (info.size, info.mtime) for info in self._blobs.list(PURGES)}
        with self._lock:
            known = {
                key: order for key, (seen, order) in self._done.items() if there.get(key) == seen
            }
        found = list(known.values())
        keys = [key for key in there if key not in known]
        for key, order in read_readable(self._blobs, keys, Kind.PURGE, PurgeOrder, _log).items():
            found.append(order)
            if order.done:
                with self._lock:
                    self._done[key] = there[key], order
        return sorted(found, key=lambda one: (-one.time_us, one.id))

    def is_begun(self, order: PurgeOrder) -> bool:
        """Return whether anybody has carried an order out in part: its version was purged then."""
        if order.updated_us:
            return True
        try:
            content = self.content(order.id)
        except (Damaged, UnsupportedFormat):
            return True
        return content is not None and content.sweep > 0

    def drop(self, name: str) -> None:
        """Delete an order of a version that was not purged."""
        self._blobs.delete([PURGED + name, PURGES + name])

    def drop_content(self, name: str) -> None:
        """Delete content without an order; whoever is about to write that finds it again."""
        self._blobs.delete([PURGED + name])

    def put_content(self, content: PurgedContent) -> None:
        """Write what was found of the content of an order, over what was found before."""
        self._blobs.put(PURGED + content.id, seal_body(Kind.PURGED, content))

    def content(self, name: str) -> PurgedContent | None:
        """Return what was found of the content of an order by its id; ``None``: nothing yet."""
        key = PURGED + name
        try:
            return unseal_body(Kind.PURGED, self._blobs.get(key), PurgedContent, key)
        except NotFound:
            return None

    def add_part(self, part: PurgePart) -> str:
        """Write what was found or done for an order, under a name of its own; return the name.

        Whoever writes the order or its content over, after a sleep, takes nothing of it away.
        """
        name = uuid.uuid4().hex
        data = seal_body(Kind.PURGE_PART, part)
        create_once(self._blobs, purge_part_key(part.id, name), data)
        return name

    def part_names(self) -> dict[str, set[str]]:
        """Return the names of all parts, by the ids of their orders, with one LIST."""
        found: dict[str, set[str]] = {}
        for info in self._blobs.list(PURGE_PARTS):
            if (ids := purge_part_of(info.key)) is not None:
                found.setdefault(ids[0], set()).add(ids[1])
        return found

    def parts(self, name: str, wanted: Iterable[str]) -> dict[str, PurgePart]:
        """Return parts of an order that can be read, by their names."""
        keys = {purge_part_key(name, one): one for one in sorted(wanted)}
        found = read_readable(self._blobs, keys, Kind.PURGE_PART, PurgePart, _log)
        return {keys[key]: part for key, part in found.items()}

    def acknowledge(self, said: Acknowledgement) -> None:
        """Write what the agent of a place has dropped, over what it said before."""
        data = seal_body(Kind.ACKNOWLEDGEMENT, said)
        self._blobs.put(f"{ACKS}{said.id}/{said.place}", data)

    def acknowledged(self, names: Iterable[str], place: str) -> dict[str, Acknowledgement]:
        """Return what the agent of a place has said to these orders, by their ids."""
        return {said.id: said for said in self._said([f"{ACKS}{one}/{place}" for one in names])}

    def acknowledgements(self, name: str) -> dict[str, Acknowledgement]:
        """Return what agents have said to an order, by their places."""
        keys = [info.key for info in self._blobs.list(f"{ACKS}{name}/")]
        return {said.place: said for said in self._said(keys)}

    def _said(self, keys: list[str]) -> Iterable[Acknowledgement]:
        kind = Kind.ACKNOWLEDGEMENT
        return read_readable(self._blobs, keys, kind, Acknowledgement, _log).values()

    def note(self, note: NodeNote) -> None:
        """Say that there is an agent on a node."""
        key = f"{NODES}{segment(note.node)}/{note.place}"
        self._blobs.put(key, seal_body(Kind.NODE, note))

    def say_gone(self, note: NodeNote) -> None:
        """Say that what a node keeps will never be read again, as it will not come back."""
        key = f"{NODES}{segment(note.node)}/{_GONE}"
        self._blobs.put(key, seal_body(Kind.NODE, note))

    def _said_gone(self, since: Mapping[str, datetime]) -> dict[str, SaidGone]:
        """Return what the notes say of nodes that are gone; it counts by when it was written."""
        found = {node: SaidGone(when) for node, when in since.items()}
        keys = {f"{NODES}{segment(node)}/{_GONE}": node for node in since}
        for key, note in read_readable(self._blobs, keys, Kind.NODE, NodeNote, _log).items():
            found[keys[key]] = SaidGone(since[keys[key]], note.who, note.message)
        return found

    def knows(self, name: str, node: str, place: str) -> bool:
        """Return whether a place has a note, or has said anything to an order."""
        keys = [f"{ACKS}{name}/{place}", f"{NODES}{segment(node)}/{place}"]
        return bool(self._blobs.present(keys))

    def nodes(self) -> Nodes:
        """Return the nodes of the store, by what they write.

        A host that holds a reader's lease is one as well, unless a node has its name. Of one that
        was said to be gone nothing counts that is older than that.
        """
        found, gone = Nodes(), dict[str, datetime]()
        noted = dict[str, datetime]()
        for prefix, before, behind in _BY_NODE:
            for info in self._blobs.list(prefix):
                name = _node_of(info, prefix, before, behind)
                seen = datetime.fromtimestamp(info.mtime, UTC)
                last = info.key.rpartition("/")[2]
                if prefix == NODES and last == _GONE:
                    gone[name] = seen
                elif name:
                    found.seen[name] = max(found.seen.get(name) or seen, seen)
                    if prefix == NODES:
                        found.places[last], noted[last] = name, seen
        said = self._said_gone(gone)
        for name, since in gone.items():
            if (found.seen.get(name) or since) <= since:
                found.gone[name] = said[name]
        for place, node in found.places.items():
            if gone.get(node, noted[place]) - noted[place] >= _NOT_RENEWED:
                found.given_up[place] = said[node]
        for lease in in_force(self._blobs, "reader"):
            found.seen.setdefault(lease.host, None)
            found.gone.pop(lease.host, None)
        return found


def _node_of(info: BlobInfo, prefix: str, before: int, behind: int) -> str:
    parts = info.key.removeprefix(prefix).split("/")
    if len(parts) != before + 1 + behind:
        return ""
    try:
        return unsegment(parts[before])
    except UnicodeDecodeError:
        return ""
