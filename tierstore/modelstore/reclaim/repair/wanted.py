"""The chunks that versions need of packs that are damaged or gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import layout_key
from tierstore.format.layout import parse_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.home import Home


@dataclass(frozen=True, slots=True)
class Wanted:
    """A chunk that a version needs.

    Attributes:
        place: Where a layout places it.
        manifest: The digest of the manifest whose layout that is; others may place it there, too.
    """

    place: ChunkPlace
    manifest: Digest


@dataclass(slots=True)
class WantedChunks:
    """What is needed of bad packs.

    Attributes:
        by_pack: The chunks that layouts place in each bad pack, by its id and their digest.
        named_by: The manifests whose layouts name each bad pack.
        above: Deltas in other packs whose bases layouts place in bad ones, by the base's digest.
    """

    by_pack: dict[bytes, dict[bytes, Wanted]] = field(default_factory=dict)
    named_by: dict[bytes, list[Digest]] = field(default_factory=dict)
    above: dict[bytes, list[Wanted]] = field(default_factory=dict)


def find_wanted(
    home: Home,
    manifests: Collection[Digest],
    is_bad: Callable[[bytes], bool],
) -> WantedChunks:
    """Read the layout of every manifest, and note what it has in bad packs.

    Args:
        home: The store's home.
        manifests: The digests of the manifests.
        is_bad: Returns whether a pack is damaged or gone.
    """
    found = WantedChunks()
    for digest, table in read_tables(home, manifests):
        bad = {pack for pack in table.pack_ids if is_bad(pack)}
        if not bad:
            continue
        for pack in bad:
            found.named_by.setdefault(pack, []).append(digest)
        lost = {place.digest for place in table if place.pack in bad}
        for place in table:
            wanted = Wanted(place, digest)
            if place.pack in bad:
                found.by_pack.setdefault(place.pack, {}).setdefault(place.digest, wanted)
            else:
                for base in lost.intersection(place.bases):
                    found.above.setdefault(base, []).append(wanted)
    return found


def read_tables(home: Home, manifests: Iterable[Digest]) -> Iterator[tuple[Digest, ChunkTable]]:
    """Yield the layouts of those manifests of which there is one that can be read, in order."""
    for digest, table in ahead(partial(read_table, home), manifests):
        if table is not None:
            yield digest, table


def read_table(home: Home, digest: Digest) -> ChunkTable | None:
    """Return the layout of a manifest; ``None`` where there is none that can be read."""
    key = layout_key(digest)
    with suppress(Damaged, NotFound, UnsupportedFormat):
        return parse_layout(home.blobs.get(key), digest, f"layout {key}")
    return None


def dtypes_of(home: Home, manifest: Digest) -> dict[bytes, str]:
    """Return the dtypes of the chunks of a version's tensors, by digest."""
    with suppress(Damaged, NotFound, UnsupportedFormat):
        return {
            chunk: tensor.dtype
            for file in home.manifest(manifest).files
            for tensor in file.tensors
            for chunk in split_digests(tensor.chunks)
        }
    return {}
