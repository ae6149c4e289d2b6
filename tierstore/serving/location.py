"""``tierstore://`` URLs, which name a file of a version wherever the path of a file is expected.

::

    tierstore://ranker@prod/model.safetensors        ranker@prod, ranker@12, ranker@12+int8-row
    tierstore://org/ranker/config.json               the newest version of org/ranker
    tierstore://ranker@prod/a.txt?store=s3://models  in this store, not the one that
                                                     TIERSTORE_STORE or the node's file names

Nothing is decoded: ``%2e`` is the name's own characters. The reference ends at the first ``/``
behind its ``@``. Without ``@`` it is the shortest run of leading parts that names a model. An alias
that holds ``/`` cannot be written here; its version's number can.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tierstore.errors import FileMissing, InvalidName, NotFound
from tierstore.format.paths import check_path
from tierstore.ids import SCHEME as SCHEME
from tierstore.ids import ModelRef
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.serving.opened import open_model, open_shared

STORE = "?store="
_COLLAPSED = re.compile(r"tierstore:/(?=[^/])")


@dataclass(frozen=True, slots=True)
class Location:
    """A ``tierstore://`` URL, taken apart.

    Attributes:
        rest: Everything between the scheme and ``?store=``: a reference and the path of a file.
        store: URL of the store; ``None`` for the configured one.
    """

    rest: str
    store: str | None = None

    @classmethod
    def parse(cls, url: str) -> Location:
        """Take a URL apart; ``InvalidName`` for another scheme or an empty URL."""
        if not url.startswith(SCHEME):
            raise InvalidName(f"{url[:200]!r} is not a {SCHEME} URL")
        rest, _, store = url[len(SCHEME) :].partition(STORE)
        if not rest.strip("/"):
            raise InvalidName(f"{url[:200]!r} names no model: write {SCHEME}model@alias/file")
        return cls(rest, store or None)


def is_stored(path: object) -> bool:
    """Return whether this is a ``tierstore://`` URL, also as a ``Path``, which drops a ``/``."""
    if isinstance(path, os.PathLike):
        found = os.fspath(path)
        return isinstance(found, str) and _COLLAPSED.match(found) is not None
    return isinstance(path, str) and path.startswith(SCHEME)


def url_of(path: str | os.PathLike[str]) -> str:
    """Return the URL of a path that ``is_stored``."""
    return _COLLAPSED.sub(SCHEME, os.fspath(path), count=1)


def split_rest(store: Store, rest: str) -> tuple[str, str]:
    """Split ``rest`` of a ``Location`` into a reference and a path, empty for the version itself.

    Raises:
        InvalidName: One of them is not allowed, such as a path with ``..``.
        NotFound: No leading part of it names a model.
    """
    rest = rest.rstrip("/") if rest.rstrip("/") else rest
    model, at, behind = rest.partition("@")
    if at:
        selector, _, path = behind.partition("/")
        ref = f"{model}@{selector}"
        ModelRef.parse(ref)
    else:
        ref, path = _shortest_model(store, rest)
    return ref, check_path(path) if path else ""


def _shortest_model(store: Store, rest: str) -> tuple[str, str]:
    parts = rest.split("/")
    if len(parts) == 1:  # opening it tells whether it exists
        ModelRef.parse(rest)
        return rest, ""
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[:count])
        if ModelRef.parse(name) and store._parts.home.log(name).last() is not None:
            return name, "/".join(parts[count:])
    raise NotFound(f"there is no model {rest[:200]!r}; 'tierstore ls' lists them")


def open_ref(ref: str | Version, store: Store | None = None) -> tuple[Model, str]:
    """Open the version that ``ref`` names.

    Args:
        ref: Reference or version as for ``Store.load``, or a ``tierstore://`` URL.
        store: Store to read from; by default the one in the URL, or the configured one.

    Returns:
        The version, and the path of the file or folder that the URL names in it, or ``""``.

    Raises:
        NotFound: There is no such version.
        InvalidName: The reference or the path is not allowed.
    """
    if not isinstance(ref, str) or not ref.startswith(SCHEME):
        return (open_model(None, ref) if store is None else store.load(ref)), ""
    location = Location.parse(ref)
    url = location.store
    name, path = split_rest(open_shared(url) if store is None else store, location.rest)
    return (open_model(url, name) if store is None else store.load(name)), path


def open_file(url: str) -> tuple[Model, FileView]:
    """Open the version and the file that a URL names.

    Raises:
        FileMissing: There is no such model, version or file.
        InvalidName: The URL is malformed, or its path leaves the version.
    """
    location = Location.parse(url)
    store = open_shared(location.store)
    try:
        ref, path = split_rest(store, location.rest)
        model = open_model(location.store, ref)
        if path:
            return model, model.open_file(path)
    except FileMissing:
        raise
    except NotFound as error:
        raise FileMissing(f"No such file or directory: {url[:500]}: {error}") from None
    raise FileMissing(f"No such file or directory: {url[:500]}: it names a version, but no file")
