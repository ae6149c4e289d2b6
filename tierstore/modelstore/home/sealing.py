"""Seals manifests under names that may be relied on (format/SPEC.md 7, 10.3)."""

from __future__ import annotations

import os

import blake3
import msgspec

from tierstore.errors import Damaged
from tierstore.format.manifest import SALT_BYTES, Manifest, seal_manifest
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home

_CONTEXT = "tierstore salt of a manifest whose name was condemned"


def seal_fit(home: Home, manifest: Manifest, is_again: bool) -> tuple[Digest, bytes]:
    """Seal a manifest; where its name is condemned, with a salt, which gives it another one.

    The salt is made of that name, so that equal content has one name again, whoever saves it; where
    that was condemned as well, the next salt is made of it. Such a name is a name like any other.

    Home is asked for nothing as long as no list that this process has read has the name: whoever
    looks at the newest list after the entry finds out the rest.

    Args:
        home: The store's home.
        manifest: The manifest.
        is_again: Whether the name was condemned that it had before: then the newest list is read.

    Returns:
        The digest, which is the name, and the sealed object.
    """
    digest, sealed = seal_manifest(manifest)
    try:
        while home.reclaims and _is_condemned(home, digest, is_again):
            salt = blake3.blake3(digest.raw, derive_key_context=_CONTEXT).digest(SALT_BYTES)
            digest, sealed = seal_manifest(msgspec.structs.replace(manifest, salt=salt))
    except Damaged:  # then any other name is safe, and the look after the entry says what is wrong
        salt = os.urandom(SALT_BYTES)
        digest, sealed = seal_manifest(msgspec.structs.replace(manifest, salt=salt))
    return digest, sealed


def _is_condemned(home: Home, digest: Digest, is_again: bool) -> bool:
    condemned = home.condemned
    is_asked = is_again or condemned.may_hold(digest.raw)
    return is_asked and bool(condemned.among((), {digest.raw}))
