"""Lists the keys of all logs of a store at once, by the models and logs that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

from tierstore.blobs.base import BlobStore
from tierstore.errors import InvalidName
from tierstore.format.keys import (
    ALIASES,
    REFS,
    REMOVED_LOG,
    VARIANTS,
    VERSION_LOG,
    model_prefix,
    segment,
    unsegment,
)

NO_VERSION = "which no version has: the entry of one is lost"
NO_ENTRY = (
    "nothing is collected until 'tierstore repair' or a copy brings it back, or a version is given "
    "up with 'tierstore rm MODEL@N', or a variant with 'tierstore rm MODEL@N+NAME'"
)


def by_model(home_blobs: BlobStore) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the folders of models, as they are written in keys, with the keys below each.

    Args:
        home_blobs: The store's home; a request lists a thousand keys.
    """
    every = (info.key for info in home_blobs.list(REFS))
    for name, below in groupby(every, lambda key: key.removeprefix(REFS).partition("/")[0]):
        if found := [key for key in below if key.removeprefix(REFS) != name]:
            yield name, found


def model_of(folder: str) -> str:
    """Return the model whose logs lie in a folder; raise ``InvalidName`` where it is no model's.

    Args:
        folder: Its name, as it is written in keys.
    """
    try:
        model = unsegment(folder)
    except UnicodeDecodeError as error:
        raise InvalidName(str(error)) from error
    if segment(model) != folder:
        raise InvalidName(f"{folder!r} is not how the name would be written")
    return model


def by_log(model: str, listed: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Return keys by the names of the logs below whose prefixes they lie.

    What lies below none, or below a name that is not written as one is, is left out: nobody reads
    it.

    Args:
        model: The model's name.
        listed: Keys below the prefix of its logs.
    """
    start = len(model_prefix(model))
    found: dict[str, list[str]] = {}
    for key in listed:
        first, _, rest = key[start:].partition("/")
        if first in (VERSION_LOG, REMOVED_LOG):
            found.setdefault(first, []).append(key)
        elif f"{first}/" in (ALIASES, VARIANTS) and "/" in rest:
            text = rest.partition("/")[0]
            with suppress(UnicodeDecodeError, InvalidName):
                name = unsegment(text)
                if segment(name) == text:
                    found.setdefault(f"{first}/{name}", []).append(key)
    return found
