"""Seals manifests under names that may be relied on (format/SPEC.md 7, 10.3)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NoReturn

import msgspec

from tierstore.errors import Conflict, Damaged, NotFound
from tierstore.format.keys import version_key
from tierstore.format.manifest import SALT_BYTES, Manifest, seal_manifest
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home


def seal_fit(home: Home, manifest: Manifest) -> tuple[Digest, bytes]:
    """Seal a manifest; where its name was condemned, with a salt, which gives it another one.

    A process that has read a condemned list asks home for nothing as long as that does not have the
    name: whoever looks at the list after the ref entry finds out the rest. One that has read none
    looks at the newest: its next try would be as new.

    Returns:
        The digest, which is the name, and the sealed object.
    """
    digest, sealed = seal_manifest(manifest)
    if home.reclaims and home.condemned.may_hold(digest.raw, True) and _is_condemned(home, digest):
        salt = secrets.token_bytes(SALT_BYTES)
        return seal_manifest(msgspec.structs.replace(manifest, salt=salt))
    return digest, sealed


def _is_condemned(home: Home, digest: Digest) -> bool:
    try:
        return bool(home.condemned.among([digest.raw]))
    except Damaged:  # then another name is safe, and the look after the entry says what is wrong
        return True


def refuse_condemned(home: Home, digest: Digest, take_back: Callable[[str], object]) -> NoReturn:
    """Raise ``Conflict`` for a version whose manifest was condemned while it was published.

    Nobody was promised it. Where the manifest is there it may be that a collector has seen the
    version, keeps it, and that somebody names it; else nobody can read it, and it is removed.
    """
    try:
        home.blobs.info(version_key(digest))
        done = "it may be listed, and stays as long as it is whole"
    except NotFound:
        take_back(f"undone: b3:{digest.hex} was purged")
        done = "it is removed again"
    raise Conflict(
        f"exactly the content b3:{digest.hex} was purged while it was saved, or patched; {done}. "
        "Try again: it is saved under another digest then"
    )
