"""The store as users have it: with administration and lossy variants, which build on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tierstore import wiring
from tierstore.admin.admin import Admin
from tierstore.format.manifest import DEFAULT_CHUNK
from tierstore.format.tiers import TierSpec
from tierstore.modelstore import store as modelstore
from tierstore.modelstore.version import Version
from tierstore.progress import Progress

__all__ = ["Store", "init_store", "open_store"]


class Store(modelstore.Store):
    __doc__ = modelstore.Store.__doc__

    @property
    def admin(self) -> Admin:
        """Administration: tiers, what they hold and serve, lineage, and what is wrong."""
        return self._once("admin", lambda: Admin(self))

    def derive(
        self,
        ref: str | Version,
        parameters: Mapping[str, str],
        *,
        keep: str | None = None,
        name: str | None = None,
        max_error: float | None = None,
        message: str = "",
        progress: Progress | bool | None = None,
    ) -> Version:
        """Make a lossy variant of a version and publish it beside that."""
        from tierstore.variants.derive import derive

        return derive(
            self, ref, parameters, keep=keep, name=name, max_error=max_error, message=message,
            progress=progress,
        )  # fmt: skip


def init_store(
    url: str | os.PathLike[str] | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    tiers: Sequence[TierSpec] = (),
) -> Store:
    """Make an empty store and open it.

    Args:
        url: A directory, which is made if it is missing, or a URL such as ``s3://bucket/prefix``;
            by default the one that ``TIERSTORE_STORE`` or the node's file names.
        chunk_size: Size of chunks in bytes, a power of two from 1 to 16 MiB; it never changes.
        tiers: Tiers beside home. Each is tried first, and nothing is made if one does not work.

    Raises:
        ConfigError: A tier is invalid.
        Conflict: There is a store already, or a tier belongs to another store.
        BackendError: The storage lacks what a store needs, or a tier cannot be used.
    """
    return wiring.init_as(Store, url, chunk_size=chunk_size, tiers=tiers)


def open_store(url: str | os.PathLike[str] | None = None) -> Store:
    """Open a store; see ``tierstore.open``."""
    return wiring.open_as(Store, url)
