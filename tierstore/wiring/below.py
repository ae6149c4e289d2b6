"""The ground below a tier: the servers of a cache, or the file system of a directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from tierstore.folders import is_network, kind_of, sees_late
from tierstore.format.tiers import TierSpec
from tierstore.wiring.backends import Place, backend_of, directory_of, hot_directory, open_tier
from tierstore.wiring.servers import Server

__all__ = ["Disk", "Server", "ask_servers", "disk_of"]


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system below a directory.

    Attributes:
        kind: Its type, such as ``ext4``, ``tmpfs`` or ``nfs4``; ``None`` where that is not known.
        network: Whether another machine serves it.
        total_bytes: Its size in bytes.
        free_bytes: Bytes that this user may still write.
        sees_late: Whether this host may miss for a while what others have written.
    """

    kind: str | None
    network: bool
    total_bytes: int
    free_bytes: int
    sees_late: bool = False


def disk_of(spec: TierSpec) -> Disk | None:
    """Return the file system below a tier's directory; ``None`` where there is no directory."""
    path = hot_directory(spec) if spec.role == "hot" else directory_of(spec.url)
    if path is None:
        return None
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    text = str(path)
    return Disk(kind_of(text), is_network(text), usage.total, usage.free, sees_late(text))


def ask_servers(place: Place) -> tuple[Server, ...]:
    """Ask the servers of a cache about themselves; other places have none.

    Raises:
        Unreachable, PermissionDenied, BackendError: A server cannot be asked.
    """
    backend = backend_of(place.spec.url)
    if backend is None or backend.servers is None:
        return ()
    with open_tier(place) as store:
        return backend.servers(store)
