"""The record of a purge: an order with its content, and the parts that runs add (SPEC.md 10.3).

Order and content are written over, each time by who has the right to collect. A process may sleep
between its look at that right and what it writes, and then writes over what the next one found. So
whatever a run adds is written first under a name of its own, as a part, and whoever goes on takes
in the parts that the order does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tierstore.format.purge import PurgedContent, PurgeOrder, PurgePart
from tierstore.modelstore.reclaim.purge.content import FoundContent
from tierstore.modelstore.reclaim.purge.sharers import Shared


@dataclass(slots=True)
class Record:
    """One order while it is carried out.

    Attributes:
        order: It, with its receipt.
        content: What was found of its content.
        in_home: Both as they are in home; no content where that is to be written anew.
        sharing: What others need of its chunks.
        waits: Who needs chunks or manifests for a while only, or why nobody knows what is left.
        unread: Manifests of which nobody knows the chunks.
        is_touched: Whether this run found packs with purged frames.
        was_gone: The packs, each with its tier, that were gone before this run ended.
        has_more: Whether caches have more to drop, whatever is in ``content``.
        unread_parts: How many of its parts could not be read.
        rewritten_bytes: Bytes that this run has written anew, and no part counts yet.
        kept_bytes: Bytes that this run deleted and tiers keep, by the tier, likewise.
    """

    order: PurgeOrder
    content: FoundContent
    in_home: tuple[PurgeOrder, PurgedContent | None]
    sharing: Shared = field(default_factory=Shared)
    waits: list[str] = field(default_factory=list)
    unread: set[bytes] = field(default_factory=set)
    is_touched: bool = False
    was_gone: set[tuple[str, str]] = field(default_factory=set)
    has_more: bool = False
    unread_parts: int = 0
    rewritten_bytes: int = 0
    kept_bytes: dict[str, int] = field(default_factory=dict)

    def note(self, **fields: object) -> None:
        """Change fields of the order."""
        self.order = msgspec.structs.replace(self.order, **fields)

    def count(self, rewritten_bytes: int, kept_bytes: Mapping[str, int]) -> None:
        """Count bytes that were written anew, and that tiers keep of what was deleted."""
        kept = dict(self.order.kept_bytes)
        for tier, nbytes in kept_bytes.items():
            kept[tier] = kept.get(tier, 0) + nbytes
        rewritten = self.order.rewritten_bytes + rewritten_bytes
        self.note(kept_bytes=kept, rewritten_bytes=rewritten)

    def take_in(self, parts: Mapping[str, PurgePart]) -> None:
        """Take in parts; those that the order does not count yet are counted from now on."""
        before = self.order.parts
        new = {name: part for name, part in parts.items() if name not in (before or ())}
        for part in parts.values():
            self.content.add(part)
        if not new:
            return
        packs = {(pack.pack, pack.tier): pack for part in new.values() for pack in part.packs}
        packs |= {(pack.pack, pack.tier): pack for pack in self.order.packs}
        objects = {*self.order.objects, *(key for part in new.values() for key in part.objects)}
        counted_before = self.order.rewritten_bytes, self.order.kept_bytes
        if before is None:  # who wrote it may have read an order that counted them
            self.note(rewritten_bytes=0, kept_bytes={})
        for part in new.values():
            self.count(part.rewritten_bytes, part.kept_bytes)
        if before is None:
            self._at_least(*counted_before)
        self.note(
            packs=[packs[key] for key in sorted(packs)],
            objects=sorted(objects),
            parts=sorted({*(before or ()), *new}),
        )

    def _at_least(self, rewritten_bytes: int, kept_bytes: Mapping[str, int]) -> None:
        """Count no less than this."""
        kept = dict(self.order.kept_bytes)
        kept |= {tier: max(nbytes, kept.get(tier, 0)) for tier, nbytes in kept_bytes.items()}
        rewritten = max(self.order.rewritten_bytes, rewritten_bytes)
        self.note(kept_bytes=kept, rewritten_bytes=rewritten)

    def new_part(self, new: FoundContent) -> PurgePart | None:
        """Return what home does not have yet of this order, beside new content, if anything.

        It is counted as written by then.
        """
        before = self.in_home[0]
        known = {(pack.pack, pack.tier) for pack in before.packs}
        part = PurgePart(
            id=self.order.id,
            manifests=b"".join(sorted(new.manifests)),
            digests=b"".join(sorted(new.digests)),
            deltas=b"".join(sorted(new.deltas)),
            packs=[pack for pack in self.order.packs if (pack.pack, pack.tier) not in known],
            objects=sorted({*self.order.objects} - {*before.objects}),
            rewritten_bytes=self.rewritten_bytes,
            kept_bytes=self.kept_bytes,
        )
        self.rewritten_bytes, self.kept_bytes = 0, {}
        return None if part == PurgePart(id=self.order.id) else part
