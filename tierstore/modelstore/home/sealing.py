"""Seals manifests under names that may be relied on (format/SPEC.md 7, 10.3)."""

from __future__ import annotations

import secrets

import msgspec

from tierstore.errors import Damaged
from tierstore.format.manifest import SALT_BYTES, Manifest, seal_manifest
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home


def seal_fit(home: Home, manifest: Manifest, is_again: bool) -> tuple[Digest, bytes]:
    """Seal a manifest; where its name is condemned, with a salt, which gives it another one.

    Home is asked for nothing as long as no list that this process has read has the name: whoever
    looks at the newest list after the entry finds out the rest.

    Args:
        home: The store's home.
        manifest: The manifest.
        is_again: Whether the name was condemned that it had before.

    Returns:
        The digest, which is the name, and the sealed object.
    """
    if not is_again:
        digest, sealed = seal_manifest(manifest)
        if not (home.reclaims and home.condemned.may_hold(digest.raw)):
            return digest, sealed
        if not _is_condemned(home, digest):
            return digest, sealed
    salt = secrets.token_bytes(SALT_BYTES)
    return seal_manifest(msgspec.structs.replace(manifest, salt=salt))


def _is_condemned(home: Home, digest: Digest) -> bool:
    try:
        return bool(home.condemned.among([digest.raw]))
    except Damaged:  # then another name is safe, and the look after the entry says what is wrong
        return True
