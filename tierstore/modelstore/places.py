"""The places of a store, and what must not overlap with them.

Two places overlap when they are the same or one contains the other. Directories are compared by
what the file system says of them and of the folders above, and by where they lie in it: two names
of one directory, by links or by mounting it twice, are the same place, and so is a part of it that
is mounted elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tierstore.arguments import as_path
from tierstore.errors import UsageError
from tierstore.folders import absolute, mount_of, path_of

HOME, CACHE = "the store itself", "the cache"
_FAMILIES = {
    "s3a": "s3", "azure": "az", "abfs": "az", "abfss": "az", "rediss": "redis",
    "redis+cluster": "redis", "rediss+cluster": "redis", "unix": "redis",
}  # fmt: skip
"""Schemes that are other names of one kind of storage."""
_PORTS = {"redis": ":6379", "memcached": ":11211"}
_LOCAL = {"127.0.0.1": "localhost", "[::1]": "localhost"}


@dataclass(frozen=True, slots=True)
class StorePlace:
    """One place of a store.

    Attributes:
        name: What it is, for messages, such as ``tier 'warm'``.
        url: Where it is: a URL, or the path of a directory.
        options: Options that tell places at one URL apart, such as the prefix of keys.
    """

    name: str
    url: str
    options: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The place for messages: a path where it is a directory."""
        return path_of(self.url) or self.url


class StorePlaces:
    """All places of an open store.

    Args:
        listed: Returns them.
    """

    def __init__(self, listed: Callable[[], Sequence[StorePlace]]) -> None:
        self._listed = listed

    def check(self, path: str | os.PathLike[str], *, but: str = "") -> None:
        """Raise ``UsageError`` for a URL, and for a path that overlaps with a place of the store.

        Args:
            path: A file or directory that is saved, or a directory that is written to.
            but: Name of a place that it may overlap with.
        """
        text = as_path("path", path, "the path of a file or directory")
        if "://" in text:
            raise UsageError(
                f"{text!r} is a URL, where a file or directory of this machine is meant; give its "
                "path, and copy from or to other places with their own tools"
            )
        given = StorePlace("", text or ".")
        others = [place for place in self._listed() if place.name != but]
        if found := first_overlap(given, others):
            raise UsageError(found)


def overlap(one: StorePlace, other: StorePlace) -> str | None:
    """Return how a place overlaps with another: ``is``, ``holds`` or ``lies in``, or ``None``."""
    paths = path_of(one.url), path_of(other.url)
    if paths[0] is not None and paths[1] is not None:
        first, second = _ancestries(paths[0]), _ancestries(paths[1])
        pairs = list(zip(first, second, strict=True))
        inside = any(outer[0] in inner for inner, outer in pairs)
        around = any(inner[0] in outer for inner, outer in pairs)
    elif paths == (None, None):
        hosts, kind, parts = _served(one)
        other_hosts, other_kind, other_parts = _served(other)
        if kind != other_kind or hosts.isdisjoint(other_hosts):
            return None
        inside = parts[: len(other_parts)] == other_parts
        around = other_parts[: len(parts)] == parts
    else:
        return None
    if inside:
        return "is" if around else "lies in"
    return "holds" if around else None


def first_overlap(one: StorePlace, others: Iterable[StorePlace]) -> str | None:
    """Say with what a place overlaps first, and what to do; ``None`` if it does with none."""
    for other in others:
        if how := overlap(one, other):
            where = "" if one.shown == other.shown else f" ({other.shown})"
            return f"{one.shown} {how} {other.name}{where}; choose a place apart from it"
    return None


def _ancestries(path: str) -> tuple[Sequence[object], Sequence[object]]:
    """Return what identifies a directory and those above it, from the inside to the outside.

    First by the names that lead there, where what does not exist is identified by its path, and
    then within its file system: of a folder that is mounted there, those above lie elsewhere.
    """
    real = Path(os.path.realpath(absolute(path)))
    named: list[object] = []
    for folder in (real, *real.parents):
        try:
            there = folder.stat()
            named.append((there.st_dev, there.st_ino))
        except OSError:
            named.append(str(folder))
    return named, _within(real)


def _within(real: Path) -> list[tuple[str, str]]:
    mount = mount_of(str(real))
    if mount is None:
        return [("", str(folder)) for folder in (real, *real.parents)]
    inner = mount.root / real.relative_to(mount.point)
    return [(mount.device, str(folder)) for folder in (inner, *inner.parents)]


def _served(place: StorePlace) -> tuple[frozenset[str], tuple[object, ...], list[str]]:
    """Return the hosts of a place, what else tells it from others, and its path in parts."""
    parts = urlsplit(place.url)
    scheme = parts.scheme.removeprefix("fsspec+")
    kind = _FAMILIES.get(scheme, scheme)
    port = _PORTS.get(kind, ":")
    names = parts.netloc.rpartition("@")[2].lower().split(",")
    hosts = frozenset(_LOCAL.get(bare, bare) for bare in (n.removesuffix(port) for n in names))
    path = [part for part in unquote(parts.path).split("/") if part]
    if kind == "redis" and not path:
        path = ["0"]
    return hosts, (kind, parts.query, place.options), path
