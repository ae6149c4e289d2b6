"""Checksums, and the errors for stored bytes that break the format; used by every parser."""

from __future__ import annotations

from typing import NewType, NoReturn

import blake3
import xxhash

from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.ids import Buffer, Digest

PATCH_FEATURE = "patch"
KNOWN_FEATURES: frozenset[str] = frozenset({PATCH_FEATURE})
"""The features that an object's ``requires`` may name."""

Verified = NewType("Verified", memoryview)
"""Plain bytes of a chunk that were compared with its digest, in memory that nobody else writes."""


class Broken(Exception):
    """What a value breaks of the format; whoever read or wants to write it says of which object."""


class Newer(Exception):
    """What a value needs that this version does not know."""


_UPGRADE = "it was written by a newer tierstore; upgrade this one to read it"


def xxh3(data: Buffer) -> int:
    """Return the XXH3-64 of ``data`` with seed 0, as the format stores it."""
    return xxhash.xxh3_64_intdigest(data)


def digest_of(data: Buffer) -> Digest:
    """Return the BLAKE3-256 of plain bytes: the identity of a chunk or a manifest."""
    return Digest(blake3.blake3(data).digest())


def damaged(name: str, why: str) -> NoReturn:
    """Raise ``Damaged`` for the stored object ``name``."""
    raise Damaged(
        f"{name} is damaged: {why}; run 'tierstore repair', which lists what it cannot put right"
    )


def unsupported(name: str, what: str) -> NoReturn:
    """Raise ``UnsupportedFormat`` for the stored object ``name``."""
    raise UnsupportedFormat(f"{name} needs {what}: {_UPGRADE}")


def check_requires(requires: list[str]) -> None:
    """Raise ``Newer`` when an object needs a feature that is not known here."""
    unknown = sorted(set(requires) - KNOWN_FEATURES)
    if unknown:
        raise Newer(f"the feature {', '.join(map(repr, unknown))}")
