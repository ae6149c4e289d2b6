"""Retention as it is stored: windows and rules of models and of the store (SPEC.md 9.1)."""

from __future__ import annotations

from collections.abc import Mapping

from tierstore.blobs.base import BlobStore
from tierstore.format.keys import retention_key
from tierstore.format.retention import WINDOW_S, Retention
from tierstore.format.sealed import Kind, unseal_body


def read_retention(home_blobs: BlobStore, model: str) -> tuple[Retention | None, Retention | None]:
    """Return what is set for a model, and for the store; ``None`` for what is not set."""
    own, common = retention_key(model), retention_key(None)
    found = home_blobs.get_many([own, common])
    return _parsed(found, own), _parsed(found, common)


def stored_retention(home_blobs: BlobStore, model: str | None) -> Retention | None:
    """Return what is set for a model, or with ``None`` for the store; ``None`` if nothing is."""
    key = retention_key(model)
    return _parsed(home_blobs.get_many([key]), key)


def window_s(home_blobs: BlobStore, model: str) -> int:
    """Return for how many seconds a removed version of a model can be brought back."""
    for retention in read_retention(home_blobs, model):
        if retention is not None and retention.window_s is not None:
            return retention.window_s
    return WINDOW_S


def _parsed(found: Mapping[str, memoryview], key: str) -> Retention | None:
    if key not in found:
        return None
    return unseal_body(Kind.RETENTION, found[key], Retention, f"retention {key}")
