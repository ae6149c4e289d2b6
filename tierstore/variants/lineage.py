"""Lineage: the versions that a version was made from, and those made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.ids import Digest
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version


@dataclass(slots=True)
class Node:
    """One version in a tree.

    Attributes:
        digest: Digest of the manifest.
        names: References of versions and variants with this content; empty if none is left.
        relation: Relation to its parent, such as ``derived-from``; empty for a root.
        children: Versions that were made from it.
        asked: Whether it is the version that was asked for.
    """

    digest: Digest
    names: list[str] = field(default_factory=list)
    relation: str = ""
    children: list[Node] = field(default_factory=list)
    asked: bool = False

    def __repr__(self) -> str:
        names = " = ".join(self.names) or self.digest.short
        how = f" {self.relation}" if self.relation else ""
        return f"<Node {names}{how}: {self.children}>" if self.children else f"<Node {names}{how}>"


def lineage(store: Store, ref: str | Version) -> list[Node]:
    """Return the trees that contain a version, from its oldest ancestors down.

    Reads the manifest of every version and variant of the store once. A version whose manifest
    cannot be read is left out; ``tierstore check`` names it.
    """
    asked = store.resolve(ref)
    nodes: dict[bytes, Node] = {}
    parents: dict[bytes, list[tuple[bytes, str]]] = {}
    for version in _everything(store):
        node = nodes.setdefault(version.digest.raw, Node(version.digest))
        node.names.append(str(version))
        if version.digest.raw in parents:
            continue
        try:
            manifest = store._parts.home.manifest(version.digest)
        except (Damaged, NotFound, UnsupportedFormat):
            parents[version.digest.raw] = []
            continue
        parents[version.digest.raw] = [(one.digest, one.relation) for one in manifest.lineage]
    roots = _roots(asked.digest.raw, parents)
    return [_tree(root, "", nodes, parents, asked.digest.raw, ()) for root in roots]


def _everything(store: Store) -> list[Version]:
    found = []
    for model in store.models():
        found += store.versions(model)[::-1]
        found += store.all_variants(model)[::-1]
    return found


def _roots(start: bytes, parents: dict[bytes, list[tuple[bytes, str]]]) -> list[bytes]:
    """Return the oldest ancestors, each once; a circle, which no writer makes, ends there."""
    seen: set[bytes] = set()
    roots: dict[bytes, None] = {}
    left = [start]
    while left:
        digest = left.pop()
        if digest in seen:
            continue
        seen.add(digest)
        above = [parent for parent, _ in parents.get(digest, [])]
        if above:
            left += above
        else:
            roots[digest] = None
    return list(roots) or [start]


def _tree(
    digest: bytes,
    relation: str,
    nodes: dict[bytes, Node],
    parents: dict[bytes, list[tuple[bytes, str]]],
    asked: bytes,
    path: tuple[bytes, ...],
) -> Node:
    known = nodes.get(digest)
    node = Node(Digest(digest), list(known.names) if known else [], relation, asked=digest == asked)
    if digest not in path:
        node.children = [
            _tree(child, how, nodes, parents, asked, (*path, digest))
            for child, above in parents.items()
            for parent, how in above
            if parent == digest
        ]
    return node
